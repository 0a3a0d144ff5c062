"""The installation's tags, in the two shapes that AWS's clients take."""

from typing import Any

from settings import settings


def tag_list() -> list[dict[str, str]]:
    """For boto3: SageMaker and CloudFormation."""
    return [{"Key": key, "Value": value} for key, value in settings().tags.items()]


def sdk_tags() -> Any:
    """For SageMaker's SDK, of which sagemaker.core.resources takes no sagemaker.core.shapes.Tag: it has another Tag."""
    return [{"key": key, "value": value} for key, value in settings().tags.items()]
