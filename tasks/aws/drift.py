"""What of a stack's resources is not as its template says any more, because somebody changed it by hand."""

from typing import Any

from tasks.aws.clients import client
from tasks.aws.errors import translate_aws_errors
from tasks.aws.stacks import POLL_SECONDS, STACK_SECONDS, InfrastructureError, find_outputs
from tasks.waiting import look_until


def drift(stack: str) -> list[str] | None:
    """A line for each resource that was changed or deleted, empty if there is none; None if there is no such stack.

    Raises InfrastructureError if CloudFormation cannot tell. It compares what templates set, not what they leave open,
    and not every type of resource: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/resource-import-supported-resources.html
    """
    if find_outputs(stack) is None:
        return None
    cloudformation = client("cloudformation")
    with translate_aws_errors(f"look for drift of the stack {stack}"):
        detection = cloudformation.detect_stack_drift(StackName=stack)["StackDriftDetectionId"]

    def look() -> Any:
        with translate_aws_errors(f"look for drift of the stack {stack}"):
            return cloudformation.describe_stack_drift_detection_status(StackDriftDetectionId=detection)

    status = look_until(
        lambda seen: seen["DetectionStatus"] != "DETECTION_IN_PROGRESS",
        look,
        seconds=STACK_SECONDS,
        every=POLL_SECONDS,
    )
    if status["DetectionStatus"] != "DETECTION_COMPLETE":
        raise InfrastructureError(f"drift of the stack {stack}: {status.get('DetectionStatusReason', status)}")
    with translate_aws_errors(f"read the drift of the stack {stack}"):
        found = cloudformation.describe_stack_resource_drifts(
            StackName=stack, StackResourceDriftStatusFilters=["MODIFIED", "DELETED"]
        )["StackResourceDrifts"]
    return [_line(resource) for resource in sorted(found, key=lambda each: str(each["LogicalResourceId"]))]


def _line(resource: dict[str, Any]) -> str:
    name = f"{resource['LogicalResourceId']} ({resource['ResourceType']})"
    if resource["StackResourceDriftStatus"] == "DELETED":
        return f"{name} is gone"
    changes = ", ".join(
        f"{each['PropertyPath']} is {each['ActualValue']}, not {each['ExpectedValue']}"
        for each in resource.get("PropertyDifferences", [])
    )
    return f"{name}: {changes}"
