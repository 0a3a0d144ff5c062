"""The commands of `scones` and their options."""

import tomllib
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from cli.output import errors_in_lines, escape_what_streams_lack, progress, show_json, show_line, show_table

app = typer.Typer(
    name="scones",
    help="Classify photographs, ask what happened to an image, and look at evaluations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Aws(StrEnum):
    """local: the embedded AWS of `make up`. real: an account, by the shell's credentials."""

    LOCAL = "local"
    REAL = "real"


AwsOption = Annotated[
    Aws, typer.Option("--aws", envvar="SCONES_CLI_AWS", help="The embedded AWS of `make up`, or your account.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _show_version(asked: bool) -> None:
    if asked:
        from settings import ROOT

        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        show_line(f"{project['name']} {project['version']}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of `scones` itself."""


@app.command()
def classify(
    photos: Annotated[list[Path], typer.Argument(help="Image files: PNG, JPEG or WebP.")],
    aws: AwsOption = Aws.LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Classify photographs by the workflow, now.

    Exit status: 0 if all were accepted, 1 if the workflow let one not through, 2 if something failed.
    """
    with _installation(aws):
        from cli.classify import run

        raise typer.Exit(run(photos, as_json))


@app.command()
def why(
    image: Annotated[
        str, typer.Argument(help="A key such as test/bicycle-0001.png, its last part, an inference id or an ARN.")
    ],
    last: Annotated[int, typer.Option(min=1, max=1000, help="Runs that are told of, the newest first.")] = 3,
    runs: Annotated[int, typer.Option(min=1, max=10_000, help="Newest runs in which is looked.")] = 30,
    aws: AwsOption = Aws.LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Tell what happened to one image: runs, states, errors, captures, report and review."""
    with _installation(aws):
        from cli.why import run

        run(image, last, runs, as_json)


@app.command()
def nights(
    last: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 10,
    aws: AwsOption = Aws.LOCAL,
    as_json: JsonOption = False,
) -> None:
    """List the last evaluations with their verdicts."""
    with _installation(aws):
        from tasks.aws.stacks import installation
        from tasks.evaluation.catalogue import newest_first
        from tasks.evaluation.outcome import heading

        found = list(islice(newest_first(installation().bucket), last))
        if as_json:
            show_json(found)
            return
        rows = [
            (
                summary.run,
                (summary.started or summary.date)[:16].replace("T", " "),
                summary.model_version,
                f"{summary.planned}",
                _share(summary.coverage),
                _share(summary.accepted_accuracy),
                heading(summary),
            )
            for summary in found
        ]
        show_table(("run", "started (UTC)", "model", "images", "accepted", "right of these", "verdict"), rows)
        if not found:
            progress("no evaluation yet; run the nightly-evaluation deployment")


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A run as `scones nights` lists it; by default the newest.")] = "",
    open_it: Annotated[bool, typer.Option("--open/--no-open", help="Open it in a browser.")] = True,
    aws: AwsOption = Aws.LOCAL,
) -> None:
    """Print where the report of an evaluation is, and open it."""
    with _installation(aws):
        from tasks.aws.stacks import installation
        from tasks.report.story import report_address
        from tasks.report.subject import ReportError, summary_of

        bucket = installation().bucket
        about = summary_of(bucket, None, run or None)
        address = report_address(bucket, about.date, about.run)
        if address is None:
            hint = f"run the confidence-report deployment with `-p run={about.run}`"
            raise ReportError(f"run {about.run} of {about.date} has no report yet", hint)
        show_line(address)
        if open_it and not webbrowser.open(address):
            progress("there is no browser here that could open it")


@app.command()
def check(
    dataset: Annotated[
        str, typer.Argument(help="A folder with one per class, a CSV or JSON Lines file of paths and labels, or s3://.")
    ],
    aws: AwsOption = Aws.LOCAL,
    as_json: JsonOption = False,
) -> None:
    """Check your own images before anything starts: classes, what is wrong, and what a training takes.

    Exit status: 0 if nothing is wrong, 1 if files would be left out, 2 if they can't be used.
    """
    with _installation(aws, needed=dataset.startswith("s3://")):
        from cli.check import run

        raise typer.Exit(run(dataset, as_json))


@app.command()
def doctor(aws: AwsOption = Aws.LOCAL, as_json: JsonOption = False) -> None:
    """Check the installation as the preflight deployment does; exit status 1 if something is missing."""
    with _installation(aws):
        from settings import settings
        from tasks.preflight import findings

        found = list(findings(settings()))
        if as_json:
            show_json(found)
        else:
            rows = [(each.level, each.check, each.detail, each.hint) for each in found]
            show_table(("is", "check", "detail", "what to do"), rows)
        raise typer.Exit(int(any(each.level == "problem" for each in found)))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


@contextmanager
def _installation(aws: Aws, needed: bool = True) -> Iterator[None]:
    """In the environment of an installation, if one is needed; what its user can mend is told in lines."""
    from deploy import DeploymentError, enter_installation
    from local_aws.config import ConfigError
    from local_aws.services import ServicesError
    from settings import SettingsError
    from tasks.errors import SconesError

    with errors_in_lines(ServicesError, DeploymentError, SettingsError, ConfigError, SconesError):
        if needed:
            enter_installation(aws is Aws.REAL)
        yield


def main() -> int:
    """Runs the command line."""
    escape_what_streams_lack()
    app(prog_name="scones")
    return 0
