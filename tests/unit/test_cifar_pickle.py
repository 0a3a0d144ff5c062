"""Pickles of CIFAR archives: as anybody may have written them, and as nobody should."""

import io
import pickle
import pickletools
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from settings import ROOT
from tasks.data import cifar_pickle
from tasks.data.dataset import DatasetError, from_archive
from tests.unit.test_dataset import CLASSES, archive, batch

LABELS = [0, 1, 2, 1]


def test_python_2s_text_is_bytes_in_protocol_0_too() -> None:
    """As Python 2 writes {"data": "a\\x89'\\n"} there: with the escapes of its own literals."""
    assert cifar_pickle.load(b"(dp0\nS'data'\np1\nS\"a\\x89'\\n\"\np2\ns.") == {b"data": b"a\x89'\n"}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("text_keys", [False, True])
@pytest.mark.parametrize("labels", ["list", "array", "scalars"])
def test_every_protocol_gives_the_same(protocol: int, text_keys: bool, labels: str) -> None:
    original = batch(LABELS, 1)
    written: dict[Any, Any] = dict(original)
    if labels == "array":
        written[b"fine_labels"] = np.array(LABELS)
    elif labels == "scalars":
        written[b"fine_labels"] = [np.int64(each) for each in LABELS]
    if text_keys:
        written = {key.decode(): value for key, value in written.items()}
    read = cifar_pickle.load(pickle.dumps(written, protocol=protocol))
    assert (read[b"data"] == original[b"data"]).all() and read[b"data"].dtype == np.uint8
    assert cifar_pickle.whole_numbers(read[b"fine_labels"]).tolist() == LABELS
    assert cifar_pickle.names(read[b"filenames"]) == cifar_pickle.names(original[b"filenames"])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [">i4", "<u2", "i8"])
def test_arrays_keep_their_order_and_numbers(order: Any, dtype: str) -> None:
    array = np.arange(12, dtype=dtype).reshape(3, 4).copy(order)
    for protocol in range(6):
        assert (cifar_pickle.load(pickle.dumps({"a": array}, protocol))[b"a"] == array).all()


def test_an_archive_packed_from_within_its_folder_is_read(tmp_path: Path) -> None:
    packed, again = archive(tmp_path / "a.tar.gz"), tmp_path / "b.tar"
    with tarfile.open(packed) as old, tarfile.open(again, "w") as new:
        for info in old:
            content = old.extractfile(info)
            info.name = f"./{info.name}"
            new.addfile(info, content)
    assert from_archive(again, CLASSES).train.labels.tolist() == [0, 1, 0]


class Reduced:
    """Pickled as a call of a function of numpy's with arguments of the attacker's."""

    def __init__(self, call: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (call, arguments, state) if state is not None else (call, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


RECONSTRUCT = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
OBJECTS = np.dtype("O")


@pytest.mark.parametrize(
    "attack",
    [
        # Python objects at addresses of the attacker's choice: with numpy's own classes this ends the process.
        Reduced(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (4,), OBJECTS, False, b"\x41" * 32)),
        Reduced(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (4,), OBJECTS, False, [1, 2, 3, 4])),
        # A shape that does not fit the content, of too many or negative sizes.
        Reduced(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (2**40,), np.dtype("u1"), False, b"x")),
        Reduced(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (-1,), np.dtype("u1"), False, b"x")),
        Reduced(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,) * 5, np.dtype("u1"), False, b"x")),
        Reduced(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, "x", np.dtype("u1"), False, b"x")),
        Reduced(RECONSTRUCT, np.ndarray, (0,), b"b", state="nonsense"),
        Reduced(np.dtype, [("a", "u1"), ("b", "O")]),
        Reduced(np.ndarray, (2**40,), np.dtype("u1")),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 3, 5])
def test_an_array_that_is_an_attack_is_refused(attack: Reduced, protocol: int, tmp_path: Path) -> None:
    train = pickle.dumps({b"data": attack, b"fine_labels": [0], b"filenames": [b"a.png"]}, protocol)
    with pytest.raises(DatasetError):
        from_archive(archive(tmp_path / "a.tar.gz", train=train), CLASSES)


# An array of 41 kB, as protocol 5 writes one that can be written to, under 40,000 keys.
ONE_ARRAY_OFTEN = (
    b"\x80\x05}(cnumpy\nndarray\n)R(K\x01M\x20\xa1\x85cnumpy\ndtype\n\x8c\x02u1\x85R\x89\x96"
    + (41_248).to_bytes(8, "little")
    + bytes(41_248)
    + b"tbq\x000"
    + b"".join(b"\x8c\x05%05dh\x00" % n for n in range(40_000))
    + b"u."
)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # part number 2,147,483,647 of a list that the unpickler fills up
        b"\x80\x02}p268435455\n.",
        b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",  # a key that is nested a million times
        b"\x80\x02X\x40\x42\x0f\x00"
        + b"a" * 1_000_000
        + b"q\x00]q\x01("
        + b"c_codecs\nencode\nh\x00\x85R" * 5000
        + b"e.",
        b"\x80\x02" + b"}" * 10_000_000 + b".",
        b"\x80\x05\x96" + (2**33).to_bytes(8, "little") + b".",  # eight gigabytes, none of which follow
        # A name that is a tuple of itself twice, forty times over: exponentially long in a message.
        b"\x80\x04)" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(1, 41)) + b"\x8c\x01x\x93.",
        ONE_ARRAY_OFTEN,
    ],
)
def test_a_few_bytes_do_not_take_gigabytes(bomb: bytes, tmp_path: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (10**9, 10**9))"
    code = f"{limited}; import sys; from tasks.data.cifar_pickle import load; load(open(sys.argv[1], 'rb').read())"
    (tmp_path / "bomb").write_bytes(bomb)
    ended = subprocess.run([sys.executable, "-c", code, tmp_path / "bomb"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 or re.match(
        "(Value|Key|Index|_pickle.Unpickling)Error", ended.stderr.splitlines()[-1]
    ), ended.stderr


def test_one_name_that_is_referred_to_often_is_held_once() -> None:
    listed = cifar_pickle.names([long := b"a" * 1000, long, long])
    assert listed[0] is listed[1] is listed[2]
    with pytest.raises(ValueError, match="where a name should be"):
        cifar_pickle.names([[]])


def test_a_stand_in_is_the_same_for_the_next_archive() -> None:
    """BUILD with two states sets attributes, such as a function's defaults."""
    change = b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__)s\x86b."
    with pytest.raises(pickle.UnpicklingError, match="changes what"):
        cifar_pickle.load(change)


@pytest.mark.parametrize("call", ["os.system", "builtins.eval", "numpy.load", "numpy._core.multiarray.fromfile"])
def test_nothing_else_can_be_called(call: str) -> None:
    module, name = call.rsplit(".", 1)
    content = f"c{module}\n{name}\n(S'x'\ntR.".encode()
    pickletools.dis(content, out=io.StringIO())  # it is a pickle
    with pytest.raises(pickle.UnpicklingError, match=f"asks for {call}"):
        cifar_pickle.load(content)
