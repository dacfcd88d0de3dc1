"""ResNet-20 on CIFAR-10 under SSL of depth: how many layers are left, and what the network without the others can do.

    python -m experiments.ssl_resnet20                       # the reduced protocol, three seeds
    python -m experiments.ssl_resnet20 --select              # strengths compared on held-out training images, one seed
    python -m experiments.ssl_resnet20 --network resnet20    # the published protocol, for an accelerator
    python -m experiments.ssl_resnet20 --quick               # an epoch of everything

Published (Wen et al., arXiv:1608.03665): from 20 layers, 91.25 %, 18 are left at 92.60 % and 14 at 91.46 %. A group is
a whole convolution between shortcuts, 18 of them, with coefficient 0.007: 64,000 steps at 0.1, divided by ten after a
half and three quarters, weights below 1e-4 put to zero, then 96,000 steps from 0.01 with what is zero left out. Batches
of 128 and the second training's rate, divided likewise, are ours, and the network is a pre-activation ResNet. *Dense*
is the same two trainings without the penalty. A residual branch one of whose convolutions is zero goes as a whole:
layers are counted in the network that `shrink` returns, the stem, the dense layer, and the convolutions between
shortcuts; 1x1 convolutions in shortcuts are not, as in the name.

Ours, reduced to width 8, 10,000 images, 4 + 2 epochs, and 2e-3 for 1e-4, three seeds: dense 47.37 %, with coefficient
0.025 18 or 20 layers and 45.66 %, in 0.92 of the multiply-adds, with 0.03 12 to 16 layers and 43.44 %, in 0.64. The
published protocol has not been run.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import rvsm_jax
from experiments import common, stages
from experiments.shrunk import shrunk
from experiments.sparse import DENSE, percent
from experiments.stages import Row
from rvsm_jax import models, shrinking, train

BETWEEN = models.between_shortcuts
MEASURES = ("accuracy", "retrained", "shrunk", "layers", "zero_kernels", "multiply_adds", "seconds")
PUBLISHED = (
    {"layers": 20, "accuracy": 91.25},
    {"layers": 18, "accuracy": 92.60},
    {"layers": 14, "accuracy": 91.46},
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes:
      examples: how many images.
      width: channels of the first stage.
      epochs: with the penalty.
      fine_epochs: of what is left.
      batch_size: of both.
      rate: at first, divided by ten after a half and three quarters.
      fine_rate: at first, of the second training, divided likewise.
      weight_decay: times the weights, joins the gradient.
      zero_below: magnitudes that are put to zero after every step of the first training.
    """

    examples: int
    width: int
    epochs: int
    fine_epochs: int
    batch_size: int
    rate: float = 0.1
    fine_rate: float = 0.01
    weight_decay: float = 1e-4
    zero_below: float = 1e-4


PLANS = {
    "resnet20-reduced": Plan(10_000, width=8, epochs=4, fine_epochs=2, batch_size=64, zero_below=2e-3),
    "resnet20": Plan(50_000, width=16, epochs=164, fine_epochs=246, batch_size=128),
}
LASSOS = {"resnet20-reduced": (0.0, 0.025, 0.03), "resnet20": (0.0, 0.007)}
CANDIDATES = {"resnet20-reduced": (0.02, 0.025, 0.03), "resnet20": (0.004, 0.007, 0.01)}


@dataclasses.dataclass(frozen=True)
class DepthOptions(stages.StageOptions):
    """Options of this experiment.

    Attributes:
      network: and its protocol.
      lassos: weights of the penalty, 0 for none; default: those that were chosen, with ``select`` those to choose from.
    """

    network: Literal["resnet20-reduced", "resnet20"] = "resnet20-reduced"
    lassos: tuple[float, ...] = ()


def main(options: DepthOptions) -> None:
    """Trains what the results file does not have yet."""
    plan = PLANS[options.network]
    plan = dataclasses.replace(plan, epochs=1, fine_epochs=1) if options.quick else plan
    sets = stages.arrays("cifar10", options, plan.examples)
    lassos = options.lassos or (CANDIDATES if options.select else LASSOS)[options.network]
    keys = [
        {"seed": seed, "name": f"SSL {lasso:g}" if lasso else DENSE, "lasso": lasso}
        for seed in options.all_seeds for lasso in lassos
    ]  # fmt: skip
    stages.grow(
        f"ssl_resnet20-{options.network}{'-selection' if options.select else ''}", options, plan, keys,
        functools.partial(_run, options=options, plan=plan, sets=sets),
        lambda rows: stages.summarised(rows, ("name",), MEASURES), published=PUBLISHED,
        measured_on="held-out training images" if options.select else "the test set",
    )  # fmt: skip


def _run(key: Row, options: DepthOptions, plan: Plan, sets: Any) -> Row:
    """Both trainings and what they leave: accuracies, percent, of the first, the second, and the shrunk network."""
    seed, lasso = key["seed"], key["lasso"]
    network = models.preact_resnet(jax.random.key(seed), width=plan.width)
    method = penalised(_sgd(plan.rate, plan.epochs, plan, sets), lasso, plan.zero_below)
    first = _fit(network, method, sets, key, "first", options, plan)
    sparse = network._replace(params=first.params, state=first.model_state)
    method = retraining(_sgd(plan.fine_rate, plan.fine_epochs, plan, sets), first.params)
    last = _fit(sparse, method, sets, key, "last", options, plan)
    found = removed(network._replace(params=last.params, state=last.model_state), sets[1])
    return {
        "accuracy": percent(first.history[-1], "u_accuracy"),
        "retrained": percent(last.history[-1], "u_accuracy"),
        **found,
        "zero_kernels": len(zero_kernels(last.params)),
        "norms": {name: float(jnp.linalg.norm(kernel)) for name, kernel in _kernels(first.params).items()},
        "seconds": stages.seconds(first) + stages.seconds(last),
    }


def penalised(optimizer: optax.GradientTransformation, lasso: float, zero_below: float) -> rvsm_jax.Method:
    """The first training: SSL of whole convolutions between shortcuts, or the optimiser alone.

    Args:
      optimizer: of the weights.
      lasso: the weight of the penalty; 0: none.
      zero_below: magnitudes that it puts to zero.

    Returns:
      The method.
    """
    if not lasso:
        return stages.plain(optimizer)
    return rvsm_jax.ssl(optimizer, {rvsm_jax.layers: lasso}, where=BETWEEN, zero_below=zero_below)


def retraining(optimizer: optax.GradientTransformation, params: Any) -> rvsm_jax.Method:
    """The second training, in which convolutions that are zero stay so; single zeros in the others may move.

    Args:
      optimizer: of the weights.
      params: what the first training left.

    Returns:
      The method.
    """
    zero = zero_kernels(params)
    fixed = [rvsm_jax.fixed_support(lambda path, leaf: path in zero)] if zero else []
    return stages.plain(optax.chain(optimizer, *fixed))


def zero_kernels(params: Any) -> list[str]:
    """Which convolutions between shortcuts are zero.

    Args:
      params: of a `preact_resnet`.

    Returns:
      Their paths.

    >>> zero_kernels({"stage1_block1": {"conv1": {"kernel": jnp.zeros((3, 3, 2, 2))}}})
    ['stage1_block1/conv1/kernel']
    """
    return [name for name, kernel in _kernels(params).items() if not kernel.any()]


def removed(network: models.Network, test: Any) -> Row:
    """What `shrink` leaves of a network: its layers, its share of the multiply-adds, and its accuracy, percent.

    Args:
      network: a `preact_resnet`, trained.
      test: images and labels.

    Returns:
      ``shrunk``, the accuracy, ``layers``, ``multiply_adds``, and ``gone``, the convolutions that are not there.
    """
    small = shrunk(network, network.params, network.state, test[0].shape)
    layers = small.report.layers
    gone = [layer.name.removeprefix("params/") for layer in layers if not layer.multiply_adds.after]
    return {
        "shrunk": small.accuracy(test),
        "layers": layers_left(small.report),
        "multiply_adds": small.report.multiply_adds.share,
        "gone": gone,
    }


def layers_left(report: shrinking.Report) -> int:
    """How many layers a shrunk network has, without the convolutions of shortcuts: of a whole ResNet-20, 20."""
    return sum(bool(layer.multiply_adds.after) for layer in report.layers if "/shortcut/" not in layer.name)


def _fit(
    network: models.Network, method: rvsm_jax.Method, sets: Any, key: Row, part: str, options: DepthOptions, plan: Plan
) -> train.FitResult:
    epochs, seed = (plan.epochs, key["seed"]) if part == "first" else (plan.fine_epochs, key["seed"] + 1000)
    return stages.fit(
        network, method, sets, epochs, seed, batch_size=plan.batch_size, weight_decay=plan.weight_decay,
        config=dataclasses.asdict(plan) | {"lasso": key["lasso"]},
        **stages.checkpoints(options, "ssl_resnet20", options.network, key["seed"], key["lasso"], part),
    )  # fmt: skip


def _sgd(rate: float, epochs: int, plan: Plan, sets: Any) -> optax.GradientTransformation:
    steps = epochs * (len(sets[0][1]) // plan.batch_size)
    schedule = optax.piecewise_constant_schedule(rate, {steps // 2: 0.1, 3 * steps // 4: 0.1})
    return optax.sgd(schedule, momentum=0.9)


def _kernels(params: Any) -> dict[str, jax.Array]:
    named = jax.tree_util.tree_leaves_with_path(params)
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in named}
    return {name: leaf for name, leaf in found.items() if BETWEEN(name, leaf)}


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", "runs/compiled")
    common.run(main, DepthOptions, __doc__)
