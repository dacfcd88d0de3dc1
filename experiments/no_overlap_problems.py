"""What RVSM is to learn on the no-overlap network: random true weights, starts and label noise; and one run of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rvsm_jax
from rvsm_jax import lagrangian
from rvsm_jax.models import no_overlap

PENALTIES = {"l0": rvsm_jax.l0(), "l1": rvsm_jax.l1(), "transformed_l1": rvsm_jax.transformed_l1(1.0)}
LARGEST = 32  # all weights are padded with zeros to this length: they stay zero
SHARE = 0.25  # of the true weights are not zero
DIM, PATCHES = 16, 4  # where one size is enough
AXES = {
    "angle": (0.25, 0.5, 0.75, 0.95),
    "dim": (8, 16, 32),
    "patches": (2, 4, 8),
    "noise": (0.0, 0.03),
}


class Problems(NamedTuple):
    """What is to be learnt, [problems] each.

    Attributes:
      angle: of the start with w*, as a share of pi.
      dim: d.
      patches: k.
      noise: nu, of the labels.
      number: of the problem, from which its random draws follow.
    """

    angle: jax.Array
    dim: jax.Array
    patches: jax.Array
    noise: jax.Array
    number: jax.Array


def problems(draws: int) -> Problems:
    """All combinations of the axes, so many times each."""
    grid = np.meshgrid(*AXES.values(), np.arange(draws), indexing="ij")
    angle, dim, patches, noise = (jnp.asarray(x.ravel(), jnp.float32) for x in grid[:4])
    return Problems(angle, dim, patches, noise, jnp.arange(angle.size))


def strength(penalty: str, threshold: float, beta: float) -> float:
    """The lambda at which u keeps the weights larger than the threshold.

    >>> [round(strength(name, 0.1, 1.0), 3) for name in PENALTIES]
    [0.005, 0.1, 0.05]
    """
    if penalty == "l0":
        return beta * threshold**2 / 2
    if penalty == "l1":
        return beta * threshold
    return beta * (threshold / 2 if threshold <= 0.5 else (threshold + 0.5) ** 2 / 4)


def drawn(key: jax.Array, problem: Problems) -> tuple[jax.Array, jax.Array, jax.Array]:
    """w*, w^0 and the tilt of the gradient.

    A quarter of the d true weights are not zero: signs times U[0.3, 1], then |w*| = 1. w^0 has norm 1 and the given
    angle with w*, in a random direction. Label noise of size sigma in n samples tilts the loss, to first order, by
    xi . w, where xi has the covariance nu^2 Hess f(w*), nu = sigma sqrt(2 / n).
    """
    position, sign, size, across, tilt = jax.random.split(jax.random.fold_in(key, problem.number), 5)
    place = jnp.arange(LARGEST)
    inside = place < problem.dim
    order = jnp.argsort(jnp.where(inside, jax.random.uniform(position, (LARGEST,)), 2.0))
    rank = jnp.zeros(LARGEST).at[order].set(place.astype(jnp.float32))
    weights = jax.random.rademacher(sign, (LARGEST,), jnp.float32) * jax.random.uniform(size, (LARGEST,), minval=0.3)
    target = no_overlap.length(jnp.where(rank < SHARE * problem.dim, weights, 0))[1]
    normal = jnp.where(inside, jax.random.normal(across, (LARGEST,)), 0)
    side = no_overlap.length(normal - jnp.dot(normal, target) * target)[1]
    start = jnp.cos(jnp.pi * problem.angle) * target + jnp.sin(jnp.pi * problem.angle) * side
    xi = jnp.where(inside, jax.random.normal(tilt, (LARGEST,)), 0)
    flat, steep = jnp.sqrt(1 / problem.patches), jnp.sqrt(no_overlap.curvature(problem.patches))
    return target, start, problem.noise * (flat * xi + (steep - flat) * jnp.dot(target, xi) * target)


def at_angle(seed: int, runs: int, angle: float, noise: float = 0.0) -> tuple[jax.Array, ...]:
    """w*, w^0 and the tilt, [runs, 16] each: d = 16, k = 4."""
    numbers = jnp.arange(runs)
    ones = jnp.ones(runs, jnp.float32)
    rows = Problems(angle * ones, DIM * ones, PATCHES * ones, noise * ones, numbers)
    weights = jax.jit(jax.vmap(drawn, in_axes=(None, 0)))(jax.random.key(seed), rows)
    return tuple(x[:, :DIM].astype(float) for x in weights)


def run(penalty: rvsm_jax.Penalty, lam: Any, beta: Any, k: jax.Array, weights: tuple, steps: int):
    """W, u and what is left of the gradient, after RVSM with eta = 1 / (beta + L)."""
    target, start, tilt = weights
    eta = 1 / (beta + no_overlap.curvature(k))
    method = rvsm_jax.rvsm(optax.sgd(eta), penalty, lam, beta, where=lagrangian.everywhere)
    w, u, _ = lagrangian.iterate(method, lambda w: no_overlap.population_gradient(w, target, k) + tilt, start, steps)
    return w, u, jnp.max(jnp.abs(no_overlap.population_gradient(w, target, k) + tilt + beta * (w - u)))


def mean_and_error(x: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error.

    >>> mean_and_error(np.array([0.0, 1.0]))
    (0.5, 0.5)
    """
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(x.size))
