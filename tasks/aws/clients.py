"""Clients of AWS, and calls that are repeated until they can succeed."""

import logging
import os
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
)
from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception,
    stop_after_delay,
    wait_fixed,
    wait_random_exponential,
)

from settings import settings
from tasks.aws import errors

Answer = TypeVar("Answer")

CONFIG = Config(
    connect_timeout=5, read_timeout=60, max_pool_connections=64, retries={"mode": "standard", "total_max_attempts": 6}
)
ROLE_SECONDS = 90
THROTTLING_CODES = {
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "SlowDown",
    # Somebody else writes the same object: https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html
    "ConditionalRequestConflict",
}
# Botocore's own errors of a connection have no base class that leaves out a wrong certificate.
UNREACHED = (HTTPClientError, EndpointConnectionError, ConnectTimeoutError, IncompleteReadError)
MAX_BACKOFF_SECONDS = 20

logger = logging.getLogger(__name__)


@cache
def session() -> boto3.Session:
    """The session of the AwsCredentials block that the settings name, else of the environment."""
    name = settings().aws_credentials_block
    if name is None:
        return boto3.Session(region_name=_region())
    from prefect_aws import AwsCredentials  # takes most of a second

    credentials = AwsCredentials.load(name)
    assert isinstance(credentials, AwsCredentials)
    return credentials.get_boto3_session()


@cache
def client(service: str) -> Any:
    """A client with explicit timeouts and retries, shared by the threads of this process."""
    made: Any = session()  # its types know services by literal names only
    # Otherwise S3's links are signed by version 2.
    return made.client(service, config=CONFIG.merge(Config(signature_version="s3v4")) if service == "s3" else CONFIG)


def sdk() -> dict[str, Any]:
    """Arguments that make a call of sagemaker.core.resources use the same session."""
    return {"session": session(), "region": session().region_name}


def retry_transient(action: str, call: Callable[[], Answer]) -> Answer:
    """What the call returns, once throttling or an outage that outlasts botocore's own retries is over.

    For calls that may be repeated. Raises AwsError at once for what waiting does not mend, such as a permission, and
    for the rest after the time that the settings give an outage.
    """
    retrying = Retrying(
        retry=retry_if_exception(_passing),
        wait=wait_random_exponential(multiplier=0.5, max=MAX_BACKOFF_SECONDS),
        stop=stop_after_delay(settings().outage_max_seconds),
        before_sleep=before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )
    with errors.translate_aws_errors(action):
        return retrying(call)


def none_if_missing(call: Callable[[], Answer]) -> Answer | None:
    """What the call returns; None if there is no such resource, which SageMaker answers with ValidationException."""
    try:
        return call()
    except ClientError as error:
        if error.response["Error"]["Code"] == "ValidationException":
            return None
        raise


def ignore_existing(create: Callable[[], object]) -> None:
    """Creates what has a name of our own, unless it is there: the response of an earlier try may have been lost."""
    try:
        create()
    except ClientError as error:
        if not errors.is_taken_name(error):
            raise


def retry_until_role_is_assumable(create: Callable[[], object]) -> None:
    """Calls `create` until SageMaker can assume the role, which takes a while after the role was created."""
    retrying = Retrying(
        retry=retry_if_exception(_can_not_assume),
        wait=wait_fixed(5),
        stop=stop_after_delay(ROLE_SECONDS),
        reraise=True,
    )
    retrying(create)


def _can_not_assume(error: BaseException) -> bool:
    return isinstance(error, ClientError) and errors.is_unassumable_role(error)


def _passing(error: BaseException) -> bool:
    """Whether an error may be gone a little later."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return error.response["Error"]["Code"] in THROTTLING_CODES or status == 429 or status >= 500
    return isinstance(error, UNREACHED)


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def on_aws() -> bool:
    """Whether the clients lead to AWS itself, not to an emulator."""
    return ".amazonaws.com" in client("sts").meta.endpoint_url
