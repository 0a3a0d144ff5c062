"""How commands tell of errors that their user can mend."""

import sys


def print_error(error: Exception) -> int:
    """Prints each line of the message to stderr, and returns the command's exit status."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return 1
