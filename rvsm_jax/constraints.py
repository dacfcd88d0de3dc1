"""Penalties that are constraints: zero on a set of magnitudes, infinite off it, so that the map is the projection.

    prox(m, t) = argmin_{z in S} |z - m|^2,   whatever t

A scale or a rank belongs to the whole tensor: what a map sees is one leaf's magnitudes, or with
``proximal_operator(..., joint=True)`` all leaves' together. Every projection is exact where its docstring does not say
otherwise. Of equals the first are kept. A NaN magnitude stays NaN.
"""

import functools
import itertools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.penalties import Penalty, widened
from rvsm_jax.sharded import placed_like, whole

CANDIDATES = 201  # intervals tried by "scan", from 0.9 to 1.1 of the largest magnitude's
EXHAUSTIVE = 256  # supports of a block's shorter side that are tried one by one
ROUNDS = 8  # of alternation where there are more


@functools.lru_cache(maxsize=None, typed=True)
def top_k(keep: int | float, axis: int | None = None, *, multiple: int = 1) -> Penalty:
    """value(m) = 0 if at most k magnitudes are non-zero, else infinity;  prox keeps the k largest, whatever t.

    Exactly k are kept: of equal magnitudes the first ones. Under ``proximal_operator(..., joint=True)`` all leaves are
    ranked together.

    Args:
      keep: how many magnitudes to keep (an int >= 0), or which fraction of them (a float in [0, 1]).
      axis: rank along this axis of the magnitudes alone, so that k are kept of each block of ``blocks``; None: rank
        all together.
      multiple: k is rounded to the nearest multiple of it, but neither to 0 nor beyond the number of all.

    Returns:
      The penalty.

    Raises:
      ValueError: if keep is a negative int or a float outside [0, 1], or multiple no integer >= 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import top_k
      >>> print(top_k(2).prox(jnp.array([3.0, 1.0, 2.0, 2.0]), 1.0))
      [3. 0. 2. 0.]
      >>> print(top_k(0.6, multiple=2).prox(jnp.array([3.0, 1.0, 2.0, 2.0, 0.5]), 1.0))
      [3. 1. 2. 2. 0.]
    """
    _require_keep("keep", keep)
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"multiple must be an integer >= 1, got {multiple!r}")

    def count(size):
        k = _count(keep, size)
        return k if k in (0, size) else min(max((2 * k + multiple) // (2 * multiple), 1) * multiple, size)

    def ranked(m):
        return m.ravel() if axis is None else jnp.moveaxis(m, axis, -1)

    def value(m):
        x = ranked(m)
        within = jnp.count_nonzero(x, axis=-1) <= count(x.shape[-1])
        return jnp.where(within.all(), 0, jnp.inf).astype(m.dtype)

    def prox(m, t):
        del t
        x = ranked(whole(m))
        z = jnp.where(_largest(x, count(x.shape[-1])) | jnp.isnan(x), x, 0)
        return placed_like(z.reshape(m.shape) if axis is None else jnp.moveaxis(z, -1, axis), m)

    return widened(value, prox, separable=False)


@functools.cache
def binary() -> Penalty:
    """S = {s (1, ..., 1)}: every weight is -s or s;  prox(m) = mean(m).

    Returns:
      The penalty, for the groups ``weights``; a weight that is zero becomes s.

    References:
      Yin et al., arXiv:1801.06313 (BinaryRelax), binary projection.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import binary
      >>> print(binary().prox(jnp.array([1.0, 2.0, 6.0]), 1.0))
      [3. 3. 3.]
    """
    return _projection(lambda m: jnp.full_like(m, jnp.mean(m)))


@functools.lru_cache(maxsize=None, typed=True)
def ternary(threshold: float | None = None) -> Penalty:
    """S = {s q: q in {0, 1}^d}: every weight is -s, 0 or s;  prox keeps the k largest, at their mean.

    Exactly, k maximises (sum of the k largest)^2 / k, which is ``levels(1)``.

    Args:
      threshold: None for the exact projection; a number keeps m >= threshold x mean(m) instead, published: 0.7.

    Returns:
      The penalty, for the groups ``weights``.

    Raises:
      ValueError: if threshold is negative or not finite.

    References:
      Yin et al., arXiv:1801.06313 (BinaryRelax); Li and Liu, arXiv:1605.04711 (threshold 0.7).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import ternary
      >>> print(ternary().prox(jnp.array([1.0, 4.0, 6.0]), 1.0))
      [0. 5. 5.]
    """
    if threshold is None:
        return levels(1)
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold must be a finite number >= 0, got {threshold}")
    return _projection(lambda m: _fitted(m, (m >= threshold * jnp.mean(m)).astype(m.dtype)))


@functools.lru_cache(maxsize=None, typed=True)
def levels(n: int, *, zero: bool = True, fit: Literal["exact", "scan", "refit"] = "exact") -> Penalty:
    """S = {s q: q in {0, ..., n}^d}: every weight is a multiple of s up to n s;  prox rounds, at the best s.

    The best s maximises <m, q>^2 / <q, q>, which is swept over all d n breakpoints m_i / (j + 1/2), sorted.

    Args:
      n: the number of positive levels; 2 n + 1 values in all with zero, 2 n without.
      zero: whether a weight that is not zero may become zero. False is ADMM-NN's: pruned weights stay zero, the others
        get one of the levels 1, ..., n.
      fit: "exact"; "scan", ADMM-NN's search of s over 0.9, 0.901, ..., 1.1 of max(m) / n; or "refit", BinaryRelax's
        (``levels(7, fit="refit")`` is its 4 bits): rounded at s = 2 max(m) / (2 n + 1), then s fitted once. The last
        two cost a sweep over the weights, and are not exact.

    Returns:
      The penalty, for the groups ``weights``.

    Raises:
      ValueError: if n is not an int >= 1, or fit none of the three.

    References:
      Ren et al., arXiv:1812.11677 (ADMM-NN); Yin et al., arXiv:1801.06313 (BinaryRelax).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import levels
      >>> print(levels(2).prox(jnp.array([0.2, 1.1, 0.9, 2.0]), 1.0))
      [0. 1. 1. 2.]
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"n must be an int >= 1, got {n!r}")
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(map(repr, FITS))}, got {fit!r}")

    def project(m):
        largest = jnp.max(m, initial=0)
        unit = jnp.where(largest == 0, 1, largest)
        return unit * FITS[fit](m / unit, int(n), zero)

    return _projection(project)


@functools.lru_cache(maxsize=None, typed=True)
def submatrix(rows: int | float, columns: int | float) -> Penalty:
    """S = {every block is zero outside k_r of its rows and k_c of its columns};  prox keeps the most energy.

    Exact, by trying every support of one side, where that side has at most 256 of them: up to half of 10 rows. For
    more it alternates between the best rows for given columns and the best columns for given rows, from both greedy
    starts; no turn loses energy.

    Args:
      rows: how many rows of a block to keep (int), or which fraction (float).
      columns: likewise, of its columns.

    Returns:
      The penalty, for groups whose magnitudes are (..., rows, columns), such as ``blocks(4, 16, by="weights")``.

    Raises:
      ValueError: if rows or columns is a negative int or a float outside [0, 1].

    References:
      Niu et al., arXiv:2108.11033 (GRIM), block-based column-row pruning.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import submatrix
      >>> print(submatrix(1, 2).prox(jnp.array([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]]), 1.0))
      [[0. 0. 0.]
       [0. 5. 1.]]
    """
    _require_keep("rows", rows)
    _require_keep("columns", columns)

    def counts(m):
        return _count(rows, m.shape[-2]), _count(columns, m.shape[-1])

    def value(m):
        found = [(m != 0).any(axis).sum(-1) for axis in (-1, -2)]
        within = [(number <= k).all() for number, k in zip(found, counts(m), strict=True)]
        return jnp.where(within[0] & within[1], 0, jnp.inf).astype(m.dtype)

    def prox(m, t):
        del t
        x = whole(m)
        largest = jnp.max(x, initial=0)
        energy = jnp.square(x / jnp.where(largest == 0, 1, largest))
        return placed_like(jnp.where(_best_support(energy, *counts(m)) | jnp.isnan(x), x, 0), m)

    return widened(value, prox, separable=False)


def _projection(project) -> Penalty:
    """A penalty from its projection; m is in the set if the projection leaves it where it is, but for rounding."""

    def value(m):
        inside = jnp.abs(m - project(m)) <= 8 * jnp.finfo(m.dtype).eps * jnp.max(m, initial=0)
        return jnp.where(inside.all(), 0, jnp.inf).astype(m.dtype)

    return widened(value, lambda m, t: project(m), separable=False)


def _exact(m, n, zero):
    flat, first = whole(m).ravel(), 0 if zero else 1
    lowest = (flat > 0).astype(m.dtype) * first
    j = jnp.arange(first, n, dtype=m.dtype)
    at = (flat[:, None] / (j[None, :] + 0.5)).ravel()
    order = jnp.argsort(-at)
    inner = (lowest * flat).sum() + jnp.cumsum(jnp.repeat(flat, n - first)[order])
    square = lowest.sum() + jnp.cumsum(jnp.tile(2 * j + 1, flat.size)[order])
    inner, square = (jnp.concatenate([x[None], y]) for x, y in (((lowest * flat).sum(), inner), (lowest.sum(), square)))
    best = jnp.argmax(jnp.where(square == 0, 0, inner * inner / jnp.where(square == 0, 1, square)))
    s = inner[best] / jnp.where(square[best] == 0, 1, square[best])
    return _fitted(m, _rounded(m, s, n, zero))


def _scanned(m, n, zero):
    candidates = jnp.max(m, initial=0) / n * jnp.linspace(0.9, 1.1, CANDIDATES, dtype=m.dtype)
    errors = jax.lax.map(lambda s: jnp.sum(jnp.square(m - s * _rounded(m, s, n, zero))), candidates)
    s = candidates[jnp.argmin(errors)]
    return s * _rounded(m, s, n, zero)


def _refitted(m, n, zero):
    return _fitted(m, _rounded(m, 2 * jnp.max(m, initial=0) / (2 * n + 1), n, zero))


FITS = {"exact": _exact, "scan": _scanned, "refit": _refitted}


def _rounded(m, s, n, zero):
    """The multiple of s nearest to m; of two as near the smaller."""
    q = jnp.clip(jnp.ceil(m / jnp.where(s == 0, 1, s) - 0.5), 0, n)
    return q if zero else jnp.where(m == 0, 0, jnp.maximum(q, 1))


def _fitted(m, q):
    """s q at the s nearest to m."""
    square = jnp.sum(q * q)
    return q * (jnp.sum(m * q) / jnp.where(square == 0, 1, square))


def _best_support(energy, rows, columns):
    if min(rows, columns) == 0:
        return jnp.zeros(energy.shape, bool)
    tall, wide = energy.shape[-2:]
    supports = math.comb(tall, rows), math.comb(wide, columns)
    if min(supports) > EXHAUSTIVE:
        return _alternated(energy, rows, columns)
    if supports[0] <= supports[1]:
        return _exhausted(energy, rows, columns)
    return jnp.swapaxes(_exhausted(jnp.swapaxes(energy, -1, -2), columns, rows), -1, -2)


def _exhausted(energy, rows, columns):
    """The best of all row supports, each with its best columns."""
    tall = energy.shape[-2]
    supports = np.zeros((math.comb(tall, rows), tall), energy.dtype)
    for support, chosen in zip(supports, itertools.combinations(range(tall), rows), strict=True):
        support[list(chosen)] = 1
    held = jnp.einsum("sr,...rc->...sc", supports, energy, precision="highest")
    best = jnp.argmax(jnp.sort(held, axis=-1)[..., -columns:].sum(-1), axis=-1)
    kept_rows = jnp.asarray(supports)[best]
    return _crossed(kept_rows, _largest(_held(energy, kept_rows), columns))


def _alternated(energy, rows, columns):
    """Rows for columns for rows ..., from the columns with most energy and from the rows with most energy."""
    flipped = jnp.swapaxes(energy, -1, -2)
    kept_columns = _largest(energy.sum(-2), columns)
    kept_rows = _largest(energy.sum(-1), rows)
    found = []
    for start in (kept_columns, _largest(_held(energy, kept_rows), columns)):
        kept_columns = start
        for _ in range(ROUNDS):
            kept_rows = _largest(_held(flipped, kept_columns), rows)
            kept_columns = _largest(_held(energy, kept_rows), columns)
        found.append(_crossed(kept_rows, kept_columns))
    first, second = (jnp.where(kept, energy, 0).sum((-1, -2), keepdims=True) for kept in found)
    return jnp.where(first >= second, *found)


def _held(energy, kept_rows):
    return (energy * kept_rows.astype(energy.dtype)[..., :, None]).sum(-2)


def _crossed(kept_rows, kept_columns):
    return kept_rows.astype(bool)[..., :, None] & kept_columns.astype(bool)[..., None, :]


def _largest(x, k):
    """Which are the k largest along the last axis; of equals the first."""
    if k == 0:
        return jnp.zeros(x.shape, bool)
    kth = jnp.sort(x, axis=-1)[..., -k, None]
    above, equal = x > kth, x == kth
    room = k - jnp.count_nonzero(above, axis=-1, keepdims=True)
    return above | (equal & (jnp.cumsum(equal, axis=-1) <= room))


def _count(keep: int | float, size: int) -> int:
    return min(int(keep), size) if isinstance(keep, int | np.integer) else round(float(keep) * size)


def _require_keep(name: str, keep: Any) -> None:
    counted, share = isinstance(keep, int | np.integer), isinstance(keep, float | np.floating)
    if isinstance(keep, bool) or not (counted or share) or not (keep >= 0 and (counted or keep <= 1)):
        raise ValueError(f"{name} must be an int >= 0 or a float in [0, 1], got {keep!r}")
