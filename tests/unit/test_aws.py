import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoRegionError

from tasks.aws import AwsError, explained


def refusal(code: str, message: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "CreateTrainingJob")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            refusal("ResourceLimitExceeded", "'ml.m5.xlarge for training job usage' is 0"),
            "ml.m5.xlarge .* higher quota",
        ),
        (refusal("AccessDeniedException", "not authorized"), "flow runner's role"),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), "AWS is out of reach"),
        (NoRegionError(), "Set AWS credentials and a region"),
    ],
)
def test_errors_of_aws_say_what_to_do(error: Exception, text: str) -> None:
    with pytest.raises(AwsError, match=f"train: .*{text}"), explained("train"):
        raise error
