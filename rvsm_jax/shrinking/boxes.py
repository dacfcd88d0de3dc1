"""Boxes: for each axis of an array the indices that are kept.

A box is a tuple with one entry an axis: None for the whole axis, or an increasing array of indices. The array that is
stored for a box is x[box] in the sense of ``numpy.ix_``. Axes that grow with the batch are always whole, so that a box
fits every batch size.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Index: TypeAlias = np.ndarray | None
Box: TypeAlias = tuple[Index, ...]


def whole(rank: int) -> Box:
    """The box of everything.

    >>> whole(2)
    (None, None)
    """
    return (None,) * rank


def axis_of(index: Index, size: int) -> np.ndarray:
    """The indices of one axis, spelled out.

    >>> axis_of(None, 3).tolist()
    [0, 1, 2]
    """
    return np.arange(size) if index is None else index


def normalised(box: Sequence[Index], shape: Sequence[int], grows: Sequence[bool]) -> Box:
    """The same box with None for whole axes, and for axes that grow with the batch.

    >>> normalised((np.arange(3), np.array([1])), (3, 4), (False, False))
    (None, array([1]))
    """
    axes = zip(box, shape, grows, strict=True)
    return tuple(None if index is None or grow or len(index) == n else index for index, n, grow in axes)


def union(a: Box | None, b: Box | None) -> Box | None:
    """The smallest box that holds both; None is no box at all.

    >>> union((np.array([0, 2]),), (np.array([1, 2]),))
    (array([0, 1, 2]),)
    """
    if a is None or b is None:
        return b if a is None else a
    return tuple(None if i is None or j is None else np.union1d(i, j) for i, j in zip(a, b, strict=True))


def is_empty(box: Box) -> bool:
    """Whether some axis keeps nothing.

    >>> is_empty((None, np.array([], int)))
    True
    """
    return any(index is not None and not len(index) for index in box)


def small_shape(shape: Sequence[int], box: Box) -> tuple[int, ...]:
    """The shape of x[box].

    >>> small_shape((5, 4), (None, np.array([1, 3])))
    (5, 2)
    """
    return tuple(n if index is None else len(index) for n, index in zip(shape, box, strict=True))


def same(a: Box, b: Box) -> bool:
    """Whether two boxes keep the same."""
    return all(same_index(i, j) for i, j in zip(a, b, strict=True))


def same_index(a: Index, b: Index) -> bool:
    """Whether two entries keep the same indices of an axis."""
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def contains(outer: Box, inner: Box) -> bool:
    """Whether inner asks for nothing that outer lacks."""
    pairs = zip(outer, inner, strict=True)
    return all(o is None or (i is not None and np.isin(i, o).all()) for o, i in pairs)


def cut(x: Any, stored: Box, wanted: Box) -> Any:
    """x[wanted] from x[stored]; a run or a regular step of indices is a slice, anything else a gather.

    >>> cut(jnp.array([10, 12, 15]), (np.array([0, 2, 5]),), (np.array([2, 5]),)).tolist()
    [12, 15]
    """
    for axis, (have, want) in enumerate(zip(stored, wanted, strict=True)):
        if not same_index(have, want):
            x = take(x, want if have is None else np.searchsorted(have, axis_of(want, 0)), axis)
    return x


def take(x: Any, positions: Index, axis: int) -> Any:
    """x at increasing positions of one axis.

    >>> take(jnp.arange(6), np.array([1, 3, 5]), 0).tolist()
    [1, 3, 5]
    """
    if positions is None:
        return x
    if isinstance(x, np.ndarray):
        return np.take(x, positions, axis)
    steps = np.unique(np.diff(positions))
    if len(positions) == 0 or len(steps) > 1:
        return _gather(x, positions, axis)
    step = int(steps[0]) if len(steps) else 1
    return lax.slice_in_dim(x, int(positions[0]), int(positions[-1]) + 1, step, axis)


def _gather(x: jax.Array, positions: np.ndarray, axis: int) -> jax.Array:
    index = (slice(None),) * axis + (jnp.asarray(positions, jnp.int32),)
    return x.at[index].get(mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True)


def segments(shape: Sequence[int], out: Sequence[int]) -> list[tuple[range, range]]:
    """The shortest runs of axes with equal products: which axes of a reshape are merged or split into which.

    >>> segments((5, 2, 3, 4), (5, 6, 2, 2))
    [(range(0, 1), range(0, 1)), (range(1, 3), range(1, 2)), (range(3, 4), range(2, 4))]
    """
    found, i, j = [], 0, 0
    while i < len(shape) or j < len(out):
        start, p, q = (i, j), 1, 1
        while (i, j) == start or p != q:
            if (p <= q and i < len(shape)) or j >= len(out):
                p, i = p * shape[i], i + 1
            else:
                q, j = q * out[j], j + 1
        found.append((range(start[0], i), range(start[1], j)))
    return found
