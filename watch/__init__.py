"""A process beside the worker that goes on with flow runs that died, and tells people of those that ended badly."""
