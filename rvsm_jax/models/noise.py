"""Gaussian noise of the size of what it is added to, in training and at test time alike.

Drawing one normal number by JAX's default generator takes a CPU as long as many multiply-adds. Here a number costs two
rounds of a 32-bit mixing function of its index, shifted by two random words, and one inverse error function, all in the
compiler's own loops.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Over = Literal["image", "batch"]


class Noise(NamedTuple):
    """y = x + c std(x) z, z independent N(0, 1); the gradient flows through std as well.

    Attributes:
      scale: c.
      over: "image", each image scaled by its own standard deviation and so independent of its neighbours; or "batch",
        all by that of the whole array, as published.
    """

    scale: float
    over: Over

    def __call__(self, x: jax.Array, words: jax.Array) -> jax.Array:
        """(B, H, W, C) and two words uint32 [2] to the same shape."""
        factor = self.scale * deviation(x, None if self.over == "batch" else tuple(range(1, x.ndim)))
        return x + factor.astype(x.dtype) * standard_normal(words, x.shape).astype(x.dtype)


def deviation(x: jax.Array, axes: Sequence[int] | None) -> jax.Array:
    """The standard deviation sqrt(mean (x - mean)^2) over some axes, kept with size 1; its gradient at 0 is 0.

    Args:
      x: array of floats.
      axes: of the mean; None for all.

    Returns:
      An array of x's rank, in float32 at least.

    >>> deviation(jnp.array([[1.0, 3.0], [5.0, 5.0]]), (1,)).tolist()
    [[1.0], [0.0]]
    """
    dtype = x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32
    variance = jnp.var(x.astype(dtype), axes, keepdims=True)
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)


def standard_normal(words: jax.Array, shape: Sequence[int]) -> jax.Array:
    """z = sqrt(2) erfinv(u), u uniform on the 2^24 midpoints of (-1, 1): independent N(0, 1), |z| < 5.42.

    Good enough to train and attack by, not for cryptography.

    Args:
      words: uint32 [2], such as ``jax.random.bits(key, (2,))``.
      shape: of the result, at most 2^32 entries.

    Returns:
      Float32 of that shape. An entry depends on the words and on its place in the flat array only.

    >>> z = standard_normal(jax.random.bits(jax.random.key(0), (2,)), (100, 100))
    >>> abs(float(z.mean())) < 0.05, abs(float(z.std()) - 1) < 0.05
    (True, True)
    """
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    places = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(n) for axis, n in enumerate(strides))
    bits = _mix(_mix(sum(places, start=words[0])) + words[1])
    uniform = (bits >> 8).astype(jnp.float32) * 2.0**-23 + (2.0**-24 - 1)
    return math.sqrt(2) * jax.lax.erf_inv(uniform)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every bit in changes about half of the bits out: xor-shifts, odd factors."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
