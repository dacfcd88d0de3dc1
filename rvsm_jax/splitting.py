"""The links of an optax chain through which the weights w meet their sparse copy u = prox(w).

The place in the chain says the route, so nothing needs a flag:

    prox = proximal_operator(l0(), weights)
    optax.chain(relaxed_splitting(prox, lam, beta), optimizer)                      # RVSM: the pull joins the gradient
    optax.chain(optax.sgd(lr), relaxed_splitting(prox, lam, beta, learning_rate=lr))  # the pull passes the momentum by
    optax.chain(optax.sgd(lr), proximal_step(prox, lr * lam))                       # proximal SGD, ISTA: the last link

Every strength is a number or an optax schedule of the step. Nothing but the step is kept: u is recomputed from w.
Under ``optax.inject_hyperparams`` name the operator as static: ``static_args=("prox",)``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rvsm_jax.precision import at_least_float32
from rvsm_jax.proximal import Prox, ProximalOperator, Where, kernels, require_function, require_strength, selected

Number: TypeAlias = float | jax.Array
Schedule: TypeAlias = Callable[[Number], Number]
Strength: TypeAlias = Number | Schedule

HALF = (jnp.bfloat16, jnp.float16)


class StepState(NamedTuple):
    """The number of steps taken, at which schedules are read."""

    step: jax.Array


def relaxed_splitting(
    prox: Prox, lam: Strength, beta: Strength, *, learning_rate: Strength | None = None
) -> optax.GradientTransformation:
    """g <- g + beta (w - u), u = prox(w, lam / beta): the gradient in w of lam P(u) + beta/2 |w - u|^2 at the best u.

    In front of an optimiser the pull is part of the gradient. Behind it, with the optimiser's learning rate eta,
    updates become d <- d - eta beta (w - u): the pull then passes momentum and weight decay by, as in the authors'
    released runs.

    Args:
      prox: ``(params, strength) -> params``, such as ``proximal_operator(l0())``.
      lam: the penalty's weight, >= 0; a number or a schedule.
      beta: the pull's weight, > 0; a number or a schedule. Where a schedule is 0 there is no pull.
      learning_rate: None in front of the optimiser; behind it, the optimiser's own learning rate, or schedule.

    Returns:
      A transformation whose ``update`` needs the params.

    Raises:
      TypeError: if prox is not a function, or a strength neither a number nor a schedule.
      ValueError: if lam or learning_rate is negative, or beta is not positive; from ``update``, if params are missing.

    References:
      Dinh and Xin, arXiv:1812.05719, Algorithm 1; Dinh et al., arXiv:2003.00631, Algorithm 1.

    Example:
      >>> import jax.numpy as jnp, optax, rvsm_jax
      >>> prox = rvsm_jax.proximal_operator(rvsm_jax.l0())
      >>> tx = optax.chain(rvsm_jax.relaxed_splitting(prox, lam=0.5, beta=1.0), optax.sgd(0.1))
      >>> w = {"kernel": jnp.array([[2.0, 0.5]])}
      >>> updates, _ = tx.update({"kernel": jnp.zeros((1, 2))}, tx.init(w), w)
      >>> print(updates["kernel"])
      [[-0.   -0.05]]
    """
    require_function("prox", prox)
    lam, beta = as_schedule("lam", lam), as_schedule("beta", beta, positive=True)
    rate = None if learning_rate is None else as_schedule("learning_rate", learning_rate)

    def update(updates, state, params=None):
        params = require_params("relaxed_splitting", params)
        pull = beta(state.step)
        w = jax.tree.map(widen, params)  # in half precision w - u would round to 0
        u = prox(w, threshold(lam(state.step), pull))
        scale = pull if rate is None else -rate(state.step) * pull
        return each(lambda d, w, u: _pulled(d, w, u, scale), updates, w, u), _next(state)

    return optax.GradientTransformation(_start, update)


def proximal_step(prox: Prox, strength: Strength) -> optax.GradientTransformation:
    """d <- prox(w + d, strength) - w: after ``optax.apply_updates`` the weights are the proximal point themselves.

    It must be the chain's last link: whatever scales or adds to its updates afterwards undoes the zeros, and a second
    proximal step behind it would see w + d where it expects an optimiser's update; two penalties are one operator that
    applies both, ``lambda w, t: second(first(w, t), t)``.

    Args:
      prox: ``(params, strength) -> params``.
      strength: learning rate x lam, >= 0; a number or a schedule.

    Returns:
      A transformation whose ``update`` needs the params, and whose updates have the params' dtypes.

    Raises:
      TypeError: if prox is not a function, or strength neither a number nor a schedule.
      ValueError: if strength is negative; from ``update``, if params are missing.

    References:
      Beck and Teboulle, SIAM J. Imaging Sci. 2 (2009), eq. (3.1) (ISTA).

    Example:
      >>> import jax.numpy as jnp, optax, rvsm_jax
      >>> prox = rvsm_jax.proximal_operator(rvsm_jax.l1())
      >>> tx = optax.chain(optax.sgd(0.1), rvsm_jax.proximal_step(prox, 0.1 * 2.0))
      >>> w = {"kernel": jnp.array([[1.0, 0.1]])}
      >>> updates, _ = tx.update({"kernel": jnp.zeros((1, 2))}, tx.init(w), w)
      >>> print(optax.apply_updates(w, updates)["kernel"])
      [[0.8 0. ]]
    """
    require_function("prox", prox)
    strength = as_schedule("strength", strength)

    def update(updates, state, params=None):
        params = require_params("proximal_step", params)
        moved = jax.tree.map(lambda d, w: w if d is None else w + d.astype(w.dtype), updates, params, is_leaf=is_none)
        target = prox(moved, strength(state.step))
        return each(lambda d, z, w: z - w, updates, target, params), _next(state)

    return optax.GradientTransformation(_start, update)


def fixed_support(where: Where = kernels) -> optax.GradientTransformation:
    """d <- d 1{w != 0}: weights that are zero stay zero, for fine-tuning what a method has left.

    Args:
      where: which leaves keep their zeros; default: convolution and dense kernels. Biases that begin at zero may move.

    Returns:
      A transformation whose ``update`` needs the params, to be placed last.

    Raises:
      ValueError: from ``update``, if params are missing or ``where`` selects nothing.

    Example:
      >>> import jax.numpy as jnp, optax, rvsm_jax
      >>> tx = optax.chain(optax.sgd(0.1, momentum=0.9), rvsm_jax.fixed_support())
      >>> w = {"kernel": jnp.array([[1.0, 0.0]])}
      >>> updates, _ = tx.update({"kernel": jnp.ones((1, 2))}, tx.init(w), w)
      >>> print(updates["kernel"])
      [[-0.1  0. ]]
    """
    require_function("where", where)

    def update(updates, params=None):
        params = require_params("fixed_support", params)
        chosen, _, leaves = selected(params, where)
        kept = [leaf != 0 if i in chosen else None for i, leaf in enumerate(leaves)]
        mask = jax.tree.unflatten(jax.tree.structure(params), kept)
        return each(lambda d, keep: d if keep is None else jnp.where(keep, d, 0), updates, mask)

    return optax.stateless(update)


def group_penalty(operator: ProximalOperator, strength: Strength) -> optax.GradientTransformation:
    """g <- g + strength grad P(w), with gradient 0 at a group of norm zero: a penalty on w itself, in the objective.

    Links of this kind may follow each other, and their groups may overlap. A penalty that is flat almost everywhere, as
    ``l0`` and ``top_k`` are, has no gradient to add: it takes a splitting or a proximal step.

    Args:
      operator: names the penalty, the groups and the leaves: ``proximal_operator(l1(), channels)`` is the group lasso.
      strength: the penalty's weight, >= 0; a number or a schedule.

    Returns:
      A transformation whose ``update`` needs the params, to be placed in front of the optimiser.

    Raises:
      TypeError: if operator is not a ProximalOperator, or strength neither a number nor a schedule.
      ValueError: if strength is negative; from ``update``, if params are missing.

    References:
      Dinh et al., arXiv:2003.00631, Algorithm 2 (lambda_2 sum_g |w_g|); Wen et al., arXiv:1608.03665, eq. (1).

    Example:
      >>> import jax.numpy as jnp, optax, rvsm_jax
      >>> lasso = rvsm_jax.proximal_operator(rvsm_jax.l1(), rvsm_jax.channels)
      >>> tx = optax.chain(rvsm_jax.group_penalty(lasso, 0.5), optax.sgd(1.0))
      >>> w = {"kernel": jnp.array([[3.0, 4.0], [0.0, 0.0]])}
      >>> updates, _ = tx.update({"kernel": jnp.zeros((2, 2))}, tx.init(w), w)
      >>> print(updates["kernel"])
      [[-0.3 -0.4]
       [-0.  -0. ]]
    """
    if not isinstance(operator, ProximalOperator):
        raise TypeError(f"operator must come from proximal_operator(...), got {operator!r}")
    strength = as_schedule("strength", strength)

    def update(updates, state, params=None):
        gradient = operator.gradient_on_selected(require_params("group_penalty", params))
        scale = strength(state.step)
        return each(lambda d, g: d if g is None else plus(d, scale, g), updates, gradient), _next(state)

    return optax.GradientTransformation(_start, update)


def as_schedule(name: str, value: Strength, *, positive: bool = False) -> Schedule:
    """value(step): a strength as a schedule, refused at once if it is a number out of range.

    Args:
      name: what the strength is called, for the error.
      value: a number, or a schedule of the step.
      positive: whether 0 is refused too.

    Returns:
      The schedule.

    Raises:
      TypeError: if value is neither a number nor a function.
      ValueError: if it is negative, infinite or NaN, or 0 where it must be positive; of a schedule, if it begins so,
        but for 0.

    Example:
      >>> from rvsm_jax.splitting import as_schedule
      >>> as_schedule("beta", 0.5, positive=True)(7)
      0.5
    """
    if callable(value):
        start: Any = np.int32(0)  # not JAX's, whose dtypes depend on the precision that is on
        require_strength(f"{name}(0)", value(start))
        return value
    require_strength(name, value, positive=positive)
    if not isinstance(value, jax.core.Tracer) and value == float("inf"):
        raise ValueError(f"{name} must be finite, got {value}")
    return lambda step: value


def threshold(lam: Number, beta: Number) -> jax.Array:
    """lam / beta, the strength at which u is the prox of w; 0 where beta is 0, as the pull is then.

    Args:
      lam: the penalty's weight.
      beta: the pull's weight.

    Returns:
      A scalar.

    Example:
      >>> from rvsm_jax.splitting import threshold
      >>> print(threshold(1.0, 4.0), threshold(1.0, 0.0))
      0.25 0.0
    """
    return jnp.where(beta == 0, 0.0, lam / jnp.where(beta == 0, 1.0, beta))


def _start(params):
    del params
    return StepState(jnp.zeros((), jnp.int32))


def _next(state):
    return StepState(optax.safe_increment(state.step))


def is_none(x):
    """Whether x is None: a leaf, in trees of updates."""
    return x is None


def each(f, updates, *trees):
    """f on every update and what belongs to it; an update of None, as of a frozen leaf, stays None."""
    return jax.tree.map(lambda d, *x: None if d is None else f(d, *x), updates, *trees, is_leaf=is_none)


def widen(x):
    """x in float32 if it is in half precision, else x itself."""
    half = getattr(x, "dtype", None) in HALF
    return x.astype(jnp.float32) if half else x


def _pulled(d, w, u, scale):
    """d + scale (w - u); a leaf that prox handed through is left alone."""
    return d if u is w else plus(d, scale, w - u)


def plus(d, scale, x):
    """d + scale x in the wider of their dtypes and at least float32, back in d's.

    As -(-d - scale x), the same number: XLA repeats a unary operation in every user, where it would keep a sum in
    memory for a momentum that reads it twice, and with it this leaf's gradient until the backward pass is over.
    """
    if d.shape != x.shape:
        raise ValueError(f"updates must have the shapes of the parameters, got {d.shape} for {x.shape}")
    wide = at_least_float32(d.dtype, x.dtype)
    return -(-d.astype(wide) - jnp.asarray(scale, wide) * x.astype(wide)).astype(d.dtype)


def require_params(link, params):
    """The params; ValueError, naming the link, if there are none."""
    if params is None:
        raise ValueError(f"{link} needs the parameters: call update(updates, state, params)")
    return params
