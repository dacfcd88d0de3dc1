"""Published methods, each a few lines over the same parts: a penalty, its groups, and the links of a chain.

A recipe returns a ``Method``: the transformation to train with and the map from the weights to the network that ships.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import optax

from rvsm_jax.groups import Groups, channels, weights
from rvsm_jax.penalties import Penalty, l1
from rvsm_jax.proximal import Prox, Where, convolutions, kernels, proximal_operator
from rvsm_jax.splitting import (
    Number,
    Strength,
    as_schedule,
    group_penalty,
    proximal_step,
    relaxed_splitting,
    threshold,
)


class Method(NamedTuple):
    """How to train, and what to ship.

    Attributes:
      tx: the optax transformation.
      sparse: ``(params, step) -> params``: the sparse network u that belongs to the weights w after so many steps.
    """

    tx: optax.GradientTransformation
    sparse: Callable[[chex.ArrayTree, Number], chex.ArrayTree]


def rvsm(
    optimizer: optax.GradientTransformation,
    penalty: Penalty,
    lam: Strength,
    beta: Strength,
    *,
    groups: Groups = weights,
    where: Where = kernels,
    learning_rate: Strength | None = None,
) -> Method:
    """Relaxed variable splitting: w <- w - eta (grad f(w) + beta (w - u)), u = prox_{(lam / beta) P}(w).

    Args:
      optimizer: any optax optimiser.
      penalty: P, such as ``l0()``, ``l1()`` or ``transformed_l1(a)``.
      lam: the penalty's weight; a number or a schedule.
      beta: the pull's weight; a number or a schedule.
      groups: what is thresholded as one; default: single weights.
      where: which leaves become sparse; the published runs use ``convolutions``.
      learning_rate: None for the pull inside the optimiser; the optimiser's learning rate for the pull outside its
        momentum and weight decay, as published.

    Returns:
      The method; ``sparse`` is u.

    Raises:
      TypeError, ValueError: as ``proximal_operator`` and ``relaxed_splitting``.

    References:
      Dinh and Xin, arXiv:1812.05719, Algorithm 1.

    Example:
      >>> import optax, rvsm_jax
      >>> method = rvsm_jax.rvsm(optax.sgd(0.1, momentum=0.9), rvsm_jax.l0(), lam=1e-6, beta=1e-2)
    """
    require_optimizer(optimizer)
    prox = proximal_operator(penalty, groups, where)
    link = relaxed_splitting(prox, lam, beta, learning_rate=learning_rate)
    tx = optax.chain(link, optimizer) if learning_rate is None else optax.chain(optimizer, link)
    return Method(tx, _sparse_copy(prox, lam, beta))


def rgsm(
    optimizer: optax.GradientTransformation,
    penalty: Penalty,
    lam1: Strength,
    beta: Strength,
    lam2: Strength,
    *,
    groups: Groups = channels,
    where: Where = convolutions,
    learning_rate: Strength | None = None,
) -> Method:
    """Relaxed group-wise splitting: RVSM on groups, with lam2 sum_g |w_g| added to the objective.

    Args:
      optimizer: any optax optimiser.
      penalty: P of the groups' norms; published: ``l0()``.
      lam1: the weight of P on u.
      beta: the pull's weight.
      lam2: the weight of the group lasso on w.
      groups: default, as published: input channels.
      where: default, as published: convolution kernels.
      learning_rate: as in ``rvsm``.

    Returns:
      The method; ``sparse`` is u, with whole groups zero.

    Raises:
      TypeError, ValueError: as ``rvsm``, and if lam2 is negative.

    References:
      Yang, Lyu, Zhang, Qi and Xin, AI4I 2019; Dinh et al., arXiv:2003.00631, Algorithm 2.

    Example:
      >>> import optax, rvsm_jax
      >>> method = rvsm_jax.rgsm(optax.sgd(0.1), rvsm_jax.l0(), lam1=5e-2, beta=1.0, lam2=1e-5)
    """
    method = rvsm(optimizer, penalty, lam1, beta, groups=groups, where=where, learning_rate=learning_rate)
    lasso = proximal_operator(l1(), groups, where)
    return method._replace(tx=optax.chain(group_penalty(lasso, lam2), method.tx))


def prox_sgd(
    learning_rate: Strength,
    penalty: Penalty,
    lam: Strength,
    *,
    momentum: float | None = None,
    nesterov: bool = False,
    groups: Groups = weights,
    where: Where = kernels,
) -> Method:
    """Proximal SGD: w <- prox_{eta lam P}(w - eta g), the weights themselves sparse; without noise, ISTA.

    Args:
      learning_rate: eta; a number or a schedule.
      penalty: P.
      lam: the penalty's weight; a number or a schedule.
      momentum: of ``optax.sgd``.
      nesterov: of ``optax.sgd``.
      groups: what is thresholded as one.
      where: which leaves become sparse.

    Returns:
      The method; ``sparse`` hands the weights through.

    Raises:
      TypeError, ValueError: as ``proximal_operator`` and ``proximal_step``.

    References:
      Beck and Teboulle, SIAM J. Imaging Sci. 2 (2009), eq. (3.1).

    Example:
      >>> import optax, rvsm_jax
      >>> method = rvsm_jax.prox_sgd(0.1, rvsm_jax.l1(), lam=1e-4, momentum=0.9)
    """
    eta, weight = as_schedule("learning_rate", learning_rate), as_schedule("lam", lam)
    step = proximal_step(proximal_operator(penalty, groups, where), lambda step: eta(step) * weight(step))
    return Method(optax.chain(optax.sgd(learning_rate, momentum, nesterov), step), lambda params, step: params)


def require_optimizer(value: Any) -> None:
    """Refuses what is not an optax transformation.

    Args:
      value: the optimiser.

    Raises:
      TypeError: if it is none.

    Example:
      >>> from rvsm_jax.recipes import require_optimizer
      >>> require_optimizer(0.1)
      Traceback (most recent call last):
        ...
      TypeError: optimizer must be an optax transformation such as optax.sgd(0.1), got 0.1
    """
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(f"optimizer must be an optax transformation such as optax.sgd(0.1), got {value!r}")


def _sparse_copy(prox: Prox, lam: Strength, beta: Strength):
    lam, beta = as_schedule("lam", lam), as_schedule("beta", beta)
    return lambda params, step: prox(params, threshold(lam(step), beta(step)))
