"""Figures, charts and pages about captured inferences and evaluations, written to reports/.

Metrics and charts are pure functions of tables.
"""
