"""Decides from the outside world alone whether an evaluation lost, doubled or misjudged anything.

It reads the bucket and the execution history with boto3 and imports nothing of the project: what it knows of the
contract is written here once more.
"""

import hashlib
import io
import json
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pyarrow.parquet as pq

# Statuses of a decision, by how the execution ends.
DECISIONS = {
    ("SUCCEEDED", None): "accepted",
    ("FAILED", "LowConfidence"): "below_threshold",
    ("FAILED", "NotAClass"): "not_a_class",
}
DECIDED = set(DECISIONS.values())
RESULT = {*DECIDED, "failed"}


@dataclass
class Verdict:
    """Sentences about what is lost, duplicated or wrong.

    recovery_seconds: from `since` until an execution that was started after it came to a decision.
    """

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    recovery_seconds: float | None = None

    @property
    def violations(self) -> list[str]:
        return [*self.lost, *self.duplicated, *self.wrong]


@dataclass(frozen=True)
class World:
    """Where an evaluation left its traces. prefix: evaluations/DATE/RUN/. capture: data-capture/."""

    s3: Any
    states: Any
    bucket: str
    state_machine: str
    prefix: str
    capture: str

    @property
    def run(self) -> str:
        return self.prefix.rstrip("/").rsplit("/", 1)[1]

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Of the manifest, or of the results by which the run was judged last."""
        return [json.loads(line) for line in self._newest(name).splitlines()]

    def summary(self) -> dict[str, Any]:
        """The last judgement."""
        loaded: dict[str, Any] = json.loads(self._newest("summary.json"))
        return loaded

    def judgements(self) -> dict[str, str]:
        """ETag by name of every file of results and every summary."""
        there = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix).get("Contents", [])
        names = {item["Key"].removeprefix(self.prefix): item["ETag"] for item in there}
        return {name: tag for name, tag in names.items() if re.fullmatch(r"(results|summary)(-\d+)?\.jsonl?", name)}

    def _newest(self, name: str) -> bytes:
        stem, suffix = name.split(".")
        revisions = [name, *(f"{stem}-{number}.{suffix}" for number in range(2, 10))]
        there = set(self.judgements()) | {"manifest.jsonl"}
        found = [revision for revision in revisions if revision in there]
        content: bytes = self.s3.get_object(Bucket=self.bucket, Key=self.prefix + found[-1])["Body"].read()
        return content

    def executions(self, since: datetime) -> dict[str, dict[str, Any]]:
        """Every execution of the run as DescribeExecution tells it, by name."""
        found = {}
        for page in self.states.get_paginator("list_executions").paginate(stateMachineArn=self.state_machine):
            for item in page["executions"]:
                if item["name"].startswith(f"{self.run}-"):
                    found[item["name"]] = self.states.describe_execution(executionArn=item["executionArn"])
            if page["executions"] and _moment(page["executions"][-1]) < since:
                break
        return found

    def captured(self, since: datetime) -> Counter[str]:
        """How many capture records each inference id has."""
        return Counter({name: len(records) for name, records in self.captures(since).items()})

    def captures(self, since: datetime) -> dict[str, list[dict[str, Any]]]:
        """The capture records of each inference id."""
        found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.capture):
            for item in page.get("Contents", []):
                if item["LastModified"] < since:
                    continue
                for line in self.s3.get_object(Bucket=self.bucket, Key=item["Key"])["Body"].read().splitlines():
                    record = json.loads(line)
                    found[record["eventMetadata"].get("inferenceId", "")].append(record)  # others give none
        return found


@dataclass(frozen=True)
class BulkWorld(World):
    """The same of a bulk run, whose state machine is the one for batches. prefix: bulk/DATE/RUN/."""

    def lines(self, name: str) -> list[dict[str, Any]]:
        if name != "results.jsonl":
            return super().lines(name)
        revision = self.summary()["revision"]
        rows = []
        for key in self.keys(f"results{f'-{revision}' if revision > 1 else ''}/"):
            rows += pq.read_table(io.BytesIO(self._read(key))).to_pylist()
        return [{**row, "previous_attempts": json.loads(row["previous_attempts"] or "[]")} for row in rows]

    def keys(self, below: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + below)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def parts(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of each part, by its name without folder and suffix."""
        return {
            key.rsplit("/", 1)[1].removesuffix(".jsonl"): [json.loads(line) for line in self._read(key).splitlines()]
            for key in self.keys("parts/")
        }

    def written(self) -> dict[str, datetime]:
        """When the part of each inference id was written last."""
        found = {}
        for key in self.keys("parts/"):
            answer = self.s3.get_object(Bucket=self.bucket, Key=key)
            for line in answer["Body"].read().splitlines():
                found[json.loads(line)["inference_id"]] = answer["LastModified"]
        return found

    def manifests(self) -> dict[int, tuple[datetime, list[dict[str, Any]]]]:
        """When the manifest of each attempt was written, and its lines."""
        found = {}
        for key in self.keys("manifest"):
            attempt = int((re.findall(r"-a(\d)\.jsonl$", key) or ["1"])[0])
            answer = self.s3.get_object(Bucket=self.bucket, Key=key)
            lines = [json.loads(line) for line in answer["Body"].read().splitlines()]
            found[attempt] = (answer["LastModified"], lines)
        return found

    def begun(self) -> datetime:
        return datetime.fromisoformat(json.loads(self._read(f"{self.prefix}plan.json"))["created"])

    def map_runs(self) -> dict[int, list[dict[str, Any]]]:
        """What DescribeMapRun tells of each attempt's execution that Step Functions knows."""
        found: dict[int, list[dict[str, Any]]] = {}
        for attempt in self.manifests():
            machine = self.state_machine.replace(":stateMachine:", ":execution:")
            try:
                runs = self.states.list_map_runs(executionArn=f"{machine}:bulk-{self.run}-a{attempt}")["mapRuns"]
            except self.states.exceptions.ExecutionDoesNotExist:
                continue
            found[attempt] = [self.states.describe_map_run(mapRunArn=run["mapRunArn"]) for run in runs]
        return found

    def _read(self, key: str) -> bytes:
        content: bytes = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return content


def check(
    world: World, bad: set[str], cancelled: bool = False, since: datetime | None = None, capture_seconds: float = 30
) -> Verdict:
    """bad: keys of images that must fail; every other one must have a decision, unless the run was cancelled.

    since: when the fault ended, or the process was killed. capture_seconds: how long a record may take to arrive.
    """
    verdict = Verdict()
    manifest, results, summary = world.lines("manifest.jsonl"), world.lines("results.jsonl"), world.summary()
    begun = datetime.fromisoformat(manifest[0]["planned"]) - timedelta(minutes=1)
    executions = world.executions(begun)
    _check_rows(verdict, world.run, manifest, results)
    _check_counts(verdict, results, summary)
    _check_executions(verdict, results, executions)
    _check_statuses(verdict, results, bad, cancelled)
    _check_capture(verdict, world, results, begun, capture_seconds)
    if since is not None:
        later = [each for each in executions.values() if each["startDate"] > since and _decided(each)]
        first = min((each["stopDate"] for each in later), default=None)
        verdict.recovery_seconds = (first - since).total_seconds() if first else None
    return verdict


def check_bulk(
    world: BulkWorld,
    bad: set[str],
    cancelled: bool = False,
    since: datetime | None = None,
    capture_seconds: float = 30,
    lost_captures: set[str] | None = None,
) -> Verdict:
    """The same for a bulk run. lost_captures: inference ids whose capture records were deleted."""
    verdict = Verdict()
    manifest, results, summary, parts = (
        world.lines("manifest.jsonl"),
        world.lines("results.jsonl"),
        world.summary(),
        world.parts(),
    )
    begun = world.begun() - timedelta(minutes=1)
    _check_rows(verdict, world.run, manifest, results)
    _check_counts(verdict, results, summary)
    _check_statuses(verdict, results, bad, cancelled)
    _check_parts(verdict, results, parts, world.manifests())
    _check_repetitions(verdict, results, world.written(), world.manifests())
    for attempt, runs in world.map_runs().items():
        planned = len(world.manifests()[attempt][1])
        for run in runs:
            if run["status"] == "RUNNING" or run["itemCounts"]["running"]:
                verdict.wrong.append(f"the map run of attempt {attempt} still runs")
            if run["status"] == "SUCCEEDED" and run["itemCounts"]["total"] != planned:
                verdict.lost.append(f"attempt {attempt} planned {planned} images and ran {run['itemCounts']['total']}")
    decided = [row for row in results if row["inference_id"] not in (lost_captures or set())]
    _check_capture(verdict, world, decided, begun, capture_seconds)
    _check_answers(verdict, results, world.captures(begun))
    if since is not None:
        later = [datetime.fromisoformat(row["stopped"]) for rows in parts.values() for row in rows]
        first = min((moment for moment in later if moment > since), default=None)
        verdict.recovery_seconds = (first - since).total_seconds() if first else None
    return verdict


def _check_parts(
    verdict: Verdict,
    results: list[dict[str, Any]],
    parts: dict[str, list[dict[str, Any]]],
    manifests: dict[int, tuple[datetime, list[dict[str, Any]]]],
) -> None:
    """Every row of a part is told of in the results as it stands there, and nothing else is."""
    told = {each["inference_id"]: each for row in results for each in [*row["previous_attempts"], row]}
    written = Counter(row["inference_id"] for rows in parts.values() for row in rows)
    verdict.duplicated += [f"{name} has {many} rows in parts" for name, many in written.items() if many > 1]
    planned = {line["inference_id"] for _, lines in manifests.values() for line in lines}
    names = {hashlib.sha256(name.encode()).hexdigest() for name in planned}
    verdict.wrong += [f"part {name} is of no image that was planned" for name in parts.keys() - names]
    for row in (row for rows in parts.values() for row in rows):
        other = told.get(row["inference_id"])
        if other is None:
            verdict.lost.append(f"{row['inference_id']} has a row and is in no result")
        elif any(other[member] != value for member, value in row.items()):
            verdict.wrong.append(f"{row['inference_id']} is {row} in its part and {other} in the results")
        if row["inference_id"] not in planned:
            verdict.wrong.append(f"{row['inference_id']} was not planned")
    for name, row in told.items():
        if row["status"] in DECIDED and name not in written:
            verdict.wrong.append(f"{name} is {row['status']} and no part has it")
        if row["status"] == "failed" and name not in written and row["failed_state"] != "ClassifyBatch":
            verdict.wrong.append(f"{name} failed in {row['failed_state']} and no part has it")


def _check_repetitions(
    verdict: Verdict,
    results: list[dict[str, Any]],
    written: dict[str, datetime],
    manifests: dict[int, tuple[datetime, list[dict[str, Any]]]],
) -> None:
    for row in results:
        for earlier in row["previous_attempts"]:
            planned, _ = manifests[row["attempt"]]
            # A batch that was thought lost, or was stopped, may have written its part after the next was planned.
            if earlier["status"] != "failed" and written[earlier["inference_id"]] < planned:
                verdict.duplicated.append(f"{row['key']} was tried again although it had a decision")


def _check_answers(verdict: Verdict, results: list[dict[str, Any]], captures: dict[str, list[dict[str, Any]]]) -> None:
    """The decision is what the endpoint answered, by its own record."""
    for row in results:
        if row["status"] not in DECIDED:
            continue
        for record in captures.get(row["inference_id"], []):
            answer = json.loads(record["captureData"]["endpointOutput"]["data"])
            if isinstance(answer, list):  # of a model that tells no outlier score
                answer = {"probabilities": answer, "outlier_score": None}
            told = max(answer["probabilities"]), answer["outlier_score"]
            if told != (row["confidence"], row["outlier_score"]):
                verdict.wrong.append(f"{row['inference_id']} is {row}, and {answer} is captured")
        _check_limits(verdict, row)


def _check_limits(verdict: Verdict, row: dict[str, Any]) -> None:
    """The status follows from confidence, threshold and outlier score."""
    expected = "accepted" if row["confidence"] >= row["threshold"] else "below_threshold"
    if row["outlier_score"] is not None and row["outlier_score"] > 1:
        expected = "not_a_class"
    if row["status"] != expected:
        verdict.wrong.append(f"{row['inference_id']} is {row['status']}, and should be {expected}: {row}")


def _check_statuses(verdict: Verdict, results: list[dict[str, Any]], bad: set[str], cancelled: bool) -> None:
    for row in results:
        good = row["status"] in DECIDED
        if row["key"] in bad and good:
            verdict.wrong.append(f"{row['key']} can't be classified, and is {row['status']}")
        if row["key"] not in bad and not good and not cancelled:
            verdict.wrong.append(f"{row['key']} is a good image, and is {row['status']}: {row['error']} {row['cause']}")


def _check_rows(verdict: Verdict, run: str, manifest: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
    planned, reported = Counter(row["key"] for row in manifest), Counter(row["key"] for row in results)
    verdict.lost += [f"{key} was planned and has no result" for key in planned - reported]
    verdict.duplicated += [f"{key} has {reported[key]} results" for key in reported - planned]
    if [row["key"] for row in manifest] != [row["key"] for row in results]:
        verdict.wrong.append("the results are not in the manifest's order")
    for row in [*manifest, *results]:
        digest = hashlib.sha256(row["key"].encode()).hexdigest()[:20]
        if not re.fullmatch(f"{run}-{digest}-a[1-9]", row["inference_id"]):
            verdict.wrong.append(f"{row['inference_id']} is no inference id of {row['key']}")


def _check_counts(verdict: Verdict, results: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    counts = Counter(row["status"] for row in results)
    if set(counts) - RESULT - {"not_submitted"}:
        verdict.wrong.append(f"there are statuses that nobody knows: {sorted(counts)}")
    for status in (*RESULT, "not_submitted"):
        if summary[status] != counts[status]:
            verdict.wrong.append(f"the summary counts {summary[status]} {status}, the results have {counts[status]}")
    if summary["planned"] != len(results) or summary["planned"] != summary["submitted"] + summary["not_submitted"]:
        verdict.lost.append("planned is not submitted and not_submitted")
    if summary["submitted"] != sum(summary[status] for status in RESULT):
        verdict.lost.append("submitted is not the sum of its statuses")


def _check_executions(verdict: Verdict, results: list[dict[str, Any]], executions: dict[str, dict[str, Any]]) -> None:
    told: dict[str, dict[str, Any]] = {}
    attempts: defaultdict[str, list[int]] = defaultdict(list)
    for row in results:
        for each in [*row["previous_attempts"], row]:
            if each["status"] == "not_submitted":
                continue
            if each["inference_id"] in told:
                verdict.duplicated.append(f"{each['inference_id']} is told of twice")
            told[each["inference_id"]] = each
            attempts[row["key"]].append(each["attempt"])
        if any(each["status"] != "failed" for each in row["previous_attempts"]):
            verdict.duplicated.append(f"{row['key']} was tried again although it had a decision")
    verdict.wrong += [
        f"{key} has the attempts {found}" for key, found in attempts.items() if found != [*range(1, len(found) + 1)]
    ]
    verdict.lost += [f"execution {name} is in no result" for name in executions.keys() - told.keys()]
    for name, row in told.items():
        if name not in executions:
            verdict.wrong.append(f"{name} is {row['status']} and was never executed")
            continue
        _check_end(verdict, row, executions[name])


def _check_end(verdict: Verdict, row: dict[str, Any], execution: dict[str, Any]) -> None:
    name, status = row["inference_id"], execution["status"]
    if json.loads(execution["input"])["key"] != row["key"]:
        verdict.wrong.append(f"execution {name} was given {execution['input']}, not {row['key']}")
    if row["execution_arn"] != execution["executionArn"]:
        verdict.wrong.append(f"{name} names the execution {row['execution_arn']}")
    expected = DECISIONS.get((status, execution.get("error")), "failed")
    told = execution["output"] if expected == "accepted" else execution.get("cause", "")
    decision = {} if expected == "failed" else json.loads(told)
    if status == "RUNNING":
        verdict.wrong.append(f"execution {name} still runs")
    if row["status"] != expected:
        verdict.wrong.append(f"{name} is {row['status']}, but its execution ended {status} {execution.get('error')}")
    elif expected == "failed":
        if row["error"] not in (execution.get("error"), status):
            verdict.wrong.append(f"{name} failed with {row['error']}, its execution with {execution.get('error')}")
    else:
        for member in ("predicted_class", "confidence", "threshold", "outlier_score"):
            if row[member] != decision[member]:
                verdict.wrong.append(f"{name} has the {member} {row[member]}, its execution {decision[member]}")
        _check_limits(verdict, row)


def _check_capture(
    verdict: Verdict, world: World, results: list[dict[str, Any]], begun: datetime, seconds: float
) -> None:
    decided = {row["inference_id"] for row in results if row["status"] in DECIDED}
    deadline = time.monotonic() + seconds
    while missing := decided - world.captured(begun).keys():
        if time.monotonic() > deadline:
            verdict.lost += [f"{name} has a decision and no inference is captured" for name in sorted(missing)]
            return
        time.sleep(1)


def _decided(execution: dict[str, Any]) -> bool:
    return (execution["status"], execution.get("error")) in DECISIONS


def _moment(execution: dict[str, Any]) -> datetime:
    moment: datetime = execution.get("stopDate") or execution["startDate"]
    return moment
