"""JSON Schemas of the files and events that other programs read, made from the records' types.

`make schemas` writes docs/schemas/.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from settings import ROOT
from tasks.bulk.bulk import BulkPlan
from tasks.bulk.manifest import BulkImage
from tasks.capture.window import Quarantined
from tasks.data.dataset import LeftOut
from tasks.evaluation.results import Planned, Result
from tasks.evaluation.summary import EvaluationSummary
from tasks.exclusive import Hold
from tasks.installation import DatasetNote
from tasks.report.summary import Alert, ReportSummary, Unmatched
from tasks.review.announcement import Backlog, NewLabels
from tasks.review.labels import Label
from tasks.review.queue import Waiting
from tasks.review.training_set import Provenance, Use
from tasks.serving.rollout import Rollout
from tasks.serving.threshold import ThresholdChange

FOLDER = ROOT / "docs" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
# By the name of the schema.
TYPES: dict[str, type[Any]] = {
    "dataset": DatasetNote,
    "left-out-line": LeftOut,
    "manifest-line": Planned,
    "result-line": Result,
    "evaluation-summary": EvaluationSummary,
    "bulk-plan": BulkPlan,
    "bulk-manifest-line": BulkImage,
    "report-summary": ReportSummary,
    "reconciliation-line": Unmatched,
    "quarantine-line": Quarantined,
    "alert-event": Alert,
    "review-queue": Waiting,
    "review-label": Label,
    "labels-event": NewLabels,
    "backlog-event": Backlog,
    "reviewed-line": Use,
    "provenance-line": Provenance,
    "rollout": Rollout,
    "hold": Hold,
    "threshold-change": ThresholdChange,
}


def schemas() -> dict[str, str]:
    """Content of each file of docs/schemas/, by its name."""
    documents = {name: {"$schema": DIALECT, **msgspec.json.schema(kind)} for name, kind in TYPES.items()}
    return {f"{name}.json": json.dumps(document, indent=2) + "\n" for name, document in documents.items()}


def write(folder: Path) -> None:
    """Writes the files, and removes those of records that are gone."""
    folder.mkdir(exist_ok=True)
    wanted = schemas()
    for old in folder.glob("*.json"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(FOLDER)
