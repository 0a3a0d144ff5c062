"""One run over the test images: executions of the workflow, results, the outcome and its cost.

Charts and pages of it are in report/.
"""
