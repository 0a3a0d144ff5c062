"""What is made of AWS's sentences, and that an unknown one decides nothing that lasts."""

import pytest
from botocore.exceptions import ClientError

from tasks.aws import errors


def refusal(code: str, message: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "Operation")


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        ("The primary container for production variant v7 did not pass the ping health check.", True),
        ("Failed to download model data for container from URL", True),
        ("Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity", False),
        ("Request to service failed. If failure persists after retry, contact customer support.", False),
        ("", False),
    ],
)
def test_only_a_known_sentence_is_held_against_a_model(reason: str, fault: bool) -> None:
    assert errors.is_fault_of_model(reason) is fault


@pytest.mark.parametrize(
    ("reason", "unchanged"),
    [
        ("The submitted information didn't contain changes. Submit different information.", True),
        ("No updates are to be performed.", True),
        ("Transform failed", False),
    ],
)
def test_a_change_set_without_changes_is_no_failure(reason: str, unchanged: bool) -> None:
    assert errors.is_unchanged(reason) is unchanged


def test_errors_are_known_by_code_and_sentence() -> None:
    assert errors.is_missing_stack(refusal("ValidationError", "Stack with id scones does not exist"))
    assert not errors.is_missing_stack(refusal("AccessDenied", "Stack with id scones does not exist"))
    assert errors.is_taken_name(refusal("ResourceInUse", ""))
    assert errors.is_taken_name(refusal("ValidationException", "Cannot create already existing model"))
    assert not errors.is_taken_name(refusal("ValidationException", "Could not find model"))
    assert errors.is_unassumable_role(refusal("ValidationException", "Could not assume role arn:aws:iam::1:role/x"))
    assert not errors.is_unassumable_role(refusal("ThrottlingException", "assume"))
