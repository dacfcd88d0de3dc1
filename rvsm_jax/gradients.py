"""Penalties by their gradients, which join the gradient of the objective.

    optax.chain(reweighted_penalty(groups, lam, every=n), optimizer)  # the groups' weights, renewed every n steps
    optax.chain(penalty_gradient(value, strength), optimizer)         # any differentiable function of the weights

That of norms of groups, without a memory, is `group_penalty`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rvsm_jax.groups import Groups
from rvsm_jax.links import require_count, when, where_given, zero
from rvsm_jax.proximal import Where, kernels, require_function, selected
from rvsm_jax.splitting import StepState, Strength, as_schedule, each, plus, require_params, widen


class ReweightedState(NamedTuple):
    """The step, and each group's weight 1 / (|w_g|^2 + eps), for the selected leaves."""

    step: jax.Array
    weights: list[jax.Array]


def reweighted_penalty(
    groups: Groups, lam: Strength, *, every: int = 1, eps: float = 1e-3, where: Where = kernels
) -> optax.GradientTransformation:
    """g <- g + lam grad sum_g P_g |w_g|^2, P_g = 1 / (|w_g|^2 + eps), renewed every n steps and fixed between.

    Small groups are pulled to zero ever harder, large ones are left alone: how many go is decided group by group.
    Links of this kind may follow each other, and their groups may overlap.

    Args:
      groups: what a group is, such as ``blocks(4, 16, "rows")``.
      lam: the penalty's weight, >= 0; a number or a schedule.
      every: n.
      eps: > 0, in the units of squared magnitudes.
      where: which leaves.

    Returns:
      A transformation whose ``update`` needs the params, to be placed in front of the optimiser.

    Raises:
      TypeError: if groups or where is not a function, lam neither a number nor a schedule, or every not an int.
      ValueError: if lam is negative, eps not positive, or every below 1; from ``update``, if params are missing.

    References:
      Niu et al., arXiv:2108.11033 (GRIM); Candes, Wakin and Boyd, arXiv:0711.1612 (reweighting).

    Example:
      >>> import jax.numpy as jnp, optax, rvsm_jax
      >>> tx = optax.chain(rvsm_jax.reweighted_penalty(rvsm_jax.filters, 0.5, eps=1.0), optax.sgd(1.0))
      >>> w = {"kernel": jnp.array([[3.0, 0.0], [0.0, 1.0]])}
      >>> updates, _ = tx.update({"kernel": jnp.zeros((2, 2))}, tx.init(w), w)
      >>> print(updates["kernel"])
      [[-0.3 -0. ]
       [-0.  -0.5]]
    """
    require_function("groups", groups)
    require_function("where", where)
    lam = as_schedule("lam", lam)
    require_count("every", every)
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps must be a positive finite number, got {eps}")

    def weighed(leaves):
        return [1 / (jnp.square(groups(x)[0]) + eps) for x in leaves]

    def chosen(params):
        places, _, leaves = selected(params, where)
        return places, [widen(leaves[i]) for i in places], len(leaves)

    def init(params):
        return ReweightedState(zero(), weighed(chosen(params)[1]))

    def update(updates, state, params=None):
        places, leaves, count = chosen(require_params("reweighted_penalty", params))
        due = (state.step > 0) & (state.step % every == 0)
        (weights,) = when(due, lambda old: (weighed(leaves),), state.weights)
        found: list[Any] = [None] * count
        for i, x, weight in zip(places, leaves, weights, strict=True):
            m, rebuild = groups(x)
            found[i] = rebuild(2 * weight * m)
        gradient, scale = jax.tree.unflatten(jax.tree.structure(params), found), lam(state.step)
        moved = each(lambda d, g: d if g is None else plus(d, scale, g), updates, gradient)
        return moved, ReweightedState(optax.safe_increment(state.step), weights)

    return optax.GradientTransformation(init, update)


def penalty_gradient(value: Callable[[chex.ArrayTree], jax.Array], strength: Strength) -> optax.GradientTransformation:
    """g <- g + strength grad value(w): any differentiable function of the weights, added to the objective.

    Args:
      value: ``params -> scalar``.
      strength: its weight, >= 0; a number or a schedule.

    Returns:
      A transformation whose ``update`` needs the params, to be placed in front of the optimiser.

    Raises:
      TypeError: if value is not a function, or strength neither a number nor a schedule.
      ValueError: if strength is negative; from ``update``, if params are missing.

    Example:
      >>> import jax.numpy as jnp, optax, rvsm_jax
      >>> tx = optax.chain(rvsm_jax.penalty_gradient(lambda w: (w**2).sum() / 2, 0.5), optax.sgd(1.0))
      >>> w = jnp.array([2.0, -1.0])
      >>> print(tx.update(jnp.zeros(2), tx.init(w), w)[0])
      [-1.   0.5]
    """
    require_function("value", value)
    strength = as_schedule("strength", strength)

    def update(updates, state, params=None):
        params = require_params("penalty_gradient", params)
        floats = jax.tree.map(lambda x: x if _is_floating(x) else None, params)
        whole = lambda floats: where_given(floats, lambda w, x: x, params, floats)  # noqa: E731
        gradient, scale = jax.grad(lambda floats: value(whole(floats)))(floats), strength(state.step)
        moved = each(lambda d, g: d if g is None else plus(d, scale, g), updates, gradient)
        return moved, StepState(optax.safe_increment(state.step))

    return optax.GradientTransformation(lambda params: StepState(zero()), update)


def _is_floating(x):
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
