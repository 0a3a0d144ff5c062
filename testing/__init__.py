"""What tests and benchmarks share: captures made to order, load, flow runs with their processes, faults by a seed."""
