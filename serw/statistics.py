"""Observables of many walkers at one time: folded to sums where the walkers are, read as means with errors at the end.

Sums are taken over groups of 1,024 consecutive walkers and the groups are added on the host, in order, so that the
result does not depend on the number of devices. Shapes: K times, d axes, B walkers, G groups, F features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GROUP = 1024
EDGES = np.linspace(-4.0, 4.0, 65)  # of the histogram of x_1 / sqrt(n)
LENGTHS = 63  # classes 2^i <= run length < 2^(i + 1)


class Records(NamedTuple):
    """Walkers seen at K times: `position` [K, d, B] and `run` [K, B] lengths, int64."""

    position: jax.Array
    run: jax.Array


class Sums(NamedTuple):
    """Sums over walkers.

    Attributes:
      features: [K, G, 4 + 4 d] of |S|^2, |S|^4, |S|^6, |S|^8, then of x_i, x_i^2, x_i^4, x_i^8 for each axis.
      histogram: [K, 66] int64, walkers by x_1 / sqrt(n), both open ends included.
      runs: [K, 63] int64, walkers by length of their current run.
    """

    features: np.ndarray | jax.Array
    histogram: np.ndarray | jax.Array
    runs: np.ndarray | jax.Array


class Estimate(NamedTuple):
    """A Monte Carlo mean and its standard error, arrays of the same shape."""

    mean: np.ndarray
    sem: np.ndarray


class Moments(NamedTuple):
    """Moments of the displacement, each with its standard error.

    Attributes:
      second: [K] E|S_n|^2.
      fourth: [K] E|S_n|^4.
      kurtosis: [K] E|S_n|^4 / (E|S_n|^2)^2, (d + 2) / d for Brownian motion; NaN where all walkers are at the origin.
      coordinate: [K, d] E x_i.
      coordinate_second: [K, d] E x_i^2.
      coordinate_fourth: [K, d] E x_i^4.
    """

    second: Estimate
    fourth: Estimate
    kurtosis: Estimate
    coordinate: Estimate
    coordinate_second: Estimate
    coordinate_fourth: Estimate


def fold(records: Records, times: jax.Array, counted: jax.Array) -> Sums:
    """Sums over walkers at each time.

    Args:
      records: where the walkers were.
      times: [K] int64.
      counted: [B] bool, which walkers count.

    Returns:
      The sums, with G = B / 1024.
    """

    def at(one: tuple[jax.Array, jax.Array, jax.Array]) -> Sums:
        position, run, time = one
        return _fold(position, run, time, counted)

    return jax.lax.map(at, (records.position, records.run, times))


def moments(sums: Sums, walkers: int) -> Moments:
    """E q with its standard error sqrt((E q^2 - (E q)^2) / (W - 1)); to first order for the kurtosis.

    Args:
      sums: over all walkers.
      walkers: W.

    Returns:
      The moments; with one walker their errors are NaN.
    """
    mean = np.asarray(sums.features).sum(1) / walkers
    r2, r4, r6, r8 = mean[:, :4].T
    x1, x2, x4, x8 = np.moveaxis(mean[:, 4:].reshape(len(mean), 4, -1), 1, 0)
    v2, v4, c24 = r4 - r2**2, r8 - r4**2, r6 - r2 * r4
    with np.errstate(divide="ignore", invalid="ignore"):  # few walkers may all stand at the origin
        kurtosis, spread = r4 / r2**2, v4 / r2**4 - 4 * r4 * c24 / r2**5 + 4 * r4**2 * v2 / r2**6
    return Moments(
        _estimate(r2, v2, walkers),
        _estimate(r4, v4, walkers),
        _estimate(kurtosis, spread, walkers),
        _estimate(x1, x2 - x1**2, walkers),
        _estimate(x2, x4 - x2**2, walkers),
        _estimate(x4, x8 - x4**2, walkers),
    )


def fractions(counts: np.ndarray | jax.Array, walkers: int) -> Estimate:
    """Fractions of the walkers, and their binomial standard errors."""
    p = np.asarray(counts) / walkers
    return _estimate(p, p * (1 - p), walkers)


def _fold(position: jax.Array, run: jax.Array, time: jax.Array, counted: jax.Array) -> Sums:
    x = jnp.where(counted[None], position, 0).astype(jnp.float64)
    square = x * x
    r2 = square.sum(0)
    radial = jnp.stack([r2, r2**2, r2**3, r2**4])
    features = jnp.concatenate([radial, x, square, square**2, square**4])
    sums = features.reshape(features.shape[0], -1, GROUP).sum(2).T
    bins = jnp.searchsorted(jnp.asarray(EDGES), x[0] / jnp.sqrt(time.astype(jnp.float64)), side="right")
    classes = 63 - jax.lax.clz(jnp.maximum(run, 1))
    return Sums(sums, _count(bins, len(EDGES) + 1, counted), _count(classes, LENGTHS, counted))


def _count(bins: jax.Array, length: int, counted: jax.Array) -> jax.Array:
    return jnp.zeros(length, jnp.int64).at[bins].add(counted.astype(jnp.int64))


def _estimate(mean: np.ndarray, variance: np.ndarray, walkers: int) -> Estimate:
    if walkers == 1:
        return Estimate(mean, np.full_like(mean, np.nan))
    return Estimate(mean, np.sqrt(np.maximum(variance, 0) / (walkers - 1)))
