"""Penalty x groups -> an operator on a whole tree of parameters.

    u = argmin_u  1/2 |u - w|^2 + t sum_leaves P(|u_g|)

and, where channels are coupled over several leaves, the same with a sum over families of channels.

The operator maps trees, not leaves, so that ranking all layers together is the same code as ranking each by itself. It
touches the leaves that ``where`` selects and hands the others through as they are.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.coupled import Coupled, Rescale
from rvsm_jax.groups import Groups, over, weights
from rvsm_jax.penalties import Penalty
from rvsm_jax.precision import at_least_float32
from rvsm_jax.sharded import placed_like, whole

Where = Callable[[str, Any], bool]
Prox = Callable[[chex.ArrayTree, float | jax.Array], chex.ArrayTree]
NOT_KERNELS = frozenset({"bias", "scale", "embedding"})


def kernels(path: str, leaf: Any) -> bool:
    """True for convolution and dense kernels: rank >= 2, and not named bias, scale or embedding.

    Args:
      path: the leaf's path, such as ``"conv1/kernel"``.
      leaf: the leaf.

    Returns:
      Whether it is a kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.proximal import kernels
      >>> kernels("conv1/kernel", jnp.ones((5, 5, 1, 20))), kernels("conv1/bias", jnp.ones(20))
      (True, False)
    """
    return getattr(leaf, "ndim", 0) >= 2 and not NOT_KERNELS.intersection(path.split("/")[-2:])


def convolutions(path: str, leaf: Any) -> bool:
    """True for convolution kernels alone: what the published runs of RVSM and RGSM make sparse.

    Args:
      path: the leaf's path.
      leaf: the leaf.

    Returns:
      Whether it is a kernel of rank >= 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.proximal import convolutions
      >>> convolutions("conv1/kernel", jnp.ones((5, 5, 1, 20))), convolutions("dense1/kernel", jnp.ones((8, 2)))
      (True, False)
    """
    return kernels(path, leaf) and leaf.ndim >= 3


@dataclasses.dataclass(frozen=True)
class ProximalOperator:
    """u = argmin_u 1/2 |u - w|^2 + t P(u) on a tree of parameters; made by ``proximal_operator``."""

    penalty: Penalty
    groups: Groups | Coupled
    where: Where
    joint: bool = False
    by_size: bool = False

    def __call__(self, params: chex.ArrayTree, strength: float | jax.Array) -> chex.ArrayTree:
        """Maps params to their proximal point at the given strength t >= 0."""
        require_strength("strength", strength)
        chosen, paths, leaves = selected(params, self.where)
        found = _prox(self, tuple(paths[i] for i in chosen), strength, [leaves[i] for i in chosen])
        for i, leaf in zip(chosen, found, strict=True):
            leaves[i] = leaf
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    def value(self, params: chex.ArrayTree) -> jax.Array:
        """P(params): the sum of the penalty over the selected leaves."""
        chosen, paths, leaves = selected(params, self.where)
        return _value(self, tuple(paths[i] for i in chosen), [leaves[i] for i in chosen])

    def gradient(self, params: chex.ArrayTree) -> chex.ArrayTree:
        """A gradient of P at params, zero on the leaves not selected; 0 at a group of norm zero."""
        found = self.gradient_on_selected(params)
        return jax.tree.map(lambda w, g: jnp.zeros_like(w) if g is None else g, params, found)

    def gradient_on_selected(self, params: chex.ArrayTree) -> chex.ArrayTree:
        """A gradient of P at params, None on the leaves not selected; 0 at a group of norm zero."""
        chosen, paths, leaves = selected(params, self.where)
        gradient = _gradient(self, tuple(paths[i] for i in chosen), [leaves[i] for i in chosen])
        found = dict(zip(chosen, gradient, strict=True))
        return jax.tree.unflatten(jax.tree.structure(params), [found.get(i) for i in range(len(leaves))])


def proximal_operator(
    penalty: Penalty,
    groups: Groups | Coupled = weights,
    where: Where | None = None,
    *,
    joint: bool = False,
    by_size: bool = False,
) -> ProximalOperator:
    """u = argmin_u 1/2 |u - w|^2 + t sum_g rho(|u_g|): the sparse copy u of the weights w.

    Args:
      penalty: what shrinks.
      groups: what a group is; groups of one leaf must not overlap. Coupled channels that do are scaled by the map
        of every family they are in, which is then not the exact argmin: see `rvsm_jax.coupled`.
      where: ``where(path, leaf) -> bool`` selects leaves; default: convolution and dense kernels, or with coupled
        channels all leaves that they consist of.
      joint: hand the penalty the groups of all leaves at once, so that ``top_k`` ranks the whole network.
      by_size: weigh the penalty of each group by the root of its number of weights n_g: sum_g sqrt(n_g) rho(|u_g|).

    Returns:
      A pure, jitted function ``(params, strength) -> params`` on any tree of arrays. Its ``value(params)`` is the
      penalty and its ``gradient(params)`` the penalty's gradient. Leaves keep their dtypes.

    Raises:
      TypeError: penalty is not a Penalty, groups or where not a function; when used: a selected leaf not of floats.
      ValueError: joint and by_size together; when used: a strength that is negative or NaN (if it is not traced), a
        ``where`` that selects nothing, a leaf without a group's axis.

    References:
      Dinh and Xin, arXiv:1812.05719, Algorithm 1 (the update of u); Yuan and Lin, J. R. Stat. Soc. B 68 (2006), the
      group lasso and its weights.

    Example:
      >>> import jax.numpy as jnp
      >>> import rvsm_jax
      >>> prox = rvsm_jax.proximal_operator(rvsm_jax.l1())
      >>> print(prox({"kernel": jnp.array([[2.0, -0.5]]), "bias": jnp.array([0.1])}, 1.0))
      {'bias': Array([0.1], dtype=float32), 'kernel': Array([[1., 0.]], dtype=float32)}
    """
    if not isinstance(penalty, Penalty):
        raise TypeError(f"penalty must be a Penalty such as l0() or l1(), got {penalty!r}")
    if groups is over:
        raise TypeError("groups must be a function of a tensor such as over(-1), got over without its axes")
    if not isinstance(groups, Coupled):
        require_function("groups", groups)
    if where is None:
        where = groups.where if isinstance(groups, Coupled) else kernels
    require_function("where", where)
    if joint and by_size:
        raise ValueError(
            "want by_size (each group has its weight) or joint (the penalty has all groups at once), got both"
        )
    return ProximalOperator(penalty, groups, where, joint, by_size)


def in_turn(*operators: Prox) -> Prox:
    """u = P_n(... P_2(P_1(w, t), t) ..., t): operators one after the other, as one.

    Exact for operators on different leaves; on the same leaves, for penalties of nested groups such as l1 of weights
    and then of the groups that they are in.

    Args:
      *operators: functions ``(params, strength) -> params``.

    Returns:
      Such a function.

    Raises:
      TypeError: if an operator is not a function.

    Example:
      >>> import jax.numpy as jnp
      >>> import rvsm_jax
      >>> first, last = ((lambda path, leaf, name=name: path == name) for name in ("a", "b"))
      >>> one = rvsm_jax.proximal_operator(rvsm_jax.top_k(1), where=first)
      >>> none = rvsm_jax.proximal_operator(rvsm_jax.top_k(0), where=last)
      >>> rvsm_jax.in_turn(one, none)({"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}, 1.0)
      {'a': Array([0., 2.], dtype=float32), 'b': Array([0.], dtype=float32)}
    """
    for operator in operators:
        require_function("every operator", operator)
    return lambda params, strength: functools.reduce(lambda w, operator: operator(w, strength), operators, params)


def selected(params: chex.ArrayTree, where: Where) -> tuple[list[int], list[str], list[Any]]:
    """Which leaves of a tree ``where`` selects.

    Args:
      params: a tree of arrays.
      where: ``where(path, leaf) -> bool``.

    Returns:
      The places of the selected leaves, the paths of all leaves, and all leaves.

    Raises:
      ValueError: if there are leaves, and none of them is selected.
      TypeError: if a selected leaf is not an array of floats.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.proximal import kernels, selected
      >>> selected({"bias": jnp.ones(2), "kernel": jnp.ones((3, 2))}, kernels)[:2]
      ([1], ['bias', 'kernel'])
    """
    with_paths = jax.tree_util.tree_leaves_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in with_paths]
    leaves = [leaf for _, leaf in with_paths]
    chosen = [i for i, leaf in enumerate(leaves) if where(paths[i], leaf)]
    if leaves and not chosen:
        raise ValueError(f"where must select at least one leaf, it selects none of {paths}")
    for i in chosen:
        kind = getattr(leaves[i], "dtype", type(leaves[i]))
        if not jnp.issubdtype(kind, jnp.floating):
            raise TypeError(f"where must select arrays of floats, it selects {paths[i]!r} of dtype {kind}")
    return chosen, paths, leaves


def require_strength(name: str, value: Any, *, positive: bool = False) -> None:
    """Refuses a strength that is not one number >= 0 (> 0 if positive); a traced one cannot be looked at.

    Args:
      name: what the strength is called, for the error.
      value: the strength.
      positive: whether 0 is refused too.

    Raises:
      TypeError: if value is not one real number.
      ValueError: if it is negative or NaN, or 0 where it must be positive.

    Example:
      >>> from rvsm_jax.proximal import require_strength
      >>> require_strength("beta", 0.0, positive=True)
      Traceback (most recent call last):
        ...
      ValueError: beta must be positive, got 0.0
    """
    if isinstance(value, jax.core.Tracer):
        return
    number = isinstance(value, int | float | np.number | np.ndarray | jax.Array) and not isinstance(value, bool)
    if not number or np.ndim(value) != 0 or not np.isrealobj(value):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    if not (value > 0 if positive else value >= 0):
        raise ValueError(f"{name} must be {'positive' if positive else 'non-negative'}, got {value}")


def require_function(name: str, value: Any) -> None:
    """Refuses what cannot be called.

    Args:
      name: what the function is called, for the error.
      value: the function.

    Raises:
      TypeError: if it is not one.

    Example:
      >>> from rvsm_jax.proximal import require_function
      >>> require_function("where", "conv")
      Traceback (most recent call last):
        ...
      TypeError: where must be a function, got 'conv'
    """
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {value!r}")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prox(operator, paths, strength, leaves):
    magnitudes, scales, rescale = _read(operator, paths, leaves)
    if operator.joint and magnitudes:
        return rescale(_split(operator.penalty.prox(_join(magnitudes), strength), magnitudes))
    pairs = zip(magnitudes, scales, strict=True)
    return rescale([operator.penalty.prox(m, strength if scale == 1 else scale * strength) for m, scale in pairs])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _value(operator, paths, leaves):
    magnitudes, scales, _ = _read(operator, paths, leaves)
    if operator.joint and magnitudes:
        magnitudes, scales = [_join(magnitudes)], [1]
    values = [operator.penalty.value(m) for m in magnitudes]
    dtype = at_least_float32(*(v.dtype for v in values))
    return sum((scale * v.astype(dtype) for v, scale in zip(values, scales, strict=True)), start=jnp.zeros((), dtype))


_gradient = jax.jit(jax.grad(_value, argnums=2), static_argnums=(0, 1))


def _read(operator, paths, leaves) -> tuple[list[jax.Array], list[float], Rescale]:
    """Magnitudes, by leaf or family; the weights of their penalties; and the way back."""
    if isinstance(operator.groups, Coupled):
        magnitudes, sizes, rescale = operator.groups.read(paths, leaves)
    else:
        pairs = [operator.groups(x) for x in leaves]
        magnitudes = [m for m, _ in pairs]
        sizes = [x.size / max(m.size, 1) for x, m in zip(leaves, magnitudes, strict=True)]

        def rescale(new):
            return [rebuild(z) for (_, rebuild), z in zip(pairs, new, strict=True)]

    return magnitudes, [math.sqrt(n) if operator.by_size else 1 for n in sizes], rescale


def _join(magnitudes):
    dtype = at_least_float32(*(m.dtype for m in magnitudes))
    return jnp.concatenate([whole(m).ravel().astype(dtype) for m in magnitudes])


def _split(joined, like):
    ends = np.cumsum([m.size for m in like])[:-1]
    parts = zip(jnp.split(joined, ends), like, strict=True)
    return [placed_like(z.reshape(m.shape).astype(m.dtype), m) for z, m in parts]
