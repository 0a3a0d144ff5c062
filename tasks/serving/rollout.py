"""Brings the endpoint to another model version with automatic rollback.

A version is tried on an endpoint of its own first, and what served before serves again when anything fails. Until it is
over a rollout is on record in the bucket, so that one that was killed can be undone by another process.
"""

from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.logging import get_run_logger

from settings import ROLLOUTS_PREFIX, settings
from tasks.aws import errors, storage
from tasks.aws.clients import client
from tasks.aws.errors import translate_aws_errors
from tasks.installation import Installation, ServingEndpoint
from tasks.model.registry import REJECTED, ModelVersion, decide
from tasks.records import Record
from tasks.run import Log
from tasks.serving import models, scaling, smoke
from tasks.serving.endpoint import (
    EndpointError,
    create_endpoint,
    delete_endpoint,
    reason,
    serving,
    settled,
    wait_in_service,
)

if TYPE_CHECKING:
    from sagemaker.core.resources import Endpoint

# After a rollback that failed, AWS serves with a mix of both configs.
SERVING = ("InService", "UpdateRollbackFailed")


class RolloutFailed(EndpointError):
    """The version does not serve; the message says why, and what does instead."""


class Rollout(Record, frozen=True, kw_only=True):
    """rollouts/ENDPOINT.json: one change of the endpoint, while it is under way.

    Model and endpoint config share the name `config`; `previous` served before, if any.
    runs: the flow run that does it and the one that all began with. made: whether this rollout created model and
    endpoint config, so that going back deletes them.
    """

    runs: tuple[str, ...]
    endpoint: str
    version: str
    config: str
    previous: str | None
    made: bool


@task(task_run_name="roll out {version.name}")
def roll_out(installation: Installation, version: ModelVersion, runs: tuple[str, ...]) -> ServingEndpoint:
    """Has the endpoint serve the version; does nothing if it serves that already.

    runs: this flow run and the one that all began with; the smoke test's inference ids carry the first.
    Raises RolloutFailed, with what served before serving again. A version whose model is at fault becomes Rejected.
    """
    logger = get_run_logger()
    undo_interrupted(installation, logger.info)
    config = models.config_name(installation, version)
    endpoint = settled(installation.endpoint, logger.info)
    status = None if endpoint is None else str(endpoint.endpoint_status)
    previous = str(endpoint.endpoint_config_name) if endpoint is not None and status in SERVING else None
    if previous == config and status == "InService":
        logger.info("endpoint %s serves %s already", installation.endpoint, version.name)
        scaling.apply_scaling(installation.endpoint, logger.info)
        return serving(installation)
    images = smoke.known_images(installation)
    rollout = Rollout(
        runs=runs,
        endpoint=installation.endpoint,
        version=version.name,
        config=config,
        previous=previous,
        made=not models.config_exists(config),
    )
    storage.put_json(installation.bucket, _record_key(installation), rollout.to_json())
    try:
        models.create_model(installation, version, config)
        models.create_config(installation, version, config, model=config)
        try_candidate(installation, version, rollout, images, logger.info)
        if endpoint is not None and previous is None:
            # It serves nothing, and deleting is all that AWS allows.
            logger.warning("endpoint %s is %s: %s", installation.endpoint, endpoint.endpoint_status, reason(endpoint))
            delete_endpoint(installation.endpoint)
        switch(rollout, logger.info)
        ids = smoke.smoke_test(installation.endpoint, images, installation.classes, runs[0])
    except BaseException as error:
        logger.warning("rolling back: %s", error or type(error).__name__)
        kept = roll_back(installation, rollout, logger.info)
        if isinstance(error, smoke.SmokeTestFailed):
            decide(version, REJECTED, f"failed its deployment: {error}")
        if not isinstance(error, Exception):
            raise
        raise RolloutFailed(f"{version.name} does not serve: {error}; {kept}") from error
    storage.delete(installation.bucket, _record_key(installation))
    scaling.apply_scaling(installation.endpoint, logger.info)
    smoke.check_capture(installation, version, ids[-1], logger.info, logger.warning)
    return serving(installation)


def try_candidate(
    installation: Installation,
    version: ModelVersion,
    rollout: Rollout,
    images: list[smoke.KnownImage],
    progress: Log,
) -> None:
    """Asks the version about known images on an endpoint of its own, which is deleted whatever comes of it."""
    name, config = settings().candidate_endpoint, f"{rollout.config}-candidate"
    progress(f"trying {version.name} on endpoint {name}")
    try:
        models.create_config(installation, version, config, model=rollout.config, candidate=True)
        create_endpoint(name, config)
        candidate = settled(name, progress, with_log=True)
        if candidate is None or str(candidate.endpoint_status) != "InService":
            why = "it is gone" if candidate is None else reason(candidate)
            kind = smoke.SmokeTestFailed if errors.is_fault_of_model(why) else EndpointError
            raise kind(f"endpoint {name} did not come up: {why}")
        smoke.smoke_test(name, images, installation.classes, rollout.runs[0])
        progress(f"{version.name} knows {len(images)} images as it should")
    finally:
        delete_candidate(rollout.config)


def delete_candidate(config: str) -> None:
    """Deletes the candidate's endpoint and its config; what is not there is no error."""
    delete_endpoint(settings().candidate_endpoint)
    models.delete_config(f"{config}-candidate")


def switch(rollout: Rollout, progress: Log) -> None:
    """Creates the endpoint, or updates it under AWS's guardrails. Raises EndpointError if it kept its old model."""
    if rollout.previous is None:
        progress(f"creating endpoint {rollout.endpoint}")
        create_endpoint(rollout.endpoint, rollout.config)
    else:
        progress(f"updating endpoint {rollout.endpoint} to {rollout.version}")
        policy = models.deployment_config(settings())
        _update(rollout.endpoint, rollout.previous, rollout.config, progress, DeploymentConfig=policy)
    endpoint = wait_in_service(rollout.endpoint, progress)
    if str(endpoint.endpoint_config_name) != rollout.config:
        raise EndpointError(f"endpoint {rollout.endpoint} kept its old model: {reason(endpoint)}")


def _update(name: str, present: str, wanted: str, progress: Log, **request: Any) -> None:
    """Gives the endpoint another config.

    If the variants of the two have other names, as after a release that named them after the version, AWS does not
    update the one to the other: the endpoint is deleted and created anew.
    """
    if models.variants_of(present) == models.variants_of(wanted):
        if scaling.is_scaled(name):
            if models.instance_types_of(present) != models.instance_types_of(wanted):
                scaling.stop_scaling(name, progress)  # AWS refuses the update otherwise
            # As many instances as traffic asks for now, and captured as the new config says.
            request |= {
                "RetainAllVariantProperties": True,
                "ExcludeRetainedVariantProperties": [{"VariantPropertyType": "DataCaptureConfig"}],
            }
        with translate_aws_errors(f"update endpoint {name}"):
            client("sagemaker").update_endpoint(EndpointName=name, EndpointConfigName=wanted, **request)
        return
    progress(f"AWS renames no variant, so endpoint {name} is deleted and created anew; it answers nothing meanwhile")
    delete_endpoint(name)
    create_endpoint(name, wanted)


def roll_back(installation: Installation, rollout: Rollout, progress: Log) -> str:
    """Has the endpoint serve what it served before, deletes what the rollout made, and says what serves now.

    Can be called again, and by another process, after it was interrupted.
    """
    delete_candidate(rollout.config)
    endpoint = settled(rollout.endpoint, progress)
    if rollout.previous is None:
        if endpoint is not None and str(endpoint.endpoint_config_name) == rollout.config:
            delete_endpoint(rollout.endpoint)
        kept = f"there was no model before, so there is no endpoint {rollout.endpoint}"
    else:
        if endpoint is None or str(endpoint.endpoint_config_name) != rollout.previous:
            progress(f"going back to {rollout.previous}")
            _restore(endpoint, rollout, progress)
            wait_in_service(rollout.endpoint, progress)
            scaling.apply_scaling(rollout.endpoint, progress)
        kept = f"{serving(installation).model_version} serves as before"
    if rollout.made:
        models.delete_model_and_config(rollout.config)
    storage.delete(installation.bucket, _record_key(installation))
    progress(kept)
    return kept


def _restore(endpoint: "Endpoint | None", rollout: Rollout, progress: Log) -> None:
    assert rollout.previous is not None
    if endpoint is not None and str(endpoint.endpoint_status) == "Failed":
        delete_endpoint(rollout.endpoint)
        endpoint = None
    if endpoint is None:
        create_endpoint(rollout.endpoint, rollout.previous)
        return
    _update(rollout.endpoint, str(endpoint.endpoint_config_name), rollout.previous, progress)


def undo_interrupted(installation: Installation, progress: Log, run: str | None = None) -> None:
    """Rolls back what a rollout that was killed left behind; does nothing if there is none.

    run: only if it was this flow run's, or one's that this began. Without it the caller has the endpoint for itself.
    """
    rollout = _recorded(installation)
    if rollout is None or (run is not None and run not in rollout.runs):
        return
    progress(f"undoing the rollout of {rollout.version} that run {rollout.runs[0]} left unfinished")
    settled(rollout.endpoint, progress)
    if _recorded(installation) == rollout:  # nobody else undid it meanwhile
        roll_back(installation, rollout, progress)


def _recorded(installation: Installation) -> Rollout | None:
    return storage.get_record(installation.bucket, _record_key(installation), Rollout)


def _record_key(installation: Installation) -> str:
    return f"{ROLLOUTS_PREFIX}{installation.endpoint}.json"
