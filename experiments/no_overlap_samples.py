"""From the population to n samples: how the loss and the limit of RVSM on the no-overlap network converge."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rvsm_jax
from experiments import no_overlap_problems as problems
from experiments.no_overlap_problems import PATCHES, PENALTIES
from rvsm_jax import lagrangian
from rvsm_jax.models import no_overlap as model


@functools.partial(jax.jit, static_argnames=("n", "steps"))
def on_samples(key: jax.Array, n: int, weights: Any, lam: jax.Array, beta: float, sigma: float, steps: int):
    """The loss of w^0 on n samples, and where RVSM with l1 ends on them."""
    target, start = weights[:2]
    sample, noise = jax.random.split(key)
    x = jax.random.normal(sample, (n, PATCHES, target.size), target.dtype)
    labels = model.forward(target, x) + sigma * jax.random.normal(noise, (n,), target.dtype)
    loss = lambda w: model.empirical_loss(w, labels, x)  # noqa: E731
    method = rvsm_jax.rvsm(
        optax.sgd(1 / (beta + model.curvature(PATCHES))), PENALTIES["l1"], lam, beta, where=lagrangian.everywhere
    )
    return loss(start), *lagrangian.iterate(method, jax.grad(loss), start, steps)[:2]


def errors(seed: int, largest: int, sets: int, steps: int) -> list[dict[str, Any]]:
    """Loss and limit on n samples against the population's, root mean squares over sets of samples.

    Args:
      seed: random.
      largest: n = 10^2, 10^3, ..., 10^largest.
      sets: of samples for each n, and at most 4 of the largest.
      steps: of RVSM.

    Returns:
      A row for each n.
    """
    beta, threshold = 0.1, 0.05
    weights = tuple(x[0].astype(jnp.float32) for x in problems.at_angle(seed, 1, 0.4))
    lam, rows = jnp.float32(problems.strength("l1", threshold, beta)), []
    w, u, _ = problems.run(PENALTIES["l1"], lam, beta, jnp.float32(PATCHES), weights, steps)
    exact = model.population_loss(weights[1], weights[0], PATCHES)
    for power in range(2, largest + 1):
        count = min(sets, 4) if power == largest else sets
        keys = jax.random.split(jax.random.key(seed + power), count)
        found = [on_samples(key, 10**power, weights, lam, beta, 0.0, steps) for key in keys]
        losses, ends = np.array([f[0] for f in found]), np.stack([f[1] for f in found])
        same = np.array([((f[2] != 0) == (u != 0)).all() for f in found])
        rows.append({
            "n": 10**power, "sets": count, "same_support": float(same.mean()),
            "loss_error": float(np.sqrt(np.mean((losses - exact) ** 2)) / exact),
            "limit_error": float(np.sqrt(np.mean(np.sum((ends - np.asarray(w)) ** 2, axis=1)))),
        })  # fmt: skip
    return rows


def slope(rows: list[dict[str, Any]], name: str) -> float:
    """D log error / d log n, by least squares."""
    return float(np.polyfit(np.log([r["n"] for r in rows]), np.log([r[name] for r in rows]), 1)[0])
