"""`scones why`: the story of one image on one screen."""

from datetime import datetime
from itertools import islice
from typing import Any

import msgspec

from cli.output import TOLD, show_json, show_line
from tasks.aws.stacks import installation
from tasks.evaluation.outcome import message_of
from tasks.evaluation.results import Result, by_class
from tasks.report.history import History
from tasks.report.story import Story, stories

# How events end that tell of an attempt, a state or an execution that did not succeed.
PROBLEMS = ("Failed", "TimedOut", "Aborted")


def run(image: str, last: int, runs: int, as_json: bool) -> None:
    """Prints the image's stories. Raises NothingKnown."""
    found = list(islice(stories(installation(), image, runs), last))
    if as_json:
        show_json([_document(story) for story in found])
        return
    for number, story in enumerate(found):
        if number:
            show_line()
        _tell(story)


def _tell(story: Story) -> None:
    row = story.result
    where = f"run {story.run} of {story.date}" if story.run else "classified by itself"
    show_line(f"{row.key}, {where}", "bold")
    figures = "" if row.confidence is None else f", {row.predicted_class} with {row.confidence:.3f}"
    told = f"{TOLD[row.status]}{figures}, threshold {row.threshold:g}"
    _field("came of it", told + (f", labelled {row.label}" if row.label else ""))
    if row.sent_as:
        _field("classified as", f"a {row.sent_as}")
    if row.outlier_score is not None:
        _field("outlier score", f"{row.outlier_score:.2f}, over 1 of an image of no class")
    if row.status == "failed":
        _field("failed in", row.failed_state or "no state of its own")
        _field("error", f"{row.error}: {message_of(row.cause or 'no cause')}")
    if row.model_version:
        _field("model", row.model_version)
    attempts = {each.inference_id: each for each in (row, *row.previous_attempts)}
    for history in story.histories:
        _states(history, attempts[history.inference_id])
    for captured in story.captures:
        figures = f"{captured.predicted_class} with {captured.confidence:.3f} by {captured.model_version}"
        _field("captured", f"{captured.time}  {captured.inference_id}  {figures}")
    if not story.captures:
        _field("captured", "no record of it")
    if story.waiting:
        _field("review", f"queued {story.waiting.queued} because {story.waiting.reason}")
    for label in story.labels:
        _field("", f"{label.time[:19]}  {label.reviewer}: {label.label or label.answer}")
    if story.results:
        _field("results", story.results)
    if story.report:
        _field("report", story.report)


def _document(story: Story) -> dict[str, Any]:
    """A story as JSON, with probabilities by class."""
    document: dict[str, Any] = msgspec.to_builtins(story)
    for row in (document["result"], *document["result"]["previous_attempts"]):
        row["probabilities"] = by_class(row["probabilities"], story.classes)
    return document


def _states(history: History, attempt: Result) -> None:
    _field(f"attempt {history.attempt}", history.arn)
    if history.in_batch and attempt.started and attempt.stopped:
        _took(attempt.started, "this image", attempt.stopped)
    if not history.steps:
        _field("", history.missing)
    entered = ""
    for step in history.steps:
        if step.event.endswith("StateEntered"):
            entered = step.time
        elif step.event.endswith("StateExited"):
            _took(entered, step.state, step.time)
        elif step.event.endswith(PROBLEMS):
            _field("", f"{step.time}  {step.state or 'the execution':<20} {step.event}: {step.detail}")


def _took(first: str, what: str, last: str) -> None:
    seconds = (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
    _field("", f"{first}  {what:<20} {seconds:.2f} s")


def _field(name: str, text: str) -> None:
    show_line(f"  {name:<14} {text}")
