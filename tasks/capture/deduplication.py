"""What was delivered or captured more than once, counted once: in columns of millions of ids, within little memory.

A set of Python strings would take some 100 bytes an id, and so would a sorted table of them. Instead each id becomes a
number of 64 bits. Ids whose number is unique, which are nearly all, need no more; only the few that share one are
compared as text.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Strings that are hashed at once.
SLICE = 1 << 16


def first_of_each(column: pa.ChunkedArray, order: np.ndarray) -> np.ndarray:
    """Mask (n,) of the rows, taken in an order of n, whose value did not come before; a null is like no other."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *map(_hashes, _slices(column))])[order]
    shared = _shared(hashes)
    first = ~shared  # a hash that nobody shares is a value that nobody shares
    values = rows_at(pa.table([column], names=["value"]), order[shared])[0].combine_chunks()
    first[shared] = _first_in_order(values)
    return first


def _shared(hashes: np.ndarray) -> np.ndarray:
    """Mask (n,) of the hashes that occur more than once."""
    by_hash = np.argsort(hashes, kind="stable")
    like_next = hashes[by_hash][1:] == hashes[by_hash][:-1]
    shared = np.zeros(len(hashes), dtype=bool)
    shared[by_hash[:-1][like_next]] = True
    shared[by_hash[1:][like_next]] = True
    return shared


def _first_in_order(values: pa.Array) -> np.ndarray:
    """Mask (n,) of the values that did not come before; a null is like no other.

    dictionary_encode numbers values from 0 as they come, so a new one has a higher number than all before it.
    """
    numbers = values.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    highest_before = np.maximum.accumulate(np.append(-1, numbers))[:-1]
    first: np.ndarray = (numbers > highest_before) | (numbers < 0)
    return first


def rows_at(table: pa.Table, indices: np.ndarray) -> pa.Table:
    """These rows in this order. Arrow's own `take` makes a copy of the whole table first."""
    mask = np.zeros(len(table), dtype=bool)
    mask[indices] = True
    some = table.filter(pa.array(mask))
    if (np.diff(indices) > 0).all():
        return some
    return some.take(np.searchsorted(np.sort(indices), indices))


def _slices(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    for chunk in column.chunks:
        for start in range(0, len(chunk), SLICE):
            yield chunk.slice(start, SLICE)


def _hashes(strings: pa.Array) -> np.ndarray:
    """A number of 64 bits per string (n,); different strings may have the same. 0 for null."""
    hashes = np.zeros(len(strings), np.uint64)
    lengths = pc.fill_null(pc.binary_length(strings), 0).to_numpy()
    for length in np.unique(lengths[lengths > 0]):  # ids are of one length, or of a few
        of_length = np.flatnonzero(lengths == length)
        some = strings if len(of_length) == len(strings) else strings.take(pa.array(of_length))
        hashes[of_length] = _hashes_of_length(some, int(length))
    return hashes


def _hashes_of_length(strings: pa.Array, length: int) -> np.ndarray:
    """The sum of a string's words, each times an odd number of its own."""
    _, offsets, data = strings.buffers()
    first = np.frombuffer(offsets, np.int32)[strings.offset]
    words = np.zeros((len(strings), -(-length // 8) * 8), np.uint8)
    words[:, :length] = np.frombuffer(data, np.uint8)[first : first + len(strings) * length].reshape(-1, length)
    factors = np.random.default_rng(1).integers(0, 2**63, words.shape[1] // 8, dtype=np.uint64) * 2 + 1
    hashes: np.ndarray = (words.view(np.uint64) * factors).sum(axis=1)
    return hashes
