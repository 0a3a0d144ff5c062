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
    file = Path(folder, "requirements.txt")
    for line in file.read_text().splitlines() if file.exists() else ():
        problem = _problem(line.split(" #")[0].strip())
        if problem:
            logger.warning("requirements.txt: %s; nothing is installed here", problem)


def _problem(line: str) -> str | None:
    if not line or line.startswith("#"):
        return None
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
