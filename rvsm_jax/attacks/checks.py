"""What is wrong with the arguments of an attack, said before or right after it runs, and never inside a trace."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.attacks.loop import LogitsFn, Model, takes_key, traced


class AttackWarning(UserWarning):
    """An attack ran, and its result may not mean what it seems to."""


def network(logits_fn: LogitsFn, key: jax.Array | None, eot: int, *, draws: str = "") -> tuple[Model, jax.Array]:
    """The network under attack and a key, if need be one that nothing depends on.

    Args:
      logits_fn: the network.
      key: a random key, or None.
      eot: draws a random network is averaged over.
      draws: what else the attack draws at random; empty if nothing.

    Returns:
      The model and the key.

    Raises:
      TypeError: if the network is not callable.
      ValueError: if something is drawn and there is no key, or if ``eot`` is not positive.

    >>> network(lambda images, key: images, None, 1)
    Traceback (most recent call last):
    ValueError: the network takes (images, key), so the attack needs a key, got None
    """
    if not callable(logits_fn):
        raise TypeError(f"logits_fn must be a function from images to logits, got {type(logits_fn).__name__}")
    if eot < 1:
        raise ValueError(f"eot must be a positive number of draws, got {eot}")
    random = takes_key(logits_fn)
    if key is None and (random or draws):
        why = "the network takes (images, key)" if random else f"the attack draws {draws}"
        raise ValueError(f"{why}, so the attack needs a key, got None")
    return Model(logits_fn, random, eot if random else 1), jax.random.key(0) if key is None else key


def arrays(images: Any, labels: Any) -> tuple[jax.Array, jax.Array]:
    """Images and labels as arrays, labels int32.

    Args:
      images: ``[B, ...]`` in [0, 1].
      labels: integers ``[B]``.

    Returns:
      Both.

    Raises:
      TypeError: if images are not floating-point or labels not integers.
      ValueError: if shapes do not fit, or if values are concrete and a pixel is not in [0, 1].

    >>> arrays(np.full((1, 2, 2, 1), 255, np.uint8), [0])
    Traceback (most recent call last):
    TypeError: images must be floating-point numbers in [0, 1], got uint8; divide them by 255
    """
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images must be floating-point numbers in [0, 1], got {images.dtype}; divide them by 255")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if images.ndim < 2 or labels.shape != images.shape[:1]:
        raise ValueError(f"images must be [B, ...] and labels [B], got {images.shape} and {labels.shape}")
    if not traced(images) and images.size:
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images must be in [0, 1], got pixels from {low:g} to {high:g}")
    return images, labels.astype(jnp.int32)


def radius(name: str, value: Any, images: jax.Array, *, zero: bool = True) -> jax.Array:
    """A radius or step in the dtype of the images, rounded down so that what is within it is within the one given.

    Args:
      name: what the value is called.
      value: number, or array ``[]`` or ``[B]``.
      images: ``[B, ...]``.
      zero: whether 0 is allowed.

    Returns:
      The value as an array.

    Raises:
      ValueError: if it is concrete and negative or not finite, or of another shape.

    >>> radius("eps", -0.1, jnp.zeros((1, 2)))
    Traceback (most recent call last):
    ValueError: eps must be a finite number >= 0, got -0.1
    """
    if np.shape(value) not in ((), images.shape[:1]):
        raise ValueError(f"{name} must be a number or one for each of {len(images)} images, got {np.shape(value)}")
    if traced(value):
        return jnp.asarray(value, images.dtype)
    exact = np.asarray(value, np.float64)
    if not np.all(np.isfinite(exact) & (exact >= 0)) or (not zero and not np.all(exact > 0)):
        raise ValueError(f"{name} must be a finite number {'>= 0' if zero else '> 0'}, got {value}")
    rounded = exact.astype(images.dtype)
    down = np.nextafter(rounded, np.zeros((), images.dtype))
    return jnp.asarray(np.where(rounded.astype(np.float64) > exact, down, rounded), images.dtype)


def count(name: str, value: Any, least: int = 1) -> None:
    """Raises unless ``value`` is an integer of at least ``least``.

    >>> count("steps", 0)
    Traceback (most recent call last):
    ValueError: steps must be an integer >= 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def outputs(logits: jax.Array, labels: jax.Array) -> None:
    """Raises or warns about logits that no attack can work with, if they are concrete.

    Args:
      logits: ``[B, K]``, of any images.
      labels: ``[B]``.

    Raises:
      ValueError: if logits are not ``[B, K]`` or a label is not in [0, K).
      FloatingPointError: if a logit is NaN.

    >>> outputs(jnp.zeros((1, 3)), jnp.array([3]))
    Traceback (most recent call last):
    ValueError: labels must be in [0, 3), the number of logits, got 3 to 3
    """
    if logits.ndim != 2 or logits.shape[0] != labels.shape[0]:
        raise ValueError(f"logits_fn must return [{labels.shape[0]}, K] for as many images, got {logits.shape}")
    if traced(logits, labels) or not logits.size:
        return
    z, y = np.asarray(logits, np.float64), np.asarray(labels)
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise ValueError(f"labels must be in [0, {z.shape[1]}), the number of logits, got {y.min()} to {y.max()}")
    if np.isnan(z).any():
        bad = int(np.isnan(z).any(1).sum())
        raise FloatingPointError(f"logits_fn returned NaN for {bad} of {len(z)} images")
    if z.min() >= 0 and np.all(np.abs(z.sum(1) - 1) < 1e-3):
        warn("logits_fn seems to return probabilities; attacks want logits: leave the softmax away")


def warn(message: str) -> None:
    """An `AttackWarning` where the attack was called."""
    warnings.warn(message, AttackWarning, stacklevel=4)
