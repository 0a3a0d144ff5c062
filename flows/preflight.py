"""Says within seconds whether the pipeline can run, and what to do if it can't; changes nothing and costs nothing."""

from prefect import flow

from flows.ending import endings
from flows.identity import run_name
from tasks.preflight import Finding, look


@flow(name="preflight", flow_run_name=run_name, log_prints=True, **endings())
def preflight() -> list[Finding]:
    """Credentials, clock, images, quotas, permissions, stacks and Prefect; a table in the UI has it all.

    Fails with PreflightFailed if something is missing that the pipeline needs.
    """
    return look()


if __name__ == "__main__":
    preflight()
