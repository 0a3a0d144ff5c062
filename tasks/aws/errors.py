"""AWS's errors: what they mean to a person, and what the sentences decide that come without a code.

Each function classifies one kind of sentence, and what it does not know is the harmless answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
)

from tasks.errors import SconesError

QUOTA_CODES = {"ResourceLimitExceeded", "LimitExceededException", "ServiceQuotaExceededException"}
# https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html
EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
ACCESS_CODES = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "UnrecognizedClientException"}


class AwsError(SconesError):
    """AWS refused or could not be reached; the message says what to do."""


@contextmanager
def translate_aws_errors(action: str) -> Iterator[None]:
    """Turns errors of the AWS SDK into AwsError with what was being done, AWS's own words and a next step."""
    try:
        yield
    except ClientError as error:
        code, message = _told(error)
        hint = ""
        if code in QUOTA_CODES:
            hint = "ask for a higher quota in the Service Quotas console, or free what uses it"
        elif code in EXPIRED_CODES:
            hint = (
                "the credentials have expired: sign in again and run `make up AWS=real`, or give the worker ones that "
                "renew themselves, such as a profile with SSO or an instance's role"
            )
        elif code in ACCESS_CODES:
            hint = "run it with the flow runner's role, or one that may do this"
        raise AwsError(f"{action}: {code}: {message}", hint) from error
    except (NoCredentialsError, NoRegionError) as error:
        raise AwsError(
            f"{action}: {error}", "set AWS credentials and a region, or run `make up` for a local AWS"
        ) from error
    except (EndpointConnectionError, ConnectTimeoutError) as error:
        raise AwsError(f"{action}: Cannot reach AWS: {error}", "check your network, or run `make up`") from error
    except BotoCoreError as error:
        raise AwsError(f"{action}: {error}") from error


def is_fault_of_model(failure_reason: str) -> bool:
    """Whether an endpoint's FailureReason says that the model's container or artifact is at fault.

    Anything else, such as a lack of instances, tells nothing about the model.
    """
    return any(text in failure_reason.lower() for text in ("health check", "model data"))


def is_unchanged(status_reason: str) -> bool:
    """Whether a change set failed only because there is nothing to change."""
    return any(text in status_reason for text in ("didn't contain changes", "No updates are to be performed"))


def is_missing_stack(error: ClientError) -> bool:
    """Whether CloudFormation's error says that there is no such stack."""
    code, message = _told(error)
    return code == "ValidationError" and "does not exist" in message


def is_taken_name(error: ClientError) -> bool:
    """Whether SageMaker's error says that a resource of that name exists."""
    code, message = _told(error)
    return code == "ResourceInUse" or (code == "ValidationException" and "already exist" in message)


def is_unassumable_role(error: ClientError) -> bool:
    """Whether SageMaker's error says that it cannot assume the role, which may be too new."""
    code, message = _told(error)
    return code == "ValidationException" and "assume" in message.lower()


def _told(error: ClientError) -> tuple[str, str]:
    """Code and message of AWS's answer; not every service sends a message."""
    problem = error.response["Error"]
    return problem["Code"], problem.get("Message", "")
