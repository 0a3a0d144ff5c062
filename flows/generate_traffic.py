"""Asks the endpoint, or the workflow, as users would, so that drift, alerts and scaling can be seen at work."""

import json
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows.ending import endings
from flows.identity import run_name, this_run
from tasks.aws.stacks import installation
from tasks.serving import endpoint, traffic


@flow(name="generate-traffic", flow_run_name=run_name, log_prints=True, **endings())
def generate_traffic(
    per_minute: float = 60,
    minutes: float = 4,
    rhythm: traffic.Rhythm = "steady",
    drift: traffic.Drift = "none",
    through: traffic.Through = "endpoint",
) -> traffic.Sent:
    """Sends test images, per_minute for so many minutes: steady, or with a day's rhythm pressed into them.

    drift: from half of the time on images are blurred, dark, or of another class. through: the endpoint alone, or the
    workflow, which the endpoint's capture sees too. The log says how to have a report of it.
    """
    plan = traffic.Plan(per_minute, minutes, rhythm, drift, through)
    installed, logger = installation(), get_run_logger()
    endpoint.serving(installed)  # says at once if there is none
    sent = traffic.send(installed, plan, this_run().id)
    message = f"sent {sent.sent:,} images, {sum(sent.failed.values()):,} failed, the last {sent.late_seconds} s late"
    window = {"since": sent.since, "until": sent.until}
    parameters = " ".join(f"--param {name}='{json.dumps(value)}'" for name, value in window.items())
    # On AWS capture records take minutes to arrive, and a report of a window does not wait for them.
    logger.info("a report of it, a while later: prefect deployment run confidence-report/NAME %s", parameters)
    for error, count in sent.failed.items():
        logger.warning("%d images: %s", count, error)
    state: Any = Completed(message=message, data=sent)
    if sent.failed:
        state = Failed(message=message, data=traffic.TrafficFailed(message, "the log has their errors"))
    returned: traffic.Sent = state  # callers get the data of a state
    return returned


if __name__ == "__main__":
    generate_traffic()
