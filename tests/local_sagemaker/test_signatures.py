"""Who gets in: requests that are signed with a key of the account, and not those of web pages."""

import json
from datetime import timedelta
from typing import Any

import boto3
import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from local_sagemaker.protocol import ApiError
from local_sagemaker.signatures import Scope, Signatures, signing_key

from local_aws.environment import REGION
from local_sagemaker import signatures
from tests.local_sagemaker.conftest import Server

LIST = "SageMaker.ListTrainingJobs"


def error_of(answer: httpx.Response) -> str:
    return "InvalidHost" if answer.status_code == 421 else str(answer.json()["__type"])


def test_what_is_signed_as_aws_asks_is_answered(server: Server) -> None:
    assert server.post(b"{}", LIST).status_code == 200


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"Authorization": ""}, "MissingAuthenticationTokenException"),
        ({"Authorization": "AWS4-HMAC-SHA256 Credential=test/"}, "IncompleteSignatureException"),
        ({"Authorization": "Basic dGVzdDp0ZXN0"}, "IncompleteSignatureException"),
        ({"X_Amz_Target": "SageMaker.ListModels"}, "InvalidSignatureException"),  # what was signed is another call
        ({"X_Amz_Date": "20200101T000000Z"}, "InvalidSignatureException"),
        ({"X_Amz_Date": "yesterday"}, "IncompleteSignatureException"),
        ({"X_Amz_Security_Token": "made up"}, "InvalidSignatureException"),  # it is not among what was signed
        ({"X_Amz_Content_SHA256": "UNSIGNED-PAYLOAD"}, "InvalidSignatureException"),
        # A page in a browser: by a name that its owner points to this machine, from its origin, or by a form.
        ({"Host": "rebound.example"}, "InvalidHost"),
        ({"Origin": "https://evil.example"}, "AccessDeniedException"),
        ({"Sec_Fetch_Site": "cross-site"}, "AccessDeniedException"),
        ({"Content_Type": "text/plain"}, "UnknownOperationException"),
    ],
)
def test_everything_else_is_refused(server: Server, changed: dict[str, str], code: str) -> None:
    assert error_of(server.post(b"{}", LIST, **changed)) in (code, "UnrecognizedClientException", "InvalidToken")


def test_another_body_than_was_signed_is_refused(server: Server) -> None:
    signed = server.post(b"{}", LIST).request
    other = httpx.post(signed.url, content=b'{"MaxResults": 1}', headers=without_length(signed), trust_env=False)
    assert error_of(other) == "InvalidSignatureException"


def without_length(request: httpx.Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name != "content-length"}


@pytest.mark.parametrize(
    ("key", "secret"), [("test", "test"), ("000000000000", "test"), ("AKIAAAAAAAAAAAAAAAAA", "x"), (None, "wrong")]
)
@pytest.mark.parametrize("service", ["sagemaker", "sagemaker-runtime", "s3", "iam", "sts", "stepfunctions"])
def test_no_service_takes_another_key_or_another_secret(
    server: Server, service: str, key: str | None, secret: str
) -> None:
    """key: None for the account's own, whose name is no secret."""
    own = server.aws.environment["AWS_ACCESS_KEY_ID"]
    config, session = server.aws.config, boto3.Session()
    made: Any = session.client(  # type: ignore[call-overload]
        service,
        region_name=REGION,
        endpoint_url=config.sagemaker_url if "sagemaker" in service else config.aws_url,
        aws_access_key_id=key or own,
        aws_secret_access_key=secret,
        verify=str(config.certificate),
        config=Config(proxies={}, retries={"total_max_attempts": 1}),
    )
    calls = {
        "sagemaker": lambda: made.list_endpoints(),
        "sagemaker-runtime": lambda: made.invoke_endpoint(EndpointName="none", Body=b""),
        "s3": lambda: made.list_buckets(),
        "iam": lambda: made.list_roles(),
        "sts": lambda: made.get_caller_identity(),
        "stepfunctions": lambda: made.list_state_machines(),
    }
    with pytest.raises(ClientError) as refused:
        calls[service]()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 403)
    assert refused.value.response["Error"]["Code"] in (
        "InvalidClientTokenId",
        "UnrecognizedClientException",
        "SignatureDoesNotMatch",
        "InvalidSignatureException",
        "InvalidAccessKeyId",
    )


def test_a_session_signs_with_its_own_key_and_token(server: Server) -> None:
    iam = server.aws.client("iam")
    trust = {"Effect": "Allow", "Principal": {"AWS": "000000000000"}, "Action": "sts:AssumeRole"}
    allowed = {"Effect": "Allow", "Action": "sagemaker:ListEndpoints", "Resource": "*"}
    documents = [json.dumps({"Version": "2012-10-17", "Statement": [each]}) for each in (trust, allowed)]
    arn = iam.create_role(RoleName="signs", AssumeRolePolicyDocument=documents[0])["Role"]["Arn"]
    iam.put_role_policy(RoleName="signs", PolicyName="list", PolicyDocument=documents[1])
    session = server.aws.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
    assert server.aws.client("sagemaker", credentials=session).list_endpoints()["Endpoints"] is not None
    for wrong in ({**session, "SessionToken": "another"}, {**session, "SecretAccessKey": "another"}):
        with pytest.raises(ClientError):
            server.aws.client("sagemaker", credentials=wrong).list_endpoints()


def test_keys_are_asked_for_once_and_time_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def key_of(scope: Scope) -> bytes:
        asked.append(scope)
        if scope.access_key != "AKIA":
            raise ApiError("UnrecognizedClientException", "unknown")
        return signing_key("secret", scope)

    checked = Signatures(key_of)

    def check(key: str = "AKIA", secret: str = "secret", service: str = "sagemaker") -> str:
        url = "http://127.0.0.1:1/endpoints/a%20b/invocations?b=2&a=1"
        request = AWSRequest("POST", url, {"Content-Type": "image/png"}, b"body")
        SigV4Auth(Credentials(key, secret), service, REGION).add_auth(request)
        headers = httpx.Headers({name: str(value) for name, value in request.headers.items()} | {"Host": "127.0.0.1:1"})
        return checked.check("POST", url, headers, b"body", "sagemaker")

    assert check() == check() == "AKIA" and len(asked) == 1
    for wrong in ({"secret": "other"}, {"service": "s3"}, {"key": "AKIB"}):
        with pytest.raises(ApiError):
            check(**wrong)
    monkeypatch.setattr(signatures, "SKEW", timedelta(seconds=-1))
    with pytest.raises(ApiError, match="Signature expired"):
        check()
