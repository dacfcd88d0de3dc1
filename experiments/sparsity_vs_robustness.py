"""Robustness against sparsity: is a sparser network more robust, up to a point?

    python -m experiments.sparsity_vs_robustness              # two LeNets on MNIST, natural and adversarial
    python -m experiments.sparsity_vs_robustness --select     # measured on held-out training images
    python -m experiments.sparsity_vs_robustness --quick      # LeNet-300-100 on 8 x 8 digits, a seed

A path goes through nine sparsities, 0 to 99.9 %: of the last level's network the smallest weights, all layers ranked
together, become zero, and what is left is trained on. Beside every path runs its control, as long and at the same
rates but without a zero, for what longer training alone does to robustness. Measured after Guo et al. (arXiv
1810.09619): r_inf, the accuracy under attacks of a given l_inf radius, here FGSM and PGD on the margin; and r_2, the
mean over images of the l_2 distance to the nearest adversarial one that DeepFool or C&W finds, 0 if it is wrong.

A measure is an inverted U if the middle level of the largest mean beats both ends of the path by more than two standard
errors, seed by seed. The level is picked with the seeds that it is tested on, which favours finding one: to be due to
sparsity it must beat the control at the same stage as well. Every level is a row that is saved as it is finished; its
network is kept in runs/, so that a killed run goes on where it was, and several runs may share the work.

Found, three seeds: LeNet-300-100 trained naturally has an inverted U in r_inf that its control has not (PGD, radius
0.1: 15.7 % dense, 40.7 % at 98 % zeros), and next to none in r_2 (1.12 to 1.13). Trained adversarially it has one at
twice the radius of training only (30.5 to 41.0 % at 90 %). LeNet-5 has none in r_inf, trained either way: it is as
robust as dense up to 95 % zeros, and less from 98 % on.
"""

import dataclasses
import fcntl
import functools
import itertools
import json
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

import rvsm_jax
from experiments import common
from experiments.inverted_u import CONTROL, PRUNED, draw, flat, summarised
from experiments.robust_evaluation import accuracies, distances
from experiments.sparse import Arrays, Protocol
from rvsm_jax import adversarial, attacks, data, models, storage, train

LEVELS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
ADVERSARIAL, NATURAL = "adversarial", "natural"


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and how it is trained.

    Attributes:
      network: "lenet_300_100" or "lenet5", with ReLUs behind its poolings.
      training: "natural" or "adversarial".
      examples: training images.
      protocol: of the dense training, and as its fine-tuning that of every level.
      eps: the adversary's radius; it grows from 0 through the first half of the dense training.
      steps: of PGD in training, each 2.5 eps / steps long.
    """

    network: str
    training: str
    examples: int
    protocol: Protocol
    eps: float = 0.1
    steps: int = 4


@dataclasses.dataclass(frozen=True)
class Measures:
    """What every network is measured by.

    Attributes:
      radii: of FGSM and PGD.
      images: for FGSM and PGD; accuracy is that of all test images.
      steps: of PGD.
      deepfool: images for DeepFool.
      cw: images for C&W.
      cw_steps: of Adam for each c.
      cw_searches: values of c.
    """

    radii: tuple[float, ...] = (0.05, 0.1, 0.2)
    images: int = 200
    steps: int = 10
    deepfool: int = 100
    cw: int = 30
    cw_steps: int = 40
    cw_searches: int = 4


@dataclasses.dataclass(frozen=True)
class SparsityOptions(common.Options):
    """Options of this experiment.

    Attributes:
      select: measure on held-out training images instead of the test set.
      networks: which of them.
      trainings: "natural", "adversarial".
      control: whether to run the controls, after all paths.
      summarise: run nothing; table and figure of the rows that there are.
      seeds: how many seeds, from ``seed`` on.
      runs: folder of the networks.
    """

    select: bool = False
    networks: tuple[str, ...] = ("lenet_300_100", "lenet5")
    trainings: tuple[str, ...] = (NATURAL, ADVERSARIAL)
    control: bool = True
    summarise: bool = False
    seeds: int = 3
    runs: pathlib.Path = pathlib.Path("runs/sparsity_vs_robustness")


PROTOCOLS = {
    "lenet_300_100": (30_000, Protocol(epochs=8, learning_rate=0.05, fine_tune_epochs=2, fine_tune_rate=0.02)),
    "lenet5": (8_000, Protocol(epochs=6, batch_size=64, learning_rate=0.05, fine_tune_epochs=1, fine_tune_rate=0.02)),
}
NETWORKS: dict[str, Callable[..., models.Network]] = {
    "lenet_300_100": models.lenet_300_100,
    "lenet5": functools.partial(models.lenet5, activation=jax.nn.relu),
}
QUICK = Case("lenet_300_100", ADVERSARIAL, 1000, Protocol(2, 50, fine_tune_epochs=1), steps=2)
QUICK_MEASURES = Measures((0.1,), 50, 5, 20, 10, 10, 2)


def main(options: SparsityOptions) -> None:
    """Runs every level that the results file does not have yet, and saves it."""
    started = time.time()
    held, measures = load(options), QUICK_MEASURES if options.quick else Measures()
    kinds = (PRUNED, CONTROL) if options.control else (PRUNED,)
    seeds = range(options.seed, options.seed + (1 if options.quick else options.seeds))
    for kind, seed, case in () if options.summarise else itertools.product(kinds, seeds, cases(options)):
        for row in _path(options, case, kind, seed, measures, *held):
            print(_line(row), flush=True)
            _add(options, started, row)
    _add(options, started)
    if table := summarised(_rows(options), len(LEVELS)):
        draw(table, LEVELS, common.output_path(_name(options), options, ".png"))


def cases(options: SparsityOptions) -> list[Case]:
    """The networks and trainings asked for, the fast ones first.

    >>> [case.network for case in cases(SparsityOptions(trainings=("natural",)))]
    ['lenet_300_100', 'lenet5']
    """
    if options.quick:
        return [QUICK]
    return [
        Case(network, training, *PROTOCOLS[network]) for network in options.networks for training in options.trainings
    ]


def _path(
    options: SparsityOptions, case: Case, kind: str, seed: int, measures: Measures, training: Arrays, test: Arrays
) -> Iterator[dict[str, Any]]:
    """The rows of a path that are missing; a control has none at stage 0, where it is the path itself."""
    images, labels = training[0][: case.examples], training[1][: case.examples]
    network = NETWORKS[case.network](jax.random.key(seed), image_shape=images.shape[1:])
    judged = functools.partial(logits, network)
    for stage, level in enumerate(LEVELS):
        wanted = {"kind": kind, "stage": stage, "sparsity": level if kind == PRUNED else 0.0, "seed": seed}
        identity = {**dataclasses.asdict(case), **wanted, "measures": dataclasses.asdict(measures)}
        if (kind == CONTROL and stage == 0) or _found(options, identity):
            continue
        start = time.time()
        params = trained(options.runs, case, kind, seed, stage, network, (images, labels))
        report = rvsm_jax.sparsity(params, groups={})
        yield identity | {
            "weights": report.weights,
            "nonzeros": report.nonzeros,
            "layers": {row.path: row.nonzeros for row in report.rows},
            "accuracy": 100 * train.evaluate(network.forward, params, network.state, *test)["accuracy"],
            **robustness(jax.tree_util.Partial(judged, params), measures, *test, jax.random.key(seed + 1000)),
            "revision": common.revision(),
            "minutes": (time.time() - start) / 60,
        }


def logits(network: models.Network, params: Any, images: jax.Array) -> jax.Array:
    """What the network says of images in [0, 1]."""
    return network.forward(params, network.state, images, None, False)[0]


def robustness(
    logits_fn: Callable[[jax.Array], jax.Array], measures: Measures, images: Any, labels: Any, key: jax.Array
) -> dict[str, Any]:
    """r_inf for every radius, in percent, and r_2, on images drawn without replacement, always the same.

    Args:
      logits_fn: the network.
      measures: the attacks' settings.
      images: uint8 [N, H, W, C].
      labels: [N].
      key: random key of PGD's starts.

    Returns:
      "fgsm" and "pgd", by radius, and "deepfool" and "cw", as of ``distances``.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    named = {f"fgsm {eps}": functools.partial(_fgsm, eps) for eps in measures.radii}
    named |= {f"pgd {eps}": functools.partial(_pgd, eps, measures.steps) for eps in measures.radii}
    few = order[: measures.images]
    found = accuracies(logits_fn, named, images[few], labels[few], key)
    by_radius = {kind: {str(eps): found[f"{kind} {eps}"] for eps in measures.radii} for kind in ("fgsm", "pgd")}
    cw = functools.partial(
        attacks.carlini_wagner, steps=measures.cw_steps, searches=measures.cw_searches, initial_c=1.0, step_size=0.3
    )
    for name, attack, n in (("deepfool", attacks.deepfool, measures.deepfool), ("cw", cw, measures.cw)):
        by_radius[name] = distances(logits_fn, attack, images[order[:n]], labels[order[:n]])
    return by_radius


def _fgsm(eps: float, *arguments: Any) -> jax.Array:
    return attacks.fgsm(*arguments, eps=eps)


def _pgd(eps: float, steps: int, *arguments: Any) -> jax.Array:
    """On the margin, whose gradient does not vanish however large the logits are."""
    return attacks.pgd(*arguments, eps=eps, steps=steps, loss=attacks.margin, keep="worst")


def trained(
    runs: pathlib.Path, case: Case, kind: str, seed: int, stage: int, network: models.Network, training: Arrays
) -> Any:
    """The weights at a stage of a path, read from runs/ or trained from those at the stage before.

    Args:
      runs: folder of the networks.
      case: the network and its training.
      kind: "pruned" or "control".
      seed: for the order of the data.
      stage: number of the level.
      network: where to begin.
      training: images and labels, those of the case.

    Returns:
      The parameters.
    """
    path = network_path(runs, case, kind if stage else PRUNED, seed, stage)
    if path.exists():
        return storage.read(path, like=network.params)
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = len(training[1]) // case.protocol.batch_size
    if stage == 0:
        params, epochs, rate = network.params, case.protocol.epochs, case.protocol.learning_rate
    else:
        params = trained(runs, case, kind, seed, stage - 1, network, training)
        epochs, rate = case.protocol.fine_tune_epochs, case.protocol.fine_tune_rate
        params = pruned(params, LEVELS[stage]) if kind == PRUNED else params
    optimizer = case.protocol.optimizer(rate, epochs * steps)
    result = train.fit(
        network.forward, params, network.state, optax.chain(optimizer, rvsm_jax.fixed_support()), training,
        epochs=epochs, batch_size=case.protocol.batch_size, key=jax.random.fold_in(jax.random.key(seed), stage),
        progress=False, **_adversary(case, 0 if stage else epochs * steps // 2),
    )  # fmt: skip
    storage.write(path, result.params)
    return result.params


def network_path(runs: pathlib.Path, case: Case, kind: str, seed: int, stage: int) -> pathlib.Path:
    """The file of a network; another protocol has another name."""
    code = zlib.crc32(repr(case).encode())
    return runs / f"{case.network}-{case.training}-{code:08x}" / f"{seed}-{kind}-{100 * LEVELS[stage]:g}.rvsm"


def pruned(params: Any, level: float) -> Any:
    """The (1 - level) n largest of all n weights of the kernels, the others zero.

    >>> import jax.numpy as jnp
    >>> pruned({"a": {"kernel": jnp.array([[3.0, 1.0]])}, "b": {"kernel": jnp.array([[2.0], [0.5]])}}, 0.5)
    {'a': {'kernel': Array([[3., 0.]], dtype=float32)}, 'b': {'kernel': Array([[2.],
           [0.]], dtype=float32)}}
    """
    keep = round((1 - level) * rvsm_jax.sparsity(params, groups={}).weights)
    return rvsm_jax.proximal_operator(rvsm_jax.top_k(keep), joint=True)(params, 1.0)


def _adversary(case: Case, growing: int) -> dict[str, Any]:
    """Options of ``train.fit``."""
    if case.training == NATURAL:
        return {}
    eps = optax.linear_schedule(0.0, case.eps, growing) if growing else case.eps
    return adversarial.pgd_training(eps=eps, steps=case.steps)._asdict()


def load(options: SparsityOptions) -> tuple[Arrays, Arrays]:
    """Training images without the 5,000 that are held out, and these, or the test set."""
    found = data.load("digits" if options.quick else "mnist", options.data_dir)
    held = 200 if options.quick else 5000
    training, held_out = data.split(found.train_images, found.train_labels, validation=held, seed=0)
    return training, held_out if options.select else (found.test_images, found.test_labels)


def _name(options: SparsityOptions) -> str:
    return "sparsity_vs_robustness" + ("-selection" if options.select else "")


def _rows(options: SparsityOptions) -> list[dict[str, Any]]:
    return common.saved_rows(_name(options), options)


def _found(options: SparsityOptions, identity: Mapping[str, Any]) -> bool:
    wanted = json.loads(json.dumps(identity))
    return any(common.agrees(row, wanted) for row in _rows(options))


def _add(options: SparsityOptions, started: float, *rows: dict[str, Any]) -> None:
    """Adds rows to the results file, which other processes may be adding to, and summarises it."""
    options.runs.mkdir(parents=True, exist_ok=True)
    with open(options.runs / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _write(options, started, [*_rows(options), *rows])


def _write(options: SparsityOptions, started: float, rows: Sequence[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: [row[k] for k in ("network", "training", "seed", "kind", "stage")])
    common.save(
        _name(options), options, started, experiment="sparsity_vs_robustness", levels=LEVELS,
        table=summarised(rows, len(LEVELS)),
        command="python -m experiments.sparsity_vs_robustness" + (" --select" if options.select else ""),
        minutes=round(sum(row["minutes"] for row in rows), 2), rows=rows,
    )  # fmt: skip


def _line(row: Mapping[str, Any]) -> str:
    cells = ", ".join(f"{name} {value:.2f}" for name, value in flat(row).items())
    what = f"{row['network']} {row['training']} {row['kind']} seed {row['seed']}, {100 * row['sparsity']:g} %"
    return f"{what}, {row['nonzeros']} weights: {cells}; {row['minutes']:.2f} min"


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", "runs/compiled")  # the next seed's step is the same program
    common.run(main, SparsityOptions, __doc__)
