"""What an account and Prefect must offer before the pipeline can run, looked at without changing or buying anything."""

import email.utils
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

import httpx
import prefect
from botocore.exceptions import BotoCoreError, ClientError
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger

from settings import Settings, settings
from tasks.aws.clients import client, on_aws, session
from tasks.aws.images import inference_image, training_image
from tasks.aws.stacks import find_outputs
from tasks.errors import SconesError

Level = Literal["ok", "warning", "problem"]

# AWS refuses requests whose time differs by more:
# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html (RequestTimeTooSkewed)
MOST_SKEW_SECONDS = 300
# End of patches by what repository and tag of an image begin with, as AWS publishes it; looked up in November 2026.
SUPPORTED_UNTIL = {
    "pytorch-training:2.10": date(2027, 1, 21),
    "pytorch:2.13": date(2027, 7, 20),
    "pytorch-inference:2.6": date(2026, 6, 30),
}
# The setting of each call's rate, and how many a second Step Functions refills in the three large regions and in all
# others: https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html
LARGE_REGIONS = {"us-east-1", "us-west-2", "eu-west-1"}
RATES = {
    "StartExecution": ("starts_per_second", 300, 150),
    "DescribeExecution": ("describes_per_second", 15, 10),
    "ListExecutions": ("lists_per_second", 5, 2),
}
# Child executions of a Distributed Map; it runs 10,000 of them at a time, which is the largest SCONES_BULK_CONCURRENCY.
# https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html
CHILD_STARTS_PER_SECOND = 100
# What deploys, trains and evaluates; simulated for whoever runs the flows.
ACTIONS = (
    "cloudformation:DescribeStacks",
    "s3:ListBucket",
    "sagemaker:CreateTrainingJob",
    "sagemaker:AddTags",
    "sagemaker:CreateModel",
    "sagemaker:CreateEndpointConfig",
    "sagemaker:CreateEndpoint",
    "sagemaker:UpdateEndpoint",
    "states:StartExecution",
    "states:ListExecutions",
)


class PreflightFailed(SconesError):
    """Something is missing that the pipeline needs; the message has it all."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and what to do if it is not well."""

    check: str
    level: Level
    detail: str
    hint: str = ""


@task(task_run_name="look at account and Prefect")
def look() -> list[Finding]:
    """All findings, also as a table artifact and lines in the log. Raises PreflightFailed if there is a problem."""
    logger, found = get_run_logger(), list(findings(settings()))
    rows = [{"check": each.check, "is": each.level, "detail": each.detail, "what to do": each.hint} for each in found]
    create_table_artifact(rows, key="preflight", description="Whether the pipeline can run")
    for each in found:
        say = logger.info if each.level == "ok" else logger.warning
        say("%s: %s%s", each.check, each.detail, f"; {each.hint}" if each.hint else "")
    problems = [f"{each.check}: {each.detail}; {each.hint}" for each in found if each.level == "problem"]
    if problems:
        raise PreflightFailed("\n".join(problems), "the table `preflight` in the UI has all that was looked at")
    return found


def findings(chosen: Settings) -> Iterator[Finding]:
    """One after the other. A check that can't be made is a warning; without credentials nothing else is looked at."""
    identity = _checked("credentials", credentials)
    yield from identity
    if identity[0].level == "problem":
        return
    for name, check in (
        ("region", region),
        ("images", lambda: images(chosen, datetime.now(UTC).date())),
        # One machine has none, and evaluations use what it bears.
        ("quotas", lambda: quotas(chosen) if on_aws() else []),
        ("rates", lambda: rates(chosen, session().region_name) if on_aws() else []),
        ("Lambda concurrency", lambda: lambda_concurrency(chosen)),
        ("batches", lambda: batches(chosen)),
        ("permissions", permissions),
        ("stacks", lambda: stacks(chosen)),
        ("Prefect", prefect_server),
    ):
        yield from _checked(name, check)


def credentials() -> list[Finding]:
    """Who the credentials are of, and whether this machine's clock is near enough to AWS's."""
    try:
        answer = client("sts").get_caller_identity()
    except (ClientError, BotoCoreError) as error:
        hint = "sign in again, or give the worker a profile or role that renews its credentials"
        return [Finding("credentials", "problem", str(error), hint)]
    found = [Finding("credentials", "ok", f"{answer['Arn']} of account {answer['Account']}")]
    sent = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if sent:
        found.append(clock(email.utils.parsedate_to_datetime(sent), datetime.now(UTC)))
    return found


def clock(theirs: datetime, ours: datetime) -> Finding:
    """Whether AWS will take requests with this machine's time."""
    skew = abs((ours - theirs).total_seconds())
    if skew > MOST_SKEW_SECONDS:
        hint = "set this machine's clock, by NTP for example"
        return Finding("clock", "problem", f"{skew:.0f} s off AWS's, which refuses more than {MOST_SKEW_SECONDS}", hint)
    return Finding("clock", "ok", f"{skew:.0f} s off AWS's")


def region() -> list[Finding]:
    """The session's region."""
    name = session().region_name
    if name is None:
        return [Finding("region", "problem", "there is none", "set AWS_REGION")]
    return [Finding("region", "ok", name)]


def images(chosen: Settings, today: date) -> list[Finding]:
    """Whether AWS has the images of the settings, and patches them still."""
    found = []
    for scope, find in (("training", training_image), ("inference", inference_image)):
        name = f"{scope} image"
        try:
            uri = find(chosen)
        except ValueError as error:
            hint = f"choose another with SCONES_{scope.upper()}_PYTORCH"
            found.append(Finding(name, "problem", str(error).splitlines()[0], hint))
            continue
        until = supported_until(uri)
        if until is not None and until < today:
            hint = "docs/aws-rules.md says what follows it"
            if scope == "inference":
                hint = "SCONES_INFERENCE_CONTAINER=ray-serve chooses the image that AWS maintains"
            found.append(Finding(name, "warning", f"{uri}: AWS has not patched it since {until}", hint))
        else:
            found.append(Finding(name, "ok", f"{uri}, patched until {until or 'an unknown day'}"))
    return found


def supported_until(uri: str) -> date | None:
    """The day until which AWS patches an image; None if it is not known."""
    image = uri.rsplit("/", 1)[-1]
    for beginning, day in SUPPORTED_UNTIL.items():
        if image == beginning or image.startswith((f"{beginning}.", f"{beginning}-")):
            return day
    return None


def quotas(chosen: Settings) -> list[Finding]:
    """Whether the account may have the instances that the settings ask for."""
    wanted = {
        f"{chosen.training_instance_type} for training job usage": 1,
        # The candidate stands beside the endpoint, and an update beside what it replaces.
        f"{chosen.endpoint_instance_type} for endpoint usage": 2 * chosen.endpoint_instance_count + 1,
    }
    allowed: dict[str, float] = {}
    for page in client("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker"):
        allowed |= {each["QuotaName"]: each["Value"] for each in page["Quotas"] if each["QuotaName"] in wanted}
    found = []
    for name, count in wanted.items():
        if name not in allowed:
            found.append(Finding(name, "warning", "Service Quotas does not list it", "look in its console"))
        elif allowed[name] < count:
            hint = "ask for more in the Service Quotas console"
            found.append(Finding(name, "problem", f"{allowed[name]:g} are allowed, and {count} are needed", hint))
        else:
            found.append(Finding(name, "ok", f"{allowed[name]:g} are allowed, and {count} are needed"))
    return found


def rates(chosen: Settings, region_name: str | None) -> list[Finding]:
    """Whether the evaluation calls Step Functions no faster than an account's tokens are refilled by default."""
    found = []
    for action, (name, in_large, elsewhere) in RATES.items():
        pace, allowed = getattr(chosen, name), in_large if region_name in LARGE_REGIONS else elsewhere
        detail = f"{pace:g} a second, and {allowed} are refilled by default in {region_name}"
        if pace > allowed:
            hint = f"set SCONES_{name.upper()} to {allowed}, unless the account has a higher quota"
            found.append(Finding(f"rate of {action}", "warning", detail, hint))
        else:
            found.append(Finding(f"rate of {action}", "ok", detail))
    return found


def lambda_concurrency(chosen: Settings) -> list[Finding]:
    """Whether as many functions may run at once as an evaluation's executions, or batches, are in flight."""
    limit = client("lambda").get_account_settings()["AccountLimit"]["ConcurrentExecutions"]
    found = []
    for what, name, wanted in (
        ("executions", "executions_in_flight", chosen.executions_in_flight),
        ("batches", "bulk_concurrency", chosen.bulk_batches),
    ):
        check, detail = f"Lambda concurrency of {what}", f"{limit} are allowed for {wanted} {what} in flight"
        if limit < wanted:
            hint = f"set SCONES_{name.upper()} to {limit} or less, or ask for more in the Service Quotas console"
            found.append(Finding(check, "problem", detail, hint))
        else:
            found.append(Finding(check, "ok", detail))
    return found


def batches(chosen: Settings) -> list[Finding]:
    """Whether Step Functions starts a bulk run's batches soon; more than it allows, no setting asks for."""
    many = chosen.bulk_batches
    detail = f"{many} at a time; Step Functions starts {CHILD_STARTS_PER_SECOND} a second"
    if many > 10 * CHILD_STARTS_PER_SECOND:
        hint = "it takes more than ten seconds until all run; larger batches (SCONES_BULK_BATCH_SIZE) start sooner"
        return [Finding("batches at a time", "warning", detail, hint)]
    return [Finding("batches at a time", "ok", detail)]


def permissions() -> list[Finding]:
    """Which of the actions that the flows need IAM's policy simulation denies to whoever runs them."""
    arn = client("sts").get_caller_identity()["Arn"]
    if arn.endswith(":root"):
        return [Finding("permissions", "ok", "the account's root user may do everything")]
    source = role_of(arn)
    answer = client("iam").simulate_principal_policy(PolicySourceArn=source, ActionNames=list(ACTIONS))
    denied = [each["EvalActionName"] for each in answer["EvaluationResults"] if each["EvalDecision"] != "allowed"]
    if denied:
        # Simulated for any resource; a policy may still allow it for this installation's own.
        hint = "give the role these, at least for this installation's resources (infrastructure/workflow.yaml)"
        return [Finding("permissions", "warning", f"{source} may not {', '.join(denied)} on every resource", hint)]
    return [Finding("permissions", "ok", f"{source} may do what the flows do")]


def role_of(arn: str) -> str:
    """The ARN of the role of a session, arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION; of a user, its own."""
    if ":assumed-role/" not in arn:
        return arn
    head, _, rest = arn.replace(":sts:", ":iam:").partition(":assumed-role/")
    return f"{head}:role/{rest.split('/')[0]}"


def stacks(chosen: Settings) -> list[Finding]:
    """Whether both stacks stand; there are none before the first prepare-data."""
    found = []
    for name in (chosen.storage_stack, chosen.stack):
        outputs = find_outputs(name)
        if outputs is None:
            found.append(Finding(f"stack {name}", "ok", "not there yet: prepare-data creates it"))
        elif not outputs:
            hint = "run prepare-data, which deletes and creates it again"
            found.append(Finding(f"stack {name}", "warning", "its creation failed", hint))
        else:
            found.append(Finding(f"stack {name}", "ok", "stands"))
    return found


def prefect_server() -> list[Finding]:
    """Whether server and client fit, and somebody works on the pools of the deployments."""
    try:
        with get_client(sync_client=True) as api:
            theirs, ours = api.api_version(), prefect.__version__
            pools = api.read_work_pools()
    except (httpx.HTTPError, PrefectException) as error:
        return [Finding("Prefect", "problem", f"its server does not answer: {error}", "run `make up`")]
    found = [Finding("Prefect", "ok", f"server {theirs}, client {ours}")]
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        hint = "use the same minor version on both sides"
        found = [Finding("Prefect", "warning", f"the server is {theirs} and the client {ours}", hint)]
    for pool in pools:
        status = str(pool.status.value if pool.status else "UNKNOWN")
        if status == "READY":
            found.append(Finding(f"work pool {pool.name}", "ok", status))
        else:
            hint = f"start a worker: prefect worker start --pool {pool.name}"
            found.append(Finding(f"work pool {pool.name}", "warning", status, hint))
    return found


def _checked(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """The check's findings, or a warning that it can't be made."""
    try:
        return check()
    except (ClientError, BotoCoreError, SconesError) as error:
        text: Any = str(error).splitlines()[0]
        return [Finding(name, "warning", f"could not be looked at: {text}", "allow it, or look yourself")]
