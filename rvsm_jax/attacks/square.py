"""Square attack: random search that changes one square of the image at a time and asks for logits only.

Shapes: B images ``[B, H, W, C]`` in [0, 1] (others are read as ``[B, 1, D, 1]``), labels ``[B]``, logits ``[B, K]``.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.attacks import checks
from rvsm_jax.attacks.geometry import Geometry, clip, euclidean, l_2, l_inf, per_image
from rvsm_jax.attacks.loop import Attack, LogitsFn, Model, run
from rvsm_jax.attacks.losses import margin

HALVINGS = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


class _Options(NamedTuple):
    norm: Geometry
    queries: int
    fraction: float


class _State(NamedTuple):
    points: jax.Array
    margin: jax.Array
    broken: jax.Array
    queries: jax.Array
    logits: jax.Array


class Found(NamedTuple):
    """What the search ended with: images ``[B, H, W, C]``, and how often each was asked about, ``[B]``."""

    points: jax.Array
    queries: jax.Array


def square(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    *,
    eps: float | jax.Array,
    norm: Geometry = l_inf,
    queries: int = 5000,
    fraction: float = 0.8,
    eot: int = 1,
) -> jax.Array:
    """``x <- x + d`` for a random square d at the surface of the ball, if ``max over k != y of z_k - z_y`` rises by it.

    In l_inf a square becomes x +- eps, one sign a channel; in l_2 the mass of one window moves to another, onto a
    pattern that falls off from its centre. Squares shrink as queries are used up.

    Args:
      logits_fn: ``images -> logits``, or ``(images, key) -> logits`` if the network is random; not differentiated.
      images: ``[B, H, W, C]`` in [0, 1].
      labels: integers ``[B]``.
      key: a random key.
      eps: radius, ``[]`` or ``[B]``.
      norm: `l_inf` or `l_2`.
      queries: forward passes; it stops earlier when every image of the batch is misclassified.
      fraction: share of the pixels that the first square covers.
      eot: draws over which a random network is averaged.

    Returns:
      Images like ``images``, at most eps from them and in [0, 1].

    Raises:
      TypeError, FloatingPointError: as `pgd`.
      ValueError: as `pgd`, for a fraction not in (0, 1], or for another norm.

    References:
      Andriushchenko, Croce, Flammarion, Hein, "Square attack: a query-efficient black-box adversarial attack via
      random search", arXiv 1912.00049, Algorithms 1 to 3; fraction 0.8 as in arXiv 2003.01690.

    >>> logits_fn = lambda x: jnp.stack([jnp.floor(9 * x.mean((1, 2, 3))), jnp.full(len(x), 3.5)], 1)  # no gradient
    >>> images, labels = jnp.full((1, 4, 4, 1), 0.5), jnp.array([0])
    >>> found = square(logits_fn, images, labels, jax.random.key(0), eps=0.125, queries=200)
    >>> logits_fn(found).argmax(1)
    Array([1], dtype=int32)
    """
    return search(
        logits_fn, images, labels, key, eps=eps, norm=norm, queries=queries, fraction=fraction, eot=eot
    ).points


def search(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    *,
    eps: float | jax.Array,
    norm: Geometry,
    queries: int,
    fraction: float,
    eot: int,
) -> Found:
    """`square`, with what it took.

    Args:
      logits_fn: as in `square`, like all that follow.
      images: likewise.
      labels: likewise.
      key: likewise.
      eps: likewise.
      norm: likewise.
      queries: likewise.
      fraction: likewise.
      eot: likewise.

    Returns:
      Images and their number of queries.

    >>> search(
    ...     lambda x: jnp.ones((len(x), 2)), jnp.zeros((1, 4, 4, 1)), jnp.array([0]), jax.random.key(0), eps=0.1,
    ...     norm=l_inf, queries=7, fraction=0.8, eot=1,
    ... ).queries
    Array([7], dtype=int32)
    """
    images, labels = checks.arrays(images, labels)
    checks.count("queries", queries)
    if norm.name not in SEARCHES:
        raise ValueError(f"square searches in {' or '.join(SEARCHES)}, got {norm.name}")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    model, key = checks.network(logits_fn, key, eot, draws="its squares")
    inputs = {"images": images, "labels": labels, "key": key, "eps": checks.radius("eps", eps, images)}
    attack = Attack(
        _init, _step, _finish, queries - 1, _Options(norm, queries, fraction), lambda state: state.broken.all()
    )
    state = run(attack, model, inputs)
    checks.outputs(state.logits, labels)
    return Found(state.points, state.queries)


def sides(queries: int, fraction: float, height: int, width: int, odd: bool = False) -> np.ndarray:
    """``round(sqrt(p H W))`` for every query, p halved after 10, 50, 200, 1000, ... of 10,000 queries.

    Args:
      queries: how many.
      fraction: the first p.
      height: H.
      width: W.
      odd: whether sides are odd and at least 3, as in l_2.

    Returns:
      ``[queries]`` of int32, at most min(H, W).

    >>> sides(10, 0.5, 4, 4)
    array([3, 1, 1, 1, 1, 1, 1, 1, 1, 1], dtype=int32)
    """
    at = np.arange(queries) * (10_000 / queries)
    p = fraction * 0.5 ** np.searchsorted(HALVINGS, at, side="left")
    side = np.maximum(np.round(np.sqrt(p * height * width)), 3 if odd else 1)
    side = side + (side % 2 == 0 if odd else 0)
    return np.minimum(side, min(height, width)).astype(np.int32)


def _init(options: _Options, model: Model, inputs: dict[str, Any]) -> _State:
    x, labels, key, eps = inputs["images"], inputs["labels"], inputs["key"], inputs["eps"]
    start, first, second = jax.random.split(jax.random.fold_in(key, 0), 3)
    pattern = SEARCHES[options.norm.name][0](start, _spatial(x))
    moved = options.norm.project(x + per_image(eps, x) * pattern.reshape(x.shape), x, eps)
    clean = model.logits(x, first)
    wrong = clean.argmax(1) != labels
    moved = jnp.where(_mask(wrong, x), x, moved)
    logits = model.logits(moved, second)
    return _State(moved, margin(logits, labels), wrong | (logits.argmax(1) != labels), jnp.ones_like(labels), logits)


def _step(options: _Options, model: Model, inputs: dict[str, Any], i: jax.Array, s: _State) -> _State:
    x, labels, eps = inputs["images"], inputs["labels"], inputs["eps"]
    here, there = jax.random.split(jax.random.fold_in(inputs["key"], i + 1))
    space = _spatial(x)
    side = sides(options.queries, options.fraction, space.shape[1], space.shape[2], odd=options.norm is l_2)
    search = SEARCHES[options.norm.name][1]
    points = search(here, space, _spatial(s.points), eps, jnp.asarray(side)[i + 1]).reshape(x.shape)
    points = options.norm.project(points, x, eps)
    logits = model.logits(points, there)
    value, wrong = margin(logits, labels), logits.argmax(1) != labels
    better = ~s.broken & (wrong | (value > s.margin))
    return _State(
        jnp.where(_mask(better, x), points, s.points),
        jnp.where(better, value, s.margin),
        s.broken | wrong,
        s.queries + (~s.broken).astype(jnp.int32),
        jnp.where(better[:, None], logits, s.logits),
    )


def _finish(options: _Options, model: Model, inputs: dict[str, Any], s: _State) -> _State:
    return s


def _spatial(x: jax.Array) -> jax.Array:
    return x if x.ndim == 4 else x.reshape(x.shape[0], 1, -1, 1)


def _stripes(key: jax.Array, x: jax.Array) -> jax.Array:
    """Vertical stripes of +1 and -1, one pixel wide."""
    return jax.random.rademacher(key, (x.shape[0], 1, *x.shape[2:]), x.dtype) * jnp.ones_like(x)


def _painted(key: jax.Array, x: jax.Array, points: jax.Array, eps: jax.Array, side: jax.Array) -> jax.Array:
    """A square of x +- eps, one sign a channel."""
    where, sign = jax.random.split(key)
    signs = jax.random.rademacher(sign, (x.shape[0], 1, 1, x.shape[3]), x.dtype)
    row, column = _corner(where, x, side)
    inside = _within(*_offsets(x, row, column), side)
    return jnp.where(inside, x + per_image(eps, x) * signs, points)


def _tiles(key: jax.Array, x: jax.Array) -> jax.Array:
    """The pattern of `_bump` on a grid of five by five tiles, one sign a channel, of norm 1."""
    _, height, width, channels = x.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = np.arange(height), np.arange(width)
    grid = math.ceil(height / side), math.ceil(width / side)
    one = _bump(
        jnp.asarray(rows % side)[:, None], jnp.asarray(columns % side)[None, :], jnp.int32(side), max(height, width)
    )
    signs = jax.random.rademacher(key, (x.shape[0], *grid, channels), x.dtype)
    tiles = signs[:, rows // side][:, :, columns // side] * one.astype(x.dtype)[None, :, :, None]
    return tiles / per_image(jnp.maximum(euclidean(tiles), 1e-12), x)


def _moved(key: jax.Array, x: jax.Array, points: jax.Array, eps: jax.Array, side: jax.Array) -> jax.Array:
    """The mass of a second window goes to the first, in which it is spread by a bump with a random sign."""
    first, second, turn, sign = jax.random.split(key, 4)
    change = points - x
    a, b = _offsets(x, *_corner(first, x, side))
    one = _within(a, b, side)
    two = _within(*_offsets(x, *_corner(second, x, side)), side)
    turned = jax.random.bernoulli(turn, shape=(x.shape[0], 1, 1, 1))
    bump = _bump(jnp.where(turned, b, a), jnp.where(turned, a, b), side, max(x.shape[1:3])).astype(x.dtype)
    bump = jnp.where(one, bump, 0)
    bump = bump / jnp.maximum(_size(bump), 1e-12)
    signs = jax.random.rademacher(sign, (x.shape[0], 1, 1, x.shape[3]), x.dtype)
    inside = jnp.where(one, change, 0)
    shape = signs * bump + inside / jnp.maximum(_size(inside), 1e-12)
    unused = jnp.maximum(eps**2 - euclidean(change) ** 2, 0)
    available = jnp.sqrt(_size(jnp.where(one | two, change, 0)) ** 2 + per_image(unused, x) / x.shape[3])
    shape = shape / jnp.maximum(_size(shape), 1e-12) * available
    return clip(x + jnp.where(one, shape, jnp.where(two, 0, change)))


def _bump(a: jax.Array, b: jax.Array, side: jax.Array, most: int) -> jax.Array:
    """Two halves of opposite sign, in each ``sum over k = 0..M of (n + 1 - k)^-2``, n = side // 2, M = n - distance."""
    sums = jnp.asarray(np.cumsum([0.0, *(1.0 / np.arange(1, most + 2) ** 2)]), jnp.float32)
    n, left = side // 2, side // 2
    first = b < left
    centre = jnp.where(first, left // 2, left + (side - left) // 2)
    away = jnp.clip(jnp.maximum(jnp.abs(a - n), jnp.abs(b - centre)), 0, n)
    value = sums[n + 1] - sums[away]
    return jnp.where(first, value, -value)


def _size(windows: jax.Array) -> jax.Array:
    """The norm of each channel, ``[B, 1, 1, C]``."""
    return jnp.sqrt(jnp.square(windows).sum((1, 2), keepdims=True))


def _corner(key: jax.Array, x: jax.Array, side: jax.Array) -> tuple[jax.Array, jax.Array]:
    row, column = jax.random.split(key)
    shape = (x.shape[0], 1, 1, 1)
    return (
        jax.random.randint(row, shape, 0, x.shape[1] - side + 1),
        jax.random.randint(column, shape, 0, x.shape[2] - side + 1),
    )


def _offsets(x: jax.Array, row: jax.Array, column: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where each pixel is as seen from the corner of a window."""
    rows = jnp.arange(x.shape[1]).reshape(1, -1, 1, 1) - row
    columns = jnp.arange(x.shape[2]).reshape(1, 1, -1, 1) - column
    return rows, columns


def _within(a: jax.Array, b: jax.Array, side: jax.Array) -> jax.Array:
    return (a >= 0) & (a < side) & (b >= 0) & (b < side)


def _mask(which: jax.Array, images: jax.Array) -> jax.Array:
    return which.reshape(-1, *[1] * (images.ndim - 1))


SEARCHES = {"l_inf": (_stripes, _painted), "l_2": (_tiles, _moved)}
