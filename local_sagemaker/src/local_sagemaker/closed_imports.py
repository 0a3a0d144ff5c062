"""Closes a container's Python: what the image does not hold cannot be imported, as on AWS. See images.py.

It can import the standard library, what the image holds, what a requirements.txt beside its own code asks for, and its
own code. Everything else is ModuleNotFoundError. Subprocesses inherit it: Python imports site/sitecustomize.py of their
PYTHONPATH when it starts.
"""

import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

SITE = Path(__file__).parent / "site"
# Names of the modules that the image holds, with spaces between. Without it nothing is closed.
VARIABLE = "LOCAL_SAGEMAKER_MODULES"
PYTHON = "LOCAL_SAGEMAKER_IMAGE_PYTHON"
# The container itself, and what a coverage measurement of it brings along.
ALWAYS = frozenset({"local_sagemaker", "sitecustomize", "usercustomize", "coverage"})


def variables(uri: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment that closes a process of that image and all that it starts.

    environment: what it has besides. Nothing is closed for an image of which there is no list.
    """
    from local_sagemaker.images import find_image, modules

    image, held = find_image(uri), modules(uri)
    if image is None or held is None:
        return {}
    return {VARIABLE: " ".join(sorted(held)), PYTHON: image.python, "PYTHONPATH": python_path(environment)}


def python_path(environment: Mapping[str, str]) -> str:
    """PYTHONPATH of a process with that environment, by which Python imports site/sitecustomize.py first."""
    return os.pathsep.join(filter(None, [str(SITE), environment.get("PYTHONPATH", "")]))


def other_python() -> str | None:
    """A line for the container's log if its image has another Python than this machine."""
    here, there = f"{sys.version_info.major}.{sys.version_info.minor}", os.environ.get(PYTHON)
    return f"this image has Python {there} on AWS, and here it runs on {here}" if there not in (None, here) else None


def close() -> None:
    """Closes this process, if the environment says so."""
    text = os.environ.get(VARIABLE)
    if text is not None and PathFinder in sys.meta_path:
        _replace(PathFinder, Closed(frozenset(text.split())))


class Closed(PathFinder):
    """Python's finder, which does not find what is installed on this machine and not in the image.

    It finds nothing instead of raising: who asks importlib.util.find_spec for a module learns that it is not there.
    """

    def __init__(self, modules: frozenset[str]) -> None:
        self._modules = modules | ALWAYS | sys.stdlib_module_names
        self._folders = tuple({sysconfig.get_path(name) + os.sep for name in ("purelib", "platlib")})
        self._asked_for: frozenset[str] | None = None

    def find_spec(  # type: ignore[override]  # of this object, not of the class
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None if there is no such module, or if the image does not hold it."""
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or path is not None or fullname in self._modules:  # a part of a package, or all right
            return spec
        return spec if not self._installed(spec) or fullname in self._required() else None

    def _installed(self, spec: ModuleSpec) -> bool:
        """Whether it is one of this machine's distributions, and not the container's own code."""
        places = [spec.origin or "", *(spec.submodule_search_locations or [])]
        return any(place.startswith(self._folders) for place in places)

    def _required(self) -> frozenset[str]:
        """Modules that requirements.txt files beside the container's own code ask for."""
        if self._asked_for is None:
            self._asked_for = frozenset()  # reading them imports something
            _replace(self, PathFinder)
            try:
                self._asked_for = _modules_asked_for()
            finally:
                _replace(PathFinder, self)
        return self._asked_for


def _replace(one: object, other: object) -> None:
    """Puts the other finder where the one is among those that Python asks."""
    finders: list[object] = sys.meta_path  # type: ignore[assignment]
    finders[finders.index(one)] = other


def _modules_asked_for() -> frozenset[str]:
    from packaging.requirements import InvalidRequirement, Requirement

    from local_sagemaker.images import modules_of
    from local_sagemaker.requirements import stated

    names = []
    for folder in {entry or os.getcwd() for entry in sys.path}:  # noqa: PTH109 as Python itself
        for line in stated(folder, errors="replace"):
            with suppress(InvalidRequirement):
                names.append(Requirement(line).name)
    return modules_of(names) if names else frozenset()
