"""A pruned, quantised network as one small file, read back bit for bit.

    size = write("network.rvsm", params)       # size.file is the file's; size.weights counts the weights' bits alone
    params = read("network.rvsm")

A leaf is stored as it is, or as the places and the values of what is not zero, whichever is smaller (`coding`). The
file is self-contained, has a checksum, and no code in it.
"""

import errno
import json
import math
import os
import pathlib
import tempfile
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from rvsm_jax import coding
from rvsm_jax.proximal import Where, kernels

MAGIC = b"rvsm\x01"  # the last byte is the format's version


class FormatError(ValueError):
    """The file is not one that ``write`` made, or not all of it."""


class Size(NamedTuple):
    """Bytes of a network.

    Attributes:
      file: of the file, everything included.
      weights: ceil(log2(levels)) bits for each non-zero weight of the kernels and nothing else, as ADMM-NN counts.
      dense: of all arrays as they are in memory.
    """

    file: int
    weights: float
    dense: int


def write(path: str | os.PathLike[str], params: chex.ArrayTree, *, where: Where = kernels) -> Size:
    """Writes a tree of arrays to one file, whole or not at all.

    The bytes go to a temporary file beside it, are flushed to the disk and renamed; if that fails, a full disk say, an
    older file of that name is as it was.

    Args:
      path: the file.
      params: a tree of arrays of numbers.
      where: the leaves that ``Size.weights`` counts.

    Returns:
      The sizes.

    Raises:
      TypeError: if a leaf is not an array of numbers of at most eight bytes.
      OSError: if the file cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.storage import read, write
      >>> path = pathlib.Path(tempfile.mkdtemp(), "network.rvsm")
      >>> size = write(path, {"kernel": jnp.zeros((100, 100)).at[3, 4].set(0.5)})
      >>> size.file == path.stat().st_size, size.file < 200, size.dense
      (True, True, 40000)
      >>> print(read(path)["kernel"][3, 3:5])
      [0.  0.5]
    """
    path, content = pathlib.Path(path), encode(params)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        pathlib.Path(partial).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return Size(path.stat().st_size, weight_bytes(params, where=where), sum(x.nbytes for _, x in _arrays(params)))


def read(path: str | os.PathLike[str], like: chex.ArrayTree | None = None) -> Any:
    """The tree of arrays in a file, each bit as it was.

    Args:
      path: the file.
      like: a tree of the same structure, shapes and dtypes to take the structure from; default: nested dicts.

    Returns:
      The tree, of NumPy arrays.

    Raises:
      OSError: if the file cannot be read.
      FormatError: if it is not a file of this kind, damaged, not whole, or its arrays are not those of ``like``.

    Example:
      >>> import pathlib, tempfile
      >>> from rvsm_jax.storage import read
      >>> path = pathlib.Path(tempfile.mkdtemp(), "letter.txt")
      >>> _ = path.write_text("Dear reader")
      >>> read(path)
      Traceback (most recent call last):
        ...
      rvsm_jax.storage.FormatError: letter.txt is not a network written by rvsm_jax: it begins with b'Dear '
    """
    path = pathlib.Path(path)
    try:
        return decode(path.read_bytes(), like)
    except FormatError as error:
        raise FormatError(f"{path.name} {error}") from None


def encode(params: chex.ArrayTree) -> bytes:
    """The bytes of a tree of arrays.

    Args:
      params: as of ``write``.

    Returns:
      The file's content.

    Raises:
      TypeError: if a leaf is not an array of numbers of at most eight bytes.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.storage import decode, encode
      >>> decode(encode({"bias": jnp.arange(3)}))
      {'bias': array([0, 1, 2], dtype=int32)}
    """
    header, streams = [], list[bytes]()
    for keys, x in _arrays(params):
        plan, found = coding.encoded(x)
        header.append([keys, x.dtype.name, list(x.shape), *plan, [[kind, len(s)] for kind, s in found]])
        streams += [s for _, s in found]
    head = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)
    body = len(head).to_bytes(4, "little") + head + b"".join(streams)
    return MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def decode(content: bytes, like: chex.ArrayTree | None = None) -> Any:
    """The tree of arrays in the bytes.

    Args:
      content: from ``encode``.
      like: as of ``read``.

    Returns:
      As ``read``.

    Raises:
      FormatError: as ``read``.

    Example:
      >>> from rvsm_jax.storage import decode, encode
      >>> import numpy as np
      >>> decode(encode([np.float32(1)]), like=[np.float32(0)])
      [array(1., dtype=float32)]
    """
    if content[: len(MAGIC)] != MAGIC:
        if MAGIC.startswith(content):
            raise FormatError(f"ends after {len(content)} bytes: it was not written to its end")
        raise FormatError(f"is not a network written by rvsm_jax: it begins with {content[:5]!r}")
    checksum, body = content[len(MAGIC) : len(MAGIC) + 4], content[len(MAGIC) + 4 :]
    if zlib.crc32(body).to_bytes(4, "little") != checksum:
        raise FormatError(f"is damaged or cut off: its {len(content)} bytes do not have the checksum they begin with")
    end = 4 + int.from_bytes(body[:4], "little")
    leaves = []
    for keys, dtype, shape, by_column, places, book, streams in json.loads(zlib.decompress(body[4:end])):
        parts = []
        for kind, length in streams:
            parts.append((kind, body[end : end + length]))
            end += length
        leaves.append((keys, coding.decoded((by_column, places, book), parts, np.dtype(dtype), shape)))
    return _nested(leaves) if like is None else _filled(leaves, like)


def weight_bytes(params: chex.ArrayTree, *, where: Where = kernels) -> float:
    """sum over kernels of nonzeros x ceil(log2(distinct non-zero values)) / 8: no indices, no codebook, no biases.

    Args:
      params: a tree of arrays.
      where: the leaves that count.

    Returns:
      Bytes, as ADMM-NN's paper counts them.

    References:
      Ren et al., arXiv:1812.11677, section 5.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.storage import weight_bytes
      >>> weight_bytes({"kernel": jnp.array([[0.0, -1.0, 1.0, 2.0, 2.0]])})  # four weights of three values
      1.0
    """
    bits = 0
    for keys, x in _arrays(params):
        if where("/".join(keys), x):
            kept = x[x != 0]
            bits += kept.size * max(1, math.ceil(math.log2(max(1, np.unique(kept).size))))
    return bits / 8


def _arrays(params: chex.ArrayTree) -> list[tuple[list[str], np.ndarray]]:
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
        x = None if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) else leaf
        x = np.asarray(x)
        if x.dtype.hasobject or x.dtype.kind in "SUMm":
            raise TypeError(f"a network is stored as arrays of numbers, {'/'.join(keys)!r} is {type(leaf).__name__}")
        found.append((keys, x))
    return found


def _nested(leaves: Sequence[tuple[list[str], np.ndarray]]) -> Any:
    tree: dict[str, Any] = {}
    for keys, x in leaves:
        if not keys:
            return x
        inside = tree
        for key in keys[:-1]:
            inside = inside.setdefault(key, {})
        inside[keys[-1]] = x
    return tree


def _filled(leaves: Sequence[tuple[list[str], np.ndarray]], like: chex.ArrayTree) -> Any:
    wanted = [(keys, x.shape, x.dtype.name) for keys, x in _arrays(like)]
    found = [(keys, x.shape, x.dtype.name) for keys, x in leaves]
    for seen, want in zip(found, wanted, strict=False):
        if seen != want:
            raise FormatError(f"holds {_described(seen)} where {_described(want)} is wanted")
    if len(found) != len(wanted):
        raise FormatError(f"holds {len(found)} arrays, {len(wanted)} are wanted")
    return jax.tree.unflatten(jax.tree.structure(like), [x for _, x in leaves])


def _described(leaf: tuple[list[str], tuple[int, ...], str]) -> str:
    keys, shape, dtype = leaf
    return f"{'/'.join(keys)!r} of shape {shape} and {dtype}"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes the renaming last, where a folder can be synchronised."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
