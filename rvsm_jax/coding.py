"""An array of numbers as few bytes: where it is not zero, and what is there.

    plan, streams = encoded(x)
    x = decoded(plan, streams, x.dtype, x.shape)

Places are gaps of one byte, or a bit mask; values are indices into a codebook of the distinct values, or themselves.
Each of these streams goes through the standard library's deflate or LZMA, whichever makes it smallest, and the array is
read by rows or by columns.
"""

import lzma
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

LZMA = [{"id": lzma.FILTER_LZMA1, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 20}]
CODEBOOK = 256  # at most so many values, an index in a byte
SKIP = 255  # a gap byte that moves on by as many places and stores nothing

Plan = tuple[bool, str, int]  # by column; how places are stored: "all", "gaps" or "mask"; the codebook's length or -1
Streams = list[tuple[int, bytes]]


def encoded(x: np.ndarray) -> tuple[Plan, Streams]:
    """The smallest form of an array: as it is or as places and values, read by rows or by columns.

    Args:
      x: an array of numbers.

    Returns:
      How it is stored, and its streams: each a number that says how it was packed, and its bytes.

    Raises:
      TypeError: if an entry has not 1, 2, 4 or 8 bytes.

    >>> plan, streams = encoded(np.eye(100, dtype=np.float32))
    >>> plan, sum(len(packed) for _, packed in streams) < 100
    ((False, 'gaps', -1), True)
    >>> bool((decoded(plan, streams, np.dtype(np.float32), (100, 100)) == np.eye(100)).all())
    True
    """
    if x.itemsize not in (1, 2, 4, 8):
        raise TypeError(f"entries must have 1, 2, 4 or 8 bytes, those of {x.dtype.name} have {x.itemsize}")
    return min((_one_way(x, by_column) for by_column in (False, True)), key=_cost)


def decoded(plan: Plan, streams: Streams, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
    """The array that was encoded, each bit as it was.

    Args:
      plan: from ``encoded``, like the streams.
      streams: likewise.
      dtype: of the array.
      shape: likewise.

    Returns:
      The array.

    >>> decoded(*encoded(np.arange(3)), np.dtype(int), (3,))
    array([0, 1, 2])
    """
    (by_column, places, book), size = plan, math.prod(shape)
    bits, parts = np.zeros(size, f"<u{dtype.itemsize}"), [_unpacked(*stream) for stream in streams]
    at: Any = slice(None) if places == "all" else _places(places, parts.pop(0), size)
    values = [np.frombuffer(part, np.uint8) for part in parts]
    numbers = _numbers(values[0], dtype.itemsize)
    bits[at] = numbers[values[1]] if book >= 0 else numbers
    x = bits.view(dtype)
    return np.ascontiguousarray(x.reshape(shape[::-1]).T) if by_column else x.reshape(shape)


def _one_way(x: np.ndarray, by_column: bool) -> tuple[Plan, Streams]:
    """The smaller of an array as it is and of its places and values."""
    bits = np.ascontiguousarray(x.T if by_column else x).reshape(-1).view(f"<u{x.itemsize}")
    dense = _values(bits)
    places = np.flatnonzero(bits)
    mask, gaps = _packed(np.packbits(bits != 0).tobytes()), _packed(_gaps(places))
    name, packed = ("gaps", gaps) if len(gaps[1]) <= len(mask[1]) else ("mask", mask)
    book, streams = _values(bits[places])
    sparse: tuple[Plan, Streams] = (by_column, name, book), [packed, *streams]
    return min(((by_column, "all", dense[0]), dense[1]), sparse, key=_cost)


def _cost(stored: tuple[Plan, Streams]) -> int:
    return sum(len(stream) + 8 for _, stream in stored[1])  # about what the header takes for each


def _values(bits: np.ndarray) -> tuple[int, Streams]:
    """The smaller of the values themselves and of indices into their codebook."""
    plain = [_packed(_planes(bits))]
    distinct, index = np.unique(bits, return_inverse=True)
    if distinct.size > CODEBOOK:
        return -1, plain
    coded = [_packed(_planes(distinct)), _packed(index.astype(np.uint8).tobytes())]
    if sum(len(s) + 8 for _, s in coded) < len(plain[0][1]) + 8:
        return int(distinct.size), coded
    return -1, plain


def _planes(bits: np.ndarray) -> bytes:
    """The bytes of numbers, all first bytes, then all second ones: exponents are alike, fractions are not."""
    return bits.view(np.uint8).reshape(-1, bits.itemsize).T.tobytes()


def _gaps(places: np.ndarray) -> bytes:
    """Distances between places as bytes 0..254 for 1..255; more than that after bytes that skip 255 places."""
    steps = np.diff(places, prepend=-1) - 1
    skips, rest = np.divmod(steps, SKIP)
    content = np.full(int(skips.sum()) + steps.size, SKIP, np.uint8)
    content[np.cumsum(skips + 1) - 1] = rest
    return content.tobytes()


def _packed(content: bytes) -> tuple[int, bytes]:
    """The shortest of: as it is (0), deflate with and without matches (1), LZMA (2)."""
    found = [(0, content)]
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        found.append((1, deflate.compress(content) + deflate.flush()))
    found.append((2, lzma.compress(content, lzma.FORMAT_RAW, filters=LZMA)))
    return min(found, key=lambda stream: len(stream[1]))


def _unpacked(kind: int, stream: bytes) -> bytes:
    if kind == 0:
        return stream
    return zlib.decompress(stream, -15) if kind == 1 else lzma.decompress(stream, lzma.FORMAT_RAW, filters=LZMA)


def _places(kind: str, stream: bytes, size: int) -> np.ndarray:
    content = np.frombuffer(stream, np.uint8)
    if kind == "mask":
        return np.unpackbits(content, count=size).astype(bool)
    steps = np.where(content == SKIP, SKIP, content.astype(np.int64) + 1)
    return np.cumsum(steps)[content != SKIP] - 1


def _numbers(planes: np.ndarray, itemsize: int) -> np.ndarray:
    return np.ascontiguousarray(planes.reshape(itemsize, -1).T).reshape(-1).view(f"<u{itemsize}")
