"""Every call is allowed by the policies of its caller, or refused as AWS refuses it."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from local_sagemaker.authorization import CONDITIONS, RESOURCES, Authorizer, Request, requests_of
from local_sagemaker.operations.endpoints import EndpointOperations
from local_sagemaker.operations.model_packages import ModelPackageOperations
from local_sagemaker.operations.models import EndpointConfigOperations, ModelOperations
from local_sagemaker.operations.training_jobs import TrainingJobOperations
from local_sagemaker.protocol import ApiError, service_model

from local_sagemaker import account, authorization
from tests.local_sagemaker.conftest import INFERENCE_IMAGE, Server, unique

FAMILIES = (
    EndpointOperations,
    ModelPackageOperations,
    ModelOperations,
    EndpointConfigOperations,
    TrainingJobOperations,
)
Caller = Callable[..., Any]
ONCE = {"total_max_attempts": 1}


@pytest.fixture
def caller(server: Server) -> Iterator[Caller]:
    """Clients of a role that has these statements as its policy; the service is SageMaker or its runtime."""

    clients = []

    def make(*statements: dict[str, Any], service: str = "sagemaker") -> Any:
        name = unique("caller")
        iam = server.aws.client("iam")
        trust = {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::000000000000:root"}, "Action": "sts:AssumeRole"}
        documents = [json.dumps({"Version": "2012-10-17", "Statement": part}) for part in (trust, list(statements))]
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=documents[0])["Role"]["Arn"]
        if statements:
            iam.put_role_policy(RoleName=name, PolicyName="policy", PolicyDocument=documents[1])
        session = server.aws.client("sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
        clients.append(server.aws.client(service, credentials=session, retries=ONCE))
        return clients[-1]

    yield make
    for each in clients:
        each.close()


def allow(*actions: str, resource: str = "*", condition: dict[str, Any] | None = None) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": resource}
    return {**statement, "Condition": condition} if condition else statement


def passed_to(service: str) -> dict[str, Any]:
    return {"StringEquals": {"iam:PassedToService": f"{service}.amazonaws.com"}}


def refusal(call: Callable[..., Any], **arguments: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as raised:
        call(**arguments)
    return raised.value.response["Error"]["Code"], raised.value.response["Error"]["Message"]


def test_a_call_that_no_policy_allows_is_denied_in_awss_words(server: Server, caller: Caller) -> None:
    sagemaker = caller(
        allow("sagemaker:DescribeModel", resource="arn:aws:sagemaker:us-east-1:000000000000:model/mine-*")
    )
    code, message = refusal(sagemaker.describe_model, ModelName="yours")
    assert code == "AccessDeniedException"
    assert message.startswith("User: arn:aws:sts::000000000000:assumed-role/caller-")
    assert message.endswith(
        "/test is not authorized to perform: sagemaker:DescribeModel on resource: "
        "arn:aws:sagemaker:us-east-1:000000000000:model/yours because no identity-based policy allows the "
        "sagemaker:DescribeModel action"
    )
    # Allowed, and then judged by SageMaker itself.
    assert refusal(sagemaker.describe_model, ModelName="mine-none")[0] == "ValidationException"
    assert refusal(sagemaker.list_models)[0] == "AccessDeniedException"


def test_an_explicit_deny_wins(server: Server, caller: Caller) -> None:
    deny = {"Effect": "Deny", "Action": "sagemaker:List*", "Resource": "*"}
    code, message = refusal(caller(allow("sagemaker:*"), deny).list_models)
    assert (code, message.rsplit("* ", 1)[1]) == (
        "AccessDeniedException",
        "with an explicit deny in an identity-based policy",
    )


def test_a_role_is_passed_only_by_who_may(server: Server, caller: Caller) -> None:
    request = {
        "ModelName": unique("passed"),
        "ExecutionRoleArn": server.role,
        "PrimaryContainer": {"Image": INFERENCE_IMAGE, "ModelDataUrl": server.put("models/none.tar.gz", b"")},
    }
    create = allow("sagemaker:CreateModel")
    code, message = refusal(caller(create).create_model, **request)
    assert code == "AccessDeniedException"
    assert f"iam:PassRole on resource: {server.role} because" in message
    to_lambda = allow("iam:PassRole", resource=server.role, condition=passed_to("lambda"))
    assert "iam:PassRole" in refusal(caller(create, to_lambda).create_model, **request)[1]
    to_sagemaker = allow("iam:PassRole", resource=server.role, condition=passed_to("sagemaker"))
    assert caller(create, to_sagemaker).create_model(**request)["ModelArn"].endswith(request["ModelName"])


def test_conditions_are_about_the_request_and_the_resource(server: Server, caller: Caller) -> None:
    config = {
        "EndpointConfigName": unique("small"),
        "ProductionVariants": [
            {
                "VariantName": "only",
                "ModelName": server.model(),
                "InstanceType": "ml.p4d.24xlarge",
                "InitialInstanceCount": 1,
            }
        ],
    }
    small = caller(
        allow(
            "sagemaker:CreateEndpointConfig",
            condition={"ForAllValues:StringEquals": {"sagemaker:InstanceTypes": ["ml.t2.medium", "ml.m5.large"]}},
        )
    )
    assert refusal(small.create_endpoint_config, **config)[0] == "AccessDeniedException"
    config["ProductionVariants"][0]["InstanceType"] = "ml.m5.large"  # type: ignore[index]
    small.create_endpoint_config(**config)
    tags = [{"Key": "team", "Value": "vision"}]
    # Tags of a new resource are a call of their own: sagemaker:AddTags.
    refused = refusal(small.create_endpoint_config, **{**config, "EndpointConfigName": unique("tagged"), "Tags": tags})
    assert "sagemaker:AddTags" in refused[1]

    name = unique("tagged")
    server.sagemaker.create_endpoint_config(**{**config, "EndpointConfigName": name}, Tags=tags)
    of_vision, of_audio = (
        caller(allow("sagemaker:DescribeEndpointConfig", condition={"StringEquals": {"aws:ResourceTag/team": team}}))
        for team in ("vision", "audio")
    )
    assert of_vision.describe_endpoint_config(EndpointConfigName=name)["EndpointConfigName"] == name
    assert refusal(of_audio.describe_endpoint_config, EndpointConfigName=name)[0] == "AccessDeniedException"


def test_an_update_needs_the_endpoint_and_its_new_config(server: Server, caller: Caller) -> None:
    sagemaker = caller(
        allow("sagemaker:UpdateEndpoint", resource="arn:aws:sagemaker:us-east-1:000000000000:endpoint/mine")
    )
    code, message = refusal(sagemaker.update_endpoint, EndpointName="mine", EndpointConfigName="theirs")
    assert (code, "endpoint-config/theirs because" in message) == ("AccessDeniedException", True)


def test_an_endpoint_is_invoked_only_by_who_may(server: Server, caller: Caller) -> None:
    name = server.endpoint()
    arn = f"arn:aws:sagemaker:us-east-1:000000000000:endpoint/{name}"
    allowed = caller(allow("sagemaker:InvokeEndpoint", resource=arn), service="sagemaker-runtime")
    for _ in range(2):  # the second is not asked for again
        assert allowed.invoke_endpoint(EndpointName=name, Body=b"hello")["ResponseMetadata"]["HTTPStatusCode"] == 200
    other = caller(allow("sagemaker:InvokeEndpoint", resource=f"{arn}-2"), service="sagemaker-runtime")
    with pytest.raises(ClientError) as raised:
        other.invoke_endpoint(EndpointName=name, Body=b"hello")
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert raised.value.response["Error"]["Code"] == "AccessDeniedException"
    server.sagemaker.delete_endpoint(EndpointName=name)


def test_an_unknown_or_missing_key_is_no_caller(server: Server) -> None:
    unknown = {"AccessKeyId": "ASIANOBODY0000000000", "SecretAccessKey": "s", "SessionToken": "t"}
    nobody = server.aws.client("sagemaker", credentials=unknown, retries=ONCE)
    code, message = refusal(nobody.list_models)
    nobody.close()
    assert (code, message) == (
        "UnrecognizedClientException",
        "The security token included in the request is invalid.",
    )


def test_a_role_that_does_not_trust_sagemaker_can_not_be_used(server: Server) -> None:
    iam, name = server.aws.client("iam"), unique("functions")
    for service, source in (("lambda", "000000000000"), ("sagemaker", "111111111111")):
        trust = {
            "Effect": "Allow",
            "Principal": {"Service": f"{service}.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"aws:SourceAccount": source}},
        }
        document = json.dumps({"Version": "2012-10-17", "Statement": trust})
        role = iam.create_role(RoleName=f"{name}-{service}", AssumeRolePolicyDocument=document)["Role"]["Arn"]
        code, message = refusal(
            server.sagemaker.create_model,
            ModelName=unique("untrusted"),
            ExecutionRoleArn=role,
            PrimaryContainer={"Image": INFERENCE_IMAGE, "ModelDataUrl": server.put("models/none.tar.gz", b"")},
        )
        assert code == "ValidationException"
        assert f'Please ensure that the role "{role}" exists and that its trust relationship policy' in message


def test_an_authorizer_that_is_away_is_an_unavailable_service() -> None:
    with pytest.raises(ApiError, match="the authorizer does not answer") as raised:
        Authorizer("http://127.0.0.1:1/").check("AKIA", [Request("sagemaker:ListModels", "*")])
    assert (raised.value.code, raised.value.status) == ("ServiceUnavailable", 503)


def test_what_was_allowed_stays_allowed_while_the_authorizer_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorization, "KEPT_SECONDS", 0.0)
    away, decision = False, "Allow"

    def answer(self: Authorizer, question: dict[str, Any]) -> dict[str, Any]:
        if away:
            raise ApiError("ServiceUnavailable", "the authorizer does not answer", 503)
        return {"principal": "arn:aws:iam::000000000000:role/r", "decisions": [decision] * len(question["requests"])}

    monkeypatch.setattr(Authorizer, "_ask", answer)
    authorizer, known = Authorizer("http://127.0.0.1:1/"), Request("sagemaker:InvokeEndpoint", "arn:one")
    authorizer.check("AKIA", [known])
    away = True
    for _ in range(2):
        authorizer.check("AKIA", [known])
    others = (("AKIA", [known, Request("sagemaker:InvokeEndpoint", "arn:two")]), ("ASIA", [known]))
    for access_key, requests in others:
        with pytest.raises(ApiError, match="does not answer"):
            authorizer.check(access_key, requests)
    away, decision = False, "Deny"
    with pytest.raises(ApiError, match="is not authorized"):
        authorizer.check("AKIA", [known])
    away = True
    with pytest.raises(ApiError, match="does not answer"):
        authorizer.check("AKIA", [known])


def test_every_operation_has_its_resources_and_every_condition_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the API's own description: names that do not exist there would never be looked at."""
    offered = {name for family in FAMILIES for name in vars(family) if not name.startswith("_")}
    by_method = {name.lower(): name for name in service_model().operation_names}
    operations = {by_method[name.replace("_", "")] for name in offered}
    assert {name for name in operations if not name.startswith("List")} == set(RESOURCES) - {"InvokeEndpoint"}
    for name, kinds in RESOURCES.items():
        api = service_model("sagemaker-runtime" if name == "InvokeEndpoint" else "sagemaker")
        shape = api.operation_model(name).input_shape
        assert shape is not None
        named = [{f"{kind.stem}Name", f"{kind.stem}Arn"} & set(shape.members) for kind in kinds]
        assert all(named) or name == "CreateModelPackage", name
    monkeypatch.setattr(account, "account_id", lambda: "000000000000")
    wanted = list(
        requests_of("CreateTrainingJob", {"TrainingJobName": "j", "ResourceConfig": {"InstanceType": "ml.m5.large"}})
    )
    assert wanted[0].conditions == {"sagemaker:InstanceTypes": ["ml.m5.large"]}
    assert set(CONDITIONS) > {"sagemaker:InstanceTypes", "sagemaker:VpcSubnets"}
