"""Roots of the stationarity condition z - m + t rho'(z) = 0, as fast and as differentiable as a penalty needs them."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.polynomial.chebyshev import Chebyshev, cheb2poly

_EXCESS = Chebyshev.interpolate(lambda h: 9 / (1 + 2 * np.cos(2 / 3 * np.arccos(h))) ** 2, 9, domain=[0, 1])
EXCESS = cheb2poly(_EXCESS.coef)[::-1]  # of e over k in `shrinkage`, in 2 h - 1, highest power first


def newton(z, m, t, slope, curvature):
    """One Newton step on z - m + t rho'(z) = 0, whose first derivatives in m and t are then those of the root.

    As (z f' - f) / f', a single quotient: XLA keeps quotients in memory for a second reader and repeats the rest.

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
    hessian = lax.stop_gradient(jnp.maximum(1 + t * curvature(z), 1e-3))
    return (z * hessian - (z - m + t * slope(z))) / hessian


def shrinkage(k):
    """The e in [0, 1/3] with e (1 - e)^2 = k: 2/3 (1 - cos(2/3 arccos h)) with h = sqrt(1 - 27 k / 4).

    A polynomial in h, to 1e-7 of e, and one Newton step: an arc cosine and a cosine cost ten times as much.

    Args:
      k: from 0 to 4/27, where the root is double; a larger one is taken as that.

    Returns:
      e. Its first derivative is that of the root, bounded where the root is double; its second is not the root's.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.roots import shrinkage
      >>> [round(float(e), 4) for e in shrinkage(jnp.array([0.0, 0.128, 4 / 27]))]
      [0.0, 0.2, 0.3333]
    """
    k = jnp.minimum(k, 4 / 27)
    known = lax.stop_gradient(k)
    h = jnp.sqrt(jnp.maximum(1 - 27 / 4 * known, 0))
    excess = jnp.zeros_like(h)
    for coefficient in EXCESS.tolist():
        excess = excess * (2 * h - 1) + coefficient
    e = known * excess
    slope = jnp.maximum((1 - e) * (1 - 3 * e), 1e-3)
    return (e * slope - (e * (1 - e) ** 2 - k)) / slope


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
