"""The links that remember: what the weights w meet is kept from step to step, beside the weights.

    optax.chain(admm_splitting(prox, rho, every=n), optimizer)       # ADMM: z and its dual y, renewed every n steps
    optax.chain(optimizer, relaxed_projection(prox, blend))          # BinaryRelax: the weights' float copy v
    optax.chain(optimizer, partial_projection(prox, 0.3))            # the nearest share snapped, the rest trained

A prox may be any function ``(params, strength) -> params``; these links act on the leaves that it does not hand through
as they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rvsm_jax.proximal import require_function
from rvsm_jax.splitting import (
    Prox,
    Strength,
    as_schedule,
    each,
    is_none,
    plus,
    require_params,
    threshold,
    widen,
)


class AdmmState(NamedTuple):
    """The step, the sparse copy z, and the dual y = rho x the scaled dual; None on leaves that prox hands through."""

    step: jax.Array
    z: chex.ArrayTree
    y: chex.ArrayTree


class RelaxedState(NamedTuple):
    """The step, and the float copy v of the weights; None on leaves that prox hands through."""

    step: jax.Array
    v: chex.ArrayTree


class PartialState(NamedTuple):
    """Where the projection puts each weight, and which weights are there to stay."""

    target: chex.ArrayTree
    fixed: chex.ArrayTree


def admm_splitting(prox: Prox, rho: Strength, *, every: int = 1, lam: Strength = 1.0) -> optax.GradientTransformation:
    """g <- g + rho (w - z) + y; every n steps z = prox(w + y / rho, lam / rho), then y <- y + rho (w - z).

    The alternating direction method of multipliers for min f(w) + lam P(z), w = z, the minimisation over w being the n
    steps of the optimiser behind it. At first z = prox(w, lam / rho) and y = 0. The dual is kept unscaled, so that rho
    may change.

    Args:
      prox: ``(params, strength) -> params``: a projection, such as of ``top_k``, or any other.
      rho: the pull's weight, > 0; a number or a schedule.
      every: n, how many steps between updates of z and y; on a network an epoch or more.
      lam: the penalty's weight, >= 0; a constraint has none.

    Returns:
      A transformation whose ``update`` needs the params, to be placed in front of the optimiser.

    Raises:
      TypeError: if prox is not a function, a strength neither a number nor a schedule, or every not an int.
      ValueError: if rho is not positive, lam negative, or every below 1; from ``update``, if params are missing.

    References:
      Ren et al., arXiv:1812.11677 (ADMM-NN), section 3; Boyd et al., Found. Trends Mach. Learn. 3 (2011), section 3.1.

    Example:
      >>> import jax, jax.numpy as jnp, optax, rvsm_jax
      >>> prox = rvsm_jax.proximal_operator(rvsm_jax.top_k(1))
      >>> tx = optax.chain(rvsm_jax.admm_splitting(prox, rho=1.0, every=5), optax.sgd(0.3))
      >>> w, target = {"kernel": jnp.array([[1.0, 1.1]])}, jnp.array([[2.0, 1.0]])
      >>> state = tx.init(w)
      >>> for _ in range(100):
      ...     updates, state = tx.update({"kernel": w["kernel"] - target}, state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> print(prox(w, 1.0)["kernel"].round(3))
      [[2. 0.]]
    """
    require_function("prox", prox)
    rho, lam = as_schedule("rho", rho, positive=True), as_schedule("lam", lam)
    require_count("every", every)

    def init(params):
        w = jax.tree.map(widen, params)
        z = _touched(prox(w, threshold(lam(zero()), rho(zero()))), w)
        return AdmmState(zero(), _each_of(z, jnp.copy), _each_of(z, jnp.zeros_like))

    def update(updates, state, params=None):
        w = jax.tree.map(widen, require_params("admm_splitting", params))
        pull = rho(state.step)

        def renewed(z, y):
            moved = where_given(z, lambda w, y: w + _ratio(y, pull), w, y)
            z = _each_of(z, lambda z, new: new.astype(z.dtype), prox(moved, threshold(lam(state.step), pull)))
            return z, _each_of(y, lambda y, w, z: plus(y, pull, w - z), w, z)

        due = (state.step > 0) & (state.step % every == 0)
        z, y = when(due, renewed, state.z, state.y)
        found = each(
            lambda d, w, z, y: d if z is None else plus(d, 1, jnp.asarray(pull, w.dtype) * (w - z) + y),
            updates, w, z, y,
        )  # fmt: skip
        return found, AdmmState(optax.safe_increment(state.step), z, y)

    return optax.GradientTransformation(init, update)


def relaxed_projection(prox: Prox, blend: Strength) -> optax.GradientTransformation:
    """v <- v + d, then w = (1 - b) v + b prox(v): gradients are taken at w, and move the float copy v.

    With b = eta / (1 + eta) the weights w are the proximal point of eta/2 dist(., S)^2 at v; with b = 1 they are the
    projection of v, as in BinaryConnect. At first v = w.

    Args:
      prox: ``(params, strength) -> params``, a projection such as ``proximal_operator(binary())``.
      blend: b, in [0, 1]; a number or a schedule.

    Returns:
      A transformation whose ``update`` needs the params, to be placed last; its updates have the params' dtypes.

    Raises:
      TypeError: if prox is not a function, or blend neither a number nor a schedule.
      ValueError: if blend is not in [0, 1]; from ``update``, if params are missing.

    References:
      Yin et al., arXiv:1801.06313 (BinaryRelax), Algorithm 1; Courbariaux et al., arXiv:1511.00363 (BinaryConnect).

    Example:
      >>> import jax.numpy as jnp, optax, rvsm_jax
      >>> prox = rvsm_jax.proximal_operator(rvsm_jax.binary())
      >>> tx = optax.chain(optax.sgd(1.0), rvsm_jax.relaxed_projection(prox, 0.5))
      >>> w = {"kernel": jnp.array([[1.0, -2.0]])}
      >>> updates, _ = tx.update({"kernel": jnp.array([[0.0, 2.0]])}, tx.init(w), w)
      >>> print(optax.apply_updates(w, updates)["kernel"])
      [[ 1.75 -3.25]]
    """
    require_function("prox", prox)
    if isinstance(blend, int | float) and blend > 1:
        raise ValueError(f"blend must be in [0, 1], got {blend}")
    blend = as_schedule("blend", blend)

    def init(params):
        w = jax.tree.map(widen, params)
        return RelaxedState(zero(), _each_of(_touched(prox(w, 1.0), w), lambda _, w: jnp.copy(w), w))

    def update(updates, state, params=None):
        params = require_params("relaxed_projection", params)
        v = _each_of(state.v, lambda v, d: v if d is None else plus(v, 1, d), updates)
        projected = prox(where_given(v, lambda w, v: v, params, v), 1.0)
        b = blend(state.step)

        def step(d, v, q, w):
            if v is None:
                return d
            share = jnp.asarray(b, v.dtype)
            return ((1 - share) * v + share * q.astype(v.dtype) - w.astype(v.dtype)).astype(w.dtype)

        return each(step, updates, v, projected, params), RelaxedState(optax.safe_increment(state.step), v)

    return optax.GradientTransformation(init, update)


def partial_projection(prox: Prox, share: float) -> optax.GradientTransformation:
    """w_i <- prox(w)_i, to stay, for the share of each leaf's non-zero weights nearest to it; the others train on.

    What the projection leaves at zero stays zero. The projection is that of the weights ``init`` was given.

    Args:
      prox: ``(params, strength) -> params``, a projection such as ``proximal_operator(levels(8, zero=False))``.
      share: in [0, 1].

    Returns:
      A transformation whose ``update`` needs the params, to be placed last; its updates have the params' dtypes.

    Raises:
      TypeError: if prox is not a function.
      ValueError: if share is not in [0, 1]; from ``update``, if params are missing.

    References:
      Ren et al., arXiv:1812.11677 (ADMM-NN): retraining after quantisation.

    Example:
      >>> import jax.numpy as jnp, optax, rvsm_jax
      >>> prox = rvsm_jax.proximal_operator(rvsm_jax.binary())
      >>> tx = optax.chain(optax.sgd(1.0), rvsm_jax.partial_projection(prox, 0.5))
      >>> w = {"kernel": jnp.array([[1.0, 2.0, 4.0, 5.0]])}
      >>> updates, _ = tx.update({"kernel": jnp.ones((1, 4))}, tx.init(w), w)
      >>> print(optax.apply_updates(w, updates)["kernel"])
      [[0. 3. 3. 4.]]
    """
    require_function("prox", prox)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share!r}")

    def init(params):
        target = _each_of(_touched(prox(params, 1.0), params), jnp.copy)
        return PartialState(target, _each_of(target, lambda q, w: _nearest(w, q, share), params))

    def update(updates, state, params=None):
        params = require_params("partial_projection", params)
        moved = each(
            lambda d, q, fixed, w: d if q is None else jnp.where(fixed, q - w, d.astype(w.dtype)),
            updates, state.target, state.fixed, params,
        )  # fmt: skip
        return moved, state

    return optax.GradientTransformation(init, update)


def when(due: jax.Array | bool, f: Callable[..., tuple[Any, ...]], *state: Any) -> tuple[Any, ...]:
    """f(*state) if due, else the state; decided at once outside of ``jit``, where a cond is compiled in every call."""
    if isinstance(due, jax.core.Tracer):
        return jax.lax.cond(due, f, lambda *same: same, *state)
    return f(*state) if due else state


def _touched(new, old):
    """The leaves of ``new`` that are not those of ``old`` themselves; None in the others' place."""
    return jax.tree.map(lambda a, b: None if a is b else a, new, old)


def _each_of(tree, f, *trees):
    """f on the leaves of a tree with Nones, and what belongs to them in the other trees."""
    return jax.tree.map(lambda x, *rest: None if x is None else f(x, *rest), tree, *trees, is_leaf=is_none)


def where_given(tree: Any, f: Callable[..., Any], params: Any, *trees: Any) -> Any:
    """f on the params where the tree is not None, the params as they are elsewhere."""
    return jax.tree.map(lambda x, w, *rest: w if x is None else f(w, *rest), tree, params, *trees, is_leaf=is_none)


def _ratio(y, rho):
    rho = jnp.asarray(rho, y.dtype)
    return y / jnp.where(rho == 0, 1, rho)


def _nearest(w, q, share):
    """Which weights are fixed: zeros of q, and of the rest the share nearest to q; of equals the first."""
    rest = (q != 0).ravel()
    distance = jnp.where(rest, jnp.abs(w - q).ravel(), jnp.inf)
    rank = jnp.argsort(jnp.argsort(distance))
    count = jnp.round(share * jnp.count_nonzero(rest).astype(jnp.float32)).astype(rank.dtype)
    return (~rest | (rank < count)).reshape(w.shape)


def zero() -> jax.Array:
    """The first step."""
    return jnp.zeros((), jnp.int32)


def require_count(name: str, value: Any) -> None:
    """Raises unless the argument is a positive int."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
