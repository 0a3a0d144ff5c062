"""Runs the pipeline deployment on this machine and shows what came of it: `make demo`.

Ctrl-C cancels the flow run, and stops the services if they were not up before.
"""

import argparse
import asyncio
import fcntl
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from deploy import DeploymentError, bring_up
from local_aws import services
from local_aws.config import ConfigError, LocalConfig
from local_aws.credentials import credentials
from local_aws.errors import print_error
from settings import PREFIX, SettingsError, run_id, settings
from tasks.data import folder
from tasks.data.dataset import DatasetError, check_classes, from_archive
from tasks.model.sizing import hyperparameters_for, in_words, sizing

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, State

DEPLOYMENT = "pipeline/local"
# Less than a training that is meant to be used: under a minute instead of five.
QUICK = {"SCONES_FOLDS": ("folds", 3), "SCONES_EPOCHS": ("epochs", 24)}
# Images that the training of a demo sees in all: of a few own images, each more often.
SEEN_IMAGES, FEWEST_EPOCHS, MOST_EPOCHS = 24_000, 6, 160
# Nobody knows yet how well one's own classes can be told apart: a first model serves and is reported on however it is.
LENIENT = ("gate_min_accuracy", "smoke_min_accuracy")
POLL_SECONDS = 1.0
CANCEL_SECONDS = 20
QUIET_LOGGERS = ("sagemaker", "httpx", "botocore")
QUIET_MESSAGES = ("Finished in state", "View at", "Running hook", "Hook ")


class PipelineFailed(Exception):
    """The flow run did not complete; the message has its state's."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--dataset",
        help="'cifar100', 'generated', the path of an archive in CIFAR-100's layout, or your own images: a folder with "
        "one per class, or a CSV or JSON Lines file of paths and labels; by default cifar100 if it "
        "can be downloaded at once, else generated images",
    )
    dataset = parser.parse_args().dataset
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    started, own, alone, up_before = time.monotonic(), 0, ExitStack(), False
    try:
        config = LocalConfig()
        if dataset and dataset not in ("cifar100", "generated"):
            dataset = str(Path(dataset).expanduser().resolve())
            own = _check(dataset)
        alone.enter_context(_only_demo(config))
        shortened = QUICK | {"SCONES_EPOCHS": ("epochs", _epochs(own))}
        quick = {name: value for setting, (name, value) in shortened.items() if setting not in os.environ}
        if own:
            _announce(own, quick)
        check_classes(dataset or settings().dataset, settings().classes)
        up_before = services.mode(config) is not None
        print("starting the services")
        bring_up(config)
        parameters = {"dataset": dataset, "fall_back_to_generated": dataset is None, "hyperparameters": quick}
        state, evaluation = asyncio.run(_run_pipeline(parameters))
        if evaluation is None or not _print_summary(config, evaluation, time.monotonic() - started):
            raise PipelineFailed(f"the pipeline ended {state.name}: {state.message}")
        return 0 if state.is_completed() else 1
    except (
        *(services.ServicesError, DeploymentError, PipelineFailed),
        *(ConfigError, SettingsError, DatasetError),
    ) as error:
        return print_error(error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        if up_before:
            print("\ninterrupted; the services were up before and stay so", file=sys.stderr)
        else:
            print("\ninterrupted: stopping all services", file=sys.stderr)
            services.down(config)
        return 130
    finally:
        alone.close()


@contextmanager
def _only_demo(config: LocalConfig) -> Iterator[None]:
    """Raises PipelineFailed if another demo is under way: each would stop the services under the other's feet."""
    config.state.mkdir(parents=True, exist_ok=True)
    with (config.state / "demo.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PipelineFailed("another `make demo` is under way here; wait until it has ended, or stop it") from None
        yield


def _check(dataset: str) -> int:
    """How many own images there are, 0 of an archive. Raises DatasetError before anything is started for it."""
    if not folder.is_own(dataset):
        from_archive(Path(dataset), settings().classes)
        return 0
    entries = folder.local_entries(Path(dataset))
    classes = folder.classes_of(entries, dataset)
    print(f"{len(entries):,} images of {len(classes)} classes: {', '.join(classes)}")
    for name in sorted(set(LENIENT) - settings().model_fields_set):
        variable = PREFIX + name.upper()
        os.environ[variable] = "0"
        print(f"{variable}=0 for this run: a first model is reported on, however accurate it is")
    settings.cache_clear()
    return len(entries)


def _epochs(own: int) -> int:
    """Of a demo's training; more of few images, as it takes no longer, and fewer of many."""
    usual: int = QUICK["SCONES_EPOCHS"][1]
    return min(max(SEEN_IMAGES // own, FEWEST_EPOCHS), MOST_EPOCHS) if own else usual


def _announce(own: int, quick: dict[str, int]) -> None:
    """Says how long the training of own images takes, here in short and on AWS in full."""
    chosen = settings()
    images = round(own * (1 - chosen.dataset_test_share))
    full = hyperparameters_for(images, chosen)
    here = full | {name: str(value) for name, value in quick.items()}
    print(in_words(sizing(images, chosen.image_size, here), "", True, chosen.training_max_seconds)[0])
    if here != full:
        print("without the demo's shortcuts, ", end="")
        print(*in_words(sizing(images, chosen.image_size, full), "", True, chosen.training_max_seconds), sep="\n")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


async def _run_pipeline(parameters: dict[str, Any]) -> "tuple[State[Any], FlowRun | None]":
    """Starts the deployment, prints its log and its subflows' until it ends.

    Returns the state that it ended in, and the evaluation's flow run if it came that far.
    """
    from prefect import get_client

    async with get_client() as client:
        deployment = await client.read_deployment_by_name(DEPLOYMENT)
        run = await client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        print(f"flow run {run.name}")
        try:
            state = await _follow(client, run.id)
        except asyncio.CancelledError:
            await _cancel(client, run.id)
            raise
        evaluations = await _children(client, run.id, "nightly-evaluation")
        return state, evaluations[0] if evaluations else None


async def _follow(client: "PrefectClient", run_id: UUID) -> Any:
    seen: set[UUID] = set()
    while True:
        run = await client.read_flow_run(run_id)
        await _print_new_logs(client, [run_id, *(child.id for child in await _children(client, run_id))], seen)
        if run.state and run.state.is_final():
            return run.state
        await asyncio.sleep(POLL_SECONDS)


async def _children(client: "PrefectClient", run_id: UUID, flow: str | None = None) -> "list[FlowRun]":
    """The flow runs that a flow run called: all of them, or those of one flow."""
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterParentFlowRunId,
    )

    return await client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])) if flow else None,
        flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id])),
    )


async def _print_new_logs(client: "PrefectClient", run_ids: list[UUID], seen: set[UUID]) -> None:
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
    from prefect.client.schemas.sorting import LogSort

    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=run_ids))
    offset = 0
    while page := await client.read_logs(wanted, limit=200, offset=offset, sort=LogSort.TIMESTAMP_ASC):
        offset += len(page)
        for log in page:
            if log.id not in seen:
                seen.add(log.id)
                if not log.name.startswith(QUIET_LOGGERS) and not log.message.startswith(QUIET_MESSAGES):
                    print(f"{log.timestamp.astimezone(UTC):%H:%M:%S}  {log.message}", flush=True)


async def _cancel(client: "PrefectClient", run_id: UUID) -> None:
    from prefect.states import Cancelling

    print("\ncancelling the flow run", file=sys.stderr)
    await client.set_flow_run_state(run_id, Cancelling(), force=True)
    deadline = time.monotonic() + CANCEL_SECONDS
    while time.monotonic() < deadline:
        run = await client.read_flow_run(run_id)
        if run.state and run.state.is_final():
            return
        await asyncio.sleep(0.5)


def _print_summary(config: LocalConfig, evaluation: "FlowRun", seconds: float) -> bool:
    """Prints what the report says; False if there is no report."""
    assert evaluation.expected_start_time is not None
    date = evaluation.expected_start_time.astimezone(UTC).date().isoformat()
    folder = settings().reports / date / run_id(evaluation.id)
    if not (folder / "summary.json").exists():
        return False
    summary = json.loads((folder / "summary.json").read_text())
    counts = summary["evaluation"]
    accuracy = "-" if summary["accuracy"] is None else f"{summary['accuracy']:.3f}"
    low, high = summary["accuracy_interval_95"]
    kind = "GENERATED images (not photographs)" if summary["dataset"]["synthetic"] else summary["dataset"]["source"]
    unused = summary["dataset"].get("left_out")
    left_out = f", {unused} files left out" if unused else ""
    lines = {
        "verdict": summary["verdict"],
        "data": f"{kind}: {summary['dataset']['train']} training, {summary['dataset']['test']} test images{left_out}",
        "images planned": counts["planned"],
        "accepted": f"{counts['accepted']} (confidence >= {summary['threshold']:g})",
        "below threshold": counts["below_threshold"],
        "of no class": counts["not_a_class"],
        "failed": counts["failed"],
        "accuracy": f"{accuracy} (95 % interval {low:.3f} to {high:.3f}, n = {summary['captured']})",
        "model version": summary["model_version"],
        "report": folder / "report.html",
        "Prefect UI": credentials(config).sign_in(config.prefect_url),
        "took": f"{seconds:.0f} s",
    }
    print()
    for name, value in lines.items():
        print(f"  {name:<16} {value}")
    script = shlex.quote(os.path.relpath(config.state / "env.sh"))
    print(f"\nThe services stay up. `make down` stops them, `. {script}` lets a shell use them.")
    if summary["dataset"]["synthetic"]:
        print("`make demo-review` has you look at images that the model is unsure of.")
    return True


if __name__ == "__main__":
    sys.exit(main())
