"""Whether executions and captures tell the same: what is in one and not in the other, line by line."""

from collections import Counter
from datetime import datetime

from tasks.capture.window import Captured
from tasks.evaluation.results import Result
from tasks.report.summary import Unmatched

# What each kind of line means; a report counts and lists them.
KINDS = {
    "missing_capture": "answered, but not captured (yet)",
    "capture_without_output": "captured without the model's answer",
    "execution_without_outcome": "executed, but not decided",
    "retried_attempt": "an earlier attempt, which does not count",
    "repeated_capture": "captured more than once; the last record counts",
    "capture_without_execution": "captured, but asked for by no execution",
}


def reconcile(results: list[Result], captured: Captured, started: str | None, stopped: str | None) -> list[Unmatched]:
    """A line per thing that does not match, by kind and then by time or id.

    A capture without execution is looked for between the first start and the last end: before and after, others may
    ask the endpoint whatever they like.
    """
    attempts = [attempt for row in results for attempt in row.previous_attempts]
    undecided = [row for row in results if row.status == "failed"]
    lines = [
        *(_line("missing_capture", name, "") for name in sorted(captured.missing)),
        *(_line("capture_without_output", name, "") for name in sorted(captured.without_output)),
        *(_line("execution_without_outcome", row.inference_id, row.error or "") for row in undecided),
        *(_line("retried_attempt", row.inference_id, row.error or row.status) for row in attempts),
        *(_line("repeated_capture", name, f"{count} records") for name, count in captured.repeated.items()),
    ]
    if started and stopped:
        ours = {row.inference_id for row in [*results, *attempts]}
        first, last = datetime.fromisoformat(started), datetime.fromisoformat(stopped)
        others = captured.records[captured.records["time"].between(first, last)]
        others = others[~others["inference_id"].isin(ours)]
        lines += [
            _line("capture_without_execution", name if isinstance(name, str) else None, time.isoformat())
            for name, time in zip(others["inference_id"], others["time"], strict=True)
        ]
    return lines


def counts(lines: list[Unmatched]) -> dict[str, int]:
    """How many lines there are of each kind."""
    found = Counter(line.kind for line in lines)
    return {kind: found[kind] for kind in KINDS}


def _line(kind: str, inference_id: str | None, detail: str) -> Unmatched:
    return Unmatched(kind=kind, inference_id=inference_id, detail=detail)
