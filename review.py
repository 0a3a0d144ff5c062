"""The page on which people look at queued images, and what else is done with their answers: `make review`."""

import argparse
import getpass
import json
import sys
from pathlib import Path
from typing import Any

from deploy import DeploymentError, enter_installation
from local_aws import services
from local_aws.config import ConfigError, LocalConfig
from local_aws.credentials import credentials
from local_aws.errors import print_error
from settings import SettingsError, run_id, settings
from tasks.errors import SconesError

DEMO_IMAGES = 120


def main() -> int:
    parser = argparse.ArgumentParser(prog="review.py", description=__doc__)
    parser.add_argument(
        "--aws", choices=["local", "real"], default="local", help="real: with the shell's own AWS credentials"
    )
    commands = parser.add_subparsers(dest="command")
    page = commands.add_parser("page", help="serve the page until Ctrl-C (what happens without a command)")
    page.add_argument("--reviewer", help="the name that the page proposes; by default that of your user here")
    commands.add_parser("demo", help="classify generated images without labels, and serve the page on what waits")
    commands.add_parser("status", help="print what became of the queue, and how people agree")
    commands.add_parser("interface", help="print the labelling interface for Label Studio")
    export = commands.add_parser("export", help="write what waits for an answer as tasks for Label Studio")
    export.add_argument("file", type=Path)
    imported = commands.add_parser("import", help="store the answers of an export of Label Studio")
    imported.add_argument("file", type=Path)
    arguments = parser.parse_args()
    try:
        enter_installation(arguments.aws == "real")
        return run(arguments)
    except (services.ServicesError, DeploymentError, SettingsError, ConfigError, SconesError, OSError) as error:
        return print_error(error)


def run(arguments: argparse.Namespace) -> int:
    """Does what was asked for. Imports here: the environment is ours only now."""
    from tasks.aws.stacks import installation
    from tasks.review import label_studio
    from tasks.review.labels import Review
    from tasks.run import utc_now

    installed = installation()
    if arguments.command in (None, "page"):
        return serve_page(installed, getattr(arguments, "reviewer", None) or getpass.getuser())
    if arguments.command == "demo":
        if arguments.aws == "real":
            raise services.ServicesError("generated images are for the local AWS")
        fill_queue(installed)
        return serve_page(installed, getpass.getuser())
    if arguments.command == "interface":
        print(label_studio.interface(installed.classes), end="")
        return 0
    review = Review()
    review.refresh(installed.bucket)
    outcomes = review.outcomes(settings(), utc_now())
    if arguments.command == "status":
        print(status(installed.bucket, review, outcomes))
    elif arguments.command == "export":
        tasks = label_studio.export_tasks(installed.bucket, review, outcomes)
        arguments.file.write_text(json.dumps(tasks, indent=2) + "\n")
        print(f"{len(tasks)} tasks in {arguments.file}")
    else:
        return import_file(installed, review, arguments.file)
    return 0


def fill_queue(installed: Any) -> None:
    """Has generated images classified by the deployments, as a user of the installation would."""
    from prefect.deployments import run_deployment

    from tasks.data.unlabelled import upload_unlabelled
    from tasks.run import utc_now

    def deployed(name: str, parameters: dict[str, str]) -> Any:
        run: Any = run_deployment(name, parameters=parameters, as_subflow=False, poll_interval=1)
        if not run.state.is_final() or run.state.is_crashed() or run.state.is_cancelled():
            raise services.ServicesError(f"{name} ended {run.state.name}: {run.state.message}")
        print(f"{name}: {run.state.message or run.state.name}", flush=True)
        return run

    prefix = upload_unlabelled(installed.bucket, installed.classes, DEMO_IMAGES, utc_now(), settings().image_size)
    print(f"{DEMO_IMAGES} generated images without labels in s3://{installed.bucket}/{prefix}", flush=True)
    run = deployed("classify-images/local", {"prefix": prefix})
    deployed("queue-review/local", {"run": run_id(run.id)})


def serve_page(installed: Any, reviewer: str) -> int:
    """Until Ctrl-C."""
    from tasks.review.announcement import Crossing
    from tasks.review.desk import Desk
    from tasks.review.labels import REVIEWER
    from tasks.review.page import address, application, serve

    port = settings().review_port
    services.check_port("page", "SCONES_REVIEW_PORT", port)
    desk = Desk(installed.bucket, settings(), installed.classes)
    desk.refresh()
    token = credentials(LocalConfig()).review_token
    name = reviewer if REVIEWER.fullmatch(reviewer) else ""
    print(f"{len(desk.review.queue)} images are or were in the queue. {address(port, token)} (Ctrl-C ends)", flush=True)
    serve(application(desk, port, name, Crossing(), token), port)
    return 0


def import_file(installed: Any, review: Any, file: Path) -> int:
    """Stores what an export says; 1 if some of it can't be used."""
    from tasks.review import label_studio, labels, training_set
    from tasks.review.announcement import announce

    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise label_studio.LabelStudioError(f"{file} is no JSON: {error}") from error
    answers, problems = label_studio.import_answers(content, review, installed.classes)
    written = [label for label in answers if label.key not in review.read and labels.write(installed.bucket, label)]
    for label in written:
        review.add(label)
    print(f"{len(written)} answers stored, {len(answers) - len(written)} were there, {len(problems)} can't be used")
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    new = training_set.count_new_labels(installed.bucket, settings(), installed.classes)
    told = announce(new, training_set.labels_needed(installed.bucket, settings()))
    print(f"{told.new} labels that no training has seen; {told.needed} start one")
    return 1 if problems else 0


def status(bucket: str, review: Any, outcomes: Any) -> str:
    """The queue's accounts, how people agree, what the audits show, and what can't be read."""
    from tasks.review.certificate import certificates, sentence
    from tasks.review.labels import agreement, counted
    from tasks.review.training_set import published, trained_on

    counts, agreed = counted(outcomes), agreement(outcomes.values())
    kappa = "" if agreed.kappa is None else f", Cohen's kappa {agreed.kappa:.2f}"
    lines = [
        f"{len(outcomes)} queued = " + " + ".join(f"{count} {state}" for state, count in counts.items()),
        f"{agreed.images} with two answers, {agreed.same} of them the same{kappa}",
        *(sentence(each) for each in certificates(review, outcomes, settings(), trained_on(published(bucket)))),
        *(f"left out: {key}: {problem}" for key, problem in review.strange.items()),
    ]
    if review.stray:
        lines.append(f"left out: {review.stray} answers about images that are in no queue")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
