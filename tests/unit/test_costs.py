"""What a month costs, worked out by hand."""

from datetime import date
from typing import Any

import pytest
from msgspec import structs

from settings import Settings, settings
from tasks.costs import Training, items, table
from tasks.evaluation.summary import Cost
from tasks.prices import LOOKED_UP
from tests.unit.test_report import night

TODAY = date(2026, 12, 1)


def chosen(**changed: Any) -> Settings:
    return settings().model_copy(update={"endpoint_instance_type": "ml.m5.large", **changed})


def dollars(**changed: Any) -> dict[str, float | None]:
    spent = Cost(state_transitions=0.03, functions=0.01, endpoint=0.1, total=0.14, requests=0.002)
    one = structs.replace(night(2), cost_usd=spent)
    training = Training("job", 720, "ml.m5.xlarge")
    return {item.name: item.dollars for item in items(chosen(**changed), one, [one, one], training, 2_000_000_000)}


def test_a_month_of_an_endpoint_that_always_stands() -> None:
    found = dollars()
    assert found["endpoint"] == pytest.approx(730 * 0.115)
    assert found["30 evaluations"] == pytest.approx(30 * 0.042)
    assert found["bulk runs of the last 30 days"] == pytest.approx(2 * 0.042)
    assert found["weekly training"] == pytest.approx(52 / 12 * 0.2 * 0.23)
    assert found["what is stored"] == pytest.approx(2 * 0.023)
    assert dollars(endpoint_instance_count=3)["endpoint"] == pytest.approx(3 * 730 * 0.115)


def test_one_that_stands_at_night_costs_the_evaluations_ten_minutes_and_what_is_around_them() -> None:
    found = dollars(endpoint_schedule="night", endpoint_linger_seconds=300)["endpoint"]
    assert found == pytest.approx(30 * (600 + 300 + 1200) / 3600 * 0.115)


def test_what_is_not_known_is_said_and_not_counted() -> None:
    lines = items(chosen(endpoint_instance_type="ml.g5.xlarge"), None, [], None, 0)
    text = table(lines, TODAY)
    assert [line.dollars for line in lines] == [None, None, 0, None, 0]
    assert "no price is known here" in text and "$0.00, and what is not known" in text
    assert text.count(" ? ") == 3


def test_old_prices_are_said_to_be_old() -> None:
    lines = items(chosen(), None, [], None, 0)
    assert "older than a year" not in table(lines, TODAY)
    assert "older than a year" in table(lines, LOOKED_UP.replace(year=LOOKED_UP.year + 2))


def test_a_worker_on_ecs_costs_what_fargate_and_its_address_cost() -> None:
    assert "worker on ECS" not in dollars()
    public = dollars(runner_workers=1)["worker on ECS"]
    private = dollars(runner_workers=1, runner_public_ip=False)["worker on ECS"]
    assert public == pytest.approx(730 * (0.25 * 0.04048 + 0.004445 + 0.005))
    assert private == pytest.approx(730 * (0.25 * 0.04048 + 0.004445))
