"""Roots of the stationarity condition z - m + t rho'(z) = 0, as fast and as differentiable as a penalty needs them."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.polynomial.chebyshev import Chebyshev, cheb2poly

TWO_THIRDS = cheb2poly(Chebyshev.interpolate(lambda x: np.cos(2 / 3 * np.arccos(x)), 9, domain=[0, 1]).coef)[::-1]


def newton(z, m, t, slope, curvature):
    """One Newton step on z - m + t rho'(z) = 0, whose derivatives in m and t are then those of the root itself.

    Args:
      z: a nearby solution.
      m: magnitudes.
      t: the strength.
      slope: rho'.
      curvature: rho''.

    Returns:
      A closer solution.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.roots import newton
      >>> print(newton(jnp.float32(0.6), jnp.float32(1.0), jnp.float32(1.0), lambda z: z, jnp.ones_like))
      0.5
    """
    z = lax.stop_gradient(z)
    hessian = 1 + lax.stop_gradient(t) * curvature(z)
    return z - (z - m + t * slope(z)) / lax.stop_gradient(jnp.maximum(hessian, 1e-3))


def cosine_of_two_thirds(x):
    """cos(2/3 arccos x), as a polynomial: an arc cosine costs ten times as much.

    Args:
      x: from 0 to 1.

    Returns:
      The cosine, to 1e-9.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.roots import cosine_of_two_thirds
      >>> print(cosine_of_two_thirds(jnp.array([1.0])).round(6))
      [1.]
    """
    value = jnp.zeros_like(x)
    for coefficient in TWO_THIRDS.tolist():
        value = value * (2 * x - 1) + coefficient
    return value


def scaled(small, m, relative, root):
    """m root(c), c = t / m^(2 - p): the map of a power rho(m) = m^p from its root at m = 1; 0 where m is small.

    Args:
      small: where m is at most the threshold. There c is 0.54 for p = 1/2 and 0.60 for p = 2/3, and above it less; a
        larger one is underflow in t or m.
      m: magnitudes.
      relative: m to c.
      root: c to the root at m = 1.

    Returns:
      New magnitudes.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.roots import scaled
      >>> m = jnp.array([1.0, 2.0])
      >>> print(scaled(m < 1.5, m, lambda m: 1 / m, lambda c: 1 - c))
      [0. 1.]
    """
    safe = jnp.where(small, 1, m)
    return jnp.where(small, 0, safe * root(jnp.where(small, 0, jnp.minimum(relative(safe), 0.6))))


def power(m, exponent):
    """m^exponent, with derivative 0, not infinity, at 0.

    Args:
      m: magnitudes.
      exponent: positive.

    Returns:
      The power.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rvsm_jax.roots import power
      >>> print(jax.grad(lambda m: power(m, 0.5).sum())(jnp.array([0.0, 4.0])))
      [0.   0.25]
    """
    positive = m > 0
    return jnp.where(positive, jnp.where(positive, m, 1) ** exponent, 0)
