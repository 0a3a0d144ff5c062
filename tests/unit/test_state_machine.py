"""What neither cfn-lint nor the emulator would notice in the ASL document."""

import json
import re
from typing import Any

import pytest
import yaml

from local_aws.config import ROOT
from tests.unit.test_lambdas import load

ASL: dict[str, Any] = json.loads((ROOT / "statemachine" / "classify_image.asl.json").read_text())
STATES: dict[str, Any] = ASL["States"]
TASKS = {"SerializeImageData": "serialize_image_data", "ClassifyImage": "classify_image"}


class CloudFormationLoader(yaml.SafeLoader):
    """Reads !Ref and its kind as plain values."""


CloudFormationLoader.add_multi_constructor(
    "!",
    lambda loader, suffix, node: (
        loader.construct_scalar(node)
        if isinstance(node, yaml.ScalarNode)
        else loader.construct_sequence(node)
        if isinstance(node, yaml.SequenceNode)
        else loader.construct_mapping(node)
    ),
)


def template(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load((ROOT / "infrastructure" / name).read_text(), CloudFormationLoader)
    return loaded


def targets(state: dict[str, Any]) -> set[str]:
    found = {state[name] for name in ("Next", "Default") if name in state}
    for branch in state.get("Choices", []) + state.get("Catch", []):
        found.add(branch["Next"])
    return found


def test_every_target_exists_and_every_state_is_reached() -> None:
    reached, waiting = set(), [ASL["StartAt"]]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += targets(STATES[name])
    assert reached == set(STATES)


def test_every_state_goes_on_or_ends() -> None:
    for state in STATES.values():
        assert targets(state) or state["Type"] in ("Succeed", "Fail")


def test_retries_are_those_that_aws_recommends_and_never_of_a_decision() -> None:
    for name, state in STATES.items():
        if state["Type"] != "Task":
            continue
        retried = [error for retry in state["Retry"] for error in retry["ErrorEquals"]]
        assert "Lambda.TooManyRequestsException" in retried and "Lambda.ServiceException" in retried, name
        assert not {"States.ALL", "LowConfidence", "ModelError", "UnreadableImage"} & set(retried), name
        assert all(retry["BackoffRate"] >= 1 for retry in state["Retry"])


def test_timeouts_nest() -> None:
    functions = template("workflow.yaml")["Resources"]
    for state_name in TASKS:
        module = load(TASKS[state_name])
        client: Any = module.s3 if hasattr(module, "s3") else module.runtime
        config = client.meta.config
        sdk = config.retries["total_max_attempts"] * (config.connect_timeout + config.read_timeout)
        function = functions[state_name]["Properties"]["Timeout"]
        task = STATES[state_name]["TimeoutSeconds"]
        assert sdk < function < task < ASL["TimeoutSeconds"], state_name


def test_substitutions_of_the_template_are_those_of_the_document() -> None:
    import re

    used = set(re.findall(r"\$\{(\w+)\}", json.dumps(ASL)))
    given = template("workflow.yaml")["Resources"]["StateMachine"]["Properties"]["DefinitionSubstitutions"]
    assert used == set(given)


@pytest.mark.parametrize("name", ["storage.yaml", "workflow.yaml"])
def test_templates_hold_no_account_region_or_partition(name: str) -> None:
    text = (ROOT / "infrastructure" / name).read_text()
    assert "arn:aws:" not in text
    assert "us-east-1" not in text
    assert "000000000000" not in text


def test_the_bucket_is_closed() -> None:
    bucket = template("storage.yaml")["Resources"]["Bucket"]["Properties"]
    assert all(bucket["PublicAccessBlockConfiguration"].values())
    assert bucket["VersioningConfiguration"]["Status"] == "Enabled"
    assert bucket["BucketEncryption"]
    assert any(rule.get("Prefix") == "data-capture/" for rule in bucket["LifecycleConfiguration"]["Rules"])
    statement = template("storage.yaml")["Resources"]["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"][0]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_no_policy_allows_everything() -> None:
    for name, resource in template("workflow.yaml")["Resources"].items():
        if resource["Type"] != "AWS::IAM::Role":
            continue
        for policy in resource["Properties"]["Policies"]:
            for given in policy["PolicyDocument"]["Statement"]:
                statement = given[1] if isinstance(given, list) else given  # !If
                actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
                assert not any("*" in action for action in actions), name
                # AWS bounds none of these by a resource.
                unbounded = re.compile(
                    "ecr:GetAuthorizationToken|cloudwatch:(PutMetricData|DescribeAlarms)|ec2:.*|sagemaker:List.*|xray:.*|"
                    "logs:(.*LogDeliver.*|PutResourcePolicy|DescribeResourcePolicies|DescribeLogGroups)|"
                    "servicequotas:ListServiceQuotas|lambda:GetAccountSettings|application-autoscaling:Describe.*"
                )
                bounded = [action for action in actions if not unbounded.fullmatch(action)]
                assert statement["Resource"] != "*" or not bounded, name
