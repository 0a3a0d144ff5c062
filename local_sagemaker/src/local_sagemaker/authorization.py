"""Whether a caller's policies allow a call: which actions it takes, on which resources, with which condition values.

Who the caller is and what its policies say is the account's to know: an authorizer is asked over HTTP. It gets
`{"accessKeyId": "...", "requests": [{"action": "...", "resource": "...", "conditions": {KEY: VALUE, ...}}, ...]}` and
answers `{"principal": ARN, "decisions": ["Allow" | "Deny" | "ImplicitDeny", ...]}`, or `{"error": {"code": "...",
"message": "..."}}` if the access key is not valid. To `{"accessKeyId": "...", "scope": {"token": ..., "date": ...,
"region": ..., "service": ...}}` it answers `{"signingKey": HEX}`, by which signatures are checked. It is asked with the
account's own secret key as a bearer token.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import jmespath
import urllib3

from local_sagemaker import account
from local_sagemaker.protocol import ApiError
from local_sagemaker.resources import (
    ENDPOINT,
    ENDPOINT_CONFIG,
    MODEL,
    MODEL_PACKAGE,
    MODEL_PACKAGE_GROUP,
    TRAINING_JOB,
    Kind,
)
from local_sagemaker.signatures import Scope

# The resource types and condition keys of each action are those of
# https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonsagemaker.html
# What is not here, such as every List operation, is authorized on any resource.
RESOURCES: dict[str, tuple[Kind, ...]] = {
    **{f"{verb}TrainingJob": (TRAINING_JOB,) for verb in ("Create", "Describe", "Stop")},
    **{f"{verb}Model": (MODEL,) for verb in ("Create", "Describe", "Delete")},
    **{f"{verb}EndpointConfig": (ENDPOINT_CONFIG,) for verb in ("Create", "Describe", "Delete")},
    **{f"{verb}Endpoint": (ENDPOINT, ENDPOINT_CONFIG) for verb in ("Create", "Update")},
    **{f"{verb}Endpoint": (ENDPOINT,) for verb in ("Describe", "Delete", "Invoke")},
    "UpdateEndpointWeightsAndCapacities": (ENDPOINT,),
    **{f"{verb}ModelPackageGroup": (MODEL_PACKAGE_GROUP,) for verb in ("Create", "Describe", "Delete")},
    **{f"{verb}ModelPackage": (MODEL_PACKAGE,) for verb in ("Describe", "Update", "Delete")},
    # Of two types of which neither is required, a version in a group is authorized as a model package.
    "CreateModelPackage": (MODEL_PACKAGE,),
}
# Where a request holds the value of a condition key, as a JMESPath expression.
CONDITIONS = {
    "sagemaker:InstanceTypes": "[ResourceConfig.InstanceType, ProductionVariants[].InstanceType][]",
    "sagemaker:MaxRuntimeInSeconds": "StoppingCondition.MaxRuntimeInSeconds",
    "sagemaker:ModelApprovalStatus": "ModelApprovalStatus",
    "sagemaker:NetworkIsolation": "EnableNetworkIsolation",
    "sagemaker:OutputKmsKey": "OutputDataConfig.KmsKeyId",
    "sagemaker:VolumeKmsKey": "ResourceConfig.VolumeKmsKeyId || KmsKeyId",
    "sagemaker:VpcSecurityGroupIds": "VpcConfig.SecurityGroupIds",
    "sagemaker:VpcSubnets": "VpcConfig.Subnets",
    "sagemaker:TargetModel": "TargetModel",
}
AUTO_SCALING = "application-autoscaling"
ROLES = ("RoleArn", "ExecutionRoleArn")
# A changed policy takes a moment on AWS too.
KEPT_SECONDS = 5.0
# What was allowed longer ago than that is forgotten.
STALE_SECONDS = 600.0
TIMEOUT_SECONDS = 5.0


class AccessDeniedException(ApiError):
    """The caller's policies do not allow the call."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__("AccessDeniedException", message, status)


@dataclass(frozen=True)
class Request:
    """One action on one resource, by ARN, with the values of the condition keys that it has."""

    action: str
    resource: str
    conditions: dict[str, Any] = field(default_factory=dict)


def requests_of(
    operation: str,
    payload: dict[str, Any],
    tags_of: Callable[[str], dict[str, str]] = lambda arn: {},
    service: str = "sagemaker",
) -> Iterator[Request]:
    """Everything that a call has to be allowed.

    Args:
        payload: the members of the request, as the API names them.
        tags_of: the tags of a resource, by ARN; none if it does not exist.
    """
    if service == AUTO_SCALING:
        yield _of_scaling(operation, payload)
        return
    conditions = {key: jmespath.search(path, payload) for key, path in CONDITIONS.items()}
    conditions = {key: _text(value) for key, value in conditions.items() if value not in (None, [])}
    added = {tag["Key"]: tag["Value"] for tag in payload.get("Tags") or []}
    if added:
        conditions["aws:TagKeys"] = list(added)
        conditions |= {f"aws:RequestTag/{key}": value for key, value in added.items()}
    resources = list(_resources(operation, payload))
    for resource in resources:
        kept = tags_of(resource)
        tagged = {f"{owner}:ResourceTag/{key}": kept[key] for key in kept for owner in ("aws", "sagemaker")}
        yield Request(f"sagemaker:{operation}", resource, {**conditions, **tagged})
    if added and operation.startswith("Create"):
        yield Request("sagemaker:AddTags", resources[0], conditions)
    for name in ROLES:
        if operation.startswith("Create") and payload.get(name):
            yield Request("iam:PassRole", payload[name], {"iam:PassedToService": "sagemaker.amazonaws.com"})


def _of_scaling(operation: str, payload: dict[str, Any]) -> Request:
    """https://docs.aws.amazon.com/service-authorization/latest/reference/list_awsapplicationautoscaling.html"""
    named = {"service-namespace": "ServiceNamespace", "scalable-dimension": "ScalableDimension"}
    conditions = {f"{AUTO_SCALING}:{key}": payload[field] for key, field in named.items() if payload.get(field)}
    target = f"arn:aws:{AUTO_SCALING}:{account.region()}:{account.account_id()}:scalable-target/any"
    return Request(f"{AUTO_SCALING}:{operation}", "*" if operation.startswith("Describe") else target, conditions)


def _resources(operation: str, payload: dict[str, Any]) -> Iterator[str]:
    if "ResourceArn" in payload:  # of a call about tags
        yield payload["ResourceArn"]
        return
    for kind in RESOURCES.get(operation, ()):
        name = payload.get(f"{kind.stem}Name") or payload.get(f"{kind.stem}Arn")
        if name is None and operation == "CreateModelPackage":
            name = f"{MODEL_PACKAGE_GROUP.name(payload.get('ModelPackageGroupName', ''))}/*"
        yield kind.arn(kind.name(str(name)))
    if operation not in RESOURCES:
        yield "*"


def _text(value: Any) -> Any:
    """A condition's value as policies have it."""
    if isinstance(value, list):
        return [_text(each) for each in value]
    return json.dumps(value) if isinstance(value, (bool, int, float)) else value


class Authorizer:
    """Asks the authorizer at `url`, and keeps what it allowed for some seconds.

    While it is away, what it has allowed before stays allowed: on AWS too, requests are authorized by IAM's data plane,
    which goes on without the part where policies are changed
    (https://docs.aws.amazon.com/IAM/latest/UserGuide/disaster-recovery-resiliency.html).
    """

    def __init__(self, url: str) -> None:
        self._url = url
        # Until when it is not asked again about what it allowed.
        self._until: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()
        # Neither a proxy of the shell's nor another CA than the one that the AWS SDK is told of.
        ca = os.environ.get("AWS_CA_BUNDLE") or None
        self._pool = urllib3.PoolManager(ca_certs=ca, timeout=TIMEOUT_SECONDS, retries=False)

    def remembers(self, access_key: str, request: Request) -> bool:
        """Whether the same was allowed a moment ago."""
        with self._lock:
            return self._until.get((access_key, repr(request)), 0.0) > time.monotonic()

    def check(self, access_key: str | None, requests: list[Request], refused: int = 400) -> None:
        """Raises ApiError if the caller may not do all of it: AccessDeniedException with the status `refused`."""
        if not access_key:
            raise ApiError("MissingAuthenticationTokenException", "Missing Authentication Token", refused)
        wanted = [request for request in requests if not self.remembers(access_key, request)]
        if not wanted:
            return
        try:
            answer = self._ask({"accessKeyId": access_key, "requests": [asdict(request) for request in wanted]})
        except ApiError:
            if not self._allowed_before(access_key, wanted):
                raise
            self._keep(access_key, wanted)
            return
        self._forget(access_key, wanted)
        if "error" in answer:
            raise ApiError(answer["error"]["code"], answer["error"]["message"], refused)
        for request, decision in zip(wanted, answer["decisions"], strict=True):
            if decision != "Allow":
                raise AccessDeniedException(_denial(answer["principal"], request, decision), refused)
        self._keep(access_key, wanted)

    def signing_key(self, scope: Scope) -> bytes:
        """Returns the key that signs requests of that scope. Raises ApiError if the account has no such access key."""
        answer = self._ask({"accessKeyId": scope.access_key, "scope": asdict(scope)})
        if "error" in answer:
            raise ApiError(answer["error"]["code"], answer["error"]["message"])
        return bytes.fromhex(answer["signingKey"])

    def _allowed_before(self, access_key: str, requests: list[Request]) -> bool:
        with self._lock:
            return all((access_key, repr(request)) in self._until for request in requests)

    def _keep(self, access_key: str, requests: list[Request]) -> None:
        now = time.monotonic()
        with self._lock:
            self._until = {key: until for key, until in self._until.items() if until > now - STALE_SECONDS}
            self._until |= {(access_key, repr(request)): now + KEPT_SECONDS for request in requests}

    def _forget(self, access_key: str, requests: list[Request]) -> None:
        with self._lock:
            for request in requests:
                self._until.pop((access_key, repr(request)), None)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            # Whoever has the account's own key may ask.
            own = account.credentials()
            secret = {"Authorization": f"Bearer {own.secret_key if own else ''}"}
            response = self._pool.request("POST", self._url, json=question, headers=secret)
            answer: dict[str, Any] = response.json()
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise ApiError("ServiceUnavailable", f"the authorizer does not answer: {error}", 503) from error
        return answer


def _denial(principal: str, request: Request, decision: str) -> str:
    """https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html"""
    reason = f"because no identity-based policy allows the {request.action} action"
    if decision == "Deny":
        reason = "with an explicit deny in an identity-based policy"
    return f"User: {principal} is not authorized to perform: {request.action} on resource: {request.resource} {reason}"
