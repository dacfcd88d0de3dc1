"""Groups of a kernel that is read as the matrix of its product: its blocks, and its singular values.

A kernel (..., input, output) is the matrix of P outputs (rows) by Q weights of one output (columns, in the order of the
kernel's axes): the matrix that a convolution multiplies patches by.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from rvsm_jax.groups import GroupError, Groups, Rebuild, over, weights
from rvsm_jax.precision import at_least_float32
from rvsm_jax.sharded import placed_like, whole

INSIDE: dict[str, Groups] = {"weights": weights, "rows": over(-1), "columns": over(-2), "blocks": over(-2, -1)}
SQUEEZED = {"weights": (), "rows": (-1,), "columns": (-2,), "blocks": (-2, -1)}


@functools.cache
def blocks(rows: int, columns: int, by: Literal["rows", "columns", "blocks", "weights"] = "blocks") -> Groups:
    """m = |x_g|_2 over the rows or the columns of each rows x columns block of the kernel's matrix, or whole blocks.

    ``top_k(0.5)`` of these ranks all blocks of a kernel together, ``top_k(0.5, axis=-1)`` keeps half of the rows or
    columns of every block, and ``submatrix(0.5, 0.5)`` by weights prunes rows and columns of a block at once.

    Args:
      rows: outputs in a block.
      columns: weights of an output in a block. A block larger than the matrix is the whole of it; a ragged edge is
        filled up with zeros, which count as groups.
      by: what is a group.

    Returns:
      The groups: a map from a kernel to magnitudes of shape (I, J), and behind these (rows,), (columns,) or
      (rows, columns), for I x J blocks, and the way back.

    Raises:
      ValueError: if rows or columns is not an int >= 1, or by none of the four; when used: a tensor of rank below 2.

    References:
      Niu et al., arXiv:2108.11033 (GRIM).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import blocks
      >>> [blocks(2, 4, by)(jnp.ones((3, 3, 2, 8)))[0].shape for by in ("rows", "columns", "blocks")]
      [(4, 5, 2), (4, 5, 4), (4, 5)]
    """
    for name, value in {"rows": rows, "columns": columns}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an int >= 1, got {value!r}")
    if by not in INSIDE:
        raise ValueError(f"by must be one of {', '.join(map(repr, INSIDE))}, got {by!r}")

    def groups(x):
        tiles, untiled = _tiled(x, rows, columns)
        m, rebuild = INSIDE[by](tiles)
        return jnp.squeeze(m, SQUEEZED[by]), lambda z: untiled(rebuild(jnp.expand_dims(z, SQUEEZED[by])))

    return groups


def spectrum(x: jax.Array) -> tuple[jax.Array, Rebuild]:
    """m = singular values of the (height width input) x output matrix: ``l1`` of them is the nuclear norm.

    A proximal map of a unitarily invariant penalty acts on singular values alone: prox(U diag(m) V) = U diag(z) V. It
    costs a decomposition of every kernel each time it is applied.

    Args:
      x: a kernel of rank >= 2.

    Returns:
      Singular values, the largest first, shape (min(Q, P),), and the way back. Where a value is zero its gradient is
      taken to be zero.

    Raises:
      ValueError: if x has rank below 2.

    References:
      Cai, Candes and Shen, arXiv:0810.3286, theorem 2.1 (singular value thresholding).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import spectrum
      >>> magnitudes, rebuild = spectrum(jnp.diag(jnp.array([3.0, -1.0])))
      >>> print(magnitudes, rebuild(magnitudes - 1).tolist())
      [3. 1.] [[2.0, 0.0], [0.0, 0.0]]
    """
    if x.ndim < 2:
        raise GroupError(f"spectrum is of a kernel of rank 2 or more, got a tensor of shape {x.shape}")
    return _spectral(x, lambda x: x.reshape(-1, x.shape[-1]), lambda a: a.reshape(x.shape))


def spatial_spectrum(x: jax.Array) -> tuple[jax.Array, Rebuild]:
    """m = singular values of the (height input) x (width output) matrix: low rank is two convolutions, h x 1 and 1 x w.

    Args:
      x: a convolution kernel (height, width, input, output).

    Returns:
      As ``spectrum``.

    Raises:
      ValueError: if x is not of rank 4.

    References:
      Yang et al., arXiv:2004.09031, section 3.1 (spatial-wise decomposition).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import spatial_spectrum
      >>> spatial_spectrum(jnp.ones((3, 3, 4, 8)))[0].shape
      (12,)
    """
    if x.ndim != 4:
        raise GroupError(f"spatial_spectrum is of a convolution kernel of rank 4, got a tensor of shape {x.shape}")
    h, w, i, o = x.shape

    def matrix(x):
        return x.transpose(0, 2, 1, 3).reshape(h * i, w * o)

    return _spectral(x, matrix, lambda a: a.reshape(h, i, w, o).transpose(0, 2, 1, 3))


def _spectral(x, matrix: Callable[[jax.Array], jax.Array], kernel: Callable[[jax.Array], jax.Array]):
    a = matrix(whole(x)).astype(at_least_float32(x.dtype))
    fixed = lax.stop_gradient(a)
    u, s, v = jnp.linalg.svd(fixed, full_matrices=False)
    positive = s > jnp.finfo(s.dtype).eps * max(a.shape) * s[:1]
    m = s + jnp.where(positive, ((u.mT @ (a - fixed)) * v).sum(-1), 0)  # d s_i = u_i . (d a) v_i

    def rebuild(z):
        return placed_like(kernel((u * z.astype(s.dtype)[None, :]) @ v).astype(x.dtype), x)

    return m, rebuild


def _tiled(x: jax.Array, rows: int, columns: int) -> tuple[jax.Array, Rebuild]:
    """The blocks of the matrix (I, J, rows, columns), and the way back from such blocks."""
    if x.ndim < 2:
        raise GroupError(f"blocks are of a kernel of rank 2 or more, got a tensor of shape {x.shape}")
    matrix = whole(x).reshape(-1, x.shape[-1]).T
    tall, wide = matrix.shape
    rows, columns = min(rows, tall), min(columns, wide)
    padded = jnp.pad(matrix, ((0, -tall % rows), (0, -wide % columns)))
    split = (padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)

    def untiled(tiles):
        return placed_like(tiles.swapaxes(1, 2).reshape(padded.shape)[:tall, :wide].T.reshape(x.shape), x)

    return padded.reshape(split).swapaxes(1, 2), untiled
