"""The compressors that methods_compared sets side by side: each a few trainings, as long in all as any other's.

Strengths were chosen on held-out training images, among ``CANDIDATES``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

import rvsm_jax
from experiments.admm_lenet import KEEP, LEVELS, RHO
from experiments.sparse import DENSE, Setting
from rvsm_jax.factors import Factors, compact, factorize, merge, truncate
from rvsm_jax.proximal import kernels

EPOCHS = 6  # of every method, all its stages together
RATE, FINE_RATE, FACTOR_RATE = 0.05, 0.02, 0.01
Tree = Any
Make = Callable[[optax.GradientTransformation, int, rvsm_jax.Coupled], rvsm_jax.Method]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
      epochs: how many.
      rate: SGD's learning rate, which falls to ``floor`` of it by a cosine.
      make: from the optimiser, the number of steps and the network's coupled channels to the method.
      begin: what the weights of the stage before become first, such as their factors.
      floor: the share of the learning rate that is left at the end.
      ships: whether what follows is the sparse network, or the weights themselves.
      replace: put w := u at each epoch's end.
    """

    epochs: int
    rate: float
    make: Make
    begin: Callable[[Tree], Tree] = lambda params: params
    floor: float = 0.0
    ships: bool = True
    replace: bool = False

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """SGD with Nesterov momentum 0.9 for so many steps, a tenth of them to warm up."""
        rate = optax.warmup_cosine_decay_schedule(0.0, self.rate, max(1, steps // 10), steps, self.floor * self.rate)
        return optax.sgd(rate, momentum=0.9, nesterov=True)


@dataclasses.dataclass(frozen=True)
class Method:
    """A compressor at one strength.

    Attributes:
      family: which method, for the figure.
      strength: what sets it, for the table.
      stages: its trainings.
    """

    family: str
    strength: str
    stages: tuple[Stage, ...]

    @property
    def name(self) -> str:
        """The method with its strength."""
        return f"{self.family}, {self.strength}" if self.strength else self.family


def dense(epochs: int = EPOCHS) -> Stage:
    """Training and nothing else."""
    return Stage(epochs, RATE, lambda optimizer, steps, groups: _plain(optimizer))


def retrain(where: rvsm_jax.proximal.Where = kernels) -> Stage:
    """An epoch in which zeros stay zero."""
    make = lambda optimizer, steps, groups: _plain(optax.chain(optimizer, rvsm_jax.fixed_support(where)))  # noqa: E731
    return Stage(1, FINE_RATE, make)


def rvsm(threshold: float) -> Method:
    """RVSM on single weights, by the transformed l1 norm, as in rvsm_lenet.py; and an epoch of retraining."""
    setting = Setting("transformed_l1", threshold, beta=0.1)
    stage = Stage(EPOCHS - 1, RATE, lambda optimizer, steps, groups: setting.method(optimizer, steps), replace=True)
    return Method("RVSM", f"{threshold:g}", (stage, retrain()))


def rgsm(threshold: float) -> Method:
    """RGSM on channels, as in rgsm_channels.py; and an epoch of retraining what is left."""
    setting = Setting("transformed_l1", threshold, beta=1.0, a=1.0, lasso=1e-5, multiple=4)
    stage = Stage(EPOCHS - 1, RATE, lambda optimizer, steps, groups: setting.method(optimizer, steps, groups.written))
    return Method("RGSM", f"{threshold:g}", (stage, retrain(where=lambda path, leaf: True)))


def ssl(strength: float) -> Method:
    """SSL on the filters and channels of every layer; and an epoch of retraining."""
    lassos: dict[Any, Any] = {rvsm_jax.filters: strength, rvsm_jax.channels: strength}
    stage = Stage(EPOCHS - 1, RATE, lambda optimizer, steps, groups: rvsm_jax.ssl(optimizer, lassos, where=kernels))
    return Method("SSL", f"{strength:g}", (stage, retrain()))


def admm(times: float = 1.0, *, quantised: bool = False) -> Method:
    """ADMM-NN that keeps so many times the weights of admm_lenet.py: pruned and retrained, or quantised as well."""
    keep = {path: times * share for path, share in KEEP.items()}

    def stage(name: str, epochs: int, rate: float, floor: float = 0.0) -> Stage:
        make = lambda optimizer, steps, groups: getattr(_admm(optimizer, keep, steps, 4 * epochs), name)  # noqa: E731
        return Stage(epochs, rate, make, floor=floor, ships=name != "quantise")

    if not quantised:
        stages = dense(EPOCHS - 3), stage("prune", 2, FINE_RATE, 0.1), stage("retrain", 1, FINE_RATE)
        return Method("ADMM-NN, pruned", f"{85 / times:.0f}x", stages)
    first = dense(EPOCHS - 4), stage("prune", 1, FINE_RATE, 0.1), stage("retrain", 1, FINE_RATE)
    last = stage("quantise", 1, FINE_RATE / 4, 0.1), stage("finish", 1, FINE_RATE / 4)
    return Method("ADMM-NN, quantised", f"{85 / times:.0f}x", (*first, *last))


def binary_relax(penalty: rvsm_jax.Penalty, name: str) -> Method:
    """BinaryRelax: eta grows from 1 to 100, and the last fifth of the steps is of the second phase."""

    def make(optimizer: optax.GradientTransformation, steps: int, groups: Any) -> rvsm_jax.Method:
        eta = optax.exponential_decay(1.0, steps, 100.0)
        return rvsm_jax.binary_relax(optimizer, penalty, eta, steps * 4 // 5)

    return Method("BinaryRelax", name, (Stage(EPOCHS, RATE, make),))


def bcr(rows: int, columns: int, keep_rows: float, keep_columns: float) -> Method:
    """Rows and columns of the blocks of the second convolution and the first dense layer, by ADMM; and retraining."""

    def make(optimizer: optax.GradientTransformation, steps: int, groups: Any) -> rvsm_jax.Method:
        rho, every = _growing(steps, 8)
        shares = {"keep_rows": keep_rows, "keep_columns": keep_columns}
        return rvsm_jax.bcr(optimizer, rows, columns, rho=rho, every=every, where=inner_kernels, **shares)

    stages = dense(EPOCHS - 3), Stage(2, FINE_RATE, make, floor=0.1), retrain()
    return Method("BCR", f"{rows} x {columns}, {keep_rows * keep_columns:.3g} left", stages)


def svd_training(lam: float, energy: float) -> Method:
    """SVD training by Adam from a trained network, truncated; its thin factors are trained on where they are fewer."""

    def make(optimizer: optax.GradientTransformation, steps: int, groups: Any) -> rvsm_jax.Method:
        return rvsm_jax.svd_training(optax.adam(optax.cosine_decay_schedule(2e-3, steps)), lam, energy)

    last = dataclasses.replace(dense(1), rate=FACTOR_RATE, begin=lambda params: thin(compact(params)))
    stages = dense(EPOCHS - 3), Stage(2, RATE, make, factorize), last
    return Method("SVD training", f"{lam:g} and {energy:g}", stages)


def low_rank(share: float) -> Method:
    """A share of the singular values by ADMM on the spectrum, no factors trained; then its factors as they are."""
    prox = rvsm_jax.proximal_operator(rvsm_jax.top_k(share), rvsm_jax.spectrum, inner_kernels)

    def make(optimizer: optax.GradientTransformation, steps: int, groups: Any) -> rvsm_jax.Method:
        rho, every = _growing(steps, 8)
        link = rvsm_jax.admm_splitting(prox, rho, every=every)
        return rvsm_jax.Method(optax.chain(link, optimizer), lambda params, step: prox(params, 1.0))

    begin = lambda params: thin(compact(truncate(factorize(params), 1e-8)))  # noqa: E731
    last = dataclasses.replace(dense(1), rate=FACTOR_RATE, begin=begin)
    return Method("low rank, ADMM on the spectrum", f"{share:g}", (dense(EPOCHS - 3), Stage(2, FINE_RATE, make), last))


def thin(params: Tree) -> Tree:
    """Factors only where they have fewer entries than their product."""
    is_factors = lambda x: isinstance(x, Factors)  # noqa: E731

    def smaller(x: Any) -> Any:
        product = merge(x) if is_factors(x) else x
        return x if is_factors(x) and sum(y.size for y in x) < product.size else product

    return jax.tree.map(smaller, params, is_leaf=is_factors)


def inner_kernels(path: str, leaf: Any) -> bool:
    """The kernels between the first layer and the last."""
    return kernels(path, leaf) and path.split("/")[0] in ("conv2", "dense1")


def _plain(optimizer: optax.GradientTransformation) -> rvsm_jax.Method:
    return rvsm_jax.Method(optimizer, lambda params, step: params)


def _admm(
    optimizer: optax.GradientTransformation, keep: Mapping[str, float], steps: int, updates: int
) -> rvsm_jax.AdmmNN:
    rho, every = _growing(steps, updates)
    return rvsm_jax.admm_nn(optimizer, keep, LEVELS, rho, every)


def _growing(steps: int, updates: int) -> tuple[optax.Schedule, int]:
    """ADMM's pull, from update to update geometric between its two values, and the steps between updates."""
    every = max(1, steps // updates)
    growth = (RHO[1] / RHO[0]) ** (1 / (updates - 1))
    return optax.exponential_decay(RHO[0], every, growth, staircase=True), every


DENSE_METHOD = Method(DENSE, "", (dense(),))
METHODS = {
    method.name: method
    for method in (
        DENSE_METHOD,
        rvsm(5.5e-4),
        rvsm(1.5e-3),
        rgsm(3e-4),
        rgsm(6e-4),
        ssl(4e-3),
        ssl(8e-3),
        admm(2.0),
        admm(),
        admm(quantised=True),
        binary_relax(rvsm_jax.binary(), "binary"),
        binary_relax(rvsm_jax.ternary(0.7), "ternary"),
        binary_relax(rvsm_jax.levels(7, fit="refit"), "4 bits"),
        bcr(8, 16, 0.5, 0.25),
        svd_training(0.1, 0.2),
        low_rank(0.06),
    )
}
CANDIDATES = {
    method.name: method
    for method in (
        *map(rvsm, (5.5e-4, 8e-4, 1.5e-3, 2.5e-3)),
        *map(ssl, (1e-3, 2e-3, 4e-3, 8e-3)),
        *(svd_training(0.1, energy) for energy in (0.1, 0.2)),
        low_rank(0.06),
        bcr(8, 16, 0.5, 0.25),
        *map(rgsm, (3e-4, 6e-4, 1.2e-3)),
    )
}
