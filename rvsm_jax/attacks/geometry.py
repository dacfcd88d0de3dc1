"""The balls an adversary moves in: where it starts, which way is steepest, and how it is brought back.

Shapes: images ``[B, ...]`` of floating-point pixels in [0, 1]; radii ``[]`` or ``[B]``. What `Geometry.project` returns
is in the ball and in the box to the last bit: the exact distance, not only the computed one, is at most the radius.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Start = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Geometry(NamedTuple):
    """A norm, as attacks use it.

    Attributes:
      name: "l_inf" or "l_2".
      start: ``(key, images, eps) -> images``, uniform in the ball, then clipped to the box.
      steepest: ``gradient -> direction`` of norm 1 along which a linear function rises most; 0 where the gradient is.
      project: ``(points, images, eps) -> points`` in the ball around ``images`` and in [0, 1].
      norm: ``difference -> [B]``.
      dual: ``gradient -> [B]``, the norm by which a linear function rises along ``steepest``.
    """

    name: str
    start: Start
    steepest: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    norm: Callable[[jax.Array], jax.Array]
    dual: Callable[[jax.Array], jax.Array]


def per_image(value: jax.Array, images: jax.Array) -> jax.Array:
    """``value`` in the dtype of ``images`` and shaped to be multiplied with them.

    Args:
      value: ``[]`` or ``[B]``.
      images: ``[B, ...]``.

    Returns:
      ``[]`` or ``[B, 1, ...]``.

    >>> per_image(jnp.array([1.0, 2.0]), jnp.ones((2, 4, 4, 3))).shape
    (2, 1, 1, 1)
    """
    value = jnp.asarray(value, images.dtype)
    return value.reshape(-1, *[1] * (images.ndim - 1)) if value.ndim else value


def bounds(images: jax.Array, eps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``max(x - eps, 0)`` and ``min(x + eps, 1)``, rounded towards x.

    Args:
      images: x.
      eps: ``[]`` or ``[B]``.

    Returns:
      The lowest and the highest pixels allowed.

    >>> low, high = bounds(jnp.array([[0.5, 0.0625]]), jnp.float32(0.125))
    >>> print(low, high)
    [[0.375 0.   ]] [[0.625  0.1875]]
    """
    eps = per_image(eps, images)
    low = _rounded_towards(images, -eps)
    high = _rounded_towards(images, eps)
    return jnp.maximum(low, jnp.zeros_like(low)), jnp.minimum(high, jnp.ones_like(high))


def _rounded_towards(x: jax.Array, d: jax.Array) -> jax.Array:
    """x + d, but never further from x than d: the error of the sum is known exactly (Knuth's TwoSum)."""
    total = x + d
    moved = total - x
    error = (x - (total - moved)) + (d - moved)
    return jnp.where(error * jnp.sign(d) < 0, jnp.nextafter(total, x), total)


def clip(points: jax.Array) -> jax.Array:
    """``min(max(x, 0), 1)``, without promotion.

    >>> clip(jnp.array([-1.0, 0.5, 2.0]))
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    return jnp.minimum(jnp.maximum(points, jnp.zeros_like(points)), jnp.ones_like(points))


def euclidean(difference: jax.Array) -> jax.Array:
    """``sqrt(sum d^2)`` of each image, as ``m sqrt(sum (d / m)^2)`` with m = max |d|: it neither over- nor underflows.

    Args:
      difference: ``[B, ...]``.

    Returns:
      ``[B]``.

    >>> euclidean(jnp.array([[3e-30, 4e-30], [0.0, 0.0]]))
    Array([5.e-30, 0.e+00], dtype=float32)
    """
    flat = difference.reshape(difference.shape[0], -1)
    m = jnp.abs(flat).max(1)
    safe = jnp.where(m > 0, m, jnp.ones_like(m))
    return m * jnp.sqrt(jnp.square(flat / safe[:, None]).sum(1))


def _unit(gradient: jax.Array) -> jax.Array:
    size = euclidean(gradient)
    largest = jnp.abs(gradient.reshape(gradient.shape[0], -1)).max(1)
    scaled = gradient / per_image(jnp.where(largest > 0, largest, jnp.ones_like(size)), gradient)
    size = euclidean(scaled)
    return scaled / per_image(jnp.where(size > 0, size, jnp.ones_like(size)), gradient)


def _in_cube(key: jax.Array, images: jax.Array, eps: jax.Array) -> jax.Array:
    noise = jax.random.uniform(key, images.shape, images.dtype, -1, 1)
    return _project_cube(images + per_image(eps, images) * noise, images, eps)


def _project_cube(points: jax.Array, images: jax.Array, eps: jax.Array) -> jax.Array:
    low, high = bounds(images, eps)
    return jnp.minimum(jnp.maximum(points, low), high)


def _in_ball(key: jax.Array, images: jax.Array, eps: jax.Array) -> jax.Array:
    direction, radius = jax.random.split(key)
    size = images[0].size
    r = jax.random.uniform(radius, images.shape[:1], images.dtype) ** (1 / size)
    step = per_image(r, images) * _unit(jax.random.normal(direction, images.shape, images.dtype))
    return _project_ball(images + per_image(eps, images) * step, images, eps)


def _project_ball(points: jax.Array, images: jax.Array, eps: jax.Array) -> jax.Array:
    """Shrinks what is outside to a ball smaller by the rounding of a float, then each pixel by its last bit."""
    eps = jnp.broadcast_to(jnp.asarray(eps, images.dtype), images.shape[:1])
    safe = eps * jnp.asarray(1 - 16 * jnp.finfo(images.dtype).eps, images.dtype)
    difference = points - images
    size = euclidean(difference)
    shrink = safe / jnp.where(size > 0, size, jnp.ones_like(size))
    inside = jnp.nextafter(images + difference * per_image(shrink, images), images)
    return clip(jnp.where(per_image(size, images) > per_image(safe, images), inside, points))


l_inf = Geometry(
    "l_inf",
    _in_cube,
    jnp.sign,
    _project_cube,
    lambda d: jnp.abs(d.reshape(d.shape[0], -1)).max(1),
    lambda g: jnp.abs(g.reshape(g.shape[0], -1)).sum(1),
)
l_2 = Geometry("l_2", _in_ball, _unit, _project_ball, euclidean, euclidean)
