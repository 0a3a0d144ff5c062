"""One bulk run: every image of a prefix or a manifest goes through a Distributed Map and is accounted for.

All of it is in the bucket below bulk/DATE/RUN/: the manifest before anything runs, a part for each batch, what
ResultWriter wrote of the map run, and at the end results/*.parquet and summary.json. So a run can go on wherever it was
interrupted.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from settings import Settings, settings
from tasks.aws import storage
from tasks.aws.stacks import installation as current_installation
from tasks.bulk import manifest, map_run
from tasks.bulk.ledger import Ledger, outcome
from tasks.bulk.manifest import BulkImage, Source
from tasks.cancellation import is_cancelled
from tasks.errors import SconesError
from tasks.evaluation import table
from tasks.evaluation.cost import bulk_cost
from tasks.evaluation.evaluation import newest_revision
from tasks.evaluation.outcome import SHOWN, Tally, markdown
from tasks.evaluation.progress import ProgressBar
from tasks.evaluation.results import Result, inference_id, read_summary
from tasks.evaluation.summary import DECIDED, EvaluationSummary
from tasks.installation import DatasetNote, Installation, ServingEndpoint
from tasks.records import Record
from tasks.run import Run, iso, utc_now
from tasks.serving import endpoint as endpoints

# Executions of a run. An image whose batch failed or was lost is tried again in each; one that failed itself, as often
# as the setting says.
MOST_ATTEMPTS = 9
# Before what failed is tried again, times the attempt; and for the batches of an execution that was stopped.
PAUSE_SECONDS = 5.0
PROGRESS_SECONDS = 3.0


class BulkError(SconesError):
    """The run can't go on, or its figures contradict each other; the message says what does not fit."""


class BulkPlan(Record, frozen=True, kw_only=True):
    """bulk/DATE/RUN/plan.json: what a run was begun with, and must still be when it goes on.

    planned: images, a line of the manifest each. manifest_sha256: of the manifest. created: ISO 8601 in UTC.
    """

    planned: int
    manifest_sha256: str
    source: str
    model_version: str
    threshold: float
    batch_size: int
    created: str


def classify(
    installation: Installation, endpoint: ServingEndpoint, run: Run, source: Source, dataset: DatasetNote
) -> EvaluationSummary:
    """Classifies every image of the source, writes results and summary, and returns the summary.

    Both are written at the end, or if a person cancels the run; an image that no batch took is then in the results as
    not_submitted. Whatever else stops it leaves the run without a judgement, and the flow run goes on later. To be
    called in the flow's main thread, which signals interrupt. Raises ManifestError for a source that can't be read and
    BulkError if the run's manifest was changed or the accounts do not balance.
    """
    if not installation.batch_state_machine_arn:
        raise BulkError("the stack is of an earlier release and has no state machine for batches", "run prepare-data")
    with tempfile.TemporaryDirectory(prefix="scones-bulk-") as folder:
        bulk = BulkRun(installation, run, settings(), Path(folder))
        try:
            bulk.plan(source, endpoint)
            try:
                bulk.run_all()
            except BaseException:
                if is_cancelled():
                    bulk.finish(endpoint, dataset)
                raise
            summary = bulk.finish(endpoint, dataset)
        finally:
            bulk.close()
    return summary


class BulkRun:
    """The images of a run and what is known of them. folder: for files that are too large for the memory."""

    def __init__(self, installation: Installation, run: Run, chosen: Settings, folder: Path) -> None:
        self._installation, self._run, self._chosen, self._folder = installation, run, chosen, folder
        self._bucket = installation.bucket
        self._manifest = folder / "manifest.jsonl"
        self._ledger = Ledger(folder / "ledger.sqlite", self._bucket, run.prefix)
        self._logger = get_run_logger()
        self._plan: BulkPlan

    def close(self) -> None:
        self._ledger.close()

    def plan(self, source: Source, endpoint: ServingEndpoint) -> None:
        """Makes the manifest, or goes on with the one that the run has."""
        key = self._manifest_key(1)
        if storage.download(self._bucket, key, self._manifest):
            self._logger.info("going on with the manifest s3://%s/%s", self._bucket, key)
        else:
            list_images(self._bucket, source, self._run, self._installation.classes, self._manifest)
            if not storage.create_file(self._bucket, key, self._manifest):  # another process of this run was quicker
                storage.download(self._bucket, key, self._manifest)
        planned, digest = _scanned(self._manifest)
        plan = BulkPlan(
            planned=planned,
            manifest_sha256=digest,
            source=source.key,
            model_version=endpoint.model_version,
            threshold=self._installation.threshold,
            batch_size=self._chosen.bulk_batch_size,
            created=iso(utc_now()),
        )
        name = f"{self._run.prefix}plan.json"
        storage.create_json(self._bucket, name, plan.to_json())
        known = storage.get_record(self._bucket, name, BulkPlan)
        assert known is not None  # it was just written, or before
        if (known.planned, known.manifest_sha256) != (planned, digest):
            raise BulkError(
                f"s3://{self._bucket}/{key} is not the manifest that the run was planned with "
                f"({known.planned} images, SHA-256 {known.manifest_sha256[:12]}…)",
                "restore that version of the object, or start a new run",
            )
        self._plan = known
        self._logger.info("%d images of %s to classify", known.planned, known.source)

    def run_all(self) -> None:
        """Runs an execution for all images, and then for those that have no row or failed, until nothing is left."""
        rows = self._ledger.refresh()
        idle = 0
        for attempt in range(1, MOST_ATTEMPTS + 1):
            name = f"bulk-{self._run.id}-a{attempt}"
            if attempt > 1 and not self._plan_again(attempt):
                return
            known = map_run.exists(self._installation.batch_state_machine_arn, name)
            if not known and self._ledger.has_attempt(attempt):
                continue  # AWS lost it, and what it did is not done again
            refused = self._refusal()
            if refused and not known:
                self._logger.error("what is left is not submitted: %s", refused)
                return
            if known:
                self._logger.info("execution %s was started before: re-attached", name)
            ended = run_map(name, self, attempt)
            if ended.status in ("ABORTED", "LOST"):
                time.sleep(PAUSE_SECONDS)  # functions go on although their execution does not, and write their parts
            before, rows = rows, self._ledger.refresh()
            if ended.folder is not None:
                self._ledger.add_failures(ended.folder)
            if attempt == 1 and ended.items not in (None, 0, self._plan.planned):
                raise BulkError(f"the map run read {ended.items} images, and {self._plan.planned} were planned")
            if ended.refused:
                return
            if ended.status == "FAILED":
                self._logger.error("the execution failed: %s: %s", ended.error, ended.cause)
            idle = idle + 1 if rows == before else 0
            if idle == 2:
                self._logger.error("two executions in a row brought no result: what is left is not tried again")
                return
            if ended.failed_batches or idle:
                time.sleep(PAUSE_SECONDS * attempt)

    def finish(self, endpoint: ServingEndpoint, dataset: DatasetNote) -> EvaluationSummary:
        """Writes results and summary; the summary is written once, and if another process was quicker, its is returned.

        Raises BulkError if the accounts do not balance; then no summary is written.
        """
        self._ledger.refresh()
        revision = newest_revision(self._bucket, self._run) + 1
        tally = Tally()
        failed: list[Result] = []

        def results() -> Iterator[Result]:
            for image in manifest.read(self._manifest):
                row = outcome(image, self._ledger, self._plan.model_version, self._plan.threshold)
                tally.add(row)
                if row.status == "failed" and len(failed) <= SHOWN:
                    failed.append(row)
                yield row

        written = table.write(self._bucket, self._run.table_prefix(revision), results(), self._folder)
        work = self._ledger.work
        elapsed = None
        if tally.started and tally.stopped:
            elapsed = (datetime.fromisoformat(tally.stopped) - datetime.fromisoformat(tally.started)).total_seconds()
        price = bulk_cost(
            written,
            work.batches,
            work.seconds,
            elapsed,
            self._chosen.endpoint_instance_type,
            self._chosen.endpoint_instance_count,
        )
        summary = tally.summary(
            self._run,
            endpoint,
            self._installation.classes,
            dataset,
            self._chosen,
            price,
            revision,
            bulk=True,
        )
        self._balance(summary, written)
        key = self._run.summary_key(revision)
        if not storage.create_json(self._bucket, key, summary.to_json()):
            summary = read_summary(self._bucket, key) or summary
        create_markdown_artifact(
            markdown(summary, failed, self._bucket, self._run.prefix),
            key="classify-images",
            description=f"Bulk run {self._run.date} {self._run.id}",
        )
        return summary

    def _payload(self, attempt: int) -> dict[str, Any]:
        """The input of an attempt's execution."""
        return {
            "bucket": self._bucket,
            "manifest": self._manifest_key(attempt),
            "prefix": self._run.prefix,
            "attempt": attempt,
            "model_version": self._plan.model_version,
            "threshold": self._plan.threshold,
            "batch_size": self._plan.batch_size,
            "concurrency": self._chosen.bulk_batches,
        }

    def follow(self, name: str, attempt: int) -> map_run.Ended:
        """Waits for the attempt's execution in the calling thread."""
        progress = _Progress(f"bulk {self._run.id}, attempt {attempt}", self._logger.info)
        machine = self._installation.batch_state_machine_arn
        return map_run.follow(machine, name, self._payload(attempt), progress, self._refusal)

    def _refusal(self) -> str | None:
        """Why what is left must not be classified: it would not be by the same model and threshold."""
        plan, serving = self._plan, endpoints.serving(self._installation)
        if serving.model_version != plan.model_version:
            return f"the endpoint serves {serving.model_version} by now, and this run is of {plan.model_version}"
        threshold = current_installation().threshold
        if threshold != plan.threshold:
            return f"the threshold is {threshold:g} by now, and this run is of {plan.threshold:g}"
        return None

    def _plan_again(self, attempt: int) -> bool:
        """Writes the manifest of what is to be tried again, unless there is one; False if nothing is."""
        key = self._manifest_key(attempt)
        if key in storage.list_etags(self._bucket, key):
            return True
        file = self._folder / "again.jsonl"
        encoder = msgspec.json.Encoder()
        count = 0
        with file.open("wb") as target:
            for image in manifest.read(self._manifest):
                rows = self._ledger.rows(image)
                tried = sum(row.status == "failed" for row in rows)
                if rows and (rows[-1].status != "failed" or tried >= self._chosen.evaluation_attempts):
                    continue
                name = inference_id(self._run.id, image.key, attempt)
                again: BulkImage = replace(image, inference_id=name)
                target.write(encoder.encode(again) + b"\n")
                count += 1
        if count:
            self._logger.warning("attempt %d: %d images without a result are tried again", attempt, count)
            storage.create_file(self._bucket, key, file)
        return count > 0

    def _balance(self, summary: EvaluationSummary, written: int) -> None:
        """Raises BulkError unless every planned image is in exactly one place."""
        with_row = self._ledger.images()
        decided = sum(getattr(summary, status) for status in DECIDED)
        wrong = [
            text
            for text, holds in (
                (f"{written} results of {self._plan.planned} planned images", written == self._plan.planned),
                (
                    f"{with_row} images with a row, and {decided} decided and {summary.failed} failed",
                    decided <= with_row <= decided + summary.failed,
                ),
                (
                    f"{summary.counts} do not add up",
                    decided + summary.failed + summary.not_submitted == summary.planned == written,
                ),
            )
            if not holds
        ]
        if wrong:
            raise BulkError(
                f"the accounts of s3://{self._bucket}/{self._run.prefix} do not balance: {'; '.join(wrong)}"
            )

    def _manifest_key(self, attempt: int) -> str:
        return f"{self._run.prefix}manifest{f'-a{attempt}' if attempt > 1 else ''}.jsonl"


@task(task_run_name="list the images of {source.key}", cache_policy=NO_CACHE)
def list_images(bucket: str, source: Source, run: Run, classes: tuple[str, ...], file: Path) -> None:
    manifest.write(bucket, source, run, classes, file)


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def run_map(name: str, run: BulkRun, attempt: int) -> map_run.Ended:
    """One task for all batches of an attempt."""
    return run.follow(name, attempt)


def _scanned(file: Path) -> tuple[int, str]:
    """Number of images in a manifest, and its SHA-256. Raises ManifestError for a line that is no image."""
    count = sum(1 for _ in manifest.read(file))
    with file.open("rb") as content:
        return count, hashlib.file_digest(content, "sha256").hexdigest()


class _Progress:
    """A line in the log and a bar, every few seconds if something was done."""

    def __init__(self, what: str, log: Callable[..., None]) -> None:
        self._log = log
        self._told = (-1, 0.0)
        self._bar = ProgressBar(what)

    def __call__(self, done: int, total: int, running: int) -> None:
        now = time.monotonic()
        if done == self._told[0] or now - self._told[1] < PROGRESS_SECONDS:
            return
        self._told = (done, now)
        self._log("%d of %d images done, %d batches running", done, total, running)
        self._bar.show(done, total)
