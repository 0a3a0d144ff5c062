"""What AWS tells in a sentence only. Each function classifies one, and what it does not know is the harmless answer."""


def is_fault_of_model(failure_reason: str) -> bool:
    """Whether an endpoint's FailureReason says that the model's container or artifact is at fault.

    Anything else, such as a lack of instances, tells nothing about the model.
    """
    return any(text in failure_reason.lower() for text in ("health check", "model data"))


def is_unchanged(status_reason: str) -> bool:
    """Whether a change set failed only because there is nothing to change."""
    return any(text in status_reason for text in ("didn't contain changes", "No updates are to be performed"))


def is_missing_stack(code: str, message: str) -> bool:
    """Whether CloudFormation's error says that there is no such stack."""
    return code == "ValidationError" and "does not exist" in message


def is_taken_name(code: str, message: str) -> bool:
    """Whether SageMaker's error says that a resource of that name exists."""
    return code == "ResourceInUse" or (code == "ValidationException" and "already exist" in message)


def is_unassumable_role(code: str, message: str) -> bool:
    """Whether SageMaker's error says that it cannot assume the role, which may be too new."""
    return code == "ValidationException" and "assume" in message.lower()
