"""CloudFormation by change sets, against the local stack."""

from pathlib import Path
from typing import Any

import pytest

from local_aws.config import ROOT
from tasks.aws.clients import client
from tasks.aws.stacks import InfrastructureError, deploy_stack, stack_outputs

BROKEN = """
AWSTemplateFormatVersion: "2010-09-09"
Resources:
  Function:
    Type: AWS::Lambda::Function
    Properties:
      Runtime: provided.al2023
      Handler: a.handler
      Role: arn:aws:iam::000000000000:role/none
      Code: {S3Bucket: no-such-bucket-at-all, S3Key: nothing.zip}
  Bucket:
    Type: AWS::S3::Bucket
    Properties:
      BucketName: BUCKET
"""
FINE = """
AWSTemplateFormatVersion: "2010-09-09"
Parameters:
  Days: {Type: Number, Default: 7}
Resources:
  Logs:
    Type: AWS::Logs::LogGroup
    Properties: {LogGroupName: /test/infrastructure, RetentionInDays: !Ref Days}
Outputs:
  Name: {Value: !Ref Logs}
  Days: {Value: !Ref Days}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "template.yaml"
    path.write_text(text)
    return path


def test_a_stack_is_created_updated_and_left_alone(installed: Any, tmp_path: Path) -> None:
    template = write(tmp_path, FINE)
    assert deploy_stack("test-fine", template, {"Days": "5"}) == "created"
    assert deploy_stack("test-fine", template, {"Days": "5"}) == "unchanged"
    assert deploy_stack("test-fine", template, {"Days": None}) == "unchanged"  # keeps what it has
    assert stack_outputs("test-fine")["Days"] == "5"
    assert deploy_stack("test-fine", template, {"Days": "14"}) == "updated"


def test_a_failure_names_the_resource_and_the_next_try_recovers(installed: Any, tmp_path: Path) -> None:
    """The bucket's name is taken, so its creation fails and the stack ends in ROLLBACK_COMPLETE."""
    broken = write(tmp_path, BROKEN.replace("BUCKET", installed.bucket))
    with pytest.raises(InfrastructureError, match=r"(Function|Bucket) \(AWS::"):
        deploy_stack("test-broken", broken, {})
    status = client("cloudformation").describe_stacks(StackName="test-broken")["Stacks"][0]["StackStatus"]
    assert status == "ROLLBACK_COMPLETE"
    fine = write(tmp_path, FINE.replace("/test/infrastructure", "/test/recovered"))
    assert deploy_stack("test-broken", fine, {"Days": "5"}) == "created"


def test_a_missing_stack_says_what_to_run(installed: Any) -> None:
    with pytest.raises(InfrastructureError, match="run the prepare-data deployment first"):
        stack_outputs("no-such-stack")


def test_the_templates_are_small_enough_to_be_sent_inline() -> None:
    for path in (ROOT / "infrastructure").glob("*.yaml"):
        assert path.stat().st_size < 51_200
