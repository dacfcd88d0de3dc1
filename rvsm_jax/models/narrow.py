"""Convolution with few outputs: n neighbouring columns of the result at once, as channels of one wider convolution.

The kernel stands n times side by side, each copy one stride further to the right, and the image is read every n
strides; the n O channels at a place are then O channels at n neighbouring places, which is how they lie in memory:

    K[p, q, c, j, o] = kernel[p, q - j s, c, o],    y = (x * K at stride n s).reshape(B, H', W', O)

This multiplies (k + n - 1) / k times as much for a kernel k wide, and pays where a convolution of so few outputs leaves
the processor idle: at batch 64, 32 x 32 pixels and two cores 16 -> 8 channels take 1.1 ms instead of 1.7, 8 -> 4
0.7 instead of 2.4.

Shapes: B images, H x W pixels, C input and O output channels, k x l kernel.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from rvsm_jax.models.blocks import NHWC, is_plain

Pair = tuple[int, int]


def columns_at_once(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Sequence[Sequence[int]]) -> int:
    """How many columns to compute together: 4 or 2 for at most 4 or 8 outputs, if they divide W'; 1 where none pays.

    Args:
      x: (B, H, W, C).
      kernel: (k, l, C, O).
      strides: two strides.
      pads: (low, high) zeros around H and W.

    Returns:
      n.

    >>> x, pads = jnp.ones((1, 32, 32, 16)), ((1, 1), (1, 1))
    >>> [columns_at_once(x, jnp.ones((3, 3, 16, outputs)), (1, 1), pads) for outputs in (16, 8, 4)]
    [1, 2, 4]
    """
    outputs, across = kernel.shape[3], kernel.shape[1]
    if not is_plain(x, kernel, pads) or across < 3 or strides[1] != 1 or not 0 < outputs <= 8:
        return 1
    columns = x.shape[2] + sum(pads[1]) - across + 1
    return next((n for n in (4, 2) if n * outputs <= 16 and columns % n == 0), 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def narrow_convolution(x: jax.Array, kernel: jax.Array, strides: Pair, pads: tuple[Pair, Pair]) -> jax.Array:
    """``lax``'s NHWC / HWIO convolution, `columns_at_once` columns together; its derivatives are those of ``lax``.

    Args:
      x: (B, H, W, C).
      kernel: (k, l, C, O).
      strides: two strides.
      pads: (low, high) zeros around H and W; negative ones cut.

    Returns:
      (B, H', W', O).

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> narrow_convolution(x, jnp.ones((3, 3, 1, 1)), (1, 1), ((0, 0), (0, 2)))[0, :, :, 0].tolist()
    [[45.0, 54.0, 39.0, 21.0], [81.0, 90.0, 63.0, 33.0]]
    """
    n, (high, across, channels, outputs) = columns_at_once(x, kernel, strides, pads), kernel.shape
    if n == 1:
        return _plain(x, kernel, strides, pads)
    moved = [jnp.pad(kernel, ((0, 0), (j, n - 1 - j), (0, 0), (0, 0))) for j in range(n)]
    wide = jnp.stack(moved, 3).reshape(high, across + n - 1, channels, n * outputs)
    y = _plain(x, wide, (strides[0], n), pads)
    return y.reshape(*y.shape[:2], n * y.shape[2], outputs)


@narrow_convolution.defjvp
def _derivative(strides, pads, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    change = _plain(dx, kernel, strides, pads) + _plain(x, dkernel, strides, pads)
    return narrow_convolution(x, kernel, strides, pads), change


def _plain(x: jax.Array, kernel: jax.Array, strides: Pair, pads: tuple[Pair, Pair]) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)
