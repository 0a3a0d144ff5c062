"""Step Functions' Distributed Map, in the place of ministack's own, which ignores most of its fields.

It does ItemReader (JSON, JSONL, CSV and listings), Items, ItemSelector, ItemBatcher, ResultWriter and the thresholds,
with JSONata or paths; children are STANDARD executions. StopExecution aborts the children, UpdateMapRun counts at once,
the machine's role has to be allowed what is done in its name, and a child's payload has at most 262,144 bytes.

It does not do: EXPRESS children and the input types PARQUET and MANIFEST, which are refused by name; RedriveExecution;
files of ResultWriter in parts. After StopExecution nothing is written. Of a child that succeeded DescribeExecution does
not include the input and GetExecutionHistory has no events, since a million images would fill the memory. More than
MAX_CONCURRENCY children never run at a time, where AWS has 10,000.

Sources: https://docs.aws.amazon.com/step-functions/latest/dg/state-map-distributed.html and, beside it,
input-output-itemreader.html, -itembatcher.html and -resultwriter.html, and iam-policies-eg-dist-map.html.
"""

import contextvars
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from ministack.core import iam_actions
from ministack.core.responses import new_uuid, now_iso
from ministack.services import s3, stepfunctions

from local_aws.ministack.authorization import role_decision
from local_aws.ministack.state_machines import MAX_PAYLOAD_BYTES, check_size

MAX_CONCURRENCY = 4 * (os.cpu_count() or 1)
# How soon StopExecution and UpdateMapRun are noticed.
LOOK_SECONDS = 0.1
STATUSES = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "TIMED_OUT": "timedOut",
    "ABORTED": "aborted",
}
COUNTS = (*STATUSES.values(), "total", "resultsWritten", "failuresNotRedrivable", "pendingRedrive")


def install() -> None:
    """Puts this in the place of ministack's."""
    stepfunctions._run_distributed_map = _run_distributed_map
    stepfunctions._restore_state = _with_interrupted_runs(stepfunctions._restore_state)
    iam_actions.extract_resource_arn = _with_map_runs(iam_actions.extract_resource_arn)


class MapRun:
    """One run of a Map state. `view` is what DescribeMapRun answers, and what ministack saves."""

    def __init__(
        self,
        state: dict[str, Any],
        raw_input: Any,
        effective: Any,
        processor: dict[str, Any],
        execution: dict[str, Any],
        context: dict[str, Any],
    ) -> None:
        self._state, self._raw_input, self._effective = state, raw_input, effective
        self._processor, self._execution, self._context = processor, execution, context
        self._jsonata = stepfunctions._state_query_language(state, context) == "JSONata"
        self._changed = threading.Condition()
        self._running: dict[str, dict[str, Any]] = {}  # by name
        # By status: a batch's number and its entries, as they end.
        self._entries: dict[str, list[tuple[int, list[str]]]] = {"SUCCEEDED": [], "FAILED": [], "PENDING": []}
        self._failure: BaseException | None = None
        machine: str = execution["stateMachineArn"]
        self._role: str = stepfunctions._state_machines[machine]["roleArn"]
        label = state.get("Label") or uuid.uuid3(uuid.NAMESPACE_URL, context["State"]["Name"])
        self.view: dict[str, Any] = {
            "mapRunArn": f"{machine.replace(':stateMachine:', ':mapRun:')}/{label}:{new_uuid()}",
            "executionArn": execution["executionArn"],
            "status": "RUNNING",
            "startDate": now_iso(),
            "maxConcurrency": int(self._value("MaxConcurrency", state, 0)),
            "toleratedFailurePercentage": float(self._value("ToleratedFailurePercentage", state, 0)),
            "toleratedFailureCount": int(self._value("ToleratedFailureCount", state, 0)),
            "itemCounts": dict.fromkeys(COUNTS, 0),
            "executionCounts": dict.fromkeys(COUNTS, 0),
            "redriveCount": 0,
            "_stateMachineArn": f"{machine}/{label}",
        }

    def run(self) -> Any:
        """The state's result. Raises ministack's error for what a Map state fails with, SystemExit if stopped."""
        stepfunctions._map_runs[self.view["mapRunArn"]] = self.view
        try:
            kind = self._processor["ProcessorConfig"].get("ExecutionType")
            if kind != "STANDARD":
                raise _error("States.Runtime", f"ExecutionType {kind} is not done here, only STANDARD")
            self._require("states:StartExecution", self._execution["stateMachineArn"], "States.Permissions")
            self._items = self._read_items()
            self._batches, self._shared = self._batch()
            for counts, total in self._counts(len(self._items), len(self._batches)):
                counts |= {"total": total, "pending": total}
            self._run_children()
            result = self._results()
            self.view["status"] = "FAILED" if self._exceeded() else "SUCCEEDED"
        except SystemExit:
            self.view["status"] = "ABORTED"
            raise
        except BaseException:
            self.view["status"] = "FAILED"
            raise
        finally:
            self.view["stopDate"] = now_iso()
        if self._exceeded():
            cause = "The specified tolerated failure threshold was exceeded"
            raise _error("States.ExceedToleratedFailureThreshold", cause)
        check_size(result, "The Map state returned a result with")
        return result

    def step(self) -> tuple[Any, str | None]:
        """Runs; the state's output, and the name of the state that follows."""
        state, context, result = self._state, self._context, self.run()
        if self._jsonata:
            output = stepfunctions._apply_jsonata_output(state, self._raw_input, context, result=result, default=result)
            stepfunctions._apply_state_assign(state, self._raw_input, context, result=result)
        else:
            selected = stepfunctions._apply_result_selector(state, result)
            placed = stepfunctions._apply_result_path(state, self._raw_input, selected)
            output = stepfunctions._apply_output_path(state, placed, context)
        return output, stepfunctions._next_or_end(state)

    # Fields

    def _template(self, template: Any, context: dict[str, Any] | None = None) -> Any:
        if self._jsonata:
            return stepfunctions._apply_jsonata_template(template, self._raw_input, context or self._context)
        return stepfunctions._resolve_params_obj(template, self._effective, context or self._context)

    def _value(self, field: str, where: dict[str, Any], default: Any) -> Any:
        """A field that may be JSONata, or a path under another name."""
        if path := where.get(f"{field}Path"):
            return stepfunctions._resolve_path_or_ctx(path, self._effective, self._context)
        return self._template(where[field]) if field in where else default

    def _arguments(self, where: dict[str, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = self._template(where.get("Arguments") or where.get("Parameters") or {})
        return arguments

    # Items

    def _read_items(self) -> list[str]:
        """The items as JSON, after ItemSelector."""
        if reader := self._state.get("ItemReader"):
            items = self._read(reader)
        elif self._jsonata:
            items = _texts(self._template(self._state["Items"]) if "Items" in self._state else self._raw_input)
        else:
            path = self._state.get("ItemsPath", "$")
            items = _texts(stepfunctions._resolve_path_or_ctx(path, self._effective, self._context))
        selector = self._state.get("ItemSelector") or self._state.get("Parameters")
        if not selector:
            return items
        chosen = []
        for index, item in enumerate(items):
            context = {**self._context, "Map": {"Item": {"Index": index, "Value": json.loads(item)}}}
            chosen.append(_text(self._template(selector, context)))
        return chosen

    def _read(self, reader: dict[str, Any]) -> list[str]:
        arguments, config = self._arguments(reader), dict(reader.get("ReaderConfig") or {})
        if config.get("InputType") in ("PARQUET", "MANIFEST"):
            raise _error("States.Runtime", f"InputType {config['InputType']} is not done here")
        config["MaxItems"] = self._value("MaxItems", config, 0)
        config.pop("MaxItemsPath", None)
        bucket, failed = arguments["Bucket"], "States.ItemReaderFailed"
        if "Key" in arguments:
            self._require("s3:GetObject", f"arn:aws:s3:::{bucket}/{arguments['Key']}", failed)
        else:
            self._require("s3:ListBucket", f"arn:aws:s3:::{bucket}", failed)
        try:
            if config.get("InputType") != "JSONL" or "Key" not in arguments:
                plain = {"Resource": reader["Resource"], "Parameters": arguments, "ReaderConfig": config}
                return _texts(stepfunctions._read_map_items(plain, self._effective, self._context))
            # Without decoding each item and encoding it again, as there may be millions.
            lines: list[str] = stepfunctions._s3_object_text(bucket, arguments["Key"]).split("\n")
            items = [line for line in lines if line.strip() and (json.loads(line),)]
            return items[: int(config["MaxItems"]) or None]
        except (ValueError, KeyError, IndexError) as error:
            raise _error(failed, f"the items of s3://{bucket} can't be read: {error}") from error

    def _batch(self) -> tuple[list[tuple[int, int]], str]:
        """From which to which item each child gets, and BatchInput as JSON ('' for none)."""
        batcher = self._state.get("ItemBatcher")
        if not batcher:
            return [(index, index + 1) for index in range(len(self._items))], ""
        shared = _text(self._template(batcher["BatchInput"])) if "BatchInput" in batcher else ""
        most = int(self._value("MaxItemsPerBatch", batcher, 0)) or len(self._items)
        size = min(int(self._value("MaxInputBytesPerBatch", batcher, 0)) or MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES)
        size -= len(shared.encode()) + len('{"BatchInput":,"Items":[]}')
        batches, first, filled = [], 0, 0
        for index, item in enumerate(self._items):
            length = len(item.encode()) + 1
            if index > first and (index - first == most or filled + length > size):
                batches.append((first, index))
                first, filled = index, 0
            filled += length
        return [*batches, (first, len(self._items))] if self._items else [], shared

    def _input(self, number: int) -> str:
        first, end = self._batches[number]
        if "ItemBatcher" not in self._state:
            return self._items[first]
        shared = f'"BatchInput":{self._shared},' if self._shared else ""
        return "{" + shared + f'"Items":[{",".join(self._items[first:end])}]}}'

    # Children

    def _run_children(self) -> None:
        with self._changed:
            for number in range(len(self._batches)):
                while len(self._running) >= self._most() and not self._over():
                    self._changed.wait(LOOK_SECONDS)
                if self._over():
                    break
                child = self._start_child(number)
                context = contextvars.copy_context()
                threading.Thread(target=context.run, args=(self._run_child, number, child), daemon=True).start()
            while self._running and not self._stopped():
                self._changed.wait(LOOK_SECONDS)
            if self._stopped():
                for child in self._running.values():
                    self._end_child(child, {"status": "ABORTED", "cause": "The Map Run was stopped"})
                self._running.clear()
                raise SystemExit  # ends the execution's thread; its status was set by StopExecution
        if self._failure is not None:
            raise self._failure

    def _most(self) -> int:
        return min(self.view["maxConcurrency"] or MAX_CONCURRENCY, MAX_CONCURRENCY)

    def _stopped(self) -> bool:
        return bool(self._execution["status"] != "RUNNING")

    def _over(self) -> bool:
        return self._stopped() or self._exceeded() or self._failure is not None

    def _start_child(self, number: int) -> dict[str, Any]:
        machine, name = self.view["_stateMachineArn"], new_uuid()
        first, end = self._batches[number]
        child = {
            "executionArn": f"{machine.replace(':stateMachine:', ':execution:')}:{name}",
            "stateMachineArn": machine,
            "name": name,
            "status": "RUNNING",
            "startDate": now_iso(),
            "stopDate": None,
            "input": self._input(number),
            "output": None,
            "mapRunArn": self.view["mapRunArn"],
            "events": [],
            "testCase": self._execution.get("testCase"),
            "mockAttempts": {},
            "_items": end - first,
            "_number": number,
        }
        stepfunctions._executions[child["executionArn"]] = child
        self._running[name] = child
        self._move("PENDING", child)
        return child

    def _run_child(self, number: int, child: dict[str, Any]) -> None:
        try:
            outcome = self._outcome(child)
            with self._changed:
                if self._running.pop(child["name"], None):  # else it was aborted
                    self._end_child(child, outcome)
                    self._changed.notify_all()
        except BaseException as error:  # a fault of this module must not hang the run
            self._failure = error

    def _outcome(self, child: dict[str, Any]) -> dict[str, Any]:
        """Runs a child's states; its status with the output, or with error and cause."""
        context = {
            "QueryLanguage": self._context["QueryLanguage"],
            "Execution": {
                "Id": child["executionArn"],
                "Name": child["name"],
                "RoleArn": self._role,
                "StartTime": child["startDate"],
                "Input": json.loads(child["input"]),
            },
            "StateMachine": {"Id": child["stateMachineArn"], "Name": self._context["StateMachine"]["Name"]},
            "variables": {},
        }
        try:
            check_size(context["Execution"]["Input"], "The input of the child execution has")
            states, first = self._processor["States"], self._processor["StartAt"]
            output = stepfunctions._run_sub_machine(states, first, context["Execution"]["Input"], child, context)
            return {"status": "SUCCEEDED", "output": _text(output)}
        except stepfunctions._ExecutionError as error:
            return {"status": "FAILED", "error": error.error, "cause": error.cause}

    def _end_child(self, child: dict[str, Any], outcome: dict[str, Any]) -> None:
        child.update(outcome, stopDate=now_iso())
        self._move("RUNNING", child)
        succeeded = child["status"] == "SUCCEEDED"
        if "ResultWriter" in self._state or succeeded:
            self._entries["SUCCEEDED" if succeeded else "FAILED"].append((child["_number"], self._entries_of(child)))
        if succeeded:
            child.update(input="", inputDetails={"included": False}, events=[])

    def _counts(self, items: int, executions: int = 1) -> Iterator[tuple[dict[str, int], int]]:
        yield self.view["itemCounts"], items
        yield self.view["executionCounts"], executions

    def _move(self, before: str, child: dict[str, Any]) -> None:
        for counts, many in self._counts(child["_items"]):
            counts[STATUSES[before]] -= many
            counts[STATUSES[child["status"]]] += many

    def _exceeded(self) -> bool:
        """Either threshold is enough to fail the run; without one, or with 0, so is any failed item."""
        counts, view = self.view["itemCounts"], self.view
        failed = counts["failed"] + counts["timedOut"]
        limits = []
        if view["toleratedFailureCount"]:
            limits.append(failed > view["toleratedFailureCount"])
        if view["toleratedFailurePercentage"]:
            limits.append(failed * 100 > view["toleratedFailurePercentage"] * counts["total"])
        return any(limits) if limits else failed > 0

    # Results

    def _results(self) -> Any:
        """What the state returns: the outputs, or where ResultWriter has written them."""
        writer = self._state.get("ResultWriter") or {}
        if "Resource" not in writer:
            return [json.loads(entry) for _, entries in sorted(self._entries["SUCCEEDED"]) for entry in entries]
        arguments, lines = self._arguments(writer), self._writer_config.get("OutputType") == "JSONL"
        run = self.view["mapRunArn"].rsplit(":", 1)[1]
        folder = "/".join(filter(None, [arguments.get("Prefix", "").strip("/"), run]))
        started = sum(self.view["executionCounts"][name] for name in STATUSES.values() if name != "pending")
        for number in range(started, len(self._batches)):
            entry = {"Input": self._input(number), "InputDetails": {"Included": True}, "Status": "PENDING"}
            self._entries["PENDING"].append((number, [_text(entry)]))
        files: dict[str, list[dict[str, Any]]] = {}
        for status, found in self._entries.items():
            entries = [entry for _, of_batch in sorted(found) for entry in of_batch]
            files[status] = []
            if entries:
                text = "\n".join([*entries, ""]) if lines else f"[{','.join(entries)}]"
                key = f"{folder}/{status}_0.{'jsonl' if lines else 'json'}"
                self._put(arguments["Bucket"], key, text.encode())
                files[status].append({"Key": key, "Size": len(text.encode())})
        manifest = {"DestinationBucket": arguments["Bucket"], "MapRunArn": self.view["mapRunArn"], "ResultFiles": files}
        self._put(arguments["Bucket"], f"{folder}/manifest.json", _text(manifest).encode())
        for counts, many in self._counts(len(self._items), len(self._batches)):
            counts["resultsWritten"] = many
        details = {"Bucket": arguments["Bucket"], "Key": f"{folder}/manifest.json"}
        return {"MapRunArn": self.view["mapRunArn"], "ResultWriterDetails": details}

    @property
    def _writer_config(self) -> dict[str, Any]:
        config: dict[str, Any] = (self._state.get("ResultWriter") or {}).get("WriterConfig") or {}
        return config

    def _entries_of(self, child: dict[str, Any]) -> list[str]:
        """A child in the results, as JSON. COMPACT and FLATTEN keep only the output of one that succeeded."""
        exported = "Resource" in (self._state.get("ResultWriter") or {})
        transformation = self._writer_config.get("Transformation", "NONE" if exported else "COMPACT")
        if transformation != "NONE" and child["status"] == "SUCCEEDED":
            output = json.loads(child["output"])
            return _texts(output) if transformation == "FLATTEN" and isinstance(output, list) else [_text(output)]
        entry = {
            "Cause": child.get("cause"),
            "Error": child.get("error"),
            "ExecutionArn": child["executionArn"],
            "Input": child["input"],
            "InputDetails": {"Included": True},
            "Name": child["name"],
            "Output": child["output"],
            "OutputDetails": {"Included": True},
            "RedriveCount": 0,
            "StartDate": child["startDate"],
            "StateMachineArn": child["stateMachineArn"],
            "Status": child["status"],
            "StopDate": child["stopDate"],
        }
        return [_text({name: value for name, value in entry.items() if value is not None})]

    def _put(self, bucket: str, key: str, content: bytes) -> None:
        self._require("s3:PutObject", f"arn:aws:s3:::{bucket}/{key}", "States.ResultWriterFailed")
        status, *_ = s3._put_object(bucket, key, content, {"content-type": "application/octet-stream"})
        if status != 200:
            raise _error("States.ResultWriterFailed", f"s3://{bucket}/{key} can't be written ({status})")

    def _require(self, action: str, resource: str, error: str) -> None:
        """As AWS does it in the name of the state machine's role."""
        decision, principal = role_decision(self._role, self._execution["name"], action, resource)
        if decision != "Allow":
            raise _error(error, f"{principal} is not authorized to perform: {action} on resource: {resource}")


def _run_distributed_map(*arguments: Any) -> tuple[Any, str | None]:
    """What ministack calls with what MapRun is made of."""
    return MapRun(*arguments).step()


def _with_interrupted_runs(restore: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """ministack says of executions that its end interrupted that they failed; of map runs it does not."""

    @wraps(restore)
    def restored(data: Any) -> Any:
        answer = restore(data)
        for run in stepfunctions._map_runs.all_values():
            if run["status"] == "RUNNING":
                run |= {"status": "FAILED", "stopDate": now_iso()}
                for counts in (run["itemCounts"], run["executionCounts"]):
                    counts["failed"] += counts["running"]
                    counts["running"] = 0
        return answer

    return restored


def _with_map_runs(resource_of: Callable[..., str]) -> Callable[..., str]:
    """The resource of DescribeMapRun and UpdateMapRun is the map run, which ministack's evaluation of policies ignores.

    https://docs.aws.amazon.com/service-authorization/latest/reference/list_awsstepfunctions.html
    """

    @wraps(resource_of)
    def resource(service: str, method: str, path: str, *arguments: Any, **more: Any) -> str:
        found = resource_of(service, method, path, *arguments, **more)
        bodies = [each for each in (*arguments, *more.values()) if isinstance(each, bytes)]
        if service == "states" and found == "*" and bodies:
            return iam_actions._safe_json_field(bodies[0], "mapRunArn") or found
        return found

    return resource


def _texts(values: Any) -> list[str]:
    """JSON of each item: of a list's, or of an object's as Key and Value."""
    if isinstance(values, dict):
        values = [{"Key": key, "Value": value} for key, value in values.items()]
    return [_text(value) for value in (values if isinstance(values, list) else [values])]


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _error(error: str, cause: str) -> Exception:
    raised: Exception = stepfunctions._ExecutionError(error, cause)
    return raised
