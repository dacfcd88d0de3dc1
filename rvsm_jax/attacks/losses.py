"""What an adversary maximises: functions of (logits, labels), or of (logits, labels, targets), to a number an example.

Shapes: logits z ``[B, K]``, labels y and targets t int32 ``[B]``. Larger is worse for the defender. z_(1) >= z_(2) >=
... are the sorted logits.

References:
  Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
  arXiv 2003.01690.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Loss = Callable[..., jax.Array]


def chosen(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """``z_y`` of each example.

    >>> chosen(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 0]))
    Array([2., 3.], dtype=float32)
    """
    return jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]


def best_other(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """``max over k != y of z_k``.

    >>> best_other(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 0]))
    Array([1., 4.], dtype=float32)
    """
    own = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    return jnp.where(own, jnp.full_like(logits, -jnp.inf), logits).max(1)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """``log sum_k exp(z_k) - z_y``.

    Args:
      logits: ``[B, K]``.
      labels: int32 ``[B]``.

    Returns:
      ``[B]``.

    >>> cross_entropy(jnp.zeros((1, 2)), jnp.array([1])).round(4)
    Array([0.6931], dtype=float32)
    """
    return -chosen(jax.nn.log_softmax(logits), labels)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """``max over k != y of z_k - z_y``: positive where the network is wrong.

    Args:
      logits: ``[B, K]``.
      labels: int32 ``[B]``.

    Returns:
      ``[B]``.

    >>> margin(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([1]))
    Array([-1.], dtype=float32)
    """
    return best_other(logits, labels) - chosen(logits, labels)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """``-(z_y - max over k != y of z_k) / (z_(1) - z_(3))``, unchanged when logits are shifted or scaled.

    Args:
      logits: ``[B, K]``, K >= 3.
      labels: int32 ``[B]``.

    Returns:
      ``[B]``.

    Raises:
      ValueError: if there are fewer than 3 classes.

    References:
      arXiv 2003.01690, equation (6).

    >>> dlr(jnp.array([[1.0, 5.0, 4.0]]), jnp.array([1]))
    Array([-0.25], dtype=float32)
    """
    _require(logits, 3, "dlr")
    top = jax.lax.top_k(logits, 3)[0]
    return margin(logits, labels) / _positive(top[:, 0] - top[:, 2])


def targeted_cross_entropy(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """``z_t - log sum_k exp(z_k)``.

    Args:
      logits: ``[B, K]``.
      labels: int32 ``[B]``, not used.
      targets: int32 ``[B]``.

    Returns:
      ``[B]``.

    >>> targeted_cross_entropy(jnp.zeros((1, 2)), jnp.array([1]), jnp.array([0])).round(4)
    Array([-0.6931], dtype=float32)
    """
    del labels
    return -cross_entropy(logits, targets)


def targeted_margin(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """``z_t - z_y``.

    Args:
      logits: ``[B, K]``.
      labels: int32 ``[B]``.
      targets: int32 ``[B]``.

    Returns:
      ``[B]``.

    >>> targeted_margin(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([1]), jnp.array([0]))
    Array([-2.], dtype=float32)
    """
    return chosen(logits, targets) - chosen(logits, labels)


def targeted_dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)``.

    Args:
      logits: ``[B, K]``, K >= 4.
      labels: int32 ``[B]``.
      targets: int32 ``[B]``.

    Returns:
      ``[B]``.

    Raises:
      ValueError: if there are fewer than 4 classes.

    References:
      arXiv 2003.01690, equation (7).

    >>> targeted_dlr(jnp.array([[1.0, 5.0, 4.0, 3.0]]), jnp.array([1]), jnp.array([3]))
    Array([-0.6666667], dtype=float32)
    """
    _require(logits, 4, "targeted_dlr")
    top = jax.lax.top_k(logits, 4)[0]
    return targeted_margin(logits, labels, targets) / _positive(top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


def _positive(difference: jax.Array) -> jax.Array:
    return jnp.maximum(difference, jnp.full_like(difference, 1e-12))


def _require(logits: Any, classes: int, name: str) -> None:
    if logits.shape[1] < classes:
        raise ValueError(f"{name} needs at least {classes} classes, the logits have {logits.shape[1]}; use margin")
