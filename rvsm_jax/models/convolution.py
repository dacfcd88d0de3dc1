"""Convolution by the fastest way there is on the CPU backend; ``lax``'s own on every other.

XLA's convolutions are the slow part of a training step on a CPU, most of all the gradient with respect to the kernel.
Large kernels over few channels go through `blocks`, and what has at most eight outputs, or images smaller than the
kernel, through `narrow`. With sixteen channels or more, output and input gradient are best left to XLA and the kernel's
gradient is a matrix product for each row p of the kernel: with R the inputs of l neighbouring columns side by side,

    dK[p] (l C, O) = R[:, p : p + H'] (B H' W', l C)^T @ g (B H' W', O),

by which a training step of ResNet-18 at batch 128 takes 0.66 times as long (`experiments.bench_training`).

Shapes: B images, H x W pixels, C input and O output channels, k x l kernel.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rvsm_jax.models.blocks import NHWC, block_convolution, is_plain, suits_blocks
from rvsm_jax.models.narrow import columns_at_once, image_product, narrow_convolution, smaller_than_kernel

Pair = tuple[int, int]


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """y[b, i, j, o] = sum over p, q, c of x[b, s i + p, s j + q, c] kernel[p, q, c, o], as ``lax`` defines it.

    A drop-in for ``jax.lax.conv_general_dilated``, also as the argument of that name of ``flax.nnx.Conv``. On the CPU
    backend an unpadded NHWC / HWIO convolution of at most 32 channels with a kernel of at least 25 pixels is a
    `block_convolution`, one of images smaller than the kernel an `image_product`, any other of at least 16 input and
    output channels a `product_gradient_convolution`, whose only restriction is that it has no forward mode, and one of
    at most 8 outputs a `narrow_convolution`. Everything else, dilation and groups among it, is passed on. The backend
    is JAX's default one when the call is traced.

    Args:
      lhs: images, (B, H, W, C).
      rhs: kernel, (k, l, C, O).
      window_strides: two strides.
      padding: "SAME", "VALID" or (low, high) for H and W.
      lhs_dilation: as in ``lax``, like all that follow.
      rhs_dilation: dilation of the kernel.
      dimension_numbers: layouts; ("NHWC", "HWIO", "NHWC") in any of the forms of ``lax``.
      feature_group_count: groups of features.
      batch_group_count: groups of the batch.
      precision: of the product.
      preferred_element_type: of the accumulation and the result.
      out_sharding: sharding of the result.

    Returns:
      (B, H', W', O), in the dtype of the arguments unless preferred_element_type says otherwise.

    >>> x, kernel = jnp.ones((1, 6, 6, 2)), jnp.ones((5, 5, 2, 4))
    >>> y = conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    >>> y[0, :, :, 0].tolist()
    [[50.0, 50.0], [50.0, 50.0]]
    """
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    special = dilated or (feature_group_count, batch_group_count) != (1, 1) or out_sharding is not None
    special = special or precision is not None or preferred_element_type is not None
    if jax.default_backend() == "cpu" and not special and _is_nhwc(lhs, rhs, dimension_numbers):
        pads = padding
        if isinstance(pads, str):
            pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, pads)
        if is_plain(lhs, rhs, pads) and suits_blocks(rhs, pads):
            return block_convolution(lhs, rhs, window_strides)
        if smaller_than_kernel(lhs, rhs, window_strides, pads):
            return image_product(lhs, rhs, tuple(map(tuple, pads)))
        if is_plain(lhs, rhs, pads) and min(rhs.shape[2:]) >= 16:
            return product_gradient_convolution(lhs, rhs, tuple(window_strides), tuple(map(tuple, pads)))
        if columns_at_once(lhs, rhs, window_strides, pads) > 1:
            return narrow_convolution(lhs, rhs, tuple(window_strides), tuple(map(tuple, pads)))
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type,
        out_sharding=out_sharding,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product_gradient_convolution(x: jax.Array, kernel: jax.Array, strides: Pair, pads: tuple[Pair, Pair]) -> jax.Array:
    """``lax``'s NHWC / HWIO convolution, with the kernel's gradient as k matrix products.

    Args:
      x: (B, H, W, C).
      kernel: (k, l, C, O).
      strides: two strides.
      pads: (low, high) zeros around H and W; negative ones cut.

    Returns:
      (B, H', W', O).

    >>> x, pads = jnp.arange(4.0).reshape(1, 2, 2, 1), ((1, 0), (0, 0))
    >>> gradient = jax.grad(lambda kernel: product_gradient_convolution(x, kernel, (1, 1), pads).sum())
    >>> gradient(jnp.ones((2, 2, 1, 1))).ravel().tolist()
    [0.0, 1.0, 2.0, 4.0]
    """
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)


def _forward(
    x: jax.Array, kernel: jax.Array, strides: Pair, pads: tuple[Pair, Pair]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product_gradient_convolution(x, kernel, strides, pads), (x, kernel)


def _backward(
    strides: Pair, pads: tuple[Pair, Pair], arguments: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = arguments
    of_x = functools.partial(
        lax.conv_general_dilated, rhs=kernel, window_strides=strides, padding=pads, dimension_numbers=NHWC
    )
    return jax.vjp(of_x, x)[1](g)[0], _kernel_gradient(x, g, kernel.shape, strides, pads)


product_gradient_convolution.defvjp(_forward, _backward)


def _kernel_gradient(
    x: jax.Array, g: jax.Array, shape: Sequence[int], strides: Pair, pads: tuple[Pair, Pair]
) -> jax.Array:
    """The gradient (k, l, C, O) for images x and the gradient g (B, H', W', O) of the output.

    The zero that pads x is computed from g: without this tie XLA copies the inputs of every layer at once, as soon as
    the forward pass has them, and holds all copies until the backward pass comes along.
    """
    (k, m, channels, features), (_, height, width, _) = shape, g.shape
    zero = jnp.minimum(jnp.abs(g[0, 0, 0, 0]), jnp.zeros((), g.dtype))
    x = lax.pad(x, zero, [(0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)])
    columns = [x[:, :, q : q + strides[1] * (width - 1) + 1 : strides[1]] for q in range(m)]
    beside = jnp.concatenate(columns, axis=3)
    rows = [beside[:, p : p + strides[0] * (height - 1) + 1 : strides[0]] for p in range(k)]
    flat = g.reshape(-1, features)
    products = [flat.T @ row.reshape(-1, m * channels) for row in rows]
    return jnp.stack(products).reshape(k, features, m, channels).transpose(0, 2, 3, 1)


def _is_nhwc(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any) -> bool:
    """Whether images are NHWC and kernels HWIO."""
    return lhs.ndim == 4 and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == NHWC
