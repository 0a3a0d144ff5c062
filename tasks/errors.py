"""What every error of this project has: a message that says what is wrong, and a hint that says what to do about it."""


class SconesError(Exception):
    """Base of all errors that flows end with on purpose. Prefect shows the text of it: "message; hint"."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message
