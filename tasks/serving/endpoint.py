"""The SageMaker endpoint as it stands: found, waited for, asked known images, deleted. rollout.py changes it."""

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from settings import settings
from tasks.aws.clients import client, ignore_existing, none_if_missing, retry_transient, sdk
from tasks.aws.errors import translate_aws_errors
from tasks.aws.logs import ENDPOINT_LOGS, LogTail
from tasks.aws.tags import sdk_tags
from tasks.errors import SconesError
from tasks.installation import Installation, ServingEndpoint
from tasks.run import Log, utc_now
from tasks.waiting import look_until

if TYPE_CHECKING:
    from sagemaker.core.resources import Endpoint

POLL_SECONDS = 1.0
# Nothing is in progress any more.
ENDED = ("InService", "Failed", "OutOfService", "UpdateRollbackFailed")


class EndpointError(SconesError):
    """The endpoint does not serve; the message has AWS's reason."""


class EndpointNotFound(SconesError):
    """There is no such endpoint; the message says what to do."""


def serving(installation: Installation) -> ServingEndpoint:
    """The endpoint's model version. Raises EndpointNotFound or EndpointError if it does not serve."""
    name, sagemaker = installation.endpoint, client("sagemaker")  # evaluations need no more of SageMaker's SDK
    endpoint = retry_transient(
        f"look at endpoint {name}", lambda: none_if_missing(lambda: sagemaker.describe_endpoint(EndpointName=name))
    )
    if endpoint is None:
        raise EndpointNotFound(
            f"no endpoint {name!r} in {sagemaker.meta.region_name}", "run the deploy-endpoint deployment first"
        )
    if endpoint["EndpointStatus"] not in ("InService", "Updating"):
        why = endpoint.get("FailureReason", "AWS gives no reason")
        raise EndpointError(f"endpoint {name} is {endpoint['EndpointStatus']}: {why}")
    return ServingEndpoint(name, version_of(endpoint["EndpointConfigName"]))


def served_versions(name: str) -> list[str]:
    """Names of the model versions on an endpoint, in whatever state it is; none if there is no endpoint."""
    endpoint = find(name)
    with suppress(EndpointError):
        return [version_of(str(endpoint.endpoint_config_name))] if endpoint else []
    return []


def version_of(config: str) -> str:
    """The model version, such as v7, that an endpoint config's name carries.

    Raises EndpointError if it carries none, as the config of somebody else's endpoint.
    """
    found = re.fullmatch(rf"{re.escape(settings().stack)}-(v[0-9]+)-[0-9a-f]{{8}}(-candidate)?", config)
    if not found:
        raise EndpointError(f"the endpoint config {config} is none of this installation {settings().stack!r}")
    return found[1]


def create_endpoint(name: str, config: str) -> None:
    """Creates an endpoint of that config; one of that name that is there already stays as it is."""
    from sagemaker.core.resources import Endpoint

    tags = sdk_tags()
    with translate_aws_errors(f"create endpoint {name}"):
        ignore_existing(lambda: Endpoint.create(endpoint_name=name, endpoint_config_name=config, tags=tags, **sdk()))


def delete_endpoint(name: str) -> bool:
    """Deletes an endpoint and waits until it is gone; False if there was none."""
    if settled(name, lambda line: None) is None:
        return False
    with translate_aws_errors(f"delete endpoint {name}"):
        client("sagemaker").delete_endpoint(EndpointName=name)
    left = look_until(
        lambda seen: seen is None, lambda: find(name), seconds=settings().endpoint_max_seconds, every=POLL_SECONDS
    )
    if left is not None:
        raise EndpointError(f"endpoint {name} is {left.endpoint_status} and does not go away")
    return True


def wait_in_service(name: str, progress: Log) -> "Endpoint":
    """Waits until nothing is in progress and returns the endpoint in service. Raises EndpointError otherwise."""
    endpoint = settled(name, progress)
    if endpoint is None:
        raise EndpointError(f"endpoint {name} is gone")
    if str(endpoint.endpoint_status) != "InService":
        raise EndpointError(f"endpoint {name} is {endpoint.endpoint_status}: {reason(endpoint)}")
    return endpoint


def settled(name: str, progress: Log, with_log: bool = False) -> "Endpoint | None":
    """The endpoint once nothing is in progress; None if there is none. Raises EndpointError after a long wait.

    with_log: hands on what the containers log meanwhile, such as why a model can't be loaded.
    """
    log = LogTail(f"{ENDPOINT_LOGS}/{name}", "", progress, since=utc_now()) if with_log else None
    reported = ""

    def look() -> "Endpoint | None":
        nonlocal reported
        endpoint = find(name)
        if endpoint is None:
            return None
        if log:
            log.read()
        if endpoint.endpoint_status != reported:
            reported = str(endpoint.endpoint_status)
            progress(f"endpoint {name}: {reported}")
        return endpoint

    seconds = settings().endpoint_max_seconds
    endpoint = look_until(_is_settled, look, seconds=seconds, every=POLL_SECONDS)
    if not _is_settled(endpoint):
        raise EndpointError(f"endpoint {name} is {reported} for {seconds} s")
    return endpoint


def _is_settled(endpoint: "Endpoint | None") -> bool:
    return endpoint is None or str(endpoint.endpoint_status) in ENDED


def find(name: str) -> "Endpoint | None":
    """The endpoint as AWS describes it; None if there is none."""
    from sagemaker.core.resources import Endpoint  # takes a second

    return retry_transient(f"look at endpoint {name}", lambda: none_if_missing(lambda: Endpoint.get(name, **sdk())))


def reason(endpoint: "Endpoint") -> str:
    """Why AWS says that an endpoint failed."""
    given = endpoint.failure_reason
    return given if isinstance(given, str) else "AWS gives no reason"
