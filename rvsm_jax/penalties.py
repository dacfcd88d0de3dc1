"""Scalar penalties on magnitudes, each a value and a proximal map in closed form.

A penalty answers one question: *what shrinks*. It never sees a tensor, only non-negative magnitudes m (a weight's
absolute value, a group's norm), and offers

    value(m)   = sum_i rho(m_i)
    prox(m, t) = argmin_{z >= 0}  1/2 |z - m|^2 + t value(z)

so that thresholding weights, filters or singular values is the same few lines. Above its threshold a map that is a root
of a polynomial is polished by one Newton step on the stationarity condition z - m + t rho'(z) = 0: it removes the
rounding of the closed form and makes the first derivative of the map exact. A NaN magnitude stays NaN.

Shapes: m is any array of non-negative floats; t is a scalar, or an array of m's shape. Half-precision magnitudes are
mapped in float32 and returned in their own dtype. Penalties that are constraints, such as ``top_k`` and ``levels``, are
in constraints.py.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.precision import at_least_float32
from rvsm_jax.roots import newton, power, scaled, shrinkage

Value = Callable[[jax.Array], jax.Array]
Prox = Callable[[jax.Array, jax.Array | float], jax.Array]


class Penalty(NamedTuple):
    """A penalty and its proximal map: value(m) = sum_i rho(m_i), prox(m, t) = argmin_z 1/2 |z - m|^2 + t value(z).

    Attributes:
      value: magnitudes to a scalar.
      prox: magnitudes and a strength t >= 0 (scalar, or of the magnitudes' shape) to magnitudes.
      separable: whether it is a sum over magnitudes, as all but those that count or rank them are.

    Example:
      A penalty of one's own is a pair of functions; here the ridge rho(m) = m^2 / 2.

      >>> import jax.numpy as jnp
      >>> from rvsm_jax import Penalty
      >>> ridge = Penalty(value=lambda m: (m**2).sum() / 2, prox=lambda m, t: m / (1 + t))
      >>> print(ridge.prox(jnp.array([1.0, 2.0]), 1.0))
      [0.5 1. ]
    """

    value: Value
    prox: Prox
    separable: bool = True


def by_value(make: Callable[..., Penalty]) -> Callable[..., Penalty]:
    """make, called once for the same numbers, so that what is jitted with its penalty is; arrays of one are numbers.

    Args:
      make: numbers to a penalty.

    Returns:
      A function like it.

    Example:
      >>> import numpy as np
      >>> from rvsm_jax import transformed_l1
      >>> transformed_l1(np.ones(())) is transformed_l1(1.0)
      True
    """
    cached = functools.cache(make)

    def plain(x):
        return x.item() if isinstance(x, jax.Array | np.ndarray) else x

    @functools.wraps(make)
    def made(*args, **options):
        return cached(*map(plain, args), **{name: plain(x) for name, x in options.items()})

    return made


@functools.cache
def l0() -> Penalty:
    """rho(m) = 1{m != 0};  prox(m, t) = m 1{m > sqrt(2 t)}, hard thresholding.

    Returns:
      The penalty.

    References:
      Dinh and Xin, arXiv:1812.05719 (RVSM with the l0 penalty).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import l0
      >>> print(l0().prox(jnp.array([0.1, 0.9, 1.1]), 0.5))
      [0.  0.  1.1]
    """
    return widened(
        value=lambda m: jnp.count_nonzero(m).astype(m.dtype),
        prox=lambda m, t: _keep_above(jnp.sqrt(2 * t), m, m),
    )


@functools.cache
def l1() -> Penalty:
    """rho(m) = m;  prox(m, t) = max(m - t, 0), soft thresholding.

    Returns:
      The penalty.

    References:
      Dinh and Xin, arXiv:1812.05719 (RVSM with the l1 penalty).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import l1
      >>> print(l1().prox(jnp.array([0.25, 1.0]), 0.5))
      [0.  0.5]
    """
    return widened(value=jnp.sum, prox=lambda m, t: jnp.maximum(m - t, 0))


@by_value
def transformed_l1(a: float = 1.0) -> Penalty:
    """rho(m) = (a + 1) m / (a + m), between l0 (a -> 0) and l1 (a -> infinity).

    The map is zero up to t (a + 1) / a if t <= a^2 / (2 (a + 1)), else up to sqrt(2 t (a + 1)) - a / 2, and beyond it
    z = 2/3 (a + m) cos(phi / 3) - 2 a / 3 + m / 3 with phi = arccos(1 - 27 t a (a + 1) / (2 (a + m)^3)).

    Args:
      a: shape, from 1e-6 to 1e6, in the units of the magnitudes: weights far below a are shrunk as by l1, those far
        above it hardly.

    Returns:
      The penalty.

    Raises:
      ValueError: if a is not in [1e-6, 1e6].

    References:
      Zhang and Xin, arXiv:1412.5240 (the closed form of the proximal map).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import transformed_l1
      >>> [round(float(z), 3) for z in transformed_l1(a=1.0).prox(jnp.array([0.1, 0.5, 5.0]), 0.1)]
      [0.0, 0.398, 4.994]
    """
    if not 1e-6 <= a <= 1e6:
        raise ValueError(f"a must be in [1e-6, 1e6], got {a}")

    def prox(m, t):
        continuous = t <= a**2 / (2 * (a + 1))
        threshold = jnp.where(continuous, t * (a + 1) / a, jnp.sqrt(2 * t * (a + 1)) - a / 2)
        r = 1 / (a + m)
        k = (jnp.minimum(t, 1e30) * r) * (a * r) * ((a + 1) * r)  # neither it nor its derivative overflows
        return _keep_above(threshold, m, m - (a + m) * shrinkage(k))

    return widened(value=lambda m: jnp.sum((a + 1) * m / (a + m)), prox=prox)


@by_value
def scad(scale: float, a: float = 3.7) -> Penalty:
    """rho'(m) = 1 up to s, (a s - m) / (a s - s) up to a s, 0 beyond: an l1 that leaves large weights alone.

    With s = scale and soft(m) = max(m - t, 0) the map is, for t < (a - 1) s: soft(m) up to s + t, then
    ((a - 1) s m - a s t) / ((a - 1) s - t) up to a s, then m. For larger t it is soft(m) up to (t + (a + 1) s) / 2,
    or up to sqrt(t s (a + 1)) if t >= (a + 1) s, then m. At t = s it is the usual SCAD thresholding.

    Args:
      scale: where the penalty stops being l1, > 0, in the units of the magnitudes.
      a: the penalty is flat from a * scale, a > 2.

    Returns:
      The penalty.

    Raises:
      ValueError: if scale is not positive, or a is not above 2 and finite.

    References:
      Fan and Li, J. Am. Stat. Assoc. 96 (2001), eq. (2.7).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import scad
      >>> print(scad(scale=1.0).prox(jnp.array([0.5, 1.5, 4.0]), 1.0))
      [0.  0.5 4. ]
    """
    _require_positive("scale", scale)
    if not 2 < a < float("inf"):
        raise ValueError(f"a must be a finite number above 2, got {a}")
    knee, flat = scale, a * scale

    def value(m):
        middle = (2 * flat * m - m**2 - knee**2) / (2 * (flat - knee))
        return jnp.sum(jnp.where(m <= knee, m, jnp.where(m <= flat, middle, (flat + knee) / 2)))

    def prox(m, t):
        soft, room = jnp.maximum(m - t, 0), flat - knee
        convex = t < room
        middle = (room * m - flat * t) / jnp.where(convex, room - t, 1)
        smooth = jnp.where(m <= knee + t, soft, jnp.where(m <= flat, middle, m))
        total = flat + knee
        jump = jnp.where(t >= total, jnp.sqrt(t * total), (t + total) / 2)
        return jnp.where(convex, smooth, jnp.where(m <= jump, soft, m))

    return widened(value, prox)


@by_value
def mcp(gamma: float) -> Penalty:
    """rho(m) = m - m^2 / (2 gamma) up to gamma, gamma / 2 beyond: the minimax concave penalty.

    The map is, for t < gamma: 0 up to t, then (m - t) / (1 - t / gamma) up to gamma, then m; for larger t: 0 up to
    sqrt(t gamma), then m.

    Args:
      gamma: where the penalty becomes flat, > 0, in the units of the magnitudes.

    Returns:
      The penalty.

    Raises:
      ValueError: if gamma is not positive.

    References:
      Zhang, Ann. Stat. 38 (2010), arXiv:1002.4734, eq. (2.1).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import mcp
      >>> print(mcp(gamma=2.0).prox(jnp.array([0.5, 1.5, 4.0]), 1.0))
      [0. 1. 4.]
    """
    _require_positive("gamma", gamma)

    def value(m):
        return jnp.sum(jnp.where(m <= gamma, m - m**2 / (2 * gamma), gamma / 2))

    def prox(m, t):
        convex = t < gamma
        rising = (m - t) / jnp.where(convex, 1 - t / gamma, 1)
        z = jnp.where(convex & (m <= gamma), rising, m)
        return _keep_above(jnp.where(convex, t, jnp.sqrt(t * gamma)), m, z)

    return widened(value, prox)


@functools.cache
def half_norm() -> Penalty:
    """rho(m) = m^(1/2): zero up to 3/2 t^(2/3), beyond it z = (4 m / 3) cos^2(arccos(-(t / 4) (3 / m)^(3/2)) / 3).

    Returns:
      The penalty.

    References:
      Xu, Chang, Xu and Zhang, IEEE Trans. Neural Netw. Learn. Syst. 23 (2012), the half thresholding operator.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import half_norm
      >>> [round(float(z), 3) for z in half_norm().prox(jnp.array([1.0, 1.6, 4.0]), 1.0)]
      [0.0, 1.13, 3.742]
    """

    def root(c):
        cosine = jnp.clip(-(27**0.5) / 4 * c, -1, 1)
        y = 4 / 3 * jnp.cos(jnp.arccos(cosine) / 3) ** 2
        return newton(y, 1, c, lambda y: 0.5 * y**-0.5, lambda y: -0.25 * y**-1.5)

    def prox(m, t):
        return scaled(m <= 1.5 * jnp.cbrt(t) ** 2, m, lambda m: t / m / jnp.sqrt(m), root)

    return widened(value=lambda m: jnp.sum(power(m, 1 / 2)), prox=prox)


@functools.cache
def two_thirds_norm() -> Penalty:
    """rho(m) = m^(2/3): zero up to 2 (2 t / 3)^(3/4), then z = s^3, s the larger root of s^4 - m s + 2 t / 3 = 0.

    By Ferrari: s = (r + sqrt(2 m / r - r^2)) / 2 with r = sqrt(2 y) and y^3 - (2 t / 3) y - m^2 / 8 = 0, in units of m.

    Returns:
      The penalty.

    References:
      Cao, Sun and Xu, J. Vis. Commun. Image Represent. 24 (2013), the 2/3 thresholding operator.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import two_thirds_norm
      >>> [round(float(z), 3) for z in two_thirds_norm().prox(jnp.array([1.0, 1.6, 4.0]), 1.0)]
      [0.0, 0.913, 3.564]
    """

    def root(c):
        third = (2 * c / 9) ** 3
        cube = jnp.cbrt(1 / 16 + jnp.sqrt(1 / 256 - third))
        r = jnp.sqrt(2 * (cube + 2 * c / 9 / cube))
        y = ((r + jnp.sqrt(2 / r - r**2)) / 2) ** 3
        return newton(y, 1, c, lambda y: 2 / 3 * y ** (-1 / 3), lambda y: -2 / 9 * y ** (-4 / 3))

    def prox(m, t):
        return scaled(m <= 2 * (2 * t / 3) ** 0.75, m, lambda m: t / m / jnp.cbrt(m), root)

    return widened(value=lambda m: jnp.sum(power(m, 2 / 3)), prox=prox)


def widened(value: Value, prox: Prox, *, separable: bool = True) -> Penalty:
    """A penalty of both maps, run in float32 or wider, the strength in the magnitudes' dtype.

    Args:
      value: of magnitudes in float32 or wider.
      prox: of the same, and a strength of their dtype.
      separable: whether the value is a sum over magnitudes.

    Returns:
      The penalty, for magnitudes of any float dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.penalties import widened
      >>> ridge = widened(lambda m: (m**2).sum() / 2, lambda m, t: m / (1 + t))
      >>> ridge.prox(jnp.ones(2, jnp.bfloat16), 1.0)
      Array([0.5, 0.5], dtype=bfloat16)
    """

    def wide_value(m):
        m = jnp.asarray(m)
        return value(m.astype(at_least_float32(m.dtype)))

    def wide_prox(m, t):
        m = jnp.asarray(m)
        dtype = at_least_float32(m.dtype)
        return prox(m.astype(dtype), jnp.asarray(t, dtype)).astype(m.dtype)

    return Penalty(wide_value, wide_prox, separable)


def _keep_above(threshold, m, z):
    return jnp.where(m <= threshold, 0, jnp.maximum(z, 0))


def _require_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive finite number, got {value}")
