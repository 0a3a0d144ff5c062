"""Evaluations under faults: what goes wrong (proxy, nights), and who decides whether anything was lost (checker)."""
