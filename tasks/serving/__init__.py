"""The endpoint: its state, models and endpoint configs, smoke tests, rollouts, the workflow's threshold.

What it answered is in capture/.
"""
