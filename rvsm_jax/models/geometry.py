"""Lengths and angles of vectors, defined and differentiable everywhere."""

import jax
import jax.numpy as jnp


def length(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """|x| and x / |x|, at any scale; for x = 0 both are zero, and their derivatives too.

    Args:
      x: [d].

    Returns:
      A scalar and [d].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rvsm_jax.models import geometry
      >>> print(*geometry.length(jnp.array([3e-30, 4e-30])))
      5e-30 [0.6 0.8]
      >>> print(jax.grad(lambda x: geometry.length(x)[0])(jnp.zeros(2)))
      [0. 0.]
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    zero = largest == 0
    y = x / jnp.where(zero, 1, largest)
    norm = jnp.sqrt(jnp.where(zero, 1, jnp.sum(jnp.square(y))))
    return jnp.where(zero, 0, largest * norm), jnp.where(zero, 0, y / norm)


def angle(w: jax.Array, v: jax.Array) -> jax.Array:
    """t = 2 arctan(|w/|w| - v/|v|| / |w/|w| + v/|v||), accurate at 0 and pi too; pi / 2 if one of them is zero.

    Args:
      w: [d].
      v: [d].

    Returns:
      Radians, from 0 to pi. Its derivative is 0 where it has none: at 0, at pi and at zero vectors.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.models import geometry
      >>> print(geometry.angle(jnp.array([1.0, 1e-6]), jnp.array([2.0, 0.0])))
      1e-06
    """
    (r, a), (s, b) = length(w), length(v)
    none = (r == 0) | (s == 0)
    return 2 * jnp.arctan2(*(jnp.where(none, 1, length(x)[0]) for x in (a - b, a + b)))
