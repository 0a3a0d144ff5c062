"""requirements.txt of a script or model: what of it this environment does not have.

AWS's containers install it. Here jobs and models share the server's environment, which one of them must not change
under the others.
"""

import logging
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

logger = logging.getLogger(__name__)


def report_unmet(folder: str | Path) -> None:
    """Writes a warning to the log for every line of the folder's requirements.txt that is not met."""
    for line in stated(folder):
        problem = _problem(line)
        if problem:
            logger.warning("requirements.txt: %s; nothing is installed here", problem)


def stated(folder: str | Path, errors: str = "strict") -> list[str]:
    """Lines of the folder's requirements.txt without comments and empty ones; none if there is no such file.

    errors: what is done about bytes that are no UTF-8, as in bytes.decode.
    """
    file = Path(folder, "requirements.txt")
    lines = file.read_text(errors=errors).splitlines() if file.is_file() else []
    return [text for line in lines if (text := line.split(" #")[0].strip()) and not text.startswith("#")]


def _problem(line: str) -> str | None:
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return f"{line!r} is not understood"
    if requirement.marker and not requirement.marker.evaluate():
        return None
    try:
        present = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{line} is asked for and missing"
    if present not in requirement.specifier:
        return f"{line} is asked for, {present} is there"
    return None
