"""The two CloudFormation stacks and the code that they read from the bucket."""

import hashlib
import time
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError
from prefect import task
from prefect.logging import get_run_logger

from settings import CODE_PREFIX, ROOT, VARIANT, settings
from tasks.aws import errors, storage
from tasks.aws.clients import client
from tasks.aws.errors import translate_aws_errors
from tasks.aws.function_packages import FUNCTIONS, function_package
from tasks.aws.logs import ENDPOINT_LOGS, keep_for
from tasks.aws.tags import tag_list
from tasks.errors import SconesError
from tasks.installation import Installation
from tasks.run import Log
from tasks.waiting import look_until

POLL_SECONDS = 1.0
# As the template's default for the functions.
LOG_RETENTION_DAYS = 30
STACK_SECONDS = 1800


WORKFLOW_TEMPLATE = ROOT / "infrastructure" / "workflow.yaml"


class InfrastructureError(SconesError):
    """A stack is missing, or could not be created or updated; the message has the failing resource's reason."""


@task(task_run_name="deploy infrastructure")
def deploy_infrastructure(classes: tuple[str, ...] | None = None) -> Installation:
    """Creates or updates the stacks; unchanged ones are left alone.

    classes: what the model tells apart; by default the setting's, or if that is not set what the stack has already.
    """
    return deploy_stacks(get_run_logger().info, classes)


def deploy_stacks(progress: Log, classes: tuple[str, ...] | None = None) -> Installation:
    """The same outside of a flow run."""
    bucket = deploy_storage_stack(progress)
    deploy_workflow_stack(bucket, progress, classes)
    if settings().alarms:
        deploy_alarms_stack(progress)
    elif delete_stack(settings().alarms_stack):
        progress(f"deleted stack {settings().alarms_stack}: SCONES_ALARMS is off")
    for name in (settings().storage_stack, settings().stack):
        protect(name)
    return installation()


def deploy_storage_stack(progress: Log) -> str:
    """Creates or updates the storage stack and returns the bucket's name."""
    chosen = settings()
    name = chosen.storage_stack
    parameters: dict[str, str | None] = {
        "Stack": chosen.stack,
        "KmsKey": chosen.kms_key or "",
        "AccessLogs": _flag(chosen.access_logs),
    }
    outcome = deploy_stack(name, ROOT / "infrastructure" / "storage.yaml", parameters)
    progress(f"stack {name}: {outcome}")
    return stack_outputs(name)["Bucket"]


def deploy_workflow_stack(bucket: str, progress: Log, classes: tuple[str, ...] | None) -> None:
    """Uploads the functions and the state machine's definition and creates or updates the workflow stack."""
    chosen = settings()
    if classes is None and ("classes" in chosen.model_fields_set or not find_outputs(chosen.stack)):
        classes = chosen.classes
    keys = _upload_code(bucket)
    parameters: dict[str, str | None] = {
        "Stack": chosen.stack,
        "Bucket": bucket,
        "EndpointName": chosen.endpoint,
        "Classes": ",".join(classes) if classes else None,
        "Threshold": None,  # deploy-endpoint changes it, with the model
        "Runtime": chosen.lambda_runtime,
        "ReservedConcurrency": str(chosen.lambda_concurrency),
        "KmsKey": chosen.kms_key or "",
        "Vpc": _flag(bool(chosen.vpc_subnets)),
        "FunctionsInVpc": _flag(chosen.functions_in_vpc),
        "Subnets": ",".join(chosen.vpc_subnets),
        "SecurityGroups": ",".join(chosen.vpc_security_groups),
        "StateMachineLogs": _flag(chosen.state_machine_logs),
        "Tracing": _flag(chosen.tracing),
        "SerializeImageDataKey": keys["serialize_image_data"],
        "ClassifyImageKey": keys["classify_image"],
        "FilterLowConfidenceKey": keys["filter_low_confidence"],
        "ClassifyBatchKey": keys["classify_batch"],
        "DefinitionKey": keys["definition"],
        "BatchDefinitionKey": keys["batch-definition"],
    }
    outcome = deploy_stack(chosen.stack, WORKFLOW_TEMPLATE, parameters)
    progress(f"stack {chosen.stack}: {outcome}")
    # Not in the template: SageMaker may have made them already. Only who may change the stack may do this too.
    if outcome != "unchanged":
        for endpoint in (chosen.endpoint, chosen.candidate_endpoint):
            keep_for(f"{ENDPOINT_LOGS}/{endpoint}", LOG_RETENTION_DAYS, chosen.kms_key)


def deploy_alarms_stack(progress: Log) -> None:
    """Creates or updates the stack of alarms and the dashboard."""
    chosen = settings()
    outputs = stack_outputs(chosen.stack)
    parameters: dict[str, str | None] = {
        "Stack": chosen.stack,
        "EndpointName": chosen.endpoint,
        "VariantName": VARIANT,
        "StateMachineArn": outputs["StateMachineArn"],
        "BatchStateMachineArn": outputs["BatchStateMachineArn"],
        "Email": chosen.alarm_email or "",
        "MonthlyBudget": f"{chosen.monthly_budget:g}",
    }
    outcome = deploy_stack(chosen.alarms_stack, ROOT / "infrastructure" / "alarms.yaml", parameters)
    progress(f"stack {chosen.alarms_stack}: {outcome}")


def deploy_runner_stack(prefect_api_url: str, work_pool: str, progress: Log) -> dict[str, str]:
    """Creates or updates the stack in which flow runs run on ECS, and returns its outputs."""
    chosen = settings()
    parameters: dict[str, str | None] = {
        "Stack": chosen.stack,
        "FlowRunnerRoleArn": stack_outputs(chosen.stack)["FlowRunnerRoleArn"],
        "Vpc": chosen.runner_vpc,
        "Subnets": ",".join(chosen.runner_subnets),
        "AssignPublicIp": "ENABLED" if chosen.runner_public_ip else "DISABLED",
        "ImageTag": chosen.runner_image_tag,
        "WorkPool": work_pool,
        "PrefectApiUrl": prefect_api_url,
        "PrefectApiKeySecretArn": chosen.runner_api_key_secret or "",
        "Workers": str(chosen.runner_workers),
        "KmsKey": chosen.kms_key or "",
    }
    outcome = deploy_stack(chosen.runner_stack, ROOT / "infrastructure" / "runner.yaml", parameters)
    progress(f"stack {chosen.runner_stack}: {outcome}")
    return stack_outputs(chosen.runner_stack)


def change_threshold(threshold: float, progress: Log) -> None:
    """Gives the workflow stack another threshold and leaves the rest of it as it is.

    It has to stand by this release's template, which is sent again: another one, which somebody with less rights may
    have put there, would be carried out with the rights of whoever calls. Raises InfrastructureError if it is another.
    """
    name = settings().stack
    stack = _settled(name)
    if stack is None:
        raise InfrastructureError(f"there is no stack {name!r}", "run the prepare-data deployment first")
    with translate_aws_errors(f"read the template of the stack {name}"):
        standing = client("cloudformation").get_template(StackName=name, TemplateStage="Original")["TemplateBody"]
    if standing != WORKFLOW_TEMPLATE.read_text():
        raise InfrastructureError(
            f"the stack {name} has another template than this release", "run the prepare-data deployment first"
        )
    parameters: dict[str, str | None] = {parameter["ParameterKey"]: None for parameter in stack["Parameters"]}
    outcome = deploy_stack(name, WORKFLOW_TEMPLATE, {**parameters, "Threshold": repr(threshold)}, tagged=False)
    progress(f"stack {name}: {outcome}, the threshold is {threshold:.4f}")


def installation() -> Installation:
    """Reads the stacks' outputs; raises InfrastructureError if a stack is missing."""
    chosen = settings()
    outputs = stack_outputs(chosen.stack)
    return Installation(
        bucket=stack_outputs(chosen.storage_stack)["Bucket"],
        state_machine_arn=outputs["StateMachineArn"],
        # A stack of an earlier release has none until prepare-data updates it.
        batch_state_machine_arn=outputs.get("BatchStateMachineArn", ""),
        endpoint=outputs["EndpointName"],
        classes=tuple(outputs["Classes"].split(",")),
        threshold=float(outputs["Threshold"]),
        training_role_arn=outputs["TrainingRoleArn"],
        hosting_role_arn=outputs["HostingRoleArn"],
    )


def stack_outputs(name: str) -> dict[str, str]:
    """Raises InfrastructureError if there is no such stack, or its creation failed."""
    outputs = find_outputs(name)
    if outputs is None:
        raise InfrastructureError(f"there is no stack {name!r}", "run the prepare-data deployment first")
    if not outputs:
        raise InfrastructureError(f"stack {name!r} was not created", "run the prepare-data deployment again")
    return outputs


def find_outputs(name: str) -> dict[str, str] | None:
    """A stack's outputs, of which one that failed may have none; None if there is no such stack."""
    stack = _describe(name)
    if stack is None or stack["StackStatus"] == "DELETE_COMPLETE":
        return None
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}


def deploy_stack(name: str, template: Path, parameters: dict[str, str | None], tagged: bool = True) -> str:
    """Brings a stack to its template by a change set: 'created', 'updated' or 'unchanged'.

    A parameter that is None keeps the stack's, or the template's default. tagged: give it the settings' tags anew.
    Raises InfrastructureError.
    """
    cloudformation = client("cloudformation")
    stack = _settled(name)
    if stack and stack["StackStatus"] in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "DELETE_FAILED"):
        # What is left of a creation that failed can't be updated.
        with translate_aws_errors(f"delete the failed stack {name}"):
            cloudformation.delete_stack(StackName=name)
        stack = _settled(name)
    exists = stack is not None and stack["StackStatus"] != "REVIEW_IN_PROGRESS"
    with translate_aws_errors(f"create a change set for the stack {name}"):
        made = cloudformation.create_change_set(
            StackName=name,
            ChangeSetName=f"deploy-{time.time_ns()}",
            ChangeSetType="UPDATE" if exists else "CREATE",
            TemplateBody=template.read_text(),
            Capabilities=["CAPABILITY_IAM"],
            Parameters=_parameters(parameters, {p["ParameterKey"] for p in (stack or {}).get("Parameters", [])}),
            # CloudFormation gives them to what the stack makes. A change of parameters alone leaves them as they are.
            **({"Tags": tag_list()} if tagged else {}),
        )
        # By its ARN: somebody else may delete it and make another one of that name.
        arn = made["Id"]
        reason = _wait_for_change_set(name, arn)
        if reason is not None:
            cloudformation.delete_change_set(StackName=name, ChangeSetName=arn)
            if errors.is_unchanged(reason):
                return "unchanged"
            raise InfrastructureError(f"stack {name}: {reason}")
        cloudformation.execute_change_set(StackName=name, ChangeSetName=arn)
    done = _settled(name)
    if done is None or done["StackStatus"] not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        raise InfrastructureError(f"stack {name}: {done and done['StackStatus']}: {_failure(name)}")
    return "updated" if exists else "created"


def delete_stack(name: str) -> bool:
    """Deletes a stack and waits until it is gone; False if there was none. Raises InfrastructureError."""
    if _settled(name) is None:
        return False
    with translate_aws_errors(f"delete the stack {name}"):
        client("cloudformation").delete_stack(StackName=name)
    left = _settled(name)
    if left is not None:
        raise InfrastructureError(f"stack {name}: {left['StackStatus']}: {_failure(name)}")
    return True


def protect(name: str) -> None:
    """Has CloudFormation refuse to delete the stack, or allow it again, as the settings say."""
    wanted, stack = settings().protected, _describe(name)
    if stack is not None and bool(stack.get("EnableTerminationProtection")) != wanted:
        with translate_aws_errors(f"change the protection of the stack {name}"):
            client("cloudformation").update_termination_protection(StackName=name, EnableTerminationProtection=wanted)


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _parameters(values: dict[str, str | None], previous: set[str]) -> list[dict[str, Any]]:
    given = [{"ParameterKey": key, "ParameterValue": value} for key, value in values.items() if value is not None]
    kept = [
        {"ParameterKey": key, "UsePreviousValue": True}
        for key, value in values.items()
        if value is None and key in previous
    ]
    return [*given, *kept]


def _describe(name: str) -> dict[str, Any] | None:
    with translate_aws_errors(f"look at the stack {name}"):
        try:
            stack: dict[str, Any] = client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]
            return stack
        except ClientError as error:
            if errors.is_missing_stack(error):
                return None
            raise


def _settled(name: str) -> dict[str, Any] | None:
    """The stack once nothing is in progress; None if there is none."""
    stack = look_until(_is_settled, lambda: _describe(name), seconds=STACK_SECONDS, every=POLL_SECONDS)
    if not _is_settled(stack):
        raise InfrastructureError(f"stack {name} is {stack and stack['StackStatus']} for {STACK_SECONDS} s")
    return None if stack is None or stack["StackStatus"] == "DELETE_COMPLETE" else stack


def _is_settled(stack: dict[str, Any] | None) -> bool:
    status = stack["StackStatus"] if stack else ""
    return not status.endswith("_IN_PROGRESS") or status == "REVIEW_IN_PROGRESS"


def _wait_for_change_set(stack: str, arn: str) -> str | None:
    """None once the change set can be executed, else why it can't."""
    answer = look_until(
        lambda seen: seen["Status"] in ("CREATE_COMPLETE", "FAILED"),
        lambda: client("cloudformation").describe_change_set(StackName=stack, ChangeSetName=arn),
        seconds=STACK_SECONDS,
        every=POLL_SECONDS / 4,
    )
    if answer["Status"] == "CREATE_COMPLETE":
        return None
    return str(answer.get("StatusReason", f"the change set is {answer['Status']} without a reason"))


def _failure(name: str) -> str:
    """The first resource that failed in the stack's newest operation, with its own reason."""
    with translate_aws_errors(f"read the events of the stack {name}"):
        events = client("cloudformation").describe_stack_events(StackName=name)["StackEvents"]
    failed = [
        event
        for event in events
        if event["ResourceStatus"].endswith("_FAILED") and "cancelled" not in event.get("ResourceStatusReason", "")
    ]
    if not failed:
        return "no event names a failed resource"
    event = min(failed, key=lambda event: event["Timestamp"])
    reason = event.get("ResourceStatusReason")
    if event["ResourceType"] == "AWS::CloudFormation::Stack":  # refused before any resource was tried
        event, reason = _failed_validation(name) or (event, reason)
    return f"{event['LogicalResourceId']} ({event['ResourceType']}): {reason}"


def _failed_validation(name: str) -> tuple[dict[str, Any], str] | None:
    """The first resource that CloudFormation's validation refused, with the reason."""
    with translate_aws_errors(f"read the validations of the stack {name}"):
        events = client("cloudformation").describe_events(StackName=name)["OperationEvents"]
    failed = [event for event in events if event.get("ValidationStatus") == "FAILED"]
    return (failed[0], failed[0]["ValidationStatusReason"]) if failed else None


def _upload_code(bucket: str) -> dict[str, str]:
    """Uploads function packages and definition under keys that carry their content's hash; returns the keys."""
    contents = {f"{name}.zip": function_package(name, settings().lambda_runtime) for name in FUNCTIONS}
    for stem, document in (("definition", "classify_image"), ("batch-definition", "classify_batch")):
        contents[f"{stem}.asl.json"] = (ROOT / "statemachine" / f"{document}.asl.json").read_bytes()
    keys = {}
    for name, content in contents.items():
        stem, suffix = name.split(".", 1)
        keys[stem] = f"{CODE_PREFIX}{stem}-{hashlib.sha256(content).hexdigest()[:16]}.{suffix}"
    objects = {keys[name.split(".", 1)[0]]: content for name, content in contents.items()}
    storage.upload_changed(bucket, CODE_PREFIX, objects)
    return keys
