"""Robust and sparse at once: ResNets and their Feynman-Kac ensembles, trained under attack with RVSM and RGSM.

    python -m experiments.robust_pruning --list                               # the rows by name
    python -m experiments.robust_pruning --rows ResNet20-RGSM-0.05            # a row in full: for an accelerator
    python -m experiments.robust_pruning --as-released                        # the protocol of the authors' code
    python -m experiments.robust_pruning --reduced                            # ResNet-8 of width 8: for two cores
    python -m experiments.robust_pruning --reduced --autoattack 100           # adds AutoAttack's column to all rows
    python -m experiments.robust_pruning --quick                              # two epochs on a few hundred images

Published: Tables 1 to 4 of arXiv 2003.00631, in experiments/robust_rows.py. Ours: README.md, from
experiments/results/robust_pruning*.json, which hold every finished row and seed. The network measured is u, the one
that ships, its useless channels removed. The strengths of the small protocol were chosen on validation images,
with ResNet-8 and a seed of its own: RGSM's so that about 40 % of the channels go, RVSM's as the weaker of two, the
other being ten times its lambda. A killed run goes on where it was, from runs/.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.robust_evaluation import accuracies, published_attacks, ship, sparsities
from experiments.robust_rows import NETS, PUBLISHED, RVSM, Row, reduced
from experiments.rvsm_resnet18 import forgetting
from rvsm_jax import adversarial, attacks, data, models, train

Arrays = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a network is trained and what it meets.

    Attributes:
      dataset: "cifar10" or "mnist".
      eps: the radius of every attack.
      steps: of PGD in training, each 2.5 eps / steps long.
      epochs: of training.
      examples: training images, those held out among them; None for all.
      validation: images held out, whose accuracy under attack picks the epoch.
      test: test images measured on; None for all.
      batch_size: of training.
      pool: images are averaged over squares of so many pixels.
      growing: share of the training in which the radius grows from 0 to eps.
      weight_decay: coupled, on all parameters.
    """

    dataset: str
    eps: float
    steps: int = 10
    epochs: int = 200
    examples: int | None = None
    validation: int = 5000
    test: int | None = None
    batch_size: int = 128
    pool: int = 1
    growing: float = 0.0
    weight_decay: float = 5e-4

    def rate(self, steps: int) -> optax.Schedule:
        """0.1, divided by 10 at 40, 60 and 80 % of the epochs, so many steps each."""
        marks = {round(share * self.epochs) * steps: 0.1 for share in (0.4, 0.6, 0.8)}
        return optax.piecewise_constant_schedule(0.1, marks)


@dataclasses.dataclass(frozen=True)
class RobustOptions(common.Options):
    """Options of this experiment.

    Attributes:
      rows: names of rows; default: all.
      list: print the names and do nothing.
      reduced: the small protocol, on both data sets.
      datasets: of the small protocol.
      as_released: as in the authors' code: the pull outside the momentum, w := u at each epoch's end, momentum
        forgotten there, noise by the standard deviation of the whole batch, the network under attack in training mode,
        and the best epoch picked on the test set.
      autoattack: also AutoAttack, on so many test images; rows that are finished without it get it.
      seeds: how many seeds, from ``seed`` on.
    """

    rows: tuple[str, ...] = ()
    list: bool = False
    reduced: bool = False
    datasets: tuple[Literal["cifar10", "mnist"], ...] = ("cifar10", "mnist")
    as_released: bool = False
    autoattack: int = 0
    seeds: int = 3


FULL = Protocol("cifar10", 8 / 255)
REDUCED = {
    "cifar10": Protocol(
        "cifar10", 8 / 255, steps=5, epochs=8, examples=10_500, validation=500, test=1000, batch_size=64, pool=2
    ),
    "mnist": Protocol(
        "mnist", 0.3, steps=5, epochs=10, examples=4500, validation=500, test=1000, batch_size=64, pool=2, growing=0.6
    ),
}
QUICK: dict[str, Any] = {"epochs": 2, "examples": 320, "validation": 64, "test": 64, "steps": 2}
REDUCED_ROWS = {
    "cifar10": tuple(reduced(lam=0.02, lam2=3e-3, rvsm=(1e-4, 0.1))),
    "mnist": tuple(reduced(lam=0.1, lam2=1e-2, rvsm=(1e-4, 0.1))),
}


def main(options: RobustOptions) -> None:
    """Runs what the options name and the results file does not have yet, and saves every row as it is finished."""
    started, runs = time.time(), list(_runs(options))
    if options.list:
        print("\n".join(dict.fromkeys(f"{p.dataset} {row.name}" for p, row, _ in runs)))
        return
    for protocol, row, seed in runs:
        found = common.saved_rows(_name(options), options)
        identity = _identity(protocol, row, seed)
        done = next((r for r in found if common.agrees(r, identity)), None)
        if done is None or (options.autoattack and "autoattack" not in done["accuracy"]):
            new = _run(options, protocol, row, seed, done)
            print(_line(new), flush=True)
            _write(options, started, [*(r for r in found if r is not done), new])


def _runs(options: RobustOptions) -> Iterator[tuple[Protocol, Row, int]]:
    """What there is to run: all rows with one seed, then with the next; of the small protocol, those of RVSM last."""
    small = options.reduced or options.quick
    known: dict[str, tuple[Row, ...]] = (
        {d: REDUCED_ROWS[d] for d in options.datasets} if small else {"cifar10": PUBLISHED}
    )
    names = {row.name for rows in known.values() for row in rows}
    if unknown := set(options.rows) - names:
        raise SystemExit(f"unknown rows {sorted(unknown)}; there are {', '.join(sorted(names))}")
    seeds = range(options.seed, options.seed + options.seeds)
    for last, seed, dataset in itertools.product((False, True), seeds, known):
        protocol = REDUCED[dataset] if small else FULL
        protocol = quick(protocol) if options.quick else protocol
        rows = [row for row in known[dataset] if (small and row.method == RVSM) is last]
        yield from ((protocol, row, seed) for row in rows if not options.rows or row.name in options.rows)


def quick(protocol: Protocol) -> Protocol:
    """A protocol that takes seconds, on images of half the size.

    >>> quick(REDUCED["mnist"]).epochs, quick(REDUCED["mnist"]).pool
    (2, 4)
    """
    return dataclasses.replace(protocol, **QUICK, pool=2 * protocol.pool)


def _identity(protocol: Protocol, row: Row, seed: int) -> dict[str, Any]:
    """What makes two runs the same, as a results file has it."""
    setting = {k: v for k, v in dataclasses.asdict(row).items() if k not in ("tables", "published")}
    return {"name": row.name, "setting": setting, "protocol": dataclasses.asdict(protocol), "seed": seed}


def _data(protocol: Protocol, folder: Any) -> tuple[Arrays, Arrays, Arrays]:
    """Training, validation and test images and labels."""
    found = data.load(protocol.dataset, folder)
    training = found.train_images[: protocol.examples], found.train_labels[: protocol.examples]
    test = found.test_images[: protocol.test], found.test_labels[: protocol.test]
    kept, held_out = data.split(*training, validation=protocol.validation, seed=0)
    small, validation, measured = ((pooled(images, protocol.pool), labels) for images, labels in (kept, held_out, test))
    return small, validation, measured


def pooled(images: np.ndarray, size: int) -> np.ndarray:
    """The mean over squares of ``size`` pixels, rounded.

    >>> pooled(np.array([[0, 2], [4, 6]], np.uint8).reshape(1, 2, 2, 1), 2).ravel()
    array([3], dtype=uint8)
    """
    n, height, width, channels = images.shape
    squares = images.reshape(n, height // size, size, width // size, size, channels)
    return squares.mean((2, 4)).round().astype(np.uint8)


def _run(options: RobustOptions, protocol: Protocol, row: Row, seed: int, done: Any) -> dict[str, Any]:
    """A row of the results file; of one that is done, with AutoAttack's column."""
    net, start = NETS[row.net], time.time()
    network, result, test = trained(options, protocol, row, seed)
    shipped = ship(network, result.sparse_params, result.model_state, net.words, train.to_unit(jnp.asarray(test[0][0])))
    if done is None:
        key, found = jax.random.key(seed + 1000), published_attacks(protocol.eps)
        done = _identity(protocol, row, seed) | {
            "accuracy": accuracies(shipped.logits_fn, found, *test, key),
            **sparsities(result.sparse_params),
            "multiply_adds": shipped.multiply_adds._asdict(),
            "parameters": shipped.parameters._asdict(),
            "epoch": next(r["epoch"] for r in result.history if r["step"] == result.step),
            "seconds": sum(r["seconds"] or 0.0 for r in result.history),
            "revision": common.revision(),
            "history": result.history,
        }
    if options.autoattack:
        done = done | {"accuracy": done["accuracy"] | _autoattack(options, protocol, net.words, shipped, test, seed)}
    return done | {"minutes": done.get("minutes", 0.0) + (time.time() - start) / 60}


def trained(
    options: RobustOptions, protocol: Protocol, row: Row, seed: int
) -> tuple[models.Network, train.FitResult, Arrays]:
    """A row's network, trained or read from runs/.

    Args:
      options: of the run.
      protocol: how it is trained.
      row: which.
      seed: for its start and the order of the data.

    Returns:
      The network with its initial weights, what its training ended with, and the test set.
    """
    training, validation, test = _data(protocol, options.data_dir)
    over: models.Over = "batch" if options.as_released else "image"
    network = NETS[row.net].build(jax.random.key(seed), test[0].shape[-1], noise_over=over)
    judged_on = test if options.as_released else validation
    return network, _fit(options, protocol, row, seed, network, training, judged_on), test


def _fit(options, protocol: Protocol, row: Row, seed: int, network, training, validation) -> train.FitResult:
    released, steps = options.as_released, len(training[1]) // protocol.batch_size
    rate, grown = protocol.rate(steps), max(1, round(protocol.growing * protocol.epochs * steps))
    sgd = optax.sgd(rate, momentum=0.9, nesterov=True)
    if released:
        sgd = forgetting(optax.chain(optax.add_decayed_weights(protocol.weight_decay), sgd), steps)
    method = row.chain(sgd, rate if released else None, every=steps)
    eps = optax.linear_schedule(0.0, protocol.eps, grown) if protocol.growing else protocol.eps
    adversary = adversarial.pgd_training(eps=eps, steps=protocol.steps, training_mode=released)
    judge = adversarial.pgd_training(eps=protocol.eps, steps=protocol.steps)
    flags = "".join(f"-{name}" for name in ("quick", "reduced", "as_released") if getattr(options, name))
    folder = f"runs/robust_pruning{flags}/{protocol.dataset}-{row.name}-{seed}"
    return train.fit(
        network.forward, network.params, network.state, method.tx, training, validation,
        epochs=protocol.epochs, batch_size=protocol.batch_size, key=jax.random.key(seed), sparse=method.sparse,
        replace_weights=released, select="best", attack=judge.perturb,
        weight_decay=0.0 if released else protocol.weight_decay, decay_mask=lambda w: jax.tree.map(lambda _: True, w),
        augment=data.augment if protocol.dataset == "cifar10" else None,
        checkpoint_dir=None if options.quick else folder, keep=1, config=_identity(protocol, row, seed), progress=False,
        **adversary._asdict(),
    )  # fmt: skip


def _autoattack(options, protocol: Protocol, words, shipped, test: Arrays, seed: int) -> dict[str, float]:
    """Accuracy in percent under AutoAttack, and on the same images as they are."""
    images, labels = test[0][: options.autoattack], test[1][: options.autoattack]
    found = attacks.autoattack(
        shipped.logits_fn, jnp.asarray(images, jnp.float32) / 255, jnp.asarray(labels), jax.random.key(seed + 2000),
        eps=protocol.eps, version="standard" if words is None else "rand",
    )  # fmt: skip
    return {"autoattack": 100 * float(np.mean(found.robust)), "autoattack_clean": 100 * found.accuracy["clean"]}


def _write(options: RobustOptions, started: float, rows: Sequence[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: (row["protocol"]["dataset"], row["name"], row["seed"]))
    flags = [f"--{name.replace('_', '-')}" for name in ("reduced", "as_released") if getattr(options, name)]
    flags += [f"--autoattack {options.autoattack}"] if options.autoattack else []
    common.save(
        _name(options), options, started, experiment="robust_pruning",
        command=" ".join(["python -m experiments.robust_pruning", *flags]),
        minutes=round(sum(row["minutes"] for row in rows), 2), table=summarised(rows), rows=rows,
    )  # fmt: skip


def summarised(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of every row."""
    table = []
    for (dataset, name), group in itertools.groupby(rows, lambda row: (row["protocol"]["dataset"], row["name"])):
        seeds = list(group)
        columns = [c for c in seeds[0]["accuracy"] if all(c in row["accuracy"] for row in seeds)]
        measured = {c: common.summary([row["accuracy"][c] for row in seeds]) for c in columns}
        measured |= {c: common.summary([row[c] for row in seeds]) for c in ("zeros", "zero_channels")}
        shares = [row["multiply_adds"]["after"] / row["multiply_adds"]["before"] for row in seeds]
        work = {"multiply_adds": seeds[0]["multiply_adds"]["before"], "work": common.summary([100 * s for s in shares])}
        table.append({"dataset": dataset, "name": name, "setting": seeds[0]["setting"], **measured, **work})
    return table


def _line(row: dict[str, Any]) -> str:
    cells = ", ".join(f"{name} {value:.2f}" for name, value in row["accuracy"].items())
    gone = f"{row['zeros']:.1f} % zeros, {row['zero_channels']:.1f} % channels"
    return f"{row['protocol']['dataset']} {row['name']} seed {row['seed']}: {cells}; {gone}; {row['minutes']:.2f} min"


def _name(options: RobustOptions) -> str:
    flags = [name.replace("_", "-") for name in ("as_released", "reduced") if getattr(options, name)]
    return "-".join(["robust_pruning", *flags])


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", "runs/compiled")  # the next seed's step is the same program
    common.run(main, RobustOptions, __doc__)
