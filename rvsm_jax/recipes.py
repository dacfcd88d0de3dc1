"""Published methods, each a few lines over the same parts: a penalty, its groups, and the links of a chain.

A recipe returns a ``Method``: the transformation to train with and the map from the weights to the network that ships.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import optax

from rvsm_jax.coupled import Coupled
from rvsm_jax.groups import Groups, channels, filters, weights
from rvsm_jax.penalties import Penalty, l1
from rvsm_jax.proximal import Prox, Where, convolutions, proximal_operator
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
    groups: Groups | Coupled = weights,
    where: Where | None = None,
    by_size: bool = False,
    learning_rate: Strength | None = None,
) -> Method:
    """Relaxed variable splitting: w <- w - eta (grad f(w) + beta (w - u)), u = prox_{(lam / beta) P}(w).

    Args:
      optimizer: any optax optimiser.
      penalty: P, such as ``l0()``, ``l1()`` or ``transformed_l1(a)``.
      lam: the penalty's weight; a number or a schedule.
      beta: the pull's weight; a number or a schedule.
      groups: what is thresholded as one; default: single weights.
      where: which leaves become sparse, by default as in ``proximal_operator``; the published runs use
        ``convolutions``.
      by_size: weigh each group by the root of its size, as in ``proximal_operator``.
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
    return _splitting(optimizer, proximal_operator(penalty, groups, where, by_size=by_size), lam, beta, learning_rate)


def rgsm(
    optimizer: optax.GradientTransformation,
    penalty: Penalty,
    lam1: Strength,
    beta: Strength,
    lam2: Strength,
    *,
    groups: Groups | Coupled = channels,
    where: Where | None = None,
    by_size: bool = False,
    learning_rate: Strength | None = None,
) -> Method:
    """Relaxed group-wise splitting: RVSM on groups, with lam2 sum_g |w_g| added to the objective.

    Args:
      optimizer: any optax optimiser.
      penalty: P of the groups' norms; published: ``l0()``.
      lam1: the weight of P on u.
      beta: the pull's weight.
      lam2: the weight of the group lasso on w.
      groups: default, as published: input channels; or `coupled_channels` of the network.
      where: default, as published: convolution kernels; of coupled channels all that they consist of.
      by_size: weigh each group by the root of its size, in both terms.
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
    where = convolutions if where is None and not isinstance(groups, Coupled) else where
    lasso = proximal_operator(l1(), groups, where, by_size=by_size)
    prox = proximal_operator(penalty, groups, where, by_size=by_size)
    method = _splitting(optimizer, prox, lam1, beta, learning_rate)
    return method._replace(tx=optax.chain(group_penalty(lasso, as_schedule("lam2", lam2)), method.tx))


def sparse_group(
    optimizer: optax.GradientTransformation,
    penalty: Penalty,
    lam: Strength,
    beta: Strength,
    *,
    mix: float = 0.5,
    groups: Groups = filters,
    where: Where | None = None,
    learning_rate: Strength | None = None,
) -> Method:
    """Relaxed splitting with P(u) = (1 - mix) sum_g sqrt(n_g) rho(|u_g|) + mix |u|_1, sparse within groups too.

    u is soft thresholding of the weights, then the map of rho on the norms of what is left: exact for every rho that
    does not fall, and for ``l1()`` the sparse-group lasso.

    Args:
      optimizer: any optax optimiser.
      penalty: rho of the groups' norms.
      lam: the weight of P; a number or a schedule.
      beta: the pull's weight; a number or a schedule.
      mix: the share of the l1 norm of the weights, in [0, 1].
      groups: groups of one leaf that do not overlap; default: filters.
      where: which leaves become sparse, by default as in ``proximal_operator``.
      learning_rate: as in ``rvsm``.

    Returns:
      The method.

    Raises:
      TypeError, ValueError: as ``rvsm``, and if mix is not in [0, 1].

    References:
      Simon, Friedman, Hastie and Tibshirani, J. Comput. Graph. Stat. 22 (2013), the sparse-group lasso.

    Example:
      >>> import jax.numpy as jnp, optax, rvsm_jax
      >>> method = rvsm_jax.sparse_group(optax.sgd(0.1), rvsm_jax.l1(), lam=1.0, beta=1.0, groups=rvsm_jax.over(0))
      >>> print(method.sparse({"kernel": jnp.array([[3.5, 0.8], [4.5, 0.6], [0.2, 0.7], [0.1, 0.9]])}, 0)["kernel"].T)
      [[2.4 3.2 0.  0. ]
       [0.  0.  0.  0. ]]
    """
    if not 0 <= mix <= 1:
        raise ValueError(f"mix must be in [0, 1], got {mix!r}")
    radial = proximal_operator(penalty, groups, where, by_size=True)
    soft = proximal_operator(l1(), weights, radial.where)
    return _splitting(optimizer, lambda w, t: radial(soft(w, mix * t), (1 - mix) * t), lam, beta, learning_rate)


def prox_sgd(
    learning_rate: Strength,
    penalty: Penalty,
    lam: Strength,
    *,
    momentum: float | None = None,
    nesterov: bool = False,
    groups: Groups | Coupled = weights,
    where: Where | None = None,
    by_size: bool = False,
) -> Method:
    """Proximal SGD: w <- prox_{eta lam P}(w - eta g), the weights themselves sparse; without noise, ISTA.

    Args:
      learning_rate: eta; a number or a schedule.
      penalty: P.
      lam: the penalty's weight; a number or a schedule.
      momentum: of ``optax.sgd``.
      nesterov: of ``optax.sgd``.
      groups: what is thresholded as one.
      where: which leaves become sparse, by default as in ``proximal_operator``.
      by_size: weigh each group by the root of its size.

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
    prox = proximal_operator(penalty, groups, where, by_size=by_size)
    step = proximal_step(prox, lambda step: eta(step) * weight(step))
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


def _splitting(
    optimizer: optax.GradientTransformation, prox: Prox, lam: Strength, beta: Strength, learning_rate: Strength | None
) -> Method:
    """Relaxed splitting with any proximal map, in front of the optimiser, or with its learning rate behind it."""
    require_optimizer(optimizer)
    link = relaxed_splitting(prox, lam, beta, learning_rate=learning_rate)
    tx = optax.chain(link, optimizer) if learning_rate is None else optax.chain(optimizer, link)
    lam, beta = as_schedule("lam", lam), as_schedule("beta", beta)
    return Method(tx, lambda params, step: prox(params, threshold(lam(step), beta(step))))
