"""e_n, the probability to escape from an edge after n traversals: none, constant, or min(1, delta xi_n).

``constant_escape(0.01)`` is the perturbation of arXiv 1807.03744, ``random_escape(0.01, serw.exponential())`` its
stochastic one with a mild law, ``random_escape(0.01, serw.exponential(), quenched=True)`` the same with one sequence
xi_1, xi_2, ... for all walkers.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from serw import generator
from serw.laws import Array, Law


@dataclasses.dataclass(frozen=True)
class Escape:
    """e_n, the probability that a walker forgets its edge at run length n. Build it with one of the functions below."""

    delta: float
    law: Law | None = None
    quenched: bool = False
    seed: int = 0

    @property
    def constant(self) -> float | None:
        """The one value of e_n if it does not depend on n, else None."""
        if self.law is None or self.delta == 0:
            return self.delta
        if self.quenched or self.law.growth is not None:
            return None
        return float(self.law.clipped_mean(np.float64(self.delta), *self.law.parameters))

    def probability(self, n: Array) -> Array:
        """e_n = delta, E min(1, delta xi_n) (annealed) or min(1, delta xi_n) (quenched).

        Args:
          n: run lengths >= 1, a NumPy or JAX array of any shape; whole numbers if the escape is quenched.

        Returns:
          An array of n's shape, float64 for integers.
        """
        return self._of_scale(n, lambda: generator.sequence_uniform(self.seed, n))

    def bound(self, n: Array) -> Array:
        """A number that no e_m with m <= n exceeds."""
        highest = 1 - 2.0**-54
        return self._of_scale(n, lambda: highest * n.__array_namespace__().ones_like(_real(n)))

    def _of_scale(self, n: Array, uniforms: Callable[[], Array]) -> Array:
        xp, m, same = n.__array_namespace__(), _real(n), self.constant
        if same is not None:
            return xp.full_like(m, same)
        assert self.law is not None
        with np.errstate(over="ignore"):
            theta = self.delta * self.law.scale(m)
            if not self.quenched:
                return self.law.clipped_mean(theta, *self.law.parameters)
            return xp.minimum(theta * self.law.quantile(uniforms(), *self.law.parameters), 1.0)


def no_escape() -> Escape:
    """e_n = 0: the walk of Holmes and Sakai itself."""
    return Escape(0.0)


def constant_escape(delta: float) -> Escape:
    """e_n = delta, so that P(T > n | T >= n) = (1 - delta) (1 + f(n)) / (2 d + f(n)).

    Args:
      delta: in [0, 1].

    Returns:
      The escape.

    Raises:
      ValueError: if delta is not a probability.

    References:
      Dinh and Xin, Enhanced diffusivity in perturbed senile reinforced random walk models, arXiv 1807.03744: any
      delta > 0 makes the one-dimensional walk with f(n) = n diffusive. Its exact transition formula was not found; this
      is the standard reading.

    >>> constant_escape(0.1).probability(np.arange(1, 4)).tolist()
    [0.1, 0.1, 0.1]
    """
    return Escape(_probability(delta))


def random_escape(delta: float, law: Law, *, quenched: bool = False, seed: int = 0) -> Escape:
    """e_n = min(1, delta xi_n) with independent xi_n.

    Annealed (the default): a fresh xi at every step of every walker. The excursion then has the law of a walk that
    escapes with probability E min(1, delta xi_n), exactly. Quenched: one sequence xi_1, xi_2, ... is drawn from `seed`
    and shared by all walkers, xi_n being used at run length n.

    The abstract of arXiv 1807.03744 says "independent random variables" and a diffusivity between O(1 / |log delta|)
    and O(1 / log |log delta|) in d = 1, up to O(1 / log^2 delta) above the unperturbed one in d >= 2. The paper's own
    law of xi, and which of the two readings it means, were not found. Each law's docstring says which end it belongs
    to; those statements are for the annealed reading.

    Args:
      delta: in [0, 1].
      law: of xi.
      quenched: one shared sequence instead of a fresh xi at each step.
      seed: of that sequence, 0 <= seed < 2^63.

    Returns:
      The escape.

    Raises:
      ValueError: if delta is not a probability, or the law returns NaN, a negative number or a mean above 1.

    >>> from serw import uniform
    >>> escape = random_escape(0.01, uniform(), quenched=True, seed=7)
    >>> bool(np.all(escape.probability(np.arange(1, 100)) <= 0.01))
    True
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in [0, 2^63), got {seed}")
    if not isinstance(law, Law):
        raise TypeError(f"law must be a serw.Law, such as serw.exponential(), got {law!r}")
    escape = Escape(_probability(delta), law, quenched, seed)
    _check_law(law)
    _check_between("e_n", escape.probability(np.array([1, 2, 3, 10, 100, 10**4, 10**9])), law, 1.0)
    return escape


def _check_law(law: Law) -> None:
    theta, u = np.logspace(-12, 0, 25), np.linspace(0.001, 0.999, 25)
    _check_between("clipped_mean", law.clipped_mean(theta, *law.parameters), law, 1 + 1e-12)
    _check_between("quantile", law.quantile(u, *law.parameters), law, math.inf)


def _check_between(what: str, values: Array, law: Law, high: float) -> None:
    values = np.asarray(values, float)
    bad = values[~((values >= 0) & (values <= high))]
    if bad.size:
        raise ValueError(f"{what} of the law {law.name} must lie in [0, {high:.3g}], got {bad[0]}")


def _probability(delta: float) -> float:
    if not 0 <= delta <= 1:
        raise ValueError(f"delta must lie in [0, 1], got {delta}")
    return float(delta)


def _real(n: Array) -> Array:
    xp = n.__array_namespace__()
    return n if xp.isdtype(n.dtype, "real floating") else n.astype(xp.float64)
