from datetime import UTC, datetime

import pytest

from tasks.installation import Installation
from tasks.report.subject import ReportError, read_window

INSTALLED = Installation("bucket", "arn", "batch-arn", "endpoint", ("bicycle", "motorcycle"), 0.93, "arn", "arn")
MONDAY, TUESDAY = datetime(2026, 11, 23, tzinfo=UTC), datetime(2026, 11, 24, tzinfo=UTC)


@pytest.mark.parametrize("last", [MONDAY, datetime(2026, 11, 22), MONDAY.replace(tzinfo=None)])
def test_a_window_that_ends_before_it_begins_is_refused(last: datetime) -> None:
    with pytest.raises(ReportError, match="before it begins"):
        read_window.fn(INSTALLED, MONDAY, last, None, None)


@pytest.mark.parametrize("name", ["../v1", "v1/2026", "", " ", "a" * 64, "v_1", "-", "v1\n"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    for names, message in (((name, None), "no name of an endpoint"), ((None, name), "no model version")):
        with pytest.raises(ReportError, match=message):
            read_window.fn(INSTALLED, MONDAY, TUESDAY, *names)
