"""A SageMaker for one machine: trains in a process, serves from a process, captures to S3.

It speaks the control plane's JSON 1.1 API and the runtime's REST API, and uses S3, STS and CloudWatch Logs through the
AWS SDK's own environment variables. Training scripts run under AWS's training toolkit, models under its inference
toolkit, so what runs here runs in AWS's PyTorch containers.
"""
