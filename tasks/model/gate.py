"""The gate between training and deployment: a challenger against the champion, on images neither was fitted on."""

import json
import math
from dataclasses import dataclass
from statistics import NormalDist

from prefect import task
from prefect.logging import get_run_logger

from settings import Settings, settings
from tasks.installation import Installation
from tasks.model.registry import (
    APPROVED,
    PENDING,
    REJECTED,
    ModelVersion,
    check_artifact,
    check_digest,
    decide,
    versions,
)
from tasks.model.training import JobPlan, image_shape, read_artifact, run_job, training_channels, upload_source
from tasks.run import Log

METRICS = (
    "challenger:images",
    "challenger:accuracy",
    "challenger:ece",
    "challenger:ece_limit",
    "champion:accuracy",
    "paired:only_challenger",
    "paired:only_champion",
)
# What evaluate.py writes for the gate.
COMPARISON = "comparison.json"
# How the reason of a version begins that nobody decided about yet.
AWAITS = "awaits a person; "


@dataclass(frozen=True)
class Comparison:
    """How a challenger, and the champion if there is one to compare with, answered images they were not fitted on.

    ece_limit: what the calibration error of a perfectly calibrated model stays under 99 times in 100 at this n.
    only_challenger, only_champion: images that only one of them got right.
    """

    images: int
    accuracy: float
    ece: float
    ece_limit: float
    champion: str | None = None
    champion_accuracy: float | None = None
    only_challenger: int = 0
    only_champion: int = 0


@dataclass(frozen=True)
class Verdict:
    """What the gate makes of a comparison, with a reason for people."""

    approved: bool
    reason: str


@task(task_run_name="gate {version.name}")
def pass_gate(installation: Installation, version: ModelVersion, run: str) -> ModelVersion:
    """Compares the version with the champion and approves or rejects it.

    Where the setting wants a person to approve, the version stays pending with the gate's advice as its reason. A
    version that was decided on already is left alone.
    """
    logger = get_run_logger()
    if version.status != PENDING:
        logger.info("%s is %s already: %s", version.name, version.status, version.reason)
        return version
    champion = next(versions(APPROVED), None)
    verdict = judge(installation, version, champion, run, logger.info)
    if settings().approval == "manual":
        advice = "approve" if verdict.approved else "reject"
        decided = decide(version, PENDING, f"{AWAITS}the gate would {advice}: {verdict.reason}")
    else:
        decided = decide(version, APPROVED if verdict.approved else REJECTED, verdict.reason)
    log = logger.warning if decided.status == REJECTED else logger.info
    log("%s is %s: %s", decided.name, decided.status, decided.reason)
    return decided


def judge(
    installation: Installation, challenger: ModelVersion, champion: ModelVersion | None, run: str, progress: Log
) -> Verdict:
    """Runs evaluate.py as a job on both artifacts and applies the settings' limits to its figures.

    Raises ArtifactChanged if one of them is not what was registered.
    """
    for version in filter(None, (challenger, champion)):
        check_artifact(version)
    channels = {**training_channels(installation.bucket), "challenger": challenger.artifact_uri}
    if champion:
        channels["champion"] = champion.artifact_uri
    plan = JobPlan(
        program="evaluate.py",
        source_uri=upload_source(installation.bucket),
        hyperparameters={"num_classes": str(len(installation.classes)), "image_shape": image_shape()},
        channels=channels,
        metrics=METRICS,
    )
    job = run_job(installation, plan, f"{settings().stack}-gate-{run}", progress)
    written = json.loads(read_artifact(job, COMPARISON))
    for role, judged in (("challenger", challenger), ("champion", champion)):
        if judged is not None:  # the archive that the job was given, whatever is in the bucket before and after
            check_digest(judged, written.get(f"{role}_sha256"))
    if failure := written.get("challenger_failure"):
        return Verdict(False, failure)
    return verdict(comparison(written["figures"], champion.name if champion else None), settings())


def comparison(figures: dict[str, float], champion: str | None) -> Comparison:
    """The figures that evaluate.py wrote. It writes none of a champion that can't be compared with."""
    return Comparison(
        images=int(figures["challenger_images"]),
        accuracy=figures["challenger_accuracy"],
        ece=figures["challenger_ece"],
        ece_limit=figures["challenger_ece_limit"],
        champion=champion,
        champion_accuracy=figures.get("champion_accuracy"),
        only_challenger=int(figures.get("paired_only_challenger", 0)),
        only_champion=int(figures.get("paired_only_champion", 0)),
    )


def verdict(compared: Comparison, chosen: Settings) -> Verdict:
    """Approves what reaches the accuracy floor, is calibrated, and is shown not to be worse than the margin allows."""
    n = f"on {compared.images} training images that it was not fitted on"
    reasons, faults = [f"accuracy {compared.accuracy:.3f} (floor {chosen.gate_min_accuracy:g}) {n}"], []
    if compared.accuracy < chosen.gate_min_accuracy:
        faults.append(f"accuracy {compared.accuracy:.3f} is under the floor of {chosen.gate_min_accuracy:g} {n}")
    calibration = f"calibration error {compared.ece:.3f}, by chance up to {compared.ece_limit:.3f}"
    (reasons if compared.ece <= compared.ece_limit else faults).append(calibration)
    if compared.champion is None:
        reasons.append("no champion to compare with")
    elif compared.champion_accuracy is None:
        reasons.append(f"{compared.champion} could not be compared with (see the job's log)")
    else:
        difference = (compared.only_challenger - compared.only_champion) / compared.images
        p = not_worse_p(compared.images, compared.only_challenger, compared.only_champion, chosen.gate_margin)
        text = (
            f"{difference:+.3f} against {compared.champion} with {compared.champion_accuracy:.3f} "
            f"({compared.only_challenger} images only the challenger got right, {compared.only_champion} only "
            f"{compared.champion}; p = {p:.3f} for being worse by {chosen.gate_margin:g} or more)"
        )
        (reasons if p <= 1 - chosen.gate_level else faults).append(text)
    return Verdict(not faults, "; ".join(faults or reasons))


def not_worse_p(images: int, only_challenger: int, only_champion: int, margin: float) -> float:
    """One-sided p of the hypothesis that the challenger's accuracy is lower by `margin` or more (paired, n images).

    Normal approximation of the difference of paired shares (Wald; Liu et al. 2002 for non-inferiority), with one image
    added to each of the discordant counts so that few of them do not look like certainty.
    """
    b, c = only_challenger + 1, only_champion + 1
    difference = (only_challenger - only_champion) / images
    deviation = math.sqrt(max(b + c - (b - c) ** 2 / images, 1e-9)) / images
    return 1 - NormalDist().cdf((difference + margin) / deviation)
