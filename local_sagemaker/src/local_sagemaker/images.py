"""What AWS's container images hold, as far as Python can import it. A job or model of an image can import no more here.

The lists are those of the images' published build files, https://github.com/aws/deep-learning-containers: what they
install by name. What that depends on is found by the metadata of the distributions that this machine has.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Image:
    """An entry of images.json. python: its version there. distributions: those that the build file names.

    required: what these require besides, where they need not be installed on this machine. source: the build file.
    """

    repository: str
    version: str
    python: str
    distributions: str
    required: str
    source: str


@cache
def _images() -> tuple[Image, ...]:
    return tuple(Image(**entry) for entry in json.loads(Path(__file__).with_name("images.json").read_text()))


def find_image(uri: str) -> Image | None:
    """What an image URI, ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY:TAG, holds; None if there is no list of it."""
    found = re.fullmatch(r"(?:.*/)?([a-z0-9._-]+):([^/]+)", uri)
    if found is None:
        return None
    repository, tag = found.groups()
    for image in _images():
        version = image.version
        if repository == image.repository and (tag == version or tag.startswith((f"{version}.", f"{version}-"))):
            return image
    return None


@cache
def modules(uri: str) -> frozenset[str] | None:
    """Names of the modules of this machine's distributions that the image holds; None if there is no list of it."""
    image = find_image(uri)
    if image is None:
        logger.warning("there is no list of what %s holds: its code can import all that this machine has", uri)
        return None
    return modules_of([*image.distributions.split(), *image.required.split()])


def modules_of(distributions: Iterable[str]) -> frozenset[str]:
    """Names of the modules of these distributions and all that they require, as far as they are installed."""
    held: set[str] = set()
    waiting: list[str] = [canonicalize_name(name) for name in distributions]
    while waiting:
        name = waiting.pop()
        if name not in held:
            held.add(name)
            waiting += _required(name)
    owners = _owners()
    return frozenset(
        module for module, names in owners.items() if any(canonicalize_name(name) in held for name in names)
    )


@cache
def _owners() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _required(distribution: str) -> list[str]:
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    required: list[str] = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            required.append(canonicalize_name(requirement.name))
    return required
