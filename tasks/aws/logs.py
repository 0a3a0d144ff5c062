"""CloudWatch Logs of a job or an endpoint, handed on line by line while they grow."""

from contextlib import suppress
from datetime import datetime
from typing import Any

from botocore.exceptions import ClientError

from tasks.aws.clients import client, retry_transient
from tasks.aws.errors import translate_aws_errors
from tasks.run import Log

# SageMaker writes into these groups, and makes those that are not there, to be kept for ever.
ENDPOINT_LOGS = "/aws/sagemaker/Endpoints"
TRAINING_LOGS = "/aws/sagemaker/TrainingJobs"


class LogTail:
    """Hands each new line of a log group's streams to `progress`. A log that is not there (yet) is no error.

    prefix: of the names of the streams. since: older lines are left out.
    """

    def __init__(self, group: str, prefix: str, progress: Log, since: datetime | None = None) -> None:
        self._group = group
        self._prefix = prefix
        self._progress = progress
        self._since = {"startTime": int(since.timestamp() * 1000)} if since else {}
        self._tokens: dict[str, str] = {}

    def read(self) -> None:
        """Hands on what came since the last call. Raises AwsError if the log may not be read."""
        for stream in retry_transient(f"read the log {self._group}", self._streams):
            self._read(stream)

    def _streams(self) -> list[str]:
        request = {"logGroupName": self._group, **({"logStreamNamePrefix": self._prefix} if self._prefix else {})}
        try:
            return [item["logStreamName"] for item in client("logs").describe_log_streams(**request)["logStreams"]]
        except ClientError as error:
            if error.response["Error"]["Code"] == "ResourceNotFoundException":
                return []
            raise

    def _page(self, stream: str) -> dict[str, Any]:
        token = self._tokens.get(stream)
        position = {"nextToken": token} if token else {"startFromHead": True}
        request = {"logGroupName": self._group, "logStreamName": stream, **self._since, **position}
        return retry_transient(f"read the log {self._group}", lambda: client("logs").get_log_events(**request))

    def _read(self, stream: str) -> None:
        while True:
            token, page = self._tokens.get(stream), self._page(stream)
            for event in page["events"]:
                if event["message"].strip():
                    self._progress(event["message"].rstrip())
            self._tokens[stream] = page["nextForwardToken"]
            if page["nextForwardToken"] == token or not page["events"]:
                return


def keep_for(group: str, days: int, kms_key: str | None) -> None:
    """Has a log group exist and forget what is older. kms_key: ARN of a new group's key."""
    logs = client("logs")
    with translate_aws_errors(f"prepare the log group {group}"):
        with suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_group(logGroupName=group, **({"kmsKeyId": kms_key} if kms_key else {}))
        logs.put_retention_policy(logGroupName=group, retentionInDays=days)
