"""The command line: `scones classify`, `why`, `nights`, `report` and `doctor`. Each calls what the flows call."""
