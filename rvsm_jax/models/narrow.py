"""Convolutions that leave a processor idle: of few outputs, or of images smaller than the kernel.

Few outputs: n neighbouring columns of the result at once, as channels of one wider convolution. The kernel stands n
times side by side, each copy one column further to the right, and the image is read every n columns; the n O channels
at a place are then O channels at n neighbouring places, which is how they lie in memory:

    K[p, q, c, j, o] = kernel[p, q - j, c, o],    y = (x * K at stride n).reshape(B, H', W', O)

This multiplies (k + n - 1) / k times as much for a kernel k wide, and pays where a convolution of so few outputs leaves
the processor idle: at batch 64, 32 x 32 pixels and two cores 16 -> 8 channels take 1.1 ms instead of 1.7, 8 -> 4
0.7 instead of 2.4.

Small images: all of the result at once, as one product of the whole image,

    y (B, H' W' O) = x (B, H W C) @ K (H W C, H' W' O),    K[p, q, c, i, j, o] = kernel[p - i + low, q - j + low, c, o].

XLA's own convolution of 512 channels on 2 x 2 pixels by 3x3 takes 390 ms at batch 64, the product 2.

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


def smaller_than_kernel(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Sequence[Sequence[int]]) -> bool:
    """Whether `image_product` is the faster way: the image is smaller than the kernel, and has channels enough.

    Args:
      x: (B, H, W, C).
      kernel: (k, l, C, O).
      strides: two strides.
      pads: (low, high) zeros around H and W.

    Returns:
      The answer; False for strides, or unequal padding of two sides.

    >>> x, pads = jnp.ones((1, 2, 2, 64)), ((1, 1), (1, 1))
    >>> smaller_than_kernel(x, jnp.ones((3, 3, 64, 32)), (1, 1), pads)
    True
    """
    even = all(low == high for low, high in pads) and tuple(strides) == (1, 1)
    small = any(n < k for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)) and x.shape[1] * x.shape[2] <= 16
    return even and small and min(kernel.shape[2:]) >= 16 and is_plain(x, kernel, pads)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def image_product(x: jax.Array, kernel: jax.Array, pads: tuple[Pair, Pair]) -> jax.Array:
    """``lax``'s NHWC / HWIO convolution of stride 1, as one product of whole images.

    Args:
      x: (B, H, W, C).
      kernel: (k, l, C, O).
      pads: (low, high) zeros around H and W, equally many on both sides.

    Returns:
      (B, H', W', O).

    >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    >>> image_product(x, jnp.arange(9.0).reshape(3, 3, 1, 1), ((1, 1), (1, 1)))[0, :, :, 0].tolist()
    [[43.0, 37.0], [25.0, 19.0]]
    """
    return _image_product(x, kernel, pads)


@image_product.defjvp
def _image_derivative(pads, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    change = _image_product(dx, kernel, pads) + _image_product(x, dkernel, pads)
    return image_product(x, kernel, pads), change


def _image_product(x: jax.Array, kernel: jax.Array, pads: tuple[Pair, Pair]) -> jax.Array:
    batch, (high, wide), outputs = x.shape[0], x.shape[1:3], kernel.shape[3]
    (low, left), (rows, columns) = (
        (p[0] for p in pads),
        (n + sum(p) - k + 1 for n, p, k in zip(x.shape[1:3], pads, kernel.shape[:2], strict=True)),
    )
    padded = jnp.pad(kernel, ((rows, high), (columns, wide), (0, 0), (0, 0)))
    parts = [
        jnp.stack([padded[rows + low - i :, columns + left - j :][:high, :wide] for j in range(columns)], 3)
        for i in range(rows)
    ]
    flat = jnp.stack(parts, 3).reshape(-1, rows * columns * outputs)
    return (x.reshape(batch, -1) @ flat).reshape(batch, rows, columns, outputs)


def _plain(x: jax.Array, kernel: jax.Array, strides: Pair, pads: tuple[Pair, Pair]) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)
