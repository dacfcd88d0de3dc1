"""Layers as U diag(|s|) V, trained in that form: orthogonality and sparsity of s make a layer of low rank.

    params = factorize(network.params)                      # every kernel a Factors(u, s, v), the same function
    forward = factored(network.forward)                     # of factored parameters
    tx = optax.chain(penalty_gradient(orthogonality, 1.0), penalty_gradient(hoyer, 0.1), optimizer)
    small = compact(truncate(params, energy=1e-4))          # fewer singular values: two thin layers each

A dense kernel is (input, rank), (rank, output). A convolution is split by channels into one of its size with ``rank``
filters and a 1x1 one, or spatially into a column of pixels and a row: (h, 1, input, rank), (1, w, rank, output).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rvsm_jax.groups import weights
from rvsm_jax.precision import at_least_float32
from rvsm_jax.proximal import Where, kernels, selected

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Factors(NamedTuple):
    """A kernel U diag(|s|) V.

    Attributes:
      u: (..., input, rank), as the kernel of the first of two layers.
      s: (rank,).
      v: (..., rank, output), as the kernel of the second.
    """

    u: jax.Array
    s: jax.Array
    v: jax.Array


def decompose(kernel: jax.Array, *, spatial: bool = False) -> Factors:
    """kernel = U diag(s) V by singular value decomposition, at full rank.

    Args:
      kernel: (input, output) or (height, width, input, output).
      spatial: split a convolution into h x 1 and 1 x w instead of h x w and 1 x 1.

    Returns:
      The factors, U with orthonormal columns and V with orthonormal rows, in the kernel's dtype.

    Raises:
      ValueError: if the kernel is of another rank, or spatial and not a convolution's.

    References:
      Yang et al., arXiv:2004.09031, section 3.1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rvsm_jax.factors import decompose
      >>> [x.shape for x in decompose(jnp.ones((3, 3, 4, 8)))]
      [(3, 3, 4, 8), (8,), (1, 1, 8, 8)]
      >>> [x.shape for x in decompose(jnp.ones((3, 3, 4, 8)), spatial=True)]
      [(3, 1, 4, 12), (12,), (1, 3, 12, 8)]
    """
    if kernel.ndim not in (2, 4) or (spatial and kernel.ndim == 2):
        raise ValueError(f"a kernel of rank {'4' if spatial else '2 or 4'} is wanted, got one of shape {kernel.shape}")
    *size, i, o = kernel.shape
    h, w = size or (1, 1)
    x = kernel.astype(at_least_float32(kernel.dtype)).reshape(h, w, i, o)
    if spatial:
        u, s, v = jnp.linalg.svd(x.transpose(0, 2, 1, 3).reshape(h * i, w * o), full_matrices=False)
        u, v = u.reshape(h, 1, i, -1), v.reshape(1, -1, w, o).transpose(0, 2, 1, 3)
    else:
        u, s, v = jnp.linalg.svd(x.reshape(-1, o), full_matrices=False)
        u, v = u.reshape(*kernel.shape[:-1], -1), v.reshape(*(1 for _ in size), -1, o)
    return Factors(*(y.astype(kernel.dtype) for y in (u, s, v)))


def factorize(params: chex.ArrayTree, *, spatial: bool = False, where: Where = kernels) -> chex.ArrayTree:
    """The same network with Factors in the place of kernels: each kernel decomposed.

    Args:
      params: a tree of arrays.
      spatial: how convolutions are split.
      where: which leaves; dense kernels have one way to be split.

    Returns:
      The tree.

    Raises:
      ValueError: if where selects nothing, or a leaf that is not of rank 2 or 4.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.factors import factorize
      >>> factorize({"kernel": jnp.eye(3)})["kernel"].s
      Array([1., 1., 1.], dtype=float32)
    """
    places, _, leaves = selected(params, where)
    for i in places:
        leaves[i] = decompose(leaves[i], spatial=spatial and leaves[i].ndim == 4)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def merge(params: chex.ArrayTree) -> chex.ArrayTree:
    """U diag(|s|) V in the place of every Factors: the tree of the original kernels' shapes.

    Args:
      params: a tree with Factors in it.

    Returns:
      A tree of arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.factors import factorize, merge
      >>> merge(factorize({"kernel": jnp.eye(2)}))["kernel"]
      Array([[1., 0.],
             [0., 1.]], dtype=float32)
    """
    return jax.tree.map(lambda x: _product(x) if isinstance(x, Factors) else x, params, is_leaf=_is_factors)


def factored(forward: Callable[..., Any]) -> Callable[..., Any]:
    """forward(merge(params), ...): a network's forward function, of factored parameters.

    Args:
      forward: a function whose first argument is the parameters.

    Returns:
      Such a function. While the rank is full, one product of factors a step is cheaper than two layers in each pass.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.factors import factored, factorize
      >>> factored(lambda w, x: x @ w)(factorize({"kernel": 2 * jnp.eye(2)})["kernel"], jnp.ones(2))
      Array([2., 2.], dtype=float32)
    """
    return lambda params, *rest: forward(merge(params), *rest)


def apply(factors: Factors, x: jax.Array, *, strides: tuple[int, int] = (1, 1), padding: str = "SAME") -> jax.Array:
    """x (U diag(|s|)^(1/2)) (diag(|s|)^(1/2) V): the layer as two thin ones.

    Args:
      factors: of a dense kernel or a convolution's.
      x: (..., input), or images (batch, height, width, input).
      strides: of the convolution.
      padding: of the convolution, "SAME" or "VALID".

    Returns:
      What the layer with the merged kernel gives, without a bias.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.factors import apply, decompose
      >>> factors = decompose(jnp.ones((3, 3, 2, 4)), spatial=True)
      >>> apply(factors, jnp.ones((1, 5, 5, 2)), padding="VALID")[0, 0, 0].round(3)
      Array([18., 18., 18., 18.], dtype=float32)
    """
    root = jnp.sqrt(_magnitudes(factors.s))
    first, second = _scaled(factors.u, root), _scaled(factors.v.mT, root).mT
    if factors.u.ndim == 2:
        return x @ first @ second
    inner, outer = ((strides[0], 1), (1, strides[1])) if factors.v.shape[1] > 1 else (strides, (1, 1))
    y = lax.conv_general_dilated(x, first, inner, padding, dimension_numbers=DIMENSIONS)
    return lax.conv_general_dilated(y, second, outer, padding, dimension_numbers=DIMENSIONS)


def orthogonality(params: chex.ArrayTree) -> jax.Array:
    """sum over layers of (|U^T U - I|^2 + |V V^T - I|^2) / r^2, r the rank.

    Args:
      params: a tree with Factors in it.

    Returns:
      A scalar.

    References:
      Yang et al., arXiv:2004.09031, eq. (2).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.factors import Factors, orthogonality
      >>> print(orthogonality(Factors(jnp.eye(2), jnp.ones(2), 2 * jnp.eye(2))))
      4.5
    """
    return _sum(_departure(x.u.reshape(-1, x.s.size)) + _departure(_columns(x.v)) for x in _factors(params))


def hoyer(params: chex.ArrayTree) -> jax.Array:
    """sum over layers of |s|_1 / |s|_2 - 1: 0 at rank one, whatever the scale.

    Args:
      params: a tree with Factors in it.

    Returns:
      A scalar; a layer whose s is zero counts as 0, with gradient 0.

    References:
      Yang et al., arXiv:2004.09031, section 3.2.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.factors import Factors, hoyer
      >>> print(hoyer(Factors(jnp.eye(4), jnp.ones(4), jnp.eye(4))))
      1.0
    """

    def of(s):
        square = jnp.sum(s * s)
        return jnp.where(square == 0, 0, jnp.sum(_magnitudes(s)) / jnp.sqrt(jnp.where(square == 0, 1, square)) - 1)

    return _sum(of(x.s) for x in _factors(params))


def truncate(params: chex.ArrayTree, energy: float) -> chex.ArrayTree:
    """s with its smallest values at zero: the fewest kept that hold (1 - energy) of sum s^2.

    Args:
      params: a tree with Factors in it.
      energy: the share of each layer's sum of squares that may go, in [0, 1].

    Returns:
      The tree, of the same shapes; at least one value of a layer that is not zero is kept unless energy is 1.

    Raises:
      ValueError: if energy is not in [0, 1].

    References:
      Yang et al., arXiv:2004.09031, section 3.3.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.factors import Factors, truncate
      >>> print(truncate(Factors(jnp.eye(3), jnp.array([3.0, 0.1, -2.0]), jnp.eye(3)), 0.01).s)
      [ 3.  0. -2.]
    """
    if not 0 <= energy <= 1:
        raise ValueError(f"energy must be in [0, 1], got {energy}")

    def kept(x):
        if not isinstance(x, Factors):
            return x
        order = jnp.argsort(-_magnitudes(x.s))
        square = jnp.square(x.s.astype(at_least_float32(x.s.dtype)))[order]
        left = jnp.cumsum(square[::-1])[::-1]  # what goes if this value and all smaller ones do
        keep = (left > energy * left[0])[jnp.argsort(order)]
        return x._replace(s=jnp.where(keep, x.s, 0))

    return jax.tree.map(kept, params, is_leaf=_is_factors)


def compact(params: chex.ArrayTree) -> chex.ArrayTree:
    """The same functions without the columns of U and rows of V whose s is zero.

    Args:
      params: a tree with Factors in it; not under ``jit``, since shapes depend on values.

    Returns:
      The tree, with smaller Factors; a layer of rank zero keeps one value.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.factors import Factors, compact
      >>> [x.shape for x in compact(Factors(jnp.eye(3), jnp.array([3.0, 0.0, 2.0]), jnp.eye(3)))]
      [(3, 2), (2,), (2, 3)]
    """

    def small(x):
        if not isinstance(x, Factors):
            return x
        kept = np.flatnonzero(x.s) if np.any(x.s) else np.array([0])
        return Factors(x.u[..., kept], x.s[kept], x.v[..., kept, :])

    return jax.tree.map(small, params, is_leaf=_is_factors)


def _product(x: Factors) -> jax.Array:
    return jnp.matmul(_scaled(x.u, _magnitudes(x.s)), x.v, precision="highest")


def _scaled(u, s):
    """U diag(s)."""
    return u * jnp.expand_dims(s, range(u.ndim - 1))


def _magnitudes(s):
    return weights(s)[0]  # the gradient of |s| at 0 is 0


def _factors(params) -> list[Factors]:
    return [x for x in jax.tree.leaves(params, is_leaf=_is_factors) if isinstance(x, Factors)]


def _is_factors(x) -> bool:
    return isinstance(x, Factors)


def _columns(v):
    """V^T as a matrix of r columns."""
    return jnp.moveaxis(v, -2, -1).reshape(-1, v.shape[-2])


def _departure(a):
    gram = jnp.matmul(a.T, a, precision="highest")
    return jnp.square(gram - jnp.eye(len(gram), dtype=gram.dtype)).sum() / len(gram) ** 2


def _sum(terms) -> jax.Array:
    found = list(terms)
    if not found:
        raise ValueError("params hold no Factors: make them with factorize(params)")
    return sum(found[1:], start=found[0])
