"""Alarms, the topic that they tell, and the rule that counts executions that failed, each made to happen."""

import http.server
import json
import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import yaml

from local_aws.config import ROOT, LocalConfig
from settings import VARIANT, settings
from tasks.aws import stacks, storage
from tasks.aws.clients import client
from tasks.capture import freshness
from tasks.installation import Installation, capture_prefix
from tasks.run import utc_now
from tasks.serving.models import deployment_config
from testing.waiting import eventually

STACK = "watched"
MACHINE = f"arn:aws:states:us-east-1:000000000000:stateMachine:{STACK}-classify-image"
BATCHES = f"arn:aws:states:us-east-1:000000000000:stateMachine:{STACK}-classify-batch"


class _Template(yaml.SafeLoader):
    """Reads CloudFormation's tags as what they hold."""


def _untagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node)
    return loader.construct_scalar(node)  # type: ignore[arg-type]


_Template.add_multi_constructor("!", _untagged)
TEMPLATE = yaml.load((ROOT / "infrastructure" / "alarms.yaml").read_text(), _Template)
ALARMS = {
    each["Properties"]["AlarmName"].replace("${Stack}", STACK): each["Properties"]
    for each in TEMPLATE["Resources"].values()
    if each["Type"] == "AWS::CloudWatch::Alarm"
}


@pytest.fixture(scope="module")
def topic(stack: LocalConfig) -> Iterator[str]:
    """The topic of a stack of alarms over an installation that need not exist for it."""
    parameters: dict[str, str | None] = {
        "Stack": STACK,
        "EndpointName": f"{STACK}-classifier",
        "VariantName": VARIANT,
        "StateMachineArn": MACHINE,
        "BatchStateMachineArn": BATCHES,
        "Email": "somebody@example.com",
        "MonthlyBudget": "120",
    }
    name = f"{STACK}-alarms"
    assert stacks.deploy_stack(name, ROOT / "infrastructure" / "alarms.yaml", parameters) == "created"
    assert stacks.deploy_stack(name, ROOT / "infrastructure" / "alarms.yaml", parameters) == "unchanged"
    yield stacks.stack_outputs(name)["TopicArn"]
    assert stacks.delete_stack(name) and not client("cloudwatch").describe_alarms()["MetricAlarms"]


@pytest.fixture(scope="module")
def messages(topic: str) -> Iterator[list[dict[str, Any]]]:
    """What the topic tells a subscriber on this machine."""
    heard: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *details: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sns = client("sns")
    sns.subscribe(TopicArn=topic, Protocol="http", Endpoint=f"http://127.0.0.1:{server.server_address[1]}/")
    asked = eventually(lambda: [each for each in heard if each["Type"] == "SubscriptionConfirmation"])[0]
    sns.confirm_subscription(TopicArn=topic, Token=asked["Token"])
    yield heard
    server.shutdown()
    server.server_close()


def test_whoever_is_to_be_told_is_asked_for_consent(topic: str) -> None:
    (by_mail,) = [
        each
        for each in client("sns").list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
        if each["Protocol"] == "email"
    ]
    assert by_mail["Endpoint"] == "somebody@example.com"


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_fires_when_its_metric_says_so_and_somebody_is_told(messages: list[dict[str, Any]], name: str) -> None:
    """AWS's services publish the metric; here it is put, in their place."""
    cloudwatch, described = client("cloudwatch"), ALARMS[name]
    (alarm,) = cloudwatch.describe_alarms(AlarmNames=[name])["MetricAlarms"]
    assert (alarm["MetricName"], alarm["Namespace"]) == (described["MetricName"], described["Namespace"])
    assert alarm["Dimensions"] and all(each["Value"] for each in alarm["Dimensions"])
    assert alarm["TreatMissingData"] == "notBreaching" and alarm["AlarmDescription"].endswith((".", "again."))
    data = {"MetricName": alarm["MetricName"], "Dimensions": alarm["Dimensions"]}
    # CloudWatch forgets nothing: what other alarms of the same metric put counts here as well.
    cloudwatch.put_metric_data(
        Namespace=alarm["Namespace"], MetricData=[{**data, "Value": alarm["Threshold"] * 1.01 + 1}]
    )
    state = eventually(
        lambda: cloudwatch.describe_alarms(AlarmNames=[name])["MetricAlarms"][0]["StateValue"] == "ALARM"
    )
    assert state
    told = eventually(lambda: [each for each in messages if name in each.get("Subject", "") + each.get("Message", "")])
    assert "ALARM" in told[0]["Message"]


def event(status: str, error: str | None, machine: str = MACHINE) -> str:
    """As Step Functions sends it: https://docs.aws.amazon.com/step-functions/latest/dg/eventbridge-integration.html"""
    detail = {
        "executionArn": f"{machine.replace('stateMachine', 'execution')}:{uuid.uuid4()}",
        "stateMachineArn": machine,
        "name": "x",
        "status": status,
        "startDate": 1547148840101,
        "stopDate": 1547148840122,
        "input": "{}",
        "output": None,
        "error": error,
        "cause": None,
    }
    return json.dumps(
        {
            "version": "0",
            "id": "315c1398-40ff-a850-213b-158f73e60175",
            "detail-type": "Step Functions Execution Status Change",
            "source": "aws.states",
            "account": "000000000000",
            "time": "2019-02-26T19:42:21Z",
            "region": "us-east-1",
            "resources": [detail["executionArn"]],
            "detail": detail,
        }
    )


@pytest.mark.parametrize(
    ("status", "error", "machine", "counts"),
    [
        ("FAILED", "ImageNotFound", MACHINE, True),
        ("FAILED", "ModelError", MACHINE, True),
        ("TIMED_OUT", None, MACHINE, True),
        ("FAILED", "LowConfidence", MACHINE, False),
        ("FAILED", "NotAClass", MACHINE, False),
        ("SUCCEEDED", None, MACHINE, False),
        ("ABORTED", None, MACHINE, False),
        ("FAILED", "ModelError", BATCHES, False),
    ],
)
def test_the_rule_counts_failures_and_no_decisions(
    topic: str, status: str, error: str | None, machine: str, counts: bool
) -> None:
    rule = client("events").describe_rule(Name=f"{STACK}-failed-executions")
    found = client("events").test_event_pattern(EventPattern=rule["EventPattern"], Event=event(status, error, machine))
    assert found["Result"] == counts


def test_the_budget_is_of_the_installations_tag_and_tells_the_topic(topic: str) -> None:
    account = topic.split(":")[4]
    budget = client("budgets").describe_budget(AccountId=account, BudgetName=STACK)["Budget"]
    assert budget["BudgetLimit"] == {"Amount": "120", "Unit": "USD"}
    assert budget["CostFilters"] == {"TagKeyValue": [f"user:scones:stack${STACK}"]}
    told = client("budgets").describe_notifications_for_budget(AccountId=account, BudgetName=STACK)["Notifications"]
    assert {(each["NotificationType"], each["Threshold"]) for each in told} == {("ACTUAL", 80.0), ("FORECASTED", 100.0)}
    for each in told:
        asked = {"AccountId": account, "BudgetName": STACK, "Notification": each}
        subscribers = client("budgets").describe_subscribers_for_notification(**asked)["Subscribers"]
        assert subscribers == [{"SubscriptionType": "SNS", "Address": topic}]


def test_the_age_of_the_newest_capture_is_published(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCONES_STACK", STACK)
    monkeypatch.setenv("SCONES_ALARMS", "true")
    settings.cache_clear()
    bucket, endpoint = f"{STACK}-captures", f"{STACK}-classifier"
    client("s3").create_bucket(Bucket=bucket)
    watched = Installation(bucket, MACHINE, BATCHES, endpoint, ("a", "b"), 0.9, "", "")
    try:
        assert freshness.newest_capture(bucket, endpoint) is None
        for day in ("2026/11/09/23", "2026/11/10/00"):
            storage.put(bucket, f"{capture_prefix(endpoint, 'v9')}{day}/one.jsonl", b"{}")
        newest = freshness.newest_capture(bucket, endpoint)
        assert newest is not None and utc_now() - newest < timedelta(minutes=5)
        monkeypatch.setattr(freshness, "utc_now", lambda: newest + timedelta(days=2))
        freshness.publish_age.fn(watched)
        published = client("cloudwatch").get_metric_statistics(
            Namespace="Scones",
            MetricName=freshness.METRIC,
            Dimensions=[{"Name": "Stack", "Value": STACK}],
            StartTime=utc_now() - timedelta(minutes=30),
            EndTime=utc_now() + timedelta(minutes=1),
            Period=3600,
            Statistics=["Maximum"],
        )["Datapoints"]
        # That the alarm rings above a day is shown above.
        assert max(each["Maximum"] for each in published) == 2 * 86400
    finally:
        storage.empty(bucket)
        client("s3").delete_bucket(Bucket=bucket)
        settings.cache_clear()


def test_the_dashboard_is_json(topic: str) -> None:
    body = client("cloudwatch").get_dashboard(DashboardName=STACK)["DashboardBody"]
    assert len(json.loads(body)["widgets"]) == 4 and f"{STACK}-classifier" in body


def test_the_endpoints_alarms_roll_a_switch_back_where_no_others_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("SCONES_ALARMS", "true")
        settings.cache_clear()
        names = [each["AlarmName"] for each in deployment_config(settings())["AutoRollbackConfiguration"]["Alarms"]]
        assert names == [f"{settings().stack}-endpoint-5xx", f"{settings().stack}-endpoint-latency"]
        patch.setenv("SCONES_ROLLBACK_ALARMS", "mine")
        settings.cache_clear()
        assert deployment_config(settings())["AutoRollbackConfiguration"]["Alarms"] == [{"AlarmName": "mine"}]
    settings.cache_clear()
