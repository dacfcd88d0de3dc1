"""The neighbouring methods, each a few lines over the same parts: SSL, ADMM-NN, BinaryRelax, block pruning, low rank.

    method = ssl(optimizer, {filters: 5e-3, shapes: 5e-3})
    method = binary_relax(optimizer, ternary(), eta=1.0, hard_from=60_000)
    method = bcr(optimizer, rows=4, columns=16, keep_rows=0.5, keep_columns=0.5, rho=1e-3, every=500)
    prune, retrain, quantise, finish = admm_nn(optimizer, keep=0.05, n=8, rho=1e-3, every=500)
    method = svd_training(optimizer, lam=0.1, energy=1e-4)         # of factorize(params)
    method = low_rank(optimizer, l0(), lam=1e-3, beta=0.1)          # of the parameters themselves

Each returns a ``Method``: what to train with, and ``sparse(params, step)``, the network that ships.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from rvsm_jax.constraints import levels, submatrix, top_k
from rvsm_jax.factors import hoyer, orthogonality, truncate
from rvsm_jax.gradients import penalty_gradient, reweighted_penalty
from rvsm_jax.groups import Groups, weights
from rvsm_jax.links import admm_splitting, partial_projection, relaxed_projection
from rvsm_jax.matrices import blocks, spatial_spectrum, spectrum
from rvsm_jax.penalties import Penalty, l0, l1
from rvsm_jax.proximal import Prox, Where, convolutions, in_turn, kernels, proximal_operator, require_strength
from rvsm_jax.recipes import Method, require_optimizer, rvsm
from rvsm_jax.splitting import Strength, as_schedule, fixed_support, group_penalty, proximal_step


class AdmmNN(NamedTuple):
    """The four trainings of ADMM-NN, in their order.

    Attributes:
      prune: towards the constraint; its ``sparse`` network is where ``retrain`` starts.
      retrain: of the weights that are left; ``quantise`` starts at its end.
      quantise: towards levels; ``finish`` starts at its weights.
      finish: a share on its levels, the rest trained; its ``sparse`` network ships.
    """

    prune: Method
    retrain: Method
    quantise: Method
    finish: Method


def ssl(
    optimizer: optax.GradientTransformation,
    lassos: Mapping[Groups, Strength],
    *,
    where: Where = convolutions,
    zero_below: float = 1e-4,
) -> Method:
    """Structured sparsity learning: min f(w) + sum_k lam_k sum_(g in G_k) |w_g| by gradients, |w_i| < 1e-4 put to 0.

    Args:
      optimizer: any optax optimiser; published: SGD with momentum 0.9.
      lassos: the weight of each kind of groups, which may overlap: ``{filters: 5e-3, shapes: 5e-3}`` as published for
        LeNet; ``{layers: 7e-3}`` with ``where=models.between_shortcuts`` for whole layers of a ResNet.
      where: which leaves.
      zero_below: magnitudes that are put to zero after every step.

    Returns:
      The method; ``sparse`` hands the weights through.

    Raises:
      TypeError, ValueError: as ``group_penalty``, and if lassos is empty.

    References:
      Wen, Wu, Wang, Chen and Li, arXiv:1608.03665, eq. (1) to (3).

    Example:
      >>> import optax, rvsm_jax
      >>> method = rvsm_jax.ssl(optax.sgd(0.01, momentum=0.9), {rvsm_jax.filters: 5e-3, rvsm_jax.shapes: 5e-3})
    """
    require_optimizer(optimizer)
    require_strength("zero_below", zero_below)
    if not lassos:
        raise ValueError("lassos must name at least one kind of groups, such as {filters: 5e-3}")
    links = [group_penalty(proximal_operator(l1(), groups, where), lam) for groups, lam in lassos.items()]
    zeros = proximal_step(proximal_operator(l0(), weights, where), zero_below**2 / 2)
    return Method(optax.chain(*links, optimizer, zeros), lambda params, step: params)


def admm_nn(
    optimizer: optax.GradientTransformation,
    keep: float | Mapping[str, float],
    n: int | Mapping[str, int],
    rho: Strength,
    every: int,
    *,
    share: float = 0.3,
    where: Where = kernels,
) -> AdmmNN:
    """ADMM-NN: prune by ADMM, project, retrain what is left; quantise it by ADMM, fix a share, retrain, project.

    Args:
      optimizer: any optax optimiser. For another one in each training call this once for each.
      keep: the fraction (float) or number (int) of the weights to keep, of every leaf or by path.
      n: how many positive levels, of every leaf or by path: 2 n values, log2(2 n) bits.
      rho: ADMM's pull; a number or a schedule.
      every: steps between updates of ADMM's copy and dual.
      share: of the weights left, those nearest to a level, that are fixed to it in the last training.
      where: which leaves.

    Returns:
      Four methods. Leaves that a mapping does not name are left alone.

    Raises:
      TypeError, ValueError: as ``top_k``, ``levels``, ``admm_splitting`` and ``partial_projection``.

    References:
      Ren et al., arXiv:1812.11677, sections 3 and 4.

    Example:
      >>> import optax, rvsm_jax
      >>> stages = rvsm_jax.admm_nn(optax.adam(1e-3), keep=0.05, n=8, rho=1e-3, every=500)
      >>> stages._fields
      ('prune', 'retrain', 'quantise', 'finish')
    """
    require_optimizer(optimizer)
    prune = _by_leaf(top_k, keep, where)
    snap = _by_leaf(functools.partial(levels, zero=False, fit="scan"), n, where)
    masked = optax.chain(optimizer, fixed_support(where))
    return AdmmNN(
        Method(optax.chain(admm_splitting(prune, rho, every=every), optimizer), _projected(prune)),
        Method(masked, lambda params, step: params),
        Method(optax.chain(admm_splitting(snap, rho, every=every), masked), _projected(snap)),
        Method(optax.chain(masked, partial_projection(snap, share)), _projected(snap)),
    )


def binary_relax(
    optimizer: optax.GradientTransformation,
    penalty: Penalty,
    eta: Strength,
    hard_from: int,
    *,
    where: Where = kernels,
) -> Method:
    """BinaryRelax: gradients at w = (v + eta Q(v)) / (1 + eta) move v; from a step on, at w = Q(v).

    Args:
      optimizer: any optax optimiser.
      penalty: Q is its projection: ``binary()``, ``ternary()`` or ``levels(7, fit="refit")``, 4 bits.
      eta: a schedule that grows, such as ``optax.exponential_decay(1.0, steps, 1.04, staircase=True)``; a number.
      hard_from: the step at which the second phase begins.
      where: which leaves.

    Returns:
      The method; ``sparse`` is Q.

    Raises:
      TypeError, ValueError: as ``proximal_operator``, and if eta is negative.

    References:
      Yin, Zhang, Lyu, Osher, Qi and Xin, arXiv:1801.06313, Algorithm 1.

    Example:
      >>> import optax, rvsm_jax
      >>> method = rvsm_jax.binary_relax(optax.sgd(0.1), rvsm_jax.binary(), eta=1.0, hard_from=1000)
    """
    require_optimizer(optimizer)
    prox, eta = proximal_operator(penalty, weights, where), as_schedule("eta", eta)

    def blend(step):
        return jnp.where(step >= hard_from, 1.0, eta(step) / (1 + eta(step)))

    return Method(optax.chain(optimizer, relaxed_projection(prox, blend)), _projected(prox))


def bcr(
    optimizer: optax.GradientTransformation,
    rows: int,
    columns: int,
    keep_rows: int | float,
    keep_columns: int | float,
    rho: Strength,
    every: int,
    *,
    where: Where = kernels,
) -> Method:
    """Block-based column-row pruning by ADMM: every block of the kernel's matrix keeps some rows and some columns.

    Args:
      optimizer: any optax optimiser.
      rows: outputs in a block.
      columns: weights of an output in a block.
      keep_rows: how many rows of a block to keep (int), or which fraction (float).
      keep_columns: likewise, of its columns.
      rho: ADMM's pull.
      every: steps between updates of ADMM's copy and dual.
      where: which leaves.

    Returns:
      The method; ``sparse`` is the projection. Retrain it with ``fixed_support``.

    Raises:
      TypeError, ValueError: as ``blocks``, ``submatrix`` and ``admm_splitting``.

    References:
      Niu et al., arXiv:2108.11033 (GRIM).

    Example:
      >>> import optax, rvsm_jax
      >>> method = rvsm_jax.bcr(optax.sgd(0.1), 4, 16, keep_rows=0.5, keep_columns=0.5, rho=1e-3, every=500)
    """
    require_optimizer(optimizer)
    prox = proximal_operator(submatrix(keep_rows, keep_columns), blocks(rows, columns, "weights"), where)
    return Method(optax.chain(admm_splitting(prox, rho, every=every), optimizer), _projected(prox))


def bcr_reweighted(
    optimizer: optax.GradientTransformation,
    rows: int,
    columns: int,
    lam: Strength,
    every: int,
    *,
    eps: float = 1e-3,
    zero_below: float = 1e-2,
    where: Where = kernels,
) -> Method:
    """Block-based column-row pruning by a reweighted penalty, which finds for every block how much of it goes.

    Args:
      optimizer: any optax optimiser.
      rows: outputs in a block.
      columns: weights of an output in a block.
      lam: the penalty's weight.
      every: steps between updates of the groups' weights 1 / (|w_g|^2 + eps).
      eps: in the units of squared magnitudes.
      zero_below: rows and columns of a block with a norm up to this are zero in the network that ships.
      where: which leaves.

    Returns:
      The method; ``sparse`` thresholds columns, then rows. Retrain it with ``fixed_support``.

    Raises:
      TypeError, ValueError: as ``blocks`` and ``reweighted_penalty``.

    References:
      Niu et al., arXiv:2108.11033 (GRIM).

    Example:
      >>> import optax, rvsm_jax
      >>> method = rvsm_jax.bcr_reweighted(optax.sgd(0.1), 4, 16, lam=1e-4, every=500)
    """
    require_optimizer(optimizer)
    require_strength("zero_below", zero_below)
    both = [blocks(rows, columns, by) for by in ("columns", "rows")]
    links = [reweighted_penalty(groups, lam, every=every, eps=eps, where=where) for groups in both]
    prox = in_turn(*(proximal_operator(l0(), groups, where) for groups in both))
    return Method(optax.chain(*links, optimizer), lambda params, step: prox(params, zero_below**2 / 2))


def svd_training(
    optimizer: optax.GradientTransformation,
    lam: Strength,
    energy: float,
    *,
    orthogonal: Strength = 1.0,
    sparsity: Callable[[Any], Any] = hoyer,
) -> Method:
    """SVD training: min f(U diag|s| V) + mu (|U^T U - I|^2 + |V V^T - I|^2) / r^2 + lam hoyer(s), layer by layer.

    Args:
      optimizer: any optax optimiser.
      lam: the weight of the singular values' penalty.
      energy: the share of each layer's sum s^2 that may go when the smallest singular values are put to zero.
      orthogonal: mu.
      sparsity: the singular values' penalty, ``params -> scalar``; published: Hoyer's, or their sum.

    Returns:
      The method, for parameters from ``factorize`` and a forward function from ``factored``; ``sparse`` truncates.

    Raises:
      TypeError, ValueError: as ``penalty_gradient``, and if energy is not in [0, 1].

    References:
      Yang et al., arXiv:2004.09031, eq. (5).

    Example:
      >>> import optax, rvsm_jax
      >>> method = rvsm_jax.svd_training(optax.adam(1e-3), lam=0.1, energy=1e-4)
    """
    require_optimizer(optimizer)
    if not 0 <= energy <= 1:
        raise ValueError(f"energy must be in [0, 1], got {energy}")
    links = penalty_gradient(orthogonality, orthogonal), penalty_gradient(sparsity, lam)
    return Method(optax.chain(*links, optimizer), lambda params, step: truncate(params, energy))


def low_rank(
    optimizer: optax.GradientTransformation,
    penalty: Penalty,
    lam: Strength,
    beta: Strength,
    *,
    spatial: bool = False,
    where: Where | None = None,
) -> Method:
    """Relaxed splitting on the spectrum: u = U prox_{(lam / beta) P}(s) V for w = U diag(s) V, no factors trained.

    It decomposes every kernel in every step: for small networks, or few kernels.

    Args:
      optimizer: any optax optimiser.
      penalty: P of the singular values, such as ``l0()``, ``l1()`` (nuclear norm) or ``top_k(rank)``.
      lam: the penalty's weight.
      beta: the pull's weight.
      spatial: of the (height input) x (width output) matrix of convolutions, instead of (height width input) x output.
      where: which leaves; default: kernels, if spatial those of convolutions.

    Returns:
      The method; ``sparse`` is u, of low rank.

    Raises:
      TypeError, ValueError: as ``rvsm``.

    References:
      Cai, Candes and Shen, arXiv:0810.3286; Dinh and Xin, arXiv:1812.05719.

    Example:
      >>> import optax, rvsm_jax
      >>> method = rvsm_jax.low_rank(optax.sgd(0.1), rvsm_jax.l1(), lam=1e-3, beta=0.1)
    """
    groups, default = (spatial_spectrum, convolutions) if spatial else (spectrum, kernels)
    return rvsm(optimizer, penalty, lam, beta, groups=groups, where=where or default)


def _projected(prox: Prox):
    return lambda params, step: prox(params, 1.0)


def _by_leaf(make: Callable[[Any], Penalty], setting: Any, where: Where) -> Prox:
    """The projection of every leaf with one setting, or of the leaves a mapping names with theirs."""
    if not isinstance(setting, Mapping):
        return proximal_operator(make(setting), weights, where)
    named = [(lambda path, leaf, name=name: path == name) for name in setting]
    return in_turn(*(proximal_operator(make(s), weights, at) for at, s in zip(named, setting.values(), strict=True)))
