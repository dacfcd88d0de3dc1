"""Latency-aware thresholding: how many groups of a layer survive is a multiple of the width that hardware likes.

A layer of 13 channels takes the time of one of 16. So the penalty decides between the two sensible numbers:

    prox = proximal_operator(in_multiples(l0(), 8), channels)       # each kernel keeps 0, 8, 16, ... of its inputs
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.penalties import Penalty, widened
from rvsm_jax.sharded import placed_like, whole


@functools.lru_cache(maxsize=None, typed=True)  # 2.0 is no multiple, though equal to 2
def in_multiples(penalty: Penalty, multiple: int) -> Penalty:
    """P(m) + indicator{number of m_i > 0 is a multiple of k, or all}:  prox(m, t) = h on the c largest, 0 elsewhere.

    With m_1 >= m_2 >= ... and h_i = prox_P(m_i, t), or m_i where that is 0, c minimises over the multiples of k, and
    the number of all magnitudes if none is 0,

        J(c) = sum_{i <= c} (1/2 (h_i - m_i)^2 + t rho(h_i)) + sum_{i > c} 1/2 m_i^2.

    So survivors are dropped, the smallest first, or the largest of those that fell are kept as they were, whichever
    costs less. Where P alone leaves a multiple, this is P's map. For ``l0`` it is the exact proximal map of the sum. A
    penalty that is continuous at 0, as ``l1`` is, has none to offer when a magnitude is to be kept that it sends to 0
    (the infimum is approached by ever smaller ones, and not attained); the choice is then the best one among the
    points that have each z_i in {0, h_i} and keep the largest.

    Args:
      penalty: P, a separable one.
      multiple: k >= 1.

    Returns:
      The penalty, of the magnitudes of one leaf (or of one family of coupled channels) at a time.

    Raises:
      TypeError: if penalty is not a Penalty.
      ValueError: if penalty is not separable (``top_k`` has a ``multiple`` of its own), or multiple no integer >= 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import in_multiples, l0
      >>> print(in_multiples(l0(), 2).prox(jnp.array([3.0, 0.9, 2.0, 1.5, 0.1]), 0.5))
      [3.  0.9 2.  1.5 0. ]
    """
    if not isinstance(penalty, Penalty):
        raise TypeError(f"penalty must be a Penalty such as l0() or l1(), got {penalty!r}")
    if not penalty.separable:
        raise ValueError(
            "penalty must be separable, such as l0(), got one that ranks; for top_k say top_k(keep, multiple=...)"
        )
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"multiple must be an integer >= 1, got {multiple!r}")

    def allowed(m):
        return np.unique([*range(0, m.size + 1, multiple), m.size])

    def value(m):
        count = jnp.count_nonzero(m)
        return penalty.value(m) + jnp.where((count == allowed(m)).any(), 0, jnp.inf).astype(m.dtype)

    def prox(m, t):
        flat, t = whole(m).ravel(), whole(jnp.broadcast_to(t, m.shape)).ravel()
        if not flat.size:
            return m
        thresholded = penalty.prox(flat, t)
        kept = jnp.where(thresholded == 0, flat, thresholded)
        order = jnp.argsort(-flat, stable=True)
        worth = jnp.cumsum(_worth(penalty, flat, kept, t)[order])
        counts = jnp.asarray(allowed(m))
        total = jnp.where(counts == 0, 0, worth[jnp.maximum(counts - 1, 0)])
        possible = counts <= jnp.count_nonzero(flat)
        best = counts[jnp.argmax(jnp.where(possible, total, -jnp.inf))]
        chosen = jnp.zeros(flat.shape, bool).at[order].set(jnp.arange(flat.size) < best) | jnp.isnan(flat)
        return placed_like(jnp.where(chosen, kept, 0).reshape(m.shape), m)

    return widened(value, prox, separable=False)


def _worth(penalty: Penalty, m: jax.Array, h: jax.Array, t: jax.Array) -> jax.Array:
    """1/2 m^2 - 1/2 (h - m)^2 - t rho(h) in units of the largest m squared: what keeping each magnitude saves."""
    largest = jnp.nanmax(m)
    unit = jnp.where(largest > 0, largest, 1)
    rho = jax.vmap(lambda z: penalty.value(z[None]))(h)
    saved = h / unit * (m / unit - h / unit / 2) - t / unit * (rho / unit)
    return jnp.where((m == 0) | jnp.isnan(m), 0, saved)
