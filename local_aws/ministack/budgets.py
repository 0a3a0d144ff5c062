"""AWS::Budgets::Budget in templates, which ministack has as an API only."""

import json
from typing import Any

from ministack.services import budgets
from ministack.services.cloudformation import provisioners

TYPE = "AWS::Budgets::Budget"


def install() -> None:
    """Adds the type to those that ministack's CloudFormation knows."""
    provisioners._RESOURCE_HANDLERS[TYPE] = {"create": _create, "update": _update, "delete": _delete}


def _create(logical_id: str, properties: dict[str, Any], stack: str) -> tuple[str, dict[str, str]]:
    budget = properties["Budget"]
    name = budget.setdefault("BudgetName", f"{stack}-{logical_id}")
    limit = {**budget["BudgetLimit"], "Amount": str(budget["BudgetLimit"]["Amount"])}
    notifications = [
        {**each, "Notification": {**each["Notification"], "Threshold": float(each["Notification"]["Threshold"])}}
        for each in properties.get("NotificationsWithSubscribers", [])
    ]
    _done(
        budgets._create_budget(
            {"Budget": {**budget, "BudgetLimit": limit}, "NotificationsWithSubscribers": notifications}
        )
    )
    return name, {}


def _update(physical_id: str, _: dict[str, Any], properties: dict[str, Any], stack: str, *rest: Any) -> tuple[str, Any]:
    _delete(physical_id, properties)
    return _create(physical_id, properties, stack)


def _delete(physical_id: str, _: dict[str, Any]) -> None:
    if physical_id in budgets._budgets:
        _done(budgets._delete_budget({"BudgetName": physical_id}))


def _done(answer: Any) -> None:
    """Raises ValueError with the API's message if it refused."""
    status, _, body = answer
    if status != 200:
        raise ValueError(json.loads(body).get("message", str(body)))
