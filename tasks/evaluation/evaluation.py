"""One evaluation: every test image gets its execution, and is accounted for.

All of it is in the bucket below evaluations/DATE/RUN/: the manifest before anything runs, the results of each chunk
when it is done, and at the end results.jsonl and summary.json. So a run can go on wherever it was interrupted.
"""

from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from itertools import count

from msgspec.structs import replace
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from settings import MANIFESTS_PREFIX, TEST_PREFIX, Settings, settings
from tasks.aws import storage
from tasks.cancellation import is_cancelled
from tasks.errors import SconesError
from tasks.evaluation.executions import Executions
from tasks.evaluation.outcome import markdown, summarize
from tasks.evaluation.progress import ProgressBar
from tasks.evaluation.results import (
    Planned,
    Result,
    inference_id,
    not_submitted,
    read_summary,
    result,
)
from tasks.evaluation.summary import INCOMPLETE, EvaluationSummary
from tasks.installation import DatasetNote, Installation, ServingEndpoint
from tasks.run import Run, iso, utc_now

# Images to a task run, and to a file of results: what a killed run has to ask for again at most.
CHUNK = 100


class EvaluationError(SconesError):
    """The evaluation can't be run; the message says what to do."""


@task(task_run_name="plan {run.id}")
def plan(installation: Installation, endpoint: ServingEndpoint, run: Run) -> list[Planned]:
    """The run's own manifest, which is made of the test manifest if the run has none yet.

    Raises EvaluationError for an empty test set, and if the manifest can't be read.
    """
    name = f"{run.prefix}manifest.jsonl"
    written = storage.get_records(installation.bucket, name, Planned)
    if written:
        get_run_logger().info("going on with the manifest of %s", written[0].planned)
        return written
    content = storage.get(installation.bucket, f"{MANIFESTS_PREFIX}test.lst")
    if not content or not content.strip():
        raise EvaluationError("there is no test image to evaluate", "run the prepare-data deployment first")
    planned = planned_images(content.decode(), installation, endpoint.model_version, run)
    storage.put_json_lines(installation.bucket, name, (image.to_json() for image in planned))
    return planned


def planned_images(manifest: str, installation: Installation, model_version: str, run: Run) -> list[Planned]:
    """The images of a .lst manifest, each once.

    Raises EvaluationError for a line that is no NUMBER, LABEL and NAME, and for an image with two labels.
    """
    classes, source, now = dict(enumerate(installation.classes)), f"{MANIFESTS_PREFIX}test.lst", iso(utc_now())
    labels: dict[str, str] = {}
    for number, line in enumerate(manifest.splitlines(), 1):
        try:
            _, index, name = line.split("\t")
            label = classes[int(index)]
        except (ValueError, KeyError) as error:
            raise EvaluationError(
                f"line {number} of {source} is not NUMBER, LABEL (0 to {len(classes) - 1}) and NAME with tabs between: "
                f"{line[:100]!r}",
                "run the prepare-data deployment again",
            ) from error
        if labels.setdefault(TEST_PREFIX + name, label) != label:
            raise EvaluationError(f"{source} has {name} as {labels[TEST_PREFIX + name]} and as {label}")
    return [
        Planned(
            inference_id=inference_id(run.id, key, 1),
            key=key,
            label=label,
            attempt=1,
            model_version=model_version,
            threshold=installation.threshold,
            planned=now,
        )
        for key, label in labels.items()
    ]


def execute(
    installation: Installation, endpoint: ServingEndpoint, run: Run, planned: list[Planned], dataset: DatasetNote
) -> EvaluationSummary:
    """Sees that every image has its execution, writes results.jsonl and summary.json, and returns the summary.

    Both are written at the end, or if a person cancels the run; what was not submitted is then in the results as
    not_submitted. Whatever else stops it, such as an error or the end of its process, leaves the run without a
    judgement, and the flow run goes on later with what it finds. To be called in the flow's main thread, which signals
    interrupt.
    """
    revision = newest_revision(installation.bucket, run) + 1
    evaluation = Evaluation(installation, run, planned, revision, settings())
    try:
        evaluation.recall()
        if endpoint.model_version == planned[0].model_version:
            evaluation.run_all()
        else:
            get_run_logger().error(
                "the endpoint serves %s by now, and this run is of %s: what is left is not submitted; start a new run",
                endpoint.model_version,
                planned[0].model_version,
            )
    except BaseException:
        if is_cancelled():
            evaluation.finish(endpoint, dataset)
        raise
    summary = evaluation.finish(endpoint, dataset)
    create_markdown_artifact(
        markdown(summary, evaluation.results(), installation.bucket, run.prefix),
        key="nightly-evaluation",
        description=f"Evaluation {run.date} {run.id}",
    )
    return summary


def judged(bucket: str, run: Run) -> EvaluationSummary | None:
    """The summary of a run that is over and judged, which stays as it is; None if the run has something left to do.

    An incomplete one, which was cancelled, may be gone on with; that gives it another summary.
    """
    summary = newest_summary(bucket, run)
    return summary if summary is not None and summary.outcome != INCOMPLETE else None


def newest_summary(bucket: str, run: Run) -> EvaluationSummary | None:
    """The last judgement of a run; None if there is none yet."""
    revision = newest_revision(bucket, run)
    return read_summary(bucket, run.summary_key(revision)) if revision else None


def newest_revision(bucket: str, run: Run) -> int:
    """How often the run was judged; 0 for never."""
    keys = set(storage.list_etags(bucket, f"{run.prefix}summary"))
    return next(number for number in count() if run.summary_key(number + 1) not in keys)


class Evaluation:
    """The images of a run, and what is known of each. revision: of the results and the summary that it will write."""

    def __init__(
        self, installation: Installation, run: Run, planned: list[Planned], revision: int, chosen: Settings
    ) -> None:
        self._installation = installation
        self._run = run
        self._planned = planned
        self._revision = revision
        self._chosen = chosen
        self._attempts: dict[str, list[Result]] = defaultdict(list)  # by key, in their order
        self._logger = get_run_logger()

    def recall(self) -> None:
        """Reads what an earlier process of this run, if any, has written."""
        bucket = self._installation.bucket
        files = [*storage.list_etags(bucket, self._chunks), self._run.results_key(max(self._revision - 1, 1))]
        rows = [row for file in files for row in storage.get_records(bucket, file, Result)]
        attempts = [attempt for row in rows for attempt in (*row.previous_attempts, row)]
        known = {
            row.inference_id: replace(row, previous_attempts=()) for row in attempts if row.status != "not_submitted"
        }
        for row in sorted(known.values(), key=lambda row: row.attempt):
            self._attempts[row.key].append(row)
        if known:
            self._logger.info("%d of %d images have a result from before", len(self._attempts), len(self._planned))

    def run_all(self) -> None:
        """Runs every image that has no result, and then those that failed, as often as the setting says."""
        for attempt in range(1, self._chosen.evaluation_attempts + 1):
            images = [image.as_attempt(attempt) for image in self._planned if self._needs(image.key, attempt)]
            if images:
                self._run_round(attempt, images)

    def results(self) -> list[Result]:
        """The one that counts for each planned image, in their order: the last attempt's."""
        return [self._result(image) for image in self._planned]

    def finish(self, endpoint: ServingEndpoint, dataset: DatasetNote) -> EvaluationSummary:
        """Writes results and summary, and removes the chunks, which the results contain.

        The summary is written once and never again: if another process of this run was quicker, its summary is
        returned.
        """
        bucket, run, results = self._installation.bucket, self._run, self.results()
        earlier = self._revision - 1
        if earlier and results == storage.get_records(bucket, run.results_key(earlier), Result):
            before = read_summary(bucket, run.summary_key(earlier))
            if before is not None:  # nothing came of going on, so there is nothing to judge again
                return before
        summary = summarize(results, run, endpoint, self._installation.classes, dataset, self._chosen, self._revision)
        key = run.summary_key(self._revision)
        if (written := read_summary(bucket, key)) is None:
            lines = [row.to_json() for row in results]
            storage.put_json_lines(bucket, run.results_key(self._revision), lines)
            if not storage.create_json(bucket, key, summary.to_json()):
                written = read_summary(bucket, key)
        storage.delete_others(bucket, self._chunks, [])
        return written or summary

    def record(self, executions: Executions, chunk: list[Planned]) -> None:
        """Writes a chunk's results, so that nobody has to ask for them again."""
        rows = [result(image, executions.closed[image.inference_id]).to_json() for image in chunk]
        storage.put_json_lines(self._installation.bucket, f"{self._chunks}{chunk[0].inference_id}.jsonl", rows)

    @property
    def _chunks(self) -> str:
        return f"{self._run.prefix}chunks/"

    def _needs(self, key: str, attempt: int) -> bool:
        known = self._attempts[key]
        if not known:
            return attempt == 1
        return known[-1].status == "failed" and known[-1].attempt < attempt

    def _run_round(self, attempt: int, images: list[Planned]) -> None:
        bucket = self._installation.bucket
        payloads = {image.inference_id: {"bucket": bucket, "key": image.key} for image in images}
        progress = _Progress(f"evaluation {self._run.id}, attempt {attempt}", len(images), self._logger.info)
        executions = Executions(self._installation.state_machine_arn, payloads, progress, self._chosen)
        try:
            found = executions.attach(datetime.fromisoformat(self._planned[0].planned))
            if found:
                self._logger.info("%d executions were started before: re-attached", found)
            for first in range(0, len(images), CHUNK):
                chunk = images[first : first + CHUNK]
                title = f"attempt {attempt}: images {first + 1} to {first + len(chunk)} of {len(images)}"
                run_chunk(title, self, executions, chunk)
            progress(len(executions.closed), 0)
        except BaseException:
            if is_cancelled():  # otherwise what runs goes on, and is attached to by the process that goes on
                self._logger.warning("the run was cancelled: stopping its executions")
                executions.stop()
            raise
        finally:
            for image in images:
                if image.inference_id in executions.closed:
                    self._attempts[image.key].append(result(image, executions.closed[image.inference_id]))

    def _result(self, image: Planned) -> Result:
        *earlier, last = self._attempts[image.key] or [not_submitted(image)]
        return replace(last, previous_attempts=tuple(earlier))


@task(task_run_name="{title}", cache_policy=NO_CACHE)
def run_chunk(title: str, evaluation: Evaluation, executions: Executions, chunk: list[Planned]) -> None:
    """Waits until the chunk's executions are closed and writes down what came of them."""
    executions.run([image.inference_id for image in chunk])
    evaluation.record(executions, chunk)


class _Progress:
    """A line in the log, and a bar."""

    def __init__(self, what: str, total: int, log: Callable[..., None]) -> None:
        self._total = total
        self._log = log
        self._bar = ProgressBar(what)

    def __call__(self, closed: int, running: int) -> None:
        self._log("%d of %d executions closed, %d running", closed, self._total, running)
        self._bar.show(closed, self._total)
