"""Kernels with zeros in them, kept without most of these: layers that are dense products of gathered inputs.

    layer = gathered(kernel, rows=16)      # for every 16 outputs the inputs that any of them reads
    y = apply(layer, x, padding="SAME")    # of images; of a dense layer apply(layer, x)
    layer = narrowed(kernel)               # without filters and channels that are zero as a whole

The matrix of a kernel (..., input, output) has P outputs and Q weights of each. ``gathered`` cuts the outputs into
bands of ``rows``: a band is one dense product with the columns that are not zero in all of it. One band suits whole
columns, a few outputs a band suit blocks, and ``rows=1`` single zeros. A convolution copies one plane of its images
for every column, one after the other: that is made for CPUs. Whether it is faster than the dense layer is to be
measured: experiments/bench_structures.py does, for each structure and share of zeros.

Shapes: B images, H x W pixels; N outputs' places, B for a dense layer and B H' W' for a convolution.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

NHWC = ("NHWC", "HWIO", "NHWC")
CACHED = 2**24  # bytes of gathered inputs at once: beyond that a CPU is slower than in chunks of the batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gathered:
    """A kernel as bands of outputs, each with the columns it reads.

    Attributes:
      columns: int32 (bands, K), which of the Q weights of an output, in the kernel's order.
      values: (bands, K, rows).
      outputs: int32 (P,), where in the bands each output is, bands x rows where it is zero; None: in order, none zero.
      shape: the kernel's.
    """

    columns: jax.Array
    values: jax.Array
    outputs: jax.Array | None
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Narrowed:
    """A kernel without the input and output channels that are zero.

    Attributes:
      inputs: int32 (i,), the channels that it reads.
      outputs: int32 (P,), where among its outputs each output is, o where it is zero; None: none is zero.
      kernel: (..., i, o).
      channels: how many inputs there are.
    """

    inputs: jax.Array
    outputs: jax.Array | None
    kernel: jax.Array
    channels: int = dataclasses.field(metadata={"static": True})


def gathered(kernel: jax.Array, rows: int | None = None) -> Gathered:
    """W x = for each band of outputs W[band, columns] x[columns], columns those that are not zero in all of the band.

    Args:
      kernel: (input, output) or (height, width, input, output), with zeros; not under ``jit``, since shapes depend on
        values.
      rows: outputs in a band; None: all, one band.

    Returns:
      The layer, for ``apply``. Outputs that are zero are left out, and every band has as many columns as the fullest.

    Raises:
      ValueError: if the kernel is of another rank, or rows not an int >= 1.

    References:
      Niu et al., arXiv:2108.11033 (GRIM): compact storage of block-pruned kernels.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.layouts import apply, gathered
      >>> kernel = jnp.array([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]])
      >>> layer = gathered(kernel, rows=2)
      >>> layer.columns.tolist()
      [[0], [2]]
      >>> print(apply(layer, jnp.array([[10.0, 20.0, 30.0]])))
      [[10. 20. 90.  0.]]
    """
    _require_kernel(kernel)
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise ValueError(f"rows must be an int >= 1, or None, got {rows!r}")
    matrix = np.asarray(kernel).reshape(-1, kernel.shape[-1])
    kept = _not_zero(matrix, -1)
    rows = min(rows or kept.size, kept.size)
    padded = np.pad(matrix[:, kept], ((0, 0), (0, -kept.size % rows)))
    bands = padded.reshape(len(matrix), -1, rows).swapaxes(0, 1)
    used = (bands != 0).any(-1)
    columns = np.argsort(~used, axis=1, kind="stable")[:, : max(1, used.sum(1).max())]
    values = np.take_along_axis(bands, columns[:, :, None], 1)
    places = _places(kept, kernel.shape[-1], bands.shape[0] * rows)
    return Gathered(jnp.asarray(columns, jnp.int32), jnp.asarray(values), places, kernel.shape)


def narrowed(kernel: jax.Array) -> Narrowed:
    """W x = W[outputs, inputs] x[inputs], without the channels that are zero in W as a whole.

    In a network such channels go for good with ``rvsm_jax.shrink``, which needs neither the gather nor the zeros put
    back; this is for a layer whose neighbours keep theirs.

    Args:
      kernel: as of ``gathered``.

    Returns:
      The layer, for ``apply``. Of a kernel that is zero one channel is kept.

    Raises:
      ValueError: if the kernel is of another rank.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.layouts import apply, narrowed
      >>> layer = narrowed(jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]))
      >>> layer.kernel.shape
      (1, 2)
      >>> print(apply(layer, jnp.array([[10.0, 20.0]])))
      [[10.  0. 20.]]
    """
    _require_kernel(kernel)
    x = np.asarray(kernel)
    inputs, kept = _not_zero(x, -2), _not_zero(x, -1)
    small = jnp.asarray(x[..., inputs, :][..., kept])
    return Narrowed(jnp.asarray(inputs, jnp.int32), _places(kept, x.shape[-1], kept.size), small, x.shape[-2])


def apply(
    layer: Gathered | Narrowed, x: jax.Array, *, strides: tuple[int, int] = (1, 1), padding: str = "SAME"
) -> jax.Array:
    """What the dense layer gives, without a bias.

    Args:
      layer: from ``gathered`` or ``narrowed``.
      x: (..., input), or images (B, H, W, input).
      strides: of the convolution.
      padding: of the convolution, "SAME" or "VALID".

    Returns:
      (..., P), or images (B, H', W', P).

    Raises:
      ValueError: if x has not the kernel's inputs, or is no batch of images for a convolution.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.layouts import apply, gathered
      >>> apply(gathered(jnp.ones((3, 3, 2, 4))), jnp.ones((1, 5, 5, 2)), padding="VALID")[0, 0, 0]
      Array([18., 18., 18., 18.], dtype=float32)
    """
    if isinstance(layer, Narrowed):
        _require_inputs(x, layer.kernel.ndim, layer.channels)
        few = x if layer.inputs.size == layer.channels else jnp.take(x, layer.inputs, axis=-1)
        y = few @ layer.kernel if layer.kernel.ndim == 2 else _convolved(few, layer, strides, padding)
        return _placed(y, layer.outputs, layer.kernel.shape[-1], -1)
    _require_inputs(x, len(layer.shape), layer.shape[-2])
    if len(layer.shape) == 2:
        y = _placed(_bands(layer, x.reshape(-1, x.shape[-1]).T[layer.columns]), layer.outputs, layer.shape[-1], 0)
        return y.T.reshape(*x.shape[:-1], -1)
    convolve = functools.partial(_windows_product, layer, strides=strides, padding=padding)
    places = math.prod(jax.eval_shape(convolve, x[:1]).shape[1:3])
    count = _images_at_once(len(x), layer.columns.size * places * x.dtype.itemsize)
    if count == len(x):
        return convolve(x)
    y = lax.map(convolve, x.reshape(-1, count, *x.shape[1:]))
    return y.reshape(len(x), *y.shape[2:])


def _bands(layer: Gathered, inputs: jax.Array) -> jax.Array:
    """Inputs (bands, K, N) to (bands rows, N)."""
    y = jnp.einsum("bkn,bkr->brn", inputs, layer.values)
    return y.reshape(-1, inputs.shape[-1])


def _windows_product(layer: Gathered, x: jax.Array, *, strides: tuple[int, int], padding: str) -> jax.Array:
    """The convolution of a few images: a copy of the image's plane for every column, then the bands."""
    height, width, channels, _ = layer.shape
    pads = lax.padtype_to_pads(x.shape[1:3], (height, width), strides, padding)
    planes = jnp.pad(x.transpose(3, 0, 1, 2), ((0, 0), (0, 0), *pads))
    spans = [n - k + 1 for n, k in zip(planes.shape[2:], (height, width), strict=True)]
    size = (1, len(x), *spans)

    def plane(column: jax.Array) -> jax.Array:
        row, rest = jnp.divmod(column, width * channels)
        start = (rest % channels, jnp.int32(0), row, rest // channels)
        return lax.dynamic_slice(planes, start, size)[0, :, :: strides[0], :: strides[1]]

    copies = lax.map(plane, layer.columns.ravel())
    y = _placed(_bands(layer, copies.reshape(*layer.columns.shape, -1)), layer.outputs, layer.shape[-1], 0)
    return y.reshape(-1, *copies.shape[1:]).transpose(1, 2, 3, 0)


def _images_at_once(batch: int, bytes_each: int) -> int:
    """The largest divisor of the batch whose gathered inputs stay in a CPU's cache; elsewhere the whole batch."""
    if jax.default_backend() != "cpu":
        return batch
    fitting = (n for n in range(batch, 0, -1) if batch % n == 0 and n * bytes_each <= CACHED)
    return next(fitting, 1)


def _convolved(x: jax.Array, layer: Narrowed, strides: tuple[int, int], padding: str) -> jax.Array:
    return lax.conv_general_dilated(x, layer.kernel, strides, padding, dimension_numbers=NHWC)


def _placed(y: jax.Array, outputs: jax.Array | None, count: int, axis: int) -> jax.Array:
    """y with its outputs in their places along an axis, and zeros where there is none."""
    if outputs is None:
        return lax.slice_in_dim(y, 0, count, axis=axis)
    return jnp.take(y, outputs, axis=axis, mode="fill", fill_value=0)


def _places(kept: np.ndarray, count: int, zero: int) -> jax.Array | None:
    """Where each of so many outputs is among those that are kept, ``zero`` where it is not; None if all are."""
    places = np.full(count, zero, np.int32)
    places[kept] = np.arange(kept.size)
    return None if kept.size == count else jnp.asarray(places)


def _not_zero(x: np.ndarray, axis: int) -> np.ndarray:
    """The places along an axis where x is not zero as a whole, or the first one."""
    kept = np.flatnonzero((np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) != 0).any(1))
    return kept if kept.size else np.array([0])


def _require_kernel(kernel: jax.Array) -> None:
    if np.ndim(kernel) not in (2, 4):
        raise ValueError(f"a kernel of rank 2 or 4 is wanted, got one of shape {np.shape(kernel)}")


def _require_inputs(x: jax.Array, rank: int, inputs: int) -> None:
    if (rank == 4 and x.ndim != 4) or x.ndim == 0 or x.shape[-1] != inputs:
        wanted = "images (B, H, W, input)" if rank == 4 else "(..., input)"
        raise ValueError(f"x must be {wanted} with input = {inputs}, got shape {x.shape}")
