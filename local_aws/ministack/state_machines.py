"""What Step Functions refuses and ministack lets pass: a role that may not invoke, and payloads of too many bytes.

Sources: https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html and service-quotas.html,
https://docs.aws.amazon.com/step-functions/latest/apireference/API_StartExecution.html
"""

import contextvars
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Any

from ministack.core.responses import error_response_json, json_response
from ministack.services import lambda_svc, stepfunctions

from local_aws.ministack.authorization import role_decision

MAX_PAYLOAD_BYTES = 262_144
# States.ALL matches neither.
TERMINAL = ("States.DataLimitExceeded", "States.Runtime")

_execution: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("execution", default=None)


def install(list_delay: float) -> None:
    """Puts each check around the function of ministack's that it is about.

    list_delay: seconds until ListExecutions shows what happened.
    """
    for name, around in CHECKS.items():
        setattr(stepfunctions, name, around(getattr(stepfunctions, name)))
    if list_delay:
        stepfunctions._list_executions = _list_as_it_was(stepfunctions._list_executions, list_delay)


def _with_execution(execute_task: Callable[..., Any]) -> Callable[..., Any]:
    """Remembers whose task it is; the threads that a task starts know it too."""

    @wraps(execute_task)
    def checked(state: Any, raw_input: Any, execution: dict[str, Any], context: Any) -> Any:
        token = _execution.set(execution)
        try:
            output, following = execute_task(state, raw_input, execution, context)
        finally:
            _execution.reset(token)
        check_size(output, f"The state/task '{context['State']['Name']}' returned a result with")
        return output, following

    return checked


def _with_payload_limit(invoke: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(invoke)
    def checked(resource: str, payload: Any) -> Any:
        check_size(payload, f"The input of the state/task '{resource}' has")
        result = invoke(resource, payload)
        check_size(result, f"The state/task '{resource}' returned a result with")
        return result

    return checked


def _with_role(call: Callable[..., Any]) -> Callable[..., Any]:
    """A function is invoked in the name of the state machine's role."""

    @wraps(call)
    def checked(function: str, event: Any) -> Any:
        execution = _execution.get()
        _, config, _ = lambda_svc._get_func_record_for_ref(function)
        if execution and config:
            # A Distributed Map's child is an execution of MACHINE/LABEL, in the name of the machine's role.
            machine = execution["stateMachineArn"].split("/")[0]
            role = stepfunctions._state_machines[machine]["roleArn"]
            action, resource = "lambda:InvokeFunction", config["FunctionArn"]
            decision, principal = role_decision(role, execution["name"], action, resource)
            if decision != "Allow":
                # As quoted in awslabs/aws-deployment-framework, issue 460.
                raise stepfunctions._ExecutionError(
                    "Lambda.AWSLambdaException",
                    f"User: {principal} is not authorized to perform: {action} on resource: {resource} because no "
                    f"identity-based policy allows the {action} action (Service: AWSLambda; Status Code: 403; Error "
                    f"Code: AccessDeniedException; Request ID: {uuid.uuid4()}; Proxy: null)",
                )
        return call(function, event)

    return checked


def _with_input_limit(start: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(start)
    def checked(data: dict[str, Any], *arguments: Any) -> Any:
        size = len(str(data.get("input", "")).encode())
        if size > MAX_PAYLOAD_BYTES:
            return error_response_json(
                "ValidationException",
                "1 validation error detected: Value at 'input' failed to satisfy constraint: Member must have length "
                f"less than or equal to {MAX_PAYLOAD_BYTES}",
                400,
            )
        return start(data, *arguments)

    return checked


def _list_as_it_was(list_executions: Callable[..., Any], delay: float) -> Callable[..., Any]:
    """ListExecutions as of some seconds ago: what began since is missing, what ended since is RUNNING."""

    @wraps(list_executions)
    def delayed(data: dict[str, Any]) -> Any:
        wanted = data.get("statusFilter")
        status, headers, body = list_executions({**data, "statusFilter": None})
        if status != 200:
            return status, headers, body
        now = datetime.now(UTC).timestamp()
        page = json.loads(body)
        then = []
        for each in page["executions"]:
            if now - _timestamp(each["startDate"]) < delay:
                continue
            if each["stopDate"] and now - _timestamp(each["stopDate"]) < delay:
                each |= {"status": "RUNNING", "stopDate": None}
            if wanted in (None, each["status"]):
                then.append(each)
        return json_response({**page, "executions": then})

    return delayed


def _timestamp(date: str | float) -> float:
    return date if isinstance(date, (int, float)) else datetime.fromisoformat(date).timestamp()


def _without_terminal(matches: Callable[..., bool]) -> Callable[..., bool]:
    @wraps(matches)
    def checked(names: list[str], error: str) -> bool:
        if error in TERMINAL:
            return error in names
        return matches(names, error)

    return checked


def check_size(payload: Any, subject: str) -> None:
    """Raises what a payload of too many bytes ends an execution with."""
    size = len(json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode())
    if size > MAX_PAYLOAD_BYTES:
        raise stepfunctions._ExecutionError(
            "States.DataLimitExceeded",
            f"{subject} a size exceeding the maximum number of bytes service limit.",
        )


CHECKS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "_execute_task": _with_execution,
    "_invoke_resource": _with_payload_limit,
    "_call_lambda": _with_role,
    "_start_execution": _with_input_limit,
    "_error_matches": _without_terminal,
}
