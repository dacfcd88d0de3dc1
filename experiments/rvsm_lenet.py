"""LeNet-300-100 and LeNet-5 on MNIST under RVSM: how few weights for how much accuracy, penalty by penalty.

    python -m experiments.rvsm_lenet --select       # settings compared on 5,000 held-out training images
    python -m experiments.rvsm_lenet                # the settings below, three seeds, on the test set
    python -m experiments.rvsm_lenet --quick        # two epochs on 6,000 images
    python -m experiments.rvsm_lenet --network lenet5 --settings "transformed l1"

Published for LeNet-5: ADMM-NN (Ren et al. 2019) 85x fewer weights at no loss of accuracy. Ours: README.md, from
experiments/results/rvsm_lenet-*.json. LeNet-5 has ReLUs behind its poolings; pixels are in [0, 1]; training
images are shifted at random by up to 2 pixels (``--shift 0``: not). The network measured is u, the one that ships: as
trained, and after a few epochs in which only its non-zero weights train.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import tyro

from experiments import common
from experiments.sparse import DENSE, Arrays, Protocol, Setting, run
from rvsm_jax import data, models

NETWORKS: dict[str, Callable[[jax.Array], models.Network]] = {
    "lenet_300_100": models.lenet_300_100,
    "lenet5": functools.partial(models.lenet5, activation=jax.nn.relu),
}
PROTOCOLS = {
    "lenet_300_100": Protocol(epochs=60, shift=2, fine_tune_epochs=5),
    "lenet5": Protocol(epochs=15, shift=2, fine_tune_epochs=2),
}
SETTINGS = {
    "lenet_300_100": {
        DENSE: Setting(DENSE),
        "l0": Setting("l0", threshold=5e-3, beta=0.1, ramp=0.8, weight_decay=5e-4),
        "l1": Setting("l1", threshold=2e-3, beta=0.1),
        "transformed l1": Setting("transformed_l1", threshold=3e-4, beta=0.1),
    },
    "lenet5": {
        DENSE: Setting(DENSE),
        "transformed l1": Setting("transformed_l1", threshold=7e-4, beta=0.1),
        "transformed l1, lighter": Setting("transformed_l1", threshold=3e-4, beta=0.1),
        "l1": Setting("l1", threshold=3e-3, beta=0.1),
        "l0": Setting("l0", threshold=5e-3, beta=0.1, ramp=0.8, weight_decay=5e-4),
    },
}
CANDIDATES = {
    "lenet_300_100": {
        "transformed l1": [Setting("transformed_l1", t, 0.1) for t in (3e-4, 4e-4)],
        "l1": [Setting("l1", t, 0.1) for t in (2e-3, 3e-3)],
        "l0": [Setting("l0", t, 0.1, ramp=0.8, weight_decay=5e-4) for t in (5e-3, 1e-2)],
    },
    "lenet5": {
        "transformed l1": [Setting("transformed_l1", *s) for s in ((7e-4, 0.1, 0.1), (3.5e-4, 0.1, 0.05))],
    },
}


@dataclasses.dataclass(frozen=True)
class LeNetOptions(common.Options):
    """Options of this experiment.

    Attributes:
      network: one of the networks, or all of them.
      settings: names of settings; default: all.
      select: compare the candidates on held-out training images, one seed, instead of measuring on the test set.
      seeds: how many seeds, from ``seed`` on.
      epochs: of training, instead of the protocol's.
      shift: by how many pixels training images are shifted at random, instead of the protocol's.
    """

    network: Literal["all", "lenet_300_100", "lenet5"] = "all"
    settings: tuple[str, ...] = ()
    select: bool = False
    seeds: int = 3
    epochs: int | None = None
    shift: int | None = None


def main(options: LeNetOptions) -> None:
    """Trains what the options name, prints a line a run, and writes the rows and their summary."""
    started, (training, test) = time.time(), _data(options)
    rows = []
    for network, name, setting, seed in _runs(options):
        built = NETWORKS[network](jax.random.key(seed))
        row, result = run(built, setting, _protocol(network, options), training, test, seed, progress=False)
        rows.append({"network": network, "name": name, **row, "history": result.history})
        print(_line(rows[-1]), flush=True)
        _write(options, started, rows)


def _data(options: LeNetOptions) -> tuple[Arrays, Arrays]:
    mnist = data.load("mnist", options.data_dir)
    training, test = (mnist.train_images, mnist.train_labels), (mnist.test_images, mnist.test_labels)
    if options.select:
        training, test = data.split(*training, validation=5000, seed=0)
    if options.quick:
        training, test = ((images[:n], labels[:n]) for (images, labels), n in ((training, 6000), (test, 1000)))
    return training, test


def _runs(options: LeNetOptions):
    networks = NETWORKS if options.network == "all" else [options.network]
    for network in networks:
        chosen = {name: [s] for name, s in SETTINGS[network].items()}
        chosen = CANDIDATES[network] if options.select else chosen
        unknown = set(options.settings) - set(chosen)
        if unknown:
            raise SystemExit(f"unknown settings {sorted(unknown)}; {network} has {', '.join(map(repr, chosen))}")
        seeds = range(options.seed, options.seed + (1 if options.quick or options.select else options.seeds))
        for name in options.settings or chosen:
            for setting, seed in itertools.product(chosen[name], seeds):
                yield network, name, setting, seed


def _protocol(network: str, options: LeNetOptions) -> Protocol:
    protocol = PROTOCOLS[network]
    if options.quick:
        protocol = dataclasses.replace(protocol, epochs=2, fine_tune_epochs=1)
    wanted = {"epochs": options.epochs, "shift": options.shift}
    return dataclasses.replace(protocol, **{name: value for name, value in wanted.items() if value is not None})


def _line(row: dict[str, Any]) -> str:
    tuned = f" -> {row['fine_tuned']:.2f} % fine-tuned" if "fine_tuned" in row else ""
    setting = {k: v for k, v in dataclasses.asdict(row["setting"]).items() if k != "penalty"}
    share = f"{row['compression']:.1f}x fewer weights ({row['nonzeros']} left)"
    return f"{row['network']} {row['name']} seed {row['seed']} {setting}: {row['accuracy']:.2f} %{tuned}, {share}"


def _write(options: LeNetOptions, started: float, rows: list[dict[str, Any]]) -> None:
    """Saves after every run, so that a killed experiment keeps what it has."""
    keys = ("accuracy", "fine_tuned", "compression", "nonzeros", "zeros", "bitmask_bytes", "seconds")
    table = []
    for (network, name, setting), group in itertools.groupby(
        rows, key=lambda r: (r["network"], r["name"], r["setting"])
    ):
        runs = list(group)
        measured = {key: common.summary([r[key] for r in runs]) for key in keys if key in runs[0]}
        table.append({"network": network, "name": name, "setting": setting, "weights": runs[0]["weights"], **measured})
    protocols = {network: _protocol(network, options) for network in dict.fromkeys(row["network"] for row in rows)}
    measured_on = "5,000 held-out training images" if options.select else "the test set"
    name = "rvsm_lenet" + ("-selection" if options.select else "") + _part(options)
    common.save(
        name,
        options,
        started,
        experiment="rvsm_lenet",
        measured_on=measured_on,
        protocols=protocols,
        table=table,
        rows=rows,
    )


def _part(options: LeNetOptions) -> str:
    shift = "" if options.shift is None else f"-shift{options.shift}"
    return ("" if options.network == "all" else f"-{options.network}") + shift


if __name__ == "__main__":
    main(tyro.cli(LeNetOptions, description=__doc__))
