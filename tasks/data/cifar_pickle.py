"""Reads the pickles of a CIFAR archive without running any code of theirs, whichever Python and protocol wrote them.

A pickle is a program for a stack machine. This one knows the operations that dictionaries, lists, texts, numbers and
numpy's arrays take, makes no room before it has the bytes, and counts what it makes; Python's own fills memory or ends
the process on some pickles. What a pickle asks for by name is answered by stand-ins that keep their arguments; arrays
are made of plain bytes, once type, shape and length are known to agree.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# CIFAR-100's training images take 400,000 at most, whichever protocol wrote them.
MOST_OPERATIONS = 3_000_000
OPERATIONS = {operation.code: operation for operation in pickletools.opcodes}
# Operations that put their argument onto the stack.
PLAIN = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
# Plain numbers, by the names that numpy writes into pickles.
TYPES = {name: np.dtype(name) for name in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")}


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
            raise ValueError(f"it has an array of {_shown(self.name)}, which no CIFAR archive needs")
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


def _shown(value: Any) -> str:
    """Returns what a message says of a value: lists in lists may be exponentially long as text."""
    return value[:100] if isinstance(value, str) else type(value).__name__


def _made(content: Any, dtype: Any, shape: Any, order: Any) -> "np.ndarray[Any, Any]":
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
        raise ValueError("it has an array that is none of plain numbers")
    sizes = shape if isinstance(shape, tuple) else (shape,)
    kind = dtype.known()
    if not all(type(size) is int and size >= 0 for size in sizes) or len(sizes) > 4:
        raise ValueError("it has an array of an impossible shape")
    if math.prod(sizes) * kind.itemsize != len(content):
        raise ValueError("it has an array whose shape and content do not agree")
    return np.frombuffer(content, dtype=kind).reshape(sizes, order="F" if order == "F" else "C")


def _reconstruct(*ignored: Any) -> _Array:
    """Stands for numpy's function, which makes an empty array that is filled afterwards."""
    return _Array()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any = "C") -> "np.ndarray[Any, Any]":
    """Stands for numpy's function, which protocol 5 uses."""
    return _made(content, dtype, shape, order)


def _scalar(dtype: Any, content: Any = b"") -> int:
    """Stands for numpy's function that makes a number of a type."""
    return int(_made(content, dtype, (1,), "C")[0])


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Stands for _codecs.encode, by which protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1"):
        raise pickle.UnpicklingError("it has bytes that are none")
    return text.encode("latin-1")


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


class _Machine:
    """Carries out the operations of one pickle. Raises ValueError, IndexError or KeyError for what it does not know."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._kept: dict[int, Any] = {}
        self._made = 0

    def run(self) -> Any:
        for count, (name, argument) in enumerate(_operations(self._content)):
            if count > MOST_OPERATIONS:
                raise ValueError(f"it has more than {MOST_OPERATIONS:,} operations")
            if name == "STOP":
                break
            self._do(name, argument)
        return self._stack.pop()

    def _do(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._outer.append(stack)
                self._stack = []
            case "POP":
                stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING" if isinstance(argument, str):  # Python 2's text is bytes
                stack.append(argument.encode("latin-1"))
            case _ if name in PLAIN:
                stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "DICT" | "LIST" | "TUPLE":
                items = self._marked()
                self._stack.append(_pairs(items) if name == "DICT" else items if name == "LIST" else tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "APPEND":
                item = stack.pop()
                _only(list, stack[-1]).append(item)
            case "APPENDS":
                items = self._marked()
                _only(list, self._stack[-1]).extend(items)
            case "SETITEM":
                item, key = stack.pop(), stack.pop()
                _only(dict, stack[-1]).update(_pairs([key, item]))
            case "SETITEMS":
                items = self._marked()
                _only(dict, self._stack[-1]).update(_pairs(items))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._kept[argument] = stack[-1]
            case "MEMOIZE":
                self._kept[len(self._kept)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._kept[argument])
            case "GLOBAL":
                stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_named(module, name))
            case "REDUCE":
                arguments, call = stack.pop(), stack.pop()
                stack.append(self._called(call, _only(tuple, arguments)))
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], _Array | _Dtype):
                    raise pickle.UnpicklingError("it changes what no CIFAR archive needs to change")
                stack[-1].__setstate__(state)
            case _:
                raise pickle.UnpicklingError(f"it has an operation {name}, which no CIFAR archive needs")

    def _marked(self) -> list[Any]:
        """What was put onto the stack since the last mark."""
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _called(self, call: Any, arguments: tuple[Any, ...]) -> Any:
        if not isinstance(call, _Named):
            raise pickle.UnpicklingError("it calls what is no function")
        made = call.stand_in(*arguments)
        self._made += len(made) if isinstance(made, bytes) else made.nbytes if isinstance(made, np.ndarray) else 0
        if self._made > len(self._content):
            raise ValueError("it makes more than it holds")
        return made


class _Named:
    """What a pickle asked for by name."""

    def __init__(self, stand_in: Callable[..., Any]) -> None:
        self.stand_in = stand_in


def _named(module: Any, name: Any) -> _Named:
    if not (isinstance(module, str) and isinstance(name, str) and (module, name) in STAND_INS):
        raise pickle.UnpicklingError(f"it asks for {_shown(module)}.{_shown(name)}, which no CIFAR archive needs")
    return _Named(STAND_INS[module, name])


def _only(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"it has a {type(value).__name__} where a {kind.__name__} should be")
    return value


def _pairs(items: list[Any]) -> dict[str | bytes, Any]:
    keys = items[::2]
    if not all(isinstance(key, str | bytes) for key in keys):
        raise ValueError("it has a key that is no name")
    return dict(zip(keys, items[1::2], strict=True))


def _operations(content: bytes) -> Iterator[tuple[str, Any]]:
    """Each operation's name and argument. Raises ValueError where a pickle is damaged."""
    file = io.BytesIO(content)
    while True:
        code = file.read(1)
        operation = OPERATIONS.get(code.decode("latin-1"))
        if operation is None:
            raise ValueError("pickle data was truncated" if not code else f"it has an unknown operation {code!r}")
        if operation.name == "STRING":  # the library's reader takes ASCII only
            yield "STRING", file.readline().strip()[1:-1].decode("unicode_escape")
        else:
            yield operation.name, None if operation.arg is None else operation.arg.reader(file)
        if operation.name == "STOP":
            return


def load(content: bytes) -> dict[bytes, Any]:
    """Returns the dictionary in a pickle, with arrays as numpy's and its keys as bytes.

    Raises ValueError, pickle.UnpicklingError or another exception of a damaged pickle if it holds anything else.
    """
    found = _Machine(content).run()
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
    texts: dict[str | bytes, str] = {}  # a pickle may refer to one name many times
    for name in value:
        if not isinstance(name, str | bytes) or name not in texts:
            texts[name] = _as_bytes(name).decode()
    return [texts[name] for name in value]


def whole_numbers(value: Any) -> "np.ndarray[Any, Any]":
    """Returns labels, of a list or an array. Raises ValueError for anything else."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.astype(int)
    if isinstance(value, list) and all(type(each) is int and abs(each) < 2**31 for each in value):
        return np.array(value, dtype=int)
    raise ValueError("it has no list of labels")
