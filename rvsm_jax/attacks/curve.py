"""Accuracy against radius, as a running worst case."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from rvsm_jax.attacks import checks
from rvsm_jax.attacks.auto import Judge
from rvsm_jax.attacks.loop import LogitsFn

AtRadius = Callable[[jax.Array, jax.Array, jax.Array | None, jax.Array], jax.Array]


def accuracy_curve(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    *,
    attack: AtRadius,
    radii: Sequence[float],
    draws: int = 1,
) -> np.ndarray:
    """``share of images that are classified correctly and stay so in every attack of at most this radius``.

    What breaks an image in a small ball is in every larger one, so the curve never rises.

    Args:
      logits_fn: ``images -> logits``, or ``(images, key) -> logits`` if the network is random.
      images: ``[B, H, W, C]`` in [0, 1].
      labels: integers ``[B]``.
      key: for the attacks and for a random network; None if neither wants one.
      attack: ``(images, labels, key, eps) -> images``, such as `pgd` with the rest filled in; not called for radius 0.
      radii: increasing; a first one of 0 gives the clean accuracy.
      draws: over which a random network's logits are averaged where it is decided whether it is right.

    Returns:
      ``[len(radii)]``.

    Raises:
      TypeError, FloatingPointError: as `pgd`.
      ValueError: as `pgd`, or if radii are negative or do not increase.

    >>> import jax.numpy as jnp
    >>> from rvsm_jax.attacks import pgd
    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), jnp.full(len(x), 0.75)], 1)
    >>> images, labels = jnp.array([0.5, 0.8, 0.95]).reshape(3, 1, 1, 1), jnp.array([0, 0, 0])
    >>> accuracy_curve(
    ...     logits_fn, images, labels, None, radii=(0.0, 0.1, 0.3),
    ...     attack=lambda x, y, key, eps: pgd(logits_fn, x, y, eps=eps, steps=2, random_start=False),
    ... ).round(2)
    array([0.67, 0.33, 0.  ])
    """
    images, labels = checks.arrays(images, labels)
    if not all(low < high for low, high in zip([-1e-30, *radii], radii, strict=False)):
        raise ValueError(f"radii must be >= 0 and increase, got {list(radii)}")
    model, judging = checks.network(logits_fn, key, draws)
    judge = Judge(model, jax.random.fold_in(judging, 0), 1)
    logits = judge(images)
    checks.outputs(logits, labels)
    standing, curve = np.array(logits.argmax(1) == labels), []
    for k, eps in enumerate(radii):
        if eps > 0:
            key_k = None if key is None else jax.random.fold_in(key, k + 1)
            points = attack(images, labels, key_k, checks.radius("radii", eps, images))
            standing &= np.asarray(judge(points).argmax(1) == labels)
        curve.append(standing.mean())
    return np.array(curve)
