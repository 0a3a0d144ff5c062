"""Reads the pickles of a CIFAR archive without running any code of theirs, whichever Python and protocol wrote them.

What a pickle asks for by name is answered by inert stand-ins that keep their arguments; arrays are made afterwards, of
plain bytes, once type, shape and length are known to agree. numpy's own classes are not memory-safe against a pickle.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

# Plain numbers, by the names that numpy writes into pickles.
TYPES = {name: np.dtype(name) for name in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")}


class _Function:
    """A function that a pickle can call and not change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function, which no CIFAR archive needs")


class _Dtype:
    """Stands for numpy.dtype."""

    def __init__(self, name: Any = None, align: Any = False, copy: Any = True) -> None:
        self.name = name.decode("latin-1") if isinstance(name, bytes) else name
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, ...), of which only the byte order says something of plain numbers.
        if isinstance(state, tuple) and len(state) > 1:
            order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
            self.order = order if order in ("<", ">") else "<"

    def known(self) -> "np.dtype[Any]":
        """Returns numpy's type. Raises ValueError if it is none of plain numbers."""
        if not isinstance(self.name, str) or self.name.lstrip("|<>=") not in TYPES:
            raise ValueError(f"it has an array of {self.name!r}, which no CIFAR archive needs")
        kind = TYPES[self.name.lstrip("|<>=")]
        return kind.newbyteorder(">") if self.order == ">" else kind


class _Array:
    """Stands for numpy.ndarray."""

    def __init__(self, *ignored: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def known(self) -> "np.ndarray[Any, Any]":
        """Returns the array. Raises ValueError if its parts do not agree."""
        if not (isinstance(self.state, tuple) and len(self.state) == 5):
            raise ValueError("it has an array without content")
        _, shape, dtype, by_columns, content = self.state
        return _made(content, dtype, shape, "F" if by_columns else "C")


def _made(content: Any, dtype: Any, shape: Any, order: Any) -> "np.ndarray[Any, Any]":
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray):
        raise ValueError("it has an array that is none of plain numbers")
    sizes = shape if isinstance(shape, tuple) else (shape,)
    kind = dtype.known()
    if not all(type(size) is int and size >= 0 for size in sizes) or len(sizes) > 4:
        raise ValueError("it has an array of an impossible shape")
    if math.prod(sizes) * kind.itemsize != len(content):
        raise ValueError("it has an array whose shape and content do not agree")
    return np.frombuffer(bytes(content), dtype=kind).reshape(sizes, order="F" if order == "F" else "C")


@_Function
def _reconstruct(*ignored: Any) -> _Array:
    """Stands for numpy's function, which makes an empty array that is filled afterwards."""
    return _Array()


@_Function
def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any = "C") -> "np.ndarray[Any, Any]":
    """Stands for numpy's function, which protocol 5 uses."""
    return _made(content, dtype, shape, order)


@_Function
def _scalar(dtype: Any, content: Any = b"") -> int:
    """Stands for numpy's function that makes a number of a type."""
    return int(_made(content, dtype, (1,), "C")[0])


@_Function
def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Stands for _codecs.encode, by which protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1"):
        raise pickle.UnpicklingError("it has bytes that are none")
    return text.encode("latin-1")


@_Function
def _bytes(*content: Any) -> bytes:
    """Stands for bytes(), by which these protocols write empty ones."""
    if content:
        raise pickle.UnpicklingError("it has bytes that are none")
    return b""


STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _bytes,
    ("__builtin__", "bytes"): _bytes,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR archive needs")
        return STAND_INS[module, name]


def _check(content: bytes) -> None:
    """Raises ValueError if a pickle is damaged, or would take more memory than its own bytes are worth.

    The unpickler makes room for what a pickle announces before it looks whether that is there.
    """
    for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise ValueError("it numbers its parts beyond their count")


def load(content: bytes) -> dict[bytes, Any]:
    """Returns the dictionary in a pickle, with arrays as numpy's and its keys as bytes.

    Raises ValueError, pickle.UnpicklingError or another exception of a damaged pickle if it holds anything else.
    """
    _check(content)
    found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(found, dict):
        raise ValueError("it is not a dictionary")
    return {_as_bytes(key): value.known() if isinstance(value, _Array) else value for key, value in found.items()}


def _as_bytes(text: Any) -> bytes:
    """Keys and names are bytes if Python 2 wrote them, and text if a later one did."""
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, bytes):
        return text
    raise ValueError(f"it has a {type(text).__name__} where a name should be")


def names(value: Any) -> list[str]:
    """Returns a list of names as text. Raises ValueError for anything else."""
    if not isinstance(value, list):
        raise ValueError("it has no list of names")
    return [_as_bytes(name).decode() for name in value]


def whole_numbers(value: Any) -> "np.ndarray[Any, Any]":
    """Returns labels, of a list or an array. Raises ValueError for anything else."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.astype(int)
    if isinstance(value, list) and all(type(each) is int and abs(each) < 2**31 for each in value):
        return np.array(value, dtype=int)
    raise ValueError("it has no list of labels")
