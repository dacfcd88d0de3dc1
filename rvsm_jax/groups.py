"""How a tensor is read as groups of weights: its groups' magnitudes, and the way back.

    groups(x) = (m, rebuild),   m_g = |x_g|_2,   rebuild(z)_g = (z_g / m_g) x_g

Group penalties are radial: argmin_y 1/2 |y - x|^2 + t sum_g rho(|y_g|) = rebuild(prox(m, t)) for groups that do not
overlap, so a penalty only ever acts on magnitudes. A group of norm zero stays zero, and the gradient of its norm is 0.

The named groups read Flax kernels: a convolution is (height, width, input, output), a dense layer (input, output). For
other layouts say the axes: ``over(1, 2, 3)`` are the filters of an (output, input, height, width) kernel.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from rvsm_jax.precision import at_least_float32

Rebuild = Callable[[jax.Array], jax.Array]
Groups = Callable[[jax.Array], tuple[jax.Array, Rebuild]]


class GroupError(ValueError):
    """A tensor does not have the axes that its groups need."""


def weights(x: jax.Array) -> tuple[jax.Array, Rebuild]:
    """m_i = |x_i|: every weight is a group of its own.

    Args:
      x: any tensor.

    Returns:
      Magnitudes of x's shape, and the map from new magnitudes to a tensor with x's signs.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import weights
      >>> magnitudes, rebuild = weights(jnp.array([3.0, -4.0]))
      >>> print(rebuild(magnitudes - 1))
      [ 2. -3.]
    """

    def rebuild(z):
        return jnp.where(z == 0, 0, jnp.copysign(z.astype(x.dtype), x))

    return _magnitude(x), rebuild


@jax.custom_jvp
def _magnitude(x):
    """|x|, with derivative 0 at 0, where that of jnp.abs is 1."""
    return jnp.abs(x)


_magnitude.defjvps(lambda slope, _, x: slope * jnp.sign(x))


@functools.cache
def over(*axes: int) -> Groups:
    """m = |x|_2 over the given axes: two weights are in one group if they differ in these coordinates alone.

    Args:
      *axes: the axes a group spans, from the front (>= 0) or from the back (< 0).

    Returns:
      The groups: a map from a tensor to its magnitudes, whose reduced axes have size 1, and the way back.

    Raises:
      ValueError: if no axis is given, or one is given twice; and, when used, if a tensor lacks one of the axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import over
      >>> magnitudes, rebuild = over(0)(jnp.array([[3.0, 0.0], [4.0, 0.0]]))
      >>> print(magnitudes)
      [[5. 0.]]
      >>> print(rebuild(magnitudes / 5))
      [[0.6 0. ]
       [0.8 0. ]]
    """
    if not axes or any(isinstance(axis, bool) or not isinstance(axis, int) for axis in axes):
        raise ValueError(f"over(...) wants one or more axes as integers, got {axes}")
    if len(set(axes)) < len(axes):
        raise ValueError(f"over(...) wants different axes, got {axes}")
    return lambda x: _spanning(x, axes)


def filters(x: jax.Array) -> tuple[jax.Array, Rebuild]:
    """m_o = |x[..., o]|_2: the weights that make one output channel (or unit).

    Args:
      x: a kernel of rank >= 2 whose last axis is the output.

    Returns:
      Magnitudes of shape (1, ..., 1, output), and the way back.

    Raises:
      ValueError: if x has rank below 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import filters
      >>> filters(jnp.ones((5, 5, 4, 8)))[0].shape
      (1, 1, 1, 8)
    """
    return _spanning(x, _all_axes_but(x, -1, "filters"))


def channels(x: jax.Array) -> tuple[jax.Array, Rebuild]:
    """m_i = |x[..., i, :]|_2: the weights that read one input channel (or unit).

    Args:
      x: a kernel of rank >= 2 whose last but one axis is the input.

    Returns:
      Magnitudes of shape (1, ..., input, 1), and the way back.

    Raises:
      ValueError: if x has rank below 2.

    References:
      Dinh, Wang, Bertozzi, Osher and Xin, arXiv:2003.00631: the groups of RGSM.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import channels
      >>> channels(jnp.ones((5, 5, 4, 8)))[0].shape
      (1, 1, 4, 1)
    """
    return _spanning(x, _all_axes_but(x, -2, "channels"))


def shapes(x: jax.Array) -> tuple[jax.Array, Rebuild]:
    """m_(h,w,i) = |x[h, w, i, :]|_2: the weights at one position of every filter, a column of the matrix product.

    Args:
      x: a kernel of rank >= 2 whose last axis is the output.

    Returns:
      Magnitudes of shape (..., input, 1), and the way back.

    Raises:
      ValueError: if x has rank below 2.

    References:
      Wen, Wu, Wang, Chen and Li, arXiv:1608.03665, section 3.2 (shape-wise groups).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import shapes
      >>> shapes(jnp.ones((5, 5, 4, 8)))[0].shape
      (5, 5, 4, 1)
    """
    _all_axes_but(x, -1, "shapes")
    return _spanning(x, (-1,))


def layers(x: jax.Array) -> tuple[jax.Array, Rebuild]:
    """m = |x|_2: the whole tensor is one group.

    Args:
      x: any tensor.

    Returns:
      One magnitude, of shape (1, ..., 1), and the way back.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax import layers
      >>> print(layers(jnp.array([[3.0, 4.0]]))[0])
      [[5.]]
    """
    return _spanning(x, tuple(range(x.ndim)))


def _spanning(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, Rebuild]:
    if any(not -x.ndim <= axis < x.ndim for axis in axes):
        raise GroupError(f"groups over axes {axes} want a tensor that has them, got one of shape {x.shape}")
    if len({axis % x.ndim for axis in axes}) < len(axes):
        raise GroupError(f"axes {axes} name one axis twice on a tensor of shape {x.shape}")
    m = _norm(x, axes)

    def rebuild(z):
        return x * jnp.where(m == 0, 0, z.astype(m.dtype) / jnp.where(m == 0, 1, m)).astype(x.dtype)

    return m, rebuild


def _norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """|x|_2 over axes, kept as axes of size 1, in float32 or wider; its gradient at zero is zero.

    Groups are scaled by their largest weight, so that no square over- or underflows.
    """
    x = x.astype(at_least_float32(x.dtype))
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axes, keepdims=True))
    zero = largest == 0
    square = jnp.sum(jnp.square(x / jnp.where(zero, 1, largest)), axis=axes, keepdims=True)
    return jnp.where(zero, 0, largest * jnp.sqrt(jnp.where(zero, 1, square)))


def _all_axes_but(x: jax.Array, axis: int, name: str) -> tuple[int, ...]:
    if x.ndim < 2:
        raise GroupError(f"{name} are groups of a kernel of rank 2 or more, got a tensor of shape {x.shape}")
    return tuple(i for i in range(x.ndim) if i != x.ndim + axis)
