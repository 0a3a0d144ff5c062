"""AWS itself: clients and what their errors mean, objects in the bucket, logs, CloudFormation stacks.

Nothing here knows of models, evaluations or reports.
"""
