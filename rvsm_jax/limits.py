"""Where RVSM ends on the no-overlap networks: a thresholding of the true weights.

There the gradient at w is A w - B w*, with two numbers A and B, and RVSM stops where

    (A + beta) w_i - beta u_i = B w*_i,   u = prox_{(lam / beta) P}(w).

This is solved weight by weight and makes u a transformation of the true weights: a thresholding of (B / A) w*, at which

    1/2 |u - (B / A) w*|^2 + lam (1 / A + 1 / beta) P(u)

is stationary. Its strength is lam / A + lam / beta, not lam / beta: for l1 and v = (B / A) w* the limit is
u = sgn(v) max(|v| - lam / A - lam / beta, 0). A penalty
with a jump leaves a band in which the start decides: for l0, if |v_i| is between 1 and 1 + beta / A times
sqrt(2 lam / beta), both u_i = 0 and u_i = v_i are limits.

References:
  Dinh and Xin, arXiv:1812.05719 and arXiv:1901.09731: the limit is "a transformation of the true weight under a novel
  thresholding operation". Their formula was not at hand; the one here is derived from the stationarity of the steps.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rvsm_jax.models import no_overlap
from rvsm_jax.models.geometry import angle, length
from rvsm_jax.penalties import Penalty
from rvsm_jax.proximal import require_strength
from rvsm_jax.splitting import Number


class Limit(NamedTuple):
    """A fixed point of RVSM.

    Attributes:
      w: the weights, [d].
      u: their sparse copy, [d].
      residual: by how much w misses the equation, in units of the gradient; not small if there is no limit with the
        support that was asked for.
    """

    w: jax.Array
    u: jax.Array
    residual: jax.Array


def thresholding(
    penalty: Penalty,
    lam: Number,
    beta: Number,
    a: jax.Array,
    y: jax.Array,
    support: jax.Array | None = None,
    sweeps: int = 60,
) -> jax.Array:
    """The w with (A + beta) w - beta prox(|w|, lam / beta) sgn w = y: the operation that gives RVSM's limit.

    Off the support w = y / (A + beta). On it w is the largest root: Newton's method comes down to it from y / A.

    Args:
      penalty: P, whose map above its threshold has slope >= 1, decreasing: all of ``l0``, ``l1``, ``transformed_l1``.
      lam: the penalty's weight.
      beta: the pull's weight, > 0.
      a: A > 0.
      y: B w*, [d].
      support: where u != 0, [d]; default: wherever it can be.
      sweeps: Newton steps.

    Returns:
      w, [d], differentiable in A and y. Where ``support`` asks for a root that is not there, y / (A + beta).

    Example:
      >>> import jax.numpy as jnp, rvsm_jax
      >>> from rvsm_jax import limits
      >>> y = jnp.array([0.25, 0.5, -2.0])
      >>> print(limits.thresholding(rvsm_jax.l1(), 0.5, 1.0, jnp.array(1.0), y))
      [ 0.125  0.25  -1.5  ]
    """
    t, m, dtype = jnp.asarray(lam / beta, y.dtype), jnp.abs(y), y.dtype
    start = m / jnp.maximum(a, jnp.finfo(dtype).eps)

    def gap_and_slope(w):
        u, slope = jax.jvp(lambda w: penalty.prox(w, t), (w,), (jnp.ones_like(w),))
        return (a + beta) * w - beta * jax.lax.stop_gradient(u) - m, jax.lax.stop_gradient(a + beta - beta * slope), u

    def newton(w):
        w = jax.lax.stop_gradient(w)
        gap, slope, _ = gap_and_slope(w)
        return jnp.where(slope > 0, jnp.maximum(w - gap / jnp.where(slope > 0, slope, 1), 0), 0)

    w = newton(jax.lax.fori_loop(0, sweeps, lambda _, w: jax.lax.stop_gradient(newton(w)), start))
    gap, _, u = gap_and_slope(jax.lax.stop_gradient(w))
    there = (u > 0) & (jnp.abs(gap) <= jnp.sqrt(jnp.finfo(dtype).eps) * m)
    on = there if support is None else there & support
    return jnp.sign(y) * jnp.where(on, w, m / jnp.where(a + beta > 0, a + beta, 1))


def relu_limit(
    target: jax.Array,
    k: int | jax.Array,
    penalty: Penalty,
    lam: Number,
    beta: Number,
    support: jax.Array | None = None,
    sweeps: int = 25,
) -> Limit:
    """The w with grad f(w) + beta (w - u) = 0, u = prox(w), on the network of ``models.no_overlap``.

    A and B depend on w through its length and its angle with w* alone. These two are found by Newton's method, started
    at w*, or else at L / (L + beta) w*, which is the limit where u = 0. Where A <= 0, as it is for a beta so large that
    w shrinks to about half of w*, only a limit with u = 0 is found.

    Args:
      target: w*, [d].
      k: patches.
      penalty: P, as for ``thresholding``.
      lam: the penalty's weight.
      beta: the pull's weight, > 0.
      support: where u != 0, [d]; default: wherever it can be.
      sweeps: Newton steps.

    Returns:
      The limit. Its ``u`` is prox(w): for a support that cannot be, it has another one, or the residual is large.

    Raises:
      ValueError: if lam is negative or beta not positive (if they are not traced), or k is not an integer >= 1.

    Example:
      >>> import jax.numpy as jnp, rvsm_jax
      >>> from rvsm_jax import limits
      >>> found = limits.relu_limit(jnp.array([0.8, 0.6, 0.05]), 4, rvsm_jax.l1(), lam=0.01, beta=0.1)
      >>> [round(float(x), 2) for x in found.w], [round(float(x), 2) for x in found.u], bool(found.residual < 1e-6)
      ([0.78, 0.58, 0.04], [0.68, 0.48, 0.0], True)
    """
    _require_strengths(lam, beta)
    return _relu_limit(target, no_overlap.checked(target, target, k), penalty, lam, beta, support, sweeps)


@functools.partial(jax.jit, static_argnames=("penalty", "sweeps"))
def _relu_limit(target, k, penalty, lam, beta, support, sweeps):
    size = length(target)[0]
    most = jnp.stack([100 * size, jnp.asarray(jnp.pi, size.dtype)])
    scales = jnp.append(0.5 ** jnp.arange(12, dtype=size.dtype), 0)

    def weights(z):
        a, b = no_overlap.coefficients_at(z[0], z[1], size, k)
        return thresholding(penalty, lam, beta, a, b * target, support)

    def gap(z):
        w = weights(z)
        return jnp.stack([length(w)[0], angle(w, target)]) - z

    def newton(_, z):
        step = jnp.linalg.solve(jax.jacfwd(gap)(z), -gap(z))
        step = jnp.where(jnp.isfinite(step).all(), step, 0)
        tried = jax.vmap(lambda scale: jnp.clip(z + scale * step, jnp.zeros_like(z), most))(scales)
        return tried[jnp.argmin(jax.vmap(lambda z: jnp.max(jnp.abs(gap(z))))(tried))]

    def solved(size):
        w = weights(jax.lax.fori_loop(0, sweeps, newton, jnp.stack([size, jnp.zeros_like(size)])))
        u = _sparse(penalty, lam, beta, w)
        return Limit(w, u, jnp.max(jnp.abs(no_overlap.population_gradient(w, target, k) + beta * (w - u))))

    largest = no_overlap.curvature(k)
    found = jax.vmap(solved)(jnp.stack([size, size * largest / (largest + beta)]))
    return jax.tree.map(lambda x: jnp.where(found.residual[1] < 1e-3 * found.residual[0], x[1], x[0]), found)


def binary_limit(
    target: jax.Array,
    pull: jax.Array,
    penalty: Penalty,
    lam: Number,
    beta: Number,
    support: jax.Array | None = None,
    sweeps: int = 80,
) -> Limit:
    """The w on the unit sphere with mu w - beta u = a w*, u = prox(w), on the network of ``models.no_overlap_binary``.

    There the coarse gradient's and the pull's sum points along w, and RVSCGD stops. mu > beta is found by bisection on
    |w| = 1; where no weight is kept, w = w* and mu = a.

    Args:
      target: w*, [d], of norm 1.
      pull: a, from ``no_overlap_binary.attraction``.
      penalty: P, as for ``thresholding``.
      lam: the penalty's weight.
      beta: the pull's weight, > 0.
      support: where u != 0, [d]; default: wherever it can be.
      sweeps: bisections.

    Returns:
      The limit; its residual is what is left across w.

    Raises:
      ValueError: if lam is negative or beta not positive, or target has not norm 1.

    Example:
      >>> import jax.numpy as jnp, rvsm_jax
      >>> from rvsm_jax import limits
      >>> found = limits.binary_limit(jnp.array([0.8, 0.6, 0.0]), jnp.array(0.4), rvsm_jax.l1(), lam=0.01, beta=0.1)
      >>> [round(float(x), 3) for x in found.w], bool(found.residual < 1e-6)
      ([0.803, 0.596, 0.0], True)
    """
    _require_strengths(lam, beta)
    if not isinstance(target, jax.core.Tracer) and abs(float(length(target)[0]) - 1) > 1e-3:
        raise ValueError(f"target must have norm 1, got {float(length(target)[0])}")
    return _binary_limit(target, pull, penalty, lam, beta, support, sweeps)


@functools.partial(jax.jit, static_argnames=("penalty", "sweeps"))
def _binary_limit(target, pull, penalty, lam, beta, support, sweeps):
    def weights(log_a):
        return thresholding(penalty, lam, beta, jnp.exp(log_a), pull * target, support)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        long = length(weights(middle))[0] > 1
        return jnp.where(long, middle, low), jnp.where(long, high, middle)

    ends = jnp.log(pull) + jnp.asarray(-20.0, pull.dtype), jnp.log(pull + beta) + jnp.asarray(1.0, pull.dtype)
    low, high = jax.lax.fori_loop(0, sweeps, halve, ends)
    w = weights((low + high) / 2)
    nothing = ~jnp.any(_sparse(penalty, lam, beta, w))
    w = jnp.where(nothing, target, w)
    u = _sparse(penalty, lam, beta, w)
    force = pull * (length(w)[1] - target) + beta * (w - u)
    return Limit(w, u, jnp.max(jnp.abs(force - jnp.dot(force, w) * w)) + jnp.abs(length(w)[0] - 1))


def _require_strengths(lam, beta):
    require_strength("lam", lam)
    require_strength("beta", beta, positive=True)


def _sparse(penalty, lam, beta, w):
    return jnp.sign(w) * penalty.prox(jnp.abs(w), lam / beta)
