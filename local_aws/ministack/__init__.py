"""ministack: S3, Lambda, Step Functions, IAM and CloudFormation, as strict as AWS in what this project relies on.

No SageMaker: that is `local_sagemaker`, which asks `authorization` here whether a caller may do what it wants.
"""
