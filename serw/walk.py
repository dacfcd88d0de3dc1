"""The law of one walker.

After n consecutive traversals of its edge, it traverses it again with probability

    stay(n) = (1 - e_n) (1 + f(n)) / (2 d + f(n)),

and takes each of the 2 d - 1 other edges at its site with probability (1 - stay(n)) / (2 d - 1). f is the
reinforcement, e_n the escape. ``Walk(1, linear(1), constant_escape(0.01))`` is the perturbed walk of arXiv 1807.03744,
``Walk(2, constant(0), no_escape())`` the simple random walk of the plane, ``Walk(1, lambda n: n**0.5, no_escape())``
one of the user's own.
"""

import dataclasses
import math
import operator
from collections.abc import Callable

import numpy as np

from serw.escapes import Escape, no_escape
from serw.laws import Array

PROBES = np.unique(np.concatenate([np.arange(1, 4097), np.logspace(3.6, 18, 200).astype(np.int64)]))


@dataclasses.dataclass(frozen=True)
class Reinforcement:
    """f(n) >= -1, elementwise on NumPy and JAX arrays of real n >= 1.

    Attributes:
      rule: (n, *parameters) -> f(n).
      parameters: numbers, kept apart from the rule so that equal reinforcements compare equal.
      nondecreasing: whether f is known never to decrease; excursions beyond the table are then drawn in few steps
        instead of one by one.
      smooth: whether f is smooth in real n, so that its sums may be closed by quadrature.
    """

    rule: Callable[..., Array]
    parameters: tuple[float, ...] = ()
    nondecreasing: bool = False
    smooth: bool = False

    def __call__(self, n: Array) -> Array:
        """f(n)."""
        return self.rule(n, *self.parameters)


def linear(slope: float) -> Reinforcement:
    """f(n) = slope n, slope >= 0.

    >>> linear(2.0)(np.arange(1.0, 4.0)).tolist()
    [2.0, 4.0, 6.0]
    """
    if not 0 <= slope < math.inf:
        raise ValueError(f"slope must be a finite number >= 0, so that f stays >= -1; got {slope}")
    return Reinforcement(_linear, (float(slope),), nondecreasing=True, smooth=True)


def power(exponent: float) -> Reinforcement:
    """f(n) = n^exponent.

    >>> power(2.0)(np.arange(1.0, 4.0)).tolist()
    [1.0, 4.0, 9.0]
    """
    if not math.isfinite(exponent):
        raise ValueError(f"exponent must be finite, got {exponent}")
    return Reinforcement(_power, (float(exponent),), nondecreasing=exponent >= 0, smooth=True)


def constant(value: float) -> Reinforcement:
    """f(n) = value >= -1; 0 is the simple random walk, -1 never traverses an edge twice in a row.

    >>> constant(0.0)(np.arange(1.0, 4.0)).tolist()
    [0.0, 0.0, 0.0]
    """
    if not -1 <= value < math.inf:
        raise ValueError(f"value must be finite and >= -1, got {value}")
    return Reinforcement(_constant, (float(value),), nondecreasing=True, smooth=True)


@dataclasses.dataclass(frozen=True)
class Walk:
    """stay(n) = (1 - e_n) (1 + f(n)) / (2 d + f(n)).

    Args:
      dim: d >= 1.
      reinforcement: f, made by `linear`, `power` or `constant`, or any function f(n) >= -1 that maps an array to an
        array; wrap it in ``Reinforcement(f, nondecreasing=True)`` if it never decreases.
      escape: made by `no_escape`, `constant_escape` or `random_escape`.

    Raises:
      ValueError: if dim < 1, or f returns NaN, less than -1, or another shape than it was given.
      TypeError: if an argument is not of its kind.

    References:
      Holmes, The scaling limit of senile reinforced random walk, ECP 14 (2009); arXiv 1807.03744 for the escape.

    >>> Walk(1, linear(1.0), no_escape()).stay(np.arange(1, 4)).round(3).tolist()
    [0.667, 0.75, 0.8]
    """

    dim: int
    reinforcement: Reinforcement
    escape: Escape = dataclasses.field(default_factory=no_escape)

    def __post_init__(self) -> None:
        try:
            dim = operator.index(self.dim)
        except TypeError as error:
            raise TypeError(f"dim must be an integer >= 1, got {self.dim!r}") from error
        if dim < 1:
            raise ValueError(f"dim must be an integer >= 1, got {dim}")
        if not isinstance(self.escape, Escape):
            raise TypeError(f"escape must be a serw.Escape, such as serw.no_escape(), got {self.escape!r}")
        object.__setattr__(self, "dim", dim)
        object.__setattr__(self, "reinforcement", _checked(self.reinforcement))

    def leave(self, n: Array) -> Array:
        """h(n) = 1 - stay(n) = e_n + (1 - e_n) (2 d - 1) / (2 d + f(n)), accurate however small.

        Args:
          n: run lengths >= 1, a NumPy or JAX array of any shape.

        Returns:
          An array of n's shape, in float64 for integers, else in n's dtype.
        """
        return _union(self.escape.probability(n), self._forget(n))

    def leave_bound(self, n: Array) -> Array:
        """A number that no h(m) with n <= m < 2 n exceeds; 1 if f is not known to be non-decreasing."""
        forget = self._forget(n)
        if not self.reinforcement.nondecreasing:
            forget = n.__array_namespace__().ones_like(forget)
        return _union(self.escape.bound(2 * n), forget)

    def stay(self, n: Array) -> Array:
        """The probability to traverse the edge again after n traversals."""
        return (1 - self.escape.probability(n)) * (1 - self._forget(n))

    def _forget(self, n: Array) -> Array:
        xp = n.__array_namespace__()
        m = n if xp.isdtype(n.dtype, "real floating") else n.astype(xp.float64)
        with np.errstate(over="ignore"):
            return (2 * self.dim - 1) / (2 * self.dim + self.reinforcement(m))


def _union(p: Array, q: Array) -> Array:
    return p + (1 - p) * q


def _checked(f: Reinforcement | Callable[[Array], Array]) -> Reinforcement:
    if not callable(f):
        raise TypeError(f"reinforcement must be a function n -> f(n) >= -1, got {f!r}")
    rule = f if isinstance(f, Reinforcement) else Reinforcement(f)
    n = PROBES.astype(float)
    with np.errstate(over="ignore"):
        values = np.asarray(rule(n))
    if values.shape != n.shape:
        raise ValueError(f"f must map an array of shape {n.shape} to that shape, got {values.shape}")
    low = ~(values >= -1)
    if low.any():
        raise ValueError(f"f(n) must be >= -1, got f({n[low][0]:g}) = {values[low][0]}")
    falls = values[1:] < values[:-1]
    if rule.nondecreasing and falls.any():
        raise ValueError(f"f is declared non-decreasing, but it decreases after n = {n[:-1][falls][0]:g}")
    return rule


def _linear(n: Array, slope: float) -> Array:
    return slope * n


def _power(n: Array, exponent: float) -> Array:
    return n**exponent


def _constant(n: Array, value: float) -> Array:
    return n.__array_namespace__().full_like(n, value)
