"""An AWS to run against on one machine: ministack for most services, and a SageMaker of our own.

Nothing here imports the rest of the project; the two meet only in AWS's APIs.
"""
