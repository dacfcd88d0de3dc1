"""Robustness against sparsity: is a sparser network more robust, up to a point?

    python -m experiments.sparsity_vs_robustness              # two LeNets on MNIST, natural and adversarial, three seeds
    python -m experiments.sparsity_vs_robustness --select     # measured on held-out training images
    python -m experiments.sparsity_vs_robustness --quick      # LeNet-300-100 on 8 x 8 digits, a seed

A path goes through nine sparsities, 0 to 99.9 %: of the last level's network the smallest weights, all layers ranked
together, become zero, and what is left is trained on. Beside every path runs its control, as long and at the same rates
but without a zero, for what longer training alone does to robustness. Measured after Guo et al. (arXiv 1810.09619):
r_inf, the accuracy under attacks of a given l_inf radius, here FGSM and PGD on the margin; and r_2, the mean over images
of the l_2 distance to the nearest adversarial one that DeepFool or C&W finds, 0 for misclassified images.

A measure is an inverted U if the middle level of the largest mean beats both ends of the path by more than two standard
errors, seed by seed. The level is picked with the same seeds that it is tested on, which favours finding one: so it must
beat the control at the same stage as well to be due to sparsity. Every level is a row that is saved as it is finished;
its network is kept in runs/, so that a killed run goes on where it was.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import rvsm_jax
from experiments import common
from experiments.robust_evaluation import accuracies, distances
from experiments.sparse import Arrays, Protocol
from rvsm_jax import adversarial, attacks, data, models, storage, train

LEVELS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
ADVERSARIAL, NATURAL, PRUNED, CONTROL = "adversarial", "natural", "pruned", "control"


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
    eps: float = 0.2
    steps: int = 5


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

    radii: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    images: int = 500
    steps: int = 20
    deepfool: int = 500
    cw: int = 100
    cw_steps: int = 60
    cw_searches: int = 5


@dataclasses.dataclass(frozen=True)
class SparsityOptions(common.Options):
    """Options of this experiment.

    Attributes:
      select: measure on held-out training images instead of the test set.
      networks: which of them.
      trainings: "natural", "adversarial".
      control: whether to run the controls, after all paths.
      seeds: how many seeds, from ``seed`` on.
      runs: folder of the networks.
    """

    select: bool = False
    networks: tuple[str, ...] = ("lenet_300_100", "lenet5")
    trainings: tuple[str, ...] = (NATURAL, ADVERSARIAL)
    control: bool = True
    seeds: int = 3
    runs: pathlib.Path = pathlib.Path("runs/sparsity_vs_robustness")


PROTOCOLS = {
    "lenet_300_100": (55_000, Protocol(epochs=8, learning_rate=0.05, fine_tune_epochs=2, fine_tune_rate=0.02)),
    "lenet5": (20_000, Protocol(epochs=8, learning_rate=0.05, fine_tune_epochs=2, fine_tune_rate=0.02)),
}
NETWORKS: Mapping[str, Callable[..., models.Network]] = {
    "lenet_300_100": models.lenet_300_100,
    "lenet5": functools.partial(models.lenet5, activation=jax.nn.relu),
}
QUICK = Case("lenet_300_100", ADVERSARIAL, 1000, Protocol(2, 50, fine_tune_epochs=1), steps=2)
QUICK_MEASURES = Measures((0.1,), 50, 5, 20, 10, 10, 2)


def main(options: SparsityOptions) -> None:
    """Runs every level that the results file does not have yet, and saves it."""
    started = time.time()
    held, measures = _data(options), QUICK_MEASURES if options.quick else Measures()
    kinds = (PRUNED, CONTROL) if options.control else (PRUNED,)
    seeds = range(options.seed, options.seed + (1 if options.quick else options.seeds))
    for kind, seed, case in itertools.product(kinds, seeds, cases(options)):
        for row in _path(options, case, kind, seed, measures, *held):
            print(_line(row), flush=True)
            _write(options, started, measures, [*_rows(options), row])


def cases(options: SparsityOptions) -> list[Case]:
    """The networks and trainings asked for, the fast ones first.

    >>> [case.network for case in cases(SparsityOptions(trainings=("natural",)))]
    ['lenet_300_100', 'lenet5']
    """
    if options.quick:
        return [QUICK]
    return [Case(network, training, *PROTOCOLS[network]) for network in options.networks for training in options.trainings]


def _path(
    options: SparsityOptions, case: Case, kind: str, seed: int, measures: Measures, training: Arrays, test: Arrays
) -> Iterator[dict[str, Any]]:
    """The rows of a path that are missing; a control has none at stage 0, where it is the path itself."""
    images, labels = training[0][: case.examples], training[1][: case.examples]
    network = NETWORKS[case.network](jax.random.key(seed), image_shape=images.shape[1:])
    judged = functools.partial(_judged, network)
    for stage, level in enumerate(LEVELS):
        wanted = {"kind": kind, "stage": stage, "sparsity": level if kind == PRUNED else 0.0, "seed": seed}
        identity = {**dataclasses.asdict(case), **wanted, "measures": dataclasses.asdict(measures)}
        if (kind == CONTROL and stage == 0) or _found(options, identity):
            continue
        start = time.time()
        params = _network(options, case, kind, seed, stage, network, (images, labels))
        report = rvsm_jax.sparsity(params)
        yield identity | {
            "weights": report.weights,
            "nonzeros": report.nonzeros,
            "layers": {row.path: row.nonzeros for row in report.rows},
            "accuracy": 100 * train.evaluate(network.forward, params, network.state, *test)["accuracy"],
            **robustness(jax.tree_util.Partial(judged, params), measures, *test, jax.random.key(seed + 1000)),
            "revision": common.revision(),
            "minutes": (time.time() - start) / 60,
        }


def _judged(network: models.Network, params: Any, images: jax.Array) -> jax.Array:
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
        attacks.carlini_wagner, steps=measures.cw_steps, searches=measures.cw_searches, initial_c=1.0, step_size=0.05
    )
    for name, attack, n in (("deepfool", attacks.deepfool, measures.deepfool), ("cw", cw, measures.cw)):
        by_radius[name] = distances(logits_fn, attack, images[order[:n]], labels[order[:n]])
    return by_radius


def _fgsm(eps: float, *arguments: Any) -> jax.Array:
    return attacks.fgsm(*arguments, eps=eps)


def _pgd(eps: float, steps: int, *arguments: Any) -> jax.Array:
    """On the margin, whose gradient does not vanish however large the logits are."""
    return attacks.pgd(*arguments, eps=eps, steps=steps, loss=attacks.margin, keep="worst")


def _network(
    options: SparsityOptions, case: Case, kind: str, seed: int, stage: int, network: models.Network, training: Arrays
) -> Any:
    """The weights at a stage of a path, read from runs/ or trained from those at the stage before."""
    path = network_path(options.runs, case, kind if stage else PRUNED, seed, stage)
    if path.exists():
        return storage.read(path, like=network.params)
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = len(training[1]) // case.protocol.batch_size
    if stage == 0:
        params, epochs, rate = network.params, case.protocol.epochs, case.protocol.learning_rate
    else:
        params = _network(options, case, kind, seed, stage - 1, network, training)
        epochs, rate = case.protocol.fine_tune_epochs, case.protocol.fine_tune_rate
        params = pruned(params, LEVELS[stage]) if kind == PRUNED else params
    tx = optax.chain(case.protocol.optimizer(rate, epochs * steps), rvsm_jax.fixed_support())
    result = train.fit(
        network.forward, params, network.state, tx if stage else case.protocol.optimizer(rate, epochs * steps), training,
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

    >>> pruned({"a": {"kernel": jnp.array([[3.0, 1.0]])}, "b": {"kernel": jnp.array([[2.0], [0.5]])}}, 0.5)
    {'a': {'kernel': Array([[3., 0.]], dtype=float32)}, 'b': {'kernel': Array([[2.],
           [0.]], dtype=float32)}}
    """
    keep = round((1 - level) * rvsm_jax.sparsity(params).weights)
    return rvsm_jax.proximal_operator(rvsm_jax.top_k(keep), joint=True)(params, 1.0)


def _adversary(case: Case, growing: int) -> dict[str, Any]:
    """Options of ``train.fit``."""
    if case.training == NATURAL:
        return {}
    eps = optax.linear_schedule(0.0, case.eps, growing) if growing else case.eps
    return adversarial.pgd_training(eps=eps, steps=case.steps)._asdict()


def inverted_u(values: Sequence[Sequence[float]], control: Sequence[Sequence[float]] | None = None) -> dict[str, Any]:
    """The middle level of the largest mean, and by how much it beats the ends, seed by seed.

    Args:
      values: [levels, seeds] of a measure, from dense to sparsest.
      control: likewise, of the controls from stage 1 on.

    Returns:
      "level", its number; "dense", "sparsest" and "control": mean and standard error of its gain over each; "found":
      whether the gains over both ends are more than two standard errors; "by_sparsity": whether that over the control
      is, too. Without two seeds there are no standard errors, and nothing is found.

    >>> found = inverted_u([[1.0, 1.2], [2.0, 2.1], [0.0, 0.3]])
    >>> found["level"], found["found"], "control" in found
    (1, True, False)
    """
    x = np.asarray(values, float)
    level = 1 + int(x[1:-1].mean(1).argmax())
    others = {"dense": x[0], "sparsest": x[-1]} | ({} if control is None else {"control": np.asarray(control)[level - 1]})
    found: dict[str, Any] = {"level": level}
    for name, other in others.items():
        gain = x[level] - other
        error = float(gain.std(ddof=1) / math.sqrt(gain.size)) if gain.size > 1 else None
        clear = error is not None and bool(gain.mean() > 2 * error)
        found[name] = {"gain": float(gain.mean()), "standard_error": error, "clear": clear}
    found["found"] = found["dense"]["clear"] and found["sparsest"]["clear"]
    if control is not None:
        found["by_sparsity"] = found["found"] and found["control"]["clear"]
    return found


def flat(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's measures by name: "accuracy", "fgsm 0.1", "pgd 0.1", "deepfool", "cw".

    >>> flat({"accuracy": 99.0, "fgsm": {"0.1": 50.0}, "pgd": {}, "deepfool": {"mean": 2.0}, "cw": {"mean": 1.0}})
    {'accuracy': 99.0, 'fgsm 0.1': 50.0, 'deepfool': 2.0, 'cw': 1.0}
    """
    named = {f"{kind} {eps}": value for kind in ("fgsm", "pgd") for eps, value in row[kind].items()}
    return {"accuracy": row["accuracy"], **named, **{kind: row[kind]["mean"] for kind in ("deepfool", "cw")}}


def summarised(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each network and training its curves over the seeds that have finished their path, and the verdicts."""
    table = []
    for network, training in dict.fromkeys((row["network"], row["training"]) for row in rows):
        mine = [row for row in rows if (row["network"], row["training"]) == (network, training)]
        seeds = {kind: _whole(mine, kind) for kind in (PRUNED, CONTROL)}
        if not seeds[PRUNED]:
            continue
        curves = {kind: _curves(mine, kind, found) for kind, found in seeds.items() if found}
        both = seeds[CONTROL] == seeds[PRUNED]
        verdicts = {name: inverted_u(values, curves[CONTROL][name] if both else None) for name, values in curves[PRUNED].items()}
        table.append({"network": network, "training": training, "seeds": seeds, "curves": curves, "inverted_u": verdicts})
    return table


def _whole(rows: Sequence[Mapping[str, Any]], kind: str) -> list[int]:
    """The seeds that have all levels."""
    stages = len(LEVELS) - (kind == CONTROL)
    seeds = sorted({row["seed"] for row in rows})
    return [s for s in seeds if sum(row["seed"] == s and row["kind"] == kind for row in rows) == stages]


def _curves(rows: Sequence[Mapping[str, Any]], kind: str, seeds: Sequence[int]) -> dict[str, list[list[float]]]:
    """[levels, seeds] of every measure."""
    at = {(row["stage"], row["seed"]): flat(row) for row in rows if row["kind"] == kind}
    stages = sorted({stage for stage, _ in at})
    return {name: [[at[stage, s][name] for s in seeds] for stage in stages] for name in next(iter(at.values()))}


def _data(options: SparsityOptions) -> tuple[Arrays, Arrays]:
    """Training images without the 5,000 that are held out, and these, or the test set."""
    found = data.load("digits" if options.quick else "mnist", options.data_dir)
    held = 200 if options.quick else 5000
    training, held_out = data.split(found.train_images, found.train_labels, validation=held, seed=0)
    return training, held_out if options.select else (found.test_images, found.test_labels)


def _name(options: SparsityOptions) -> str:
    return "sparsity_vs_robustness" + ("-selection" if options.select else "")


def _rows(options: SparsityOptions) -> list[dict[str, Any]]:
    """The rows of the results file as it is now."""
    try:
        return list(common.load(common.output_path(_name(options), options, "").name, options.out)["rows"])
    except FileNotFoundError:
        return []


def _found(options: SparsityOptions, identity: Mapping[str, Any]) -> bool:
    wanted = json.loads(json.dumps(identity))
    return any(all(row[name] == value for name, value in wanted.items()) for row in _rows(options))


def _write(options: SparsityOptions, started: float, measures: Measures, rows: Sequence[dict[str, Any]]) -> None:
    common.save(
        _name(options), options, started, experiment="sparsity_vs_robustness", levels=LEVELS, table=summarised(rows),
        command="python -m experiments.sparsity_vs_robustness" + (" --select" if options.select else ""),
        minutes=round(sum(row["minutes"] for row in rows), 2), rows=rows,
    )  # fmt: skip


def _line(row: Mapping[str, Any]) -> str:
    cells = ", ".join(f"{name} {value:.2f}" for name, value in flat(row).items())
    what = f"{row['network']} {row['training']} {row['kind']} seed {row['seed']}, {100 * row['sparsity']:g} %"
    return f"{what}, {row['nonzeros']} weights: {cells}; {row['minutes']:.2f} min"


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", "runs/compiled")  # the next seed's step is the same program
    main(tyro.cli(SparsityOptions, description=__doc__))
