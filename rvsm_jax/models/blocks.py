"""Convolution as one matrix product, a block of neighbouring outputs at a time: for large kernels over few channels.

A block of r x r outputs reads a tile of t x t inputs, t = (r - 1) stride + k, so that

    outputs of a block (r r O) = tile (t t C) @ K (t t C, r r O),

where K holds the kernel r r times, shifted. r = 1 is the usual product with patches. r = 2 multiplies more (36/25 for
a 5x5 kernel, 16/9 for 3x3) but copies each input far less often (9 times instead of 25, 4 instead of 9) and gives the
matrix product four times as many columns: few channels make thin and slow products.

All of it is differentiable operations, so every mode of differentiation and ``vmap`` are JAX's own: the gradient of a
product is a product, and that of cutting tiles a sum of shifted arrays. On a CPU a training step of LeNet-5 is 2.8
times faster than with XLA's convolution and pooling.

Shapes: B images, H x W pixels, C input and O output channels, k x l kernel; h x w blocks of r x r outputs.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from rvsm_jax.models.pooling import max_pool

NO_PADS = ((0, 0), (0, 0))
NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def convolve_max_pool(x: jax.Array, kernel: jax.Array, window: int = 2) -> jax.Array:
    """y[b, i, j, o] = max over p, q < window of (x * kernel)[b, window i + p, window j + q, o], unpadded, stride 1.

    On the CPU backend, a pooling window of a `suits_blocks` convolution is a block: the
    maximum is taken over columns of the matrix product and nothing is rearranged. Elsewhere it is `pooling.max_pool`
    after ``lax``'s convolution. A bias and an increasing activation may follow instead of preceding the maximum.

    Args:
      x: (B, H, W, C).
      kernel: (k, l, C, O).
      window: side of the square pooling window.

    Returns:
      (B, (H - k + 1) // window, (W - l + 1) // window, O). Where a maximum is attained several times its gradient is
      shared among them.

    >>> convolve_max_pool(jnp.arange(64.0).reshape(1, 8, 8, 1), jnp.ones((5, 5, 1, 1)))[0, :, :, 0].tolist()
    [[675.0, 725.0], [1075.0, 1125.0]]
    """
    if jax.default_backend() != "cpu" or not (is_plain(x, kernel, NO_PADS) and suits_blocks(kernel, NO_PADS)):
        return max_pool(lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=NHWC), window)
    pooled = [(n - k + 1) // window for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)]
    columns = jnp.split(_product(x, kernel, (1, 1), NO_PADS, pooled, window), window**2, axis=1)
    while len(columns) > 1:
        pairs = itertools.zip_longest(columns[::2], columns[1::2])
        columns = [a if b is None else jnp.maximum(a, b) for a, b in pairs]
    return columns[0].reshape(x.shape[0], *pooled, kernel.shape[3])


def block_convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]] = NO_PADS,
    *,
    block: int | None = None,
) -> jax.Array:
    """A convolution as tiles (B h w, t t C) @ shifted kernels (t t C, r r O).

    Args:
      x: (B, H, W, C).
      kernel: (k, l, C, O).
      strides: two strides.
      pads: (low, high) zeros around H and W; negative ones cut.
      block: r, the side of a block of outputs; by default 1 for kernels of one pixel and 2 otherwise.

    Returns:
      (B, H', W', O) with H' = (H + low + high - k) // stride + 1.

    >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    >>> block_convolution(x, jnp.ones((2, 2, 1, 1)), (1, 1))[0, :, :, 0].tolist()
    [[8.0, 12.0], [20.0, 24.0]]
    """
    windows, features = kernel.shape[:2], kernel.shape[3]
    r = block or (1 if max(windows) == 1 else 2)
    out = [(n + sum(p) - k) // s + 1 for n, p, k, s in zip(x.shape[1:3], pads, windows, strides, strict=True)]
    h, w = (-(-n // r) for n in out)
    y = _product(x, kernel, strides, pads, (h, w), r)
    y = y.reshape(-1, h, w, r, r, features).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(-1, r * h, r * w, features)[:, : out[0], : out[1]]


def _product(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    blocks: Sequence[int],
    r: int,
) -> jax.Array:
    """The outputs of h x w blocks, (B h w, r r O)."""
    sides = [(r - 1) * s + k for k, s in zip(kernel.shape[:2], strides, strict=True)]
    steps = [r * s for s in strides]
    shifted = _shifted_kernels(kernel, strides, r, sides, steps)
    return _tiles(x, pads, blocks, sides, steps) @ shifted


def is_plain(lhs: jax.Array, rhs: jax.Array, pads: Sequence[Sequence[int]]) -> bool:
    """Whether images NHWC and kernel HWIO are of one float type, and so large that there is an output."""
    same_type = lhs.dtype == rhs.dtype and jnp.issubdtype(lhs.dtype, jnp.floating)
    matching = lhs.shape[3] == rhs.shape[2] and lhs.shape[0] * lhs.shape[3] > 0
    sizes = zip(lhs.shape[1:3], pads, rhs.shape[:2], strict=True)
    return same_type and matching and all(size + sum(pad) >= window for size, pad, window in sizes)


def suits_blocks(rhs: jax.Array, pads: Sequence[Sequence[int]]) -> bool:
    """Whether blocks are the faster way: a large kernel, few channels, no padding."""
    unpadded = not any(itertools.chain(*pads))
    return unpadded and rhs.shape[0] * rhs.shape[1] >= 25 and rhs.shape[2] <= 32


def _tiles(
    x: jax.Array, pads: Sequence[tuple[int, int]], blocks: Sequence[int], sides: Sequence[int], steps: Sequence[int]
) -> jax.Array:
    """Cuts (B, H, W, C) into overlapping tiles (B h w, t t C), a tile every `steps` pixels.

    The image is first cut into cells of the size of a step; a tile is then a few whole or partial neighbouring cells,
    and all tiles are so many shifted copies of the array of cells side by side.
    """
    batch, *sizes, channels = x.shape
    cells = [n + -(-t // b) - 1 for n, t, b in zip(blocks, sides, steps, strict=True)]
    after = [n * b - size - low for n, b, size, (low, _) in zip(cells, steps, sizes, pads, strict=True)]
    low = [p[0] for p in pads]
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, [(0, 0, 0), (low[0], after[0], 0), (low[1], after[1], 0), (0, 0, 0)])
    x = x.reshape(batch, cells[0], steps[0], cells[1], steps[1], channels).transpose(0, 1, 3, 2, 4, 5)
    pieces = [
        x[:, i : i + blocks[0], j : j + blocks[1], :rows, :columns].reshape(batch, *blocks, -1)
        for i, rows in _cells(sides[0], steps[0])
        for j, columns in _cells(sides[1], steps[1])
    ]
    return jnp.concatenate(pieces, axis=3).reshape(batch * math.prod(blocks), -1)


def _shifted_kernels(
    kernel: jax.Array, strides: Sequence[int], r: int, sides: Sequence[int], steps: Sequence[int]
) -> jax.Array:
    """The kernel r r times in an else empty tile, moved by the stride: (t t C, r r O), rows ordered as in a tile."""
    (k, m), (t, u), features = kernel.shape[:2], sides, kernel.shape[3]
    low = [(p * strides[0], q * strides[1]) for p in range(r) for q in range(r)]
    moved = [jnp.pad(kernel, ((p, t - k - p), (q, u - m - q), (0, 0), (0, 0))) for p, q in low]
    tile = jnp.stack(moved, 3)
    pieces = [
        tile[i * steps[0] :, j * steps[1] :][:rows, :columns].reshape(-1, r * r * features)
        for i, rows in _cells(t, steps[0])
        for j, columns in _cells(u, steps[1])
    ]
    return jnp.concatenate(pieces)


def _cells(side: int, step: int) -> Iterator[tuple[int, int]]:
    """The cells that a tile covers along one axis, and how much of each: side 5, step 2 give (0, 2) (1, 2) (2, 1)."""
    return ((i, min(step, side - i * step)) for i in range(-(-side // step)))
