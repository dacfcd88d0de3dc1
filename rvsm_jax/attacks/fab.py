"""FAB, the fast adaptive boundary attack, class by class: the smallest perturbation found while staying at a boundary.

    w, g    = grad f(x_k), f(x_k)                                         f = z_t - z_y for a target class t
    p, q    = the points of {z in the box: g + <w, z - x_k> = 0} nearest to x_k and to the image x
    a       = min(|p - x_k| / (|p - x_k| + |q - x|), 0.1)
    x_{k+1} = clip((1 - a) (x_k + 1.05 (p - x_k)) + a (x + 1.05 (q - x)))
    where x_{k+1} is misclassified: keep it if it is the nearest yet, and x_{k+1} <- x + 0.9 (x_{k+1} - x)

Shapes: B images ``[B, H, W, C]`` in [0, 1], labels ``[B]``, logits z ``[B, K]``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rvsm_jax.attacks import checks
from rvsm_jax.attacks.deepfool import likeliest_others
from rvsm_jax.attacks.geometry import Geometry, clip, l_inf, per_image
from rvsm_jax.attacks.loop import Attack, LogitsFn, Model, run
from rvsm_jax.attacks.losses import margin, targeted_margin

OVERSHOOT, BIAS, BACKWARDS = 1.05, 0.1, 0.9
SECANTS, SHORT = 3, 0.98  # the last 2 % to the boundary are left away: on it the network is not yet wrong
NEWTON = 32
EXACT = 16  # what may be missing of the way to a hyperplane, in units of rounding


class _Options(NamedTuple):
    norm: Geometry


class _Nearest(NamedTuple):
    images: jax.Array
    distance: jax.Array


class _State(NamedTuple):
    points: jax.Array
    nearest: _Nearest


def fab(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    norm: Geometry = l_inf,
    steps: int = 100,
    classes: int = 9,
    targets: jax.Array | None = None,
    eot: int = 1,
) -> jax.Array:
    """``argmin |x' - x|`` over the misclassified x' met while stepping onto linearised boundaries, target by target.

    Args:
      logits_fn: ``images -> logits``, or ``(images, key) -> logits`` if the network is random.
      images: ``[B, H, W, C]`` in [0, 1].
      labels: integers ``[B]``.
      key: only for a random network.
      norm: `l_inf` or `l_2`, the norm of the perturbation.
      steps: for each target; a step costs two forward passes and a backward pass.
      classes: how many targets, the likeliest of the image.
      targets: integers ``[B]``, or ``[B, n]`` for several in turn, instead of the likeliest.
      eot: draws over which a random network is averaged.

    Returns:
      Images like ``images``, in [0, 1]; the image itself where the network was never wrong, or is wrong as it is.

    Raises:
      TypeError, ValueError, FloatingPointError: as `pgd`.

    References:
      Croce, Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", arXiv 1907.02044,
      Algorithm 1; targets as in arXiv 2003.01690.

    >>> logits_fn = lambda x: x.reshape(len(x), -1) @ jnp.array([[3.0, 0.0], [4.0, 0.0]]) - jnp.array([[2.5, 0.0]])
    >>> near = fab(logits_fn, jnp.full((1, 1, 2, 1), 0.6), jnp.array([0]), steps=10)
    >>> [f"{float(x):.3f}" for x in near.ravel()]
    ['0.357', '0.357']
    """
    images, labels = checks.arrays(images, labels)
    checks.count("steps", steps)
    checks.count("classes", classes)
    model, key = checks.network(logits_fn, key, eot)
    logits = run(Attack(_clean, _clean, _clean, 0, None), model, {"images": images, "key": key})
    checks.outputs(logits, labels)
    others = likeliest_others(logits, labels, classes) if targets is None else jnp.asarray(targets, jnp.int32)
    others = others.reshape(labels.shape[0], -1)
    far = jnp.full(labels.shape, jnp.inf, images.dtype)
    nearest = _Nearest(images, jnp.where(logits.argmax(1) != labels, 0, far))
    attack = Attack(_init, _step, _finish, steps, _Options(norm))
    for k in range(others.shape[1]):
        inputs = {"images": images, "labels": labels, "key": jax.random.fold_in(key, k), "targets": others[:, k]}
        nearest = run(attack, model, {**inputs, "nearest": nearest})
    return nearest.images


def _clean(options: None, model: Model, inputs: dict[str, Any], state: Any = None) -> jax.Array:
    return model.logits(inputs["images"], inputs["key"]) if state is None else state


def to_hyperplane(norm: Geometry, points: jax.Array, gradient: jax.Array, value: jax.Array) -> jax.Array:
    """``argmin |z - x|`` over z in [0, 1] with ``value + <gradient, z - x> = 0``, or the box's nearest to it.

    z = clip(x + t s) for the steepest direction s of the norm: what one pixel cannot give the others have to. What they
    give together is concave in t, straight between bends where a pixel meets the box, so Newton's method from below
    does not overshoot, and ends on the piece that crosses the hyperplane, if that takes no more than 32 steps. It stops
    where rounding is all that is missing. Computed in float32 at least; without a reverse-mode derivative.

    Args:
      norm: of the distance.
      points: x, ``[B, ...]`` in [0, 1].
      gradient: likewise; where it is 0 the point stays.
      value: ``[B]``.

    Returns:
      z, like the points.

    >>> x, w = jnp.array([[0.1, 0.5]]), jnp.array([[1.0, 1.0]])
    >>> print(to_hyperplane(l_inf, x, w, jnp.array([0.5])).round(3))
    [[0.  0.1]]
    """
    dtype = points.dtype if jnp.finfo(points.dtype).bits >= 32 else jnp.float32
    x, direction = points.astype(dtype), norm.steepest(gradient).astype(dtype)
    direction = per_image(-jnp.sign(value), x) * direction
    pull, size, room = jnp.abs(gradient).astype(dtype), jnp.abs(direction), jnp.where(direction > 0, 1 - x, x)
    unit = _over_pixels(jnp.max, pull)
    unit = jnp.where(unit > 0, unit, 1)
    pull, wanted = pull / per_image(unit, pull), jnp.abs(value).astype(dtype) / unit
    bends = jnp.where(size > 0, room / jnp.where(size > 0, size, 1), 0) * (1 + 4 * jnp.finfo(dtype).eps)
    last = jnp.minimum(_over_pixels(jnp.max, bends), jnp.finfo(dtype).max)  # beyond it nothing moves

    def at(t):
        """How much is missing at t, and how fast that falls."""
        moved = per_image(t, x) * size
        gain, rise = pull * jnp.minimum(moved, room), jnp.where(moved < room, pull * size, 0)
        return wanted - _over_pixels(jnp.sum, gain), _over_pixels(jnp.sum, rise)

    def newton(state):
        k, t, _, missing, rise = state
        active = (missing > EXACT * jnp.finfo(dtype).eps * wanted) & (rise > 0)
        further = jnp.minimum(t + missing / jnp.where(rise > 0, rise, 1), last)
        moving = active & (further > t)
        t = jnp.where(moving, further, t)
        return k + 1, t, moving, *at(t)

    start = jnp.zeros_like(wanted)
    state = 0, start, wanted > 0, *at(start)
    t = jax.lax.while_loop(lambda state: (state[0] < NEWTON) & state[2].any(), newton, state)[1]
    moved = jnp.minimum(per_image(t, x) * size, room)
    return clip(x + jnp.sign(direction) * moved).astype(points.dtype)


def _over_pixels(reduce: Callable[..., jax.Array], images: jax.Array) -> jax.Array:
    return reduce(images.reshape(len(images), -1), 1)


def _init(options: _Options, model: Model, inputs: dict[str, Any]) -> _State:
    return _State(inputs["images"], inputs["nearest"])


def _step(options: _Options, model: Model, inputs: dict[str, Any], i: jax.Array, s: _State) -> _State:
    x, labels, targets, norm = inputs["images"], inputs["labels"], inputs["targets"], options.norm
    at, after = jax.random.split(jax.random.fold_in(inputs["key"], i))
    value, _, gradient = model.gradient(lambda z: targeted_margin(z, labels, targets), s.points, at)
    here = jnp.concatenate([s.points, x])
    slant = (gradient * (x - s.points)).reshape(len(x), -1).sum(1)
    values = jnp.concatenate([value.astype(x.dtype), value.astype(x.dtype) + slant])
    there = to_hyperplane(norm, here, jnp.concatenate([gradient, gradient]), values)
    moves = there - here
    step, back = jnp.split(moves, 2)
    near, far = jnp.split(norm.norm(moves), 2)
    a = per_image(jnp.minimum(near / jnp.where(near + far > 0, near + far, 1), BIAS), x)
    points = clip((1 - a) * (s.points + OVERSHOOT * step) + a * (x + OVERSHOOT * back))
    logits = model.logits(points, after)
    wrong = logits.argmax(1) != labels
    nearest = _nearer(s.nearest, points, wrong, norm.norm(points - x))
    return _State(jnp.where(_mask(wrong, x), clip(x + BACKWARDS * (points - x)), points), nearest)


def _finish(options: _Options, model: Model, inputs: dict[str, Any], s: _State) -> _Nearest:
    """Steps of the secant method along the segment from the image to the nearest point found."""
    x, labels, outer = inputs["images"], inputs["labels"], s.nearest.images
    key = jax.random.fold_in(inputs["key"], 2**31 - 1)
    inner, f_inner = x, margin(model.logits(x, key), labels)
    f_outer, nearest = margin(model.logits(outer, key), labels), s.nearest
    for k in range(SECANTS):
        rise = jnp.where(f_outer - f_inner > 0, f_outer - f_inner, 1)
        share = SHORT * jnp.clip(jnp.where(f_outer > 0, f_outer / rise, 0), 0, 1).astype(x.dtype)
        points = clip(outer - per_image(share, x) * (outer - inner))
        logits = model.logits(points, jax.random.fold_in(key, k))
        wrong, f = logits.argmax(1) != labels, margin(logits, labels)
        nearest = _nearer(nearest, points, wrong, options.norm.norm(points - x))
        outer, f_outer = jnp.where(_mask(wrong, x), points, outer), jnp.where(wrong, f, f_outer)
        inner, f_inner = jnp.where(_mask(wrong, x), inner, points), jnp.where(wrong, f_inner, f)
    return nearest


def _nearer(nearest: _Nearest, points: jax.Array, wrong: jax.Array, distance: jax.Array) -> _Nearest:
    better = wrong & (distance < nearest.distance)
    images = jnp.where(_mask(better, points), points, nearest.images)
    return _Nearest(images, jnp.where(better, distance, nearest.distance))


def _mask(which: jax.Array, images: jax.Array) -> jax.Array:
    return which.reshape(-1, *[1] * (images.ndim - 1))
