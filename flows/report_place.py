"""Where a person finds a report, as the messages of flow runs say it."""

from settings import REPORTS_PREFIX, settings
from tasks.aws import storage


def report_place(bucket: str, date: str, run: str) -> str:
    """On an account its address in S3's console, as the machine of the flow run may be gone; here the file."""
    key = f"{REPORTS_PREFIX}{date}/{run}/report.html"
    return storage.console_address(bucket, key) or str(settings().reports / date / run / "report.html")
