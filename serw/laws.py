"""Laws of the random numbers xi_n in an escape probability delta xi_n.

A law of xi is known by two functions: theta -> E min(1, theta xi), which is all that the annealed walk sees, and the
quantile u -> inf {x : P(xi <= x) >= u}, from which the quenched walk reads its one sequence. Both take NumPy or JAX
arrays. ``random_escape(1e-3, exponential())`` is a mild law, ``random_escape(1e-3, exponential_growth(2.0))`` an
extreme one.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special

from serw import generator

Array = Any  # a NumPy or a JAX array
LARGEST_EXPONENT = 700.0  # exp of it is still a float64


@dataclasses.dataclass(frozen=True)
class Law:
    """The law of xi_n = g(n) X with X >= 0.

    Attributes:
      name: how it is printed.
      clipped_mean: (theta, *parameters) -> E min(1, theta X), elementwise, for theta >= 0.
      quantile: (u, *parameters) -> the u-quantile of X, elementwise, for 0 < u < 1.
      parameters: what the functions are given besides.
      growth: (n, *parameters) -> g(n), non-decreasing, or None for independent and identically distributed xi_n.
    """

    name: str
    clipped_mean: Callable[..., Array]
    quantile: Callable[..., Array]
    parameters: tuple[float, ...] = ()
    growth: Callable[..., Array] | None = None

    def scale(self, n: Array) -> Array:
        """g(n)."""
        one = n.__array_namespace__().ones_like(n)
        return one if self.growth is None else self.growth(n, *self.parameters)


def uniform(high: float = 1.0) -> Law:
    """P(xi > x) = 1 - x / high on [0, high]: a mild law, v = O(1 / |log delta|) in d = 1 (arXiv 1807.03744, abstract).

    >>> float(uniform().clipped_mean(np.float64(0.5), 1.0))
    0.25
    """
    return Law(f"uniform({high:g})", _uniform_clipped, _uniform_quantile, (_positive("high", high),))


def exponential(mean: float = 1.0) -> Law:
    """P(xi > x) = exp(-x / mean): a mild law, v = O(1 / |log delta|) in d = 1 (arXiv 1807.03744, abstract)."""
    return Law(f"exponential({mean:g})", _exponential_clipped, _exponential_quantile, (_positive("mean", mean),))


def half_normal(scale: float = 1.0) -> Law:
    """Xi = scale |N(0, 1)|: a mild law, v = O(1 / |log delta|) in d = 1 (arXiv 1807.03744, abstract)."""
    return Law(f"half_normal({scale:g})", _normal_clipped, _normal_quantile, (_positive("scale", scale),))


def pareto(exponent: float) -> Law:
    """P(xi > x) = x^-exponent for x >= 1.

    E min(1, delta xi) is of the order of delta^min(exponent, 1), so that |log delta| only changes by a factor and v
    stays O(1 / |log delta|) in d = 1, for every exponent > 0.
    """
    return Law(f"pareto({exponent:g})", _pareto_clipped, _pareto_quantile, (_positive("exponent", exponent),))


def super_heavy() -> Law:
    """P(xi > x) = 1 / log x for x >= e, without any moment.

    E min(1, delta xi) is about 1 / |log delta|: in d = 1 this gives the other end of the published range,
    O(1 / log |log delta|) (arXiv 1807.03744, abstract), in d >= 2 v - v_0 of the order of 1 / |log delta|.
    """
    return Law("super_heavy()", _heavy_clipped, _heavy_quantile)


def exponential_growth(base: float = 2.0) -> Law:
    """xi_n uniform on [0, 2 base^n], n the run length.

    Memory is cut at n of the order of |log delta|: v = O(1 / log |log delta|) in d = 1 and v - v_0 = O(1 / log^2 delta)
    in d = 2. It is the one family here that meets both extremes of the abstract of arXiv 1807.03744.

    Raises:
      ValueError: unless base > 1.
    """
    if not (1 < base < math.inf):
        raise ValueError(f"base must be a finite number above 1, got {base}")
    return Law(f"exponential_growth({base:g})", _growing_clipped, _growing_quantile, (float(base),), _exponential_scale)


def polynomial_growth(exponent: float = 1.0) -> Law:
    """xi_n uniform on [0, 2 n^exponent], n the run length.

    Memory is cut at n of the order of delta^(-1 / (exponent + 1)): v stays O(1 / |log delta|) in d = 1.
    """
    _positive("exponent", exponent)
    name = f"polynomial_growth({exponent:g})"
    return Law(name, _growing_clipped, _growing_quantile, (float(exponent),), _polynomial_scale)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
    return float(value)


def _uniform_clipped(theta: Array, high: float) -> Array:
    xp, a = np if np.isscalar(theta) else theta.__array_namespace__(), theta * high
    b = xp.minimum(a, 1.0)
    return b * (1 - b / (2 * xp.maximum(a, 1e-307)))


def _uniform_quantile(u: Array, high: float) -> Array:
    return u * high


def _growing_clipped(theta: Array, parameter: float) -> Array:
    return _uniform_clipped(theta, 2.0)


def _growing_quantile(u: Array, parameter: float) -> Array:
    return 2 * u


def _exponential_scale(n: Array, base: float) -> Array:
    xp = n.__array_namespace__()
    return xp.exp(xp.minimum(n * math.log(base), LARGEST_EXPONENT))


def _polynomial_scale(n: Array, exponent: float) -> Array:
    return n**exponent


def _exponential_clipped(theta: Array, mean: float) -> Array:
    a = np.maximum(theta * mean, 1e-307)
    return -a * np.expm1(-1 / a)


def _exponential_quantile(u: Array, mean: float) -> Array:
    return -mean * u.__array_namespace__().log1p(-u)


def _normal_clipped(theta: Array, scale: float) -> Array:
    a = theta * scale
    z = np.minimum(1 / np.maximum(a, 1e-307), 1e3)
    return -a * math.sqrt(2 / math.pi) * np.expm1(-z * z / 2) + scipy.special.erfc(z / math.sqrt(2))


def _normal_quantile(u: Array, scale: float) -> Array:
    return -scale * generator.special(u).ndtri((1 - u) / 2)


def _pareto_clipped(theta: Array, exponent: float) -> Array:
    a, k = np.clip(theta, 1e-307, 1.0), exponent - 1
    between = -np.log(a) if k == 0 else -np.expm1(k * np.log(a)) / k
    return a + a * between


def _pareto_quantile(u: Array, exponent: float) -> Array:
    return (1 - u) ** (-1 / exponent)


def _heavy_clipped(theta: Array) -> Array:
    a = np.clip(theta, 1e-300, math.exp(-1))
    mean = a * (math.e + scipy.special.expi(-np.log(a)) - scipy.special.expi(1.0))
    return np.minimum(mean, 1.0)  # a rounding error above it where a = 1 / e


def _heavy_quantile(u: Array) -> Array:
    xp = u.__array_namespace__()
    return xp.exp(xp.minimum(1 / (1 - u), LARGEST_EXPONENT))
