"""What an installation costs a month on AWS, from its settings and what its last runs took; by list price."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from settings import BULK_PREFIX, Settings
from tasks.aws import storage
from tasks.aws.clients import client, none_if_missing, retry_transient
from tasks.evaluation.catalogue import newest_first
from tasks.evaluation.summary import EvaluationSummary
from tasks.installation import Installation
from tasks.model.registry import versions
from tasks.prices import (
    FARGATE_CPU_HOUR,
    FARGATE_GB_HOUR,
    INSTANCE_HOUR,
    LOOKED_UP,
    PUBLIC_ADDRESS_HOUR,
    STORED_GB,
)

NIGHTS = 30
WEEKS = 52 / 12
HOURS = 365 * 24 / 12
BULK_DAYS = 30
# An endpoint of one night, and the one that a version is tried on before it, take so long to come up on AWS.
START_SECONDS = 1200
WORKER_CPUS = 0.25
WORKER_GB = 1
OLD = timedelta(days=365)


@dataclass(frozen=True)
class Item:
    """A line of the bill. dollars: a month; None if there is no price, or nothing to go by yet. basis: how it comes."""

    name: str
    dollars: float | None
    basis: str


@dataclass(frozen=True)
class Training:
    """The newest version's training job. seconds: those that are billed."""

    job: str
    seconds: int
    instance_type: str


def items(
    chosen: Settings,
    night: EvaluationSummary | None,
    bulk: list[EvaluationSummary],
    training: Training | None,
    stored_bytes: int,
) -> list[Item]:
    """The lines of a month. night: the last evaluation. bulk: bulk runs of the last BULK_DAYS days."""
    return [
        _endpoint(chosen, night),
        _nights(night),
        Item(
            f"bulk runs of the last {BULK_DAYS} days",
            sum(_use(run) for run in bulk),
            f"{len(bulk)} runs, {sum(run.planned for run in bulk):,} images, without the endpoint",
        ),
        _trainings(training),
        *([_worker(chosen)] if chosen.runner_workers else []),
        Item("what is stored", stored_bytes / 1e9 * STORED_GB, f"{stored_bytes / 1e9:.2f} GB, without old versions"),
    ]


def _endpoint(chosen: Settings, night: EvaluationSummary | None) -> Item:
    kind, count = chosen.endpoint_instance_type, chosen.endpoint_instance_count
    hour = INSTANCE_HOUR.get(kind)
    if hour is None:
        return Item("endpoint", None, f"{count} x {kind}, of which no price is known here")
    if chosen.endpoint_schedule == "always":
        return Item("endpoint", HOURS * hour * count, f"{count} x {kind}, {HOURS:.0f} hours at ${hour:g}")
    elapsed = _seconds(night)
    hours = NIGHTS * (elapsed + chosen.endpoint_linger_seconds + START_SECONDS) / 3600
    return Item("endpoint", hours * hour * count, f"{count} x {kind}, {NIGHTS} nights, {hours:.0f} hours at ${hour:g}")


def _nights(night: EvaluationSummary | None) -> Item:
    name = f"{NIGHTS} evaluations"
    if night is None:
        return Item(name, None, "none has ended yet")
    use = _use(night)
    return Item(name, NIGHTS * use, f"${use:.4f} a night: {night.date} {night.run}, {night.planned:,} images")


def _trainings(training: Training | None) -> Item:
    if training is None:
        return Item("weekly training", None, "none has ended yet")
    hour = INSTANCE_HOUR.get(training.instance_type)
    basis = f"{training.job}: {training.seconds:,} s on {training.instance_type}, without the gate's job"
    return Item("weekly training", None if hour is None else WEEKS * training.seconds / 3600 * hour, basis)


def _worker(chosen: Settings) -> Item:
    """The Prefect worker on ECS; infrastructure/runner.yaml has its size."""
    hour = WORKER_CPUS * FARGATE_CPU_HOUR + WORKER_GB * FARGATE_GB_HOUR
    address = PUBLIC_ADDRESS_HOUR if chosen.runner_public_ip else 0
    basis = f"{chosen.runner_workers} x {WORKER_CPUS:g} vCPU and {WORKER_GB} GB on Fargate, without the flow runs"
    return Item("worker on ECS", HOURS * (hour + address) * chosen.runner_workers, basis)


def _seconds(night: EvaluationSummary | None) -> float:
    """From its first execution to its last; 0 if there was none."""
    if night is None or not night.started or not night.stopped:
        return 0.0
    return (datetime.fromisoformat(night.stopped) - datetime.fromisoformat(night.started)).total_seconds()


def _use(run: EvaluationSummary) -> float:
    """Dollars of a run without the endpoint, which stands anyway."""
    spent = run.cost_usd
    return (spent.state_transitions or 0) + (spent.functions or 0) + (spent.requests or 0)


def last_training() -> Training | None:
    """Of the newest version in the registry; None if there is none, or SageMaker does not know its job any more."""
    newest = next(versions(), None)
    name = newest.metadata.get("training_job") if newest else None
    if not name:
        return None
    described = retry_transient(
        f"look at training job {name}",
        lambda: none_if_missing(lambda: client("sagemaker").describe_training_job(TrainingJobName=name)),
    )
    if described is None:
        return None
    seconds = described.get("BillableTimeInSeconds") or described.get("TrainingTimeInSeconds") or 0
    return Training(name, int(seconds), described["ResourceConfig"]["InstanceType"])


def of_installation(installed: Installation, chosen: Settings, today: date) -> list[Item]:
    """The lines of an installation, looked up in its bucket and registry."""
    stored = sum(size for _, size in storage.list_objects(installed.bucket, "").values())
    bulk = newest_first(installed.bucket, (BULK_PREFIX,), since=f"{today - timedelta(days=BULK_DAYS)}")
    night = next((each for each in newest_first(installed.bucket) if each.stopped), None)
    return items(chosen, night, list(bulk), last_training(), stored)


def table(lines: list[Item], today: date) -> str:
    """The lines with their sum, and how old the prices are."""
    width = max(len(line.name) for line in lines)
    shown = [
        f"  {line.name:<{width}}  {'?' if line.dollars is None else f'${line.dollars:,.2f}':>10}  {line.basis}"
        for line in lines
    ]
    known = sum(line.dollars or 0 for line in lines)
    unknown = ", and what is not known" if any(line.dollars is None for line in lines) else ""
    old = " They are older than a year: compare them with AWS's pages." if today - LOOKED_UP > OLD else ""
    return "\n".join(
        [
            "A month on AWS, in US dollars:",
            "",
            *shown,
            f"  {'together':<{width}}  {f'${known:,.2f}':>10}{unknown}",
            "",
            f"List prices of us-east-1, looked up on {LOOKED_UP:%-d %B %Y}, without any free tier.{old}",
            "Not counted: logs, requests to S3 outside of bulk runs, KMS, data transfer, and what flows run on.",
        ]
    )
