"""The operations of the SageMaker API by family: a method each, named as boto3 names it.

Each takes a request that fits the API's description and returns what its answer is shaped from. Times are epoch
seconds.
"""
