"""List prices of AWS in US dollars, of us-east-1; they differ between regions and change.

Looked up on AWS's pages (aws.amazon.com: /step-functions/pricing, /lambda/pricing, /sagemaker/pricing,
/fargate/pricing, /vpc/pricing, /s3/pricing), where that was possible.
"""

from datetime import date

LOOKED_UP = date(2026, 11, 22)
STATE_TRANSITION = 0.025 / 1000
LAMBDA_REQUEST = 0.20 / 1_000_000
LAMBDA_GB_SECOND = 0.0000166667
# Hosting and training, an instance-hour.
INSTANCE_HOUR = {
    "ml.t2.medium": 0.056,
    "ml.m5.large": 0.115,
    "ml.m5.xlarge": 0.23,
    "ml.c5.large": 0.102,
    "ml.c5.2xlarge": 0.408,
    "ml.c5.4xlarge": 0.816,
}
# Fargate on x86, and a public IPv4 address: /fargate/pricing, /vpc/pricing.
FARGATE_CPU_HOUR = 0.04048
FARGATE_GB_HOUR = 0.004445
PUBLIC_ADDRESS_HOUR = 0.005
# S3, a request.
GET_REQUEST = 0.0004 / 1000
PUT_REQUEST = 0.005 / 1000
# S3, a GB and month of the class Standard.
STORED_GB = 0.023
