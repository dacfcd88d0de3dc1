"""LeNet-300-100 and LeNet-5 on MNIST under RVSM: how few weights for how much accuracy, penalty by penalty.

    python -m experiments.rvsm_lenet                            # LeNet-5: three seeds, on the test set
    python -m experiments.rvsm_lenet --network lenet_300_100
    python -m experiments.rvsm_lenet --select                   # settings compared on 5,000 held-out training images
    python -m experiments.rvsm_lenet --quick                    # two epochs on 6,000 images
    python -m experiments.rvsm_lenet --settings "transformed l1" l1

Published for LeNet-5: ADMM-NN (Ren et al. 2019) 85x fewer weights at no loss of accuracy. Ours: README.md, from
experiments/results/rvsm_lenet-*.json. LeNet-5 has ReLUs behind its poolings; pixels are in [0, 1]; training
images are shifted at random by up to 2 pixels (``--shift 0``: not). The network measured is u, the one that ships: as
trained, and after a few epochs in which only its non-zero weights train.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax

from experiments import common
from experiments.sparse import DENSE, Protocol, Setting, mnist, run
from rvsm_jax import models

NETWORKS: dict[str, Callable[[jax.Array], models.Network]] = {
    "lenet_300_100": models.lenet_300_100,
    "lenet5": functools.partial(models.lenet5, activation=jax.nn.relu),
}
PROTOCOLS = {
    "lenet_300_100": Protocol(epochs=60, shift=2, fine_tune_epochs=5),
    "lenet5": Protocol(epochs=20, shift=2, fine_tune_epochs=2),
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
        "transformed l1": Setting("transformed_l1", threshold=5.5e-4, beta=0.1),
        "transformed l1, lighter": Setting("transformed_l1", threshold=2.3e-4, beta=0.1),
        "l1": Setting("l1", threshold=2e-3, beta=0.1),
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
        "transformed l1": [Setting("transformed_l1", t, 0.1) for t in (2.3e-4, 5.5e-4, 7e-4)],
        "l1": [Setting("l1", t, 0.1) for t in (2e-3, 3e-3)],
        "l0": [Setting("l0", t, 0.1, ramp=0.8, weight_decay=5e-4) for t in (5e-3, 1e-2)],
    },
}


@dataclasses.dataclass(frozen=True)
class LeNetOptions(common.Options):
    """Options of this experiment.

    Attributes:
      network: which network.
      settings: names of settings; default: all.
      select: compare the candidates on held-out training images, one seed, instead of measuring on the test set.
      seeds: how many seeds, from ``seed`` on.
      epochs: of training, instead of the protocol's.
      shift: by how many pixels training images are shifted at random, instead of the protocol's.
    """

    network: Literal["lenet_300_100", "lenet5"] = "lenet5"
    settings: tuple[str, ...] = ()
    select: bool = False
    seeds: int = 3
    epochs: int | None = None
    shift: int | None = None


def main(options: LeNetOptions) -> None:
    """Trains what the options name and the results file does not have yet; writes the rows and their summary."""
    started, (training, test) = time.time(), mnist(options.data_dir, select=options.select, quick=options.quick)
    for key in _runs(options):
        if any(common.agrees(row, key) for row in _rows(options)):
            continue
        network = NETWORKS[key["network"]](jax.random.key(key["seed"]))
        row, result = run(network, key["setting"], key["protocol"], training, test, key["seed"], progress=False)
        row = key | row | {"revision": common.revision(), "history": result.history}
        print(_line(row), flush=True)
        _write(options, started, [*(r for r in _rows(options) if not common.agrees(r, key)), row])


def _rows(options: LeNetOptions) -> list[dict[str, Any]]:
    """The rows of the results file as it is now, with their settings."""
    rows = common.saved_rows(_name(options), options)
    return [row | {"setting": Setting(**row["setting"]), "protocol": Protocol(**row["protocol"])} for row in rows]


def _runs(options: LeNetOptions) -> Iterator[dict[str, Any]]:
    """What there is to run: network, name, protocol, setting and seed, which together are a run's identity."""
    network = options.network
    chosen = CANDIDATES[network] if options.select else {name: [s] for name, s in SETTINGS[network].items()}
    unknown = set(options.settings) - set(chosen)
    if unknown:
        raise SystemExit(f"unknown settings {sorted(unknown)}; {network} has {', '.join(map(repr, chosen))}")
    seeds = range(options.seed, options.seed + (1 if options.quick or options.select else options.seeds))
    for name in options.settings or chosen:
        for setting, seed in itertools.product(chosen[name], seeds):
            protocol = _protocol(network, options)
            yield {"network": network, "name": name, "protocol": protocol, "setting": setting, "seed": seed}


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
    measures = ("accuracy", "fine_tuned", "compression", "nonzeros", "zeros", "bitmask_bytes", "seconds")
    fields = ("name", "setting", "protocol")
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        groups.setdefault(tuple(row[field] for field in fields), []).append(row)
    table = [
        dict(zip(fields, group, strict=True))
        | {"network": options.network, "weights": runs[0]["weights"]}
        | {measure: common.summary([run[measure] for run in runs]) for measure in measures if measure in runs[0]}
        for group, runs in groups.items()
    ]
    names = [DENSE, *SETTINGS[options.network]]
    table.sort(key=lambda row: names.index(row["name"]))
    common.save(
        _name(options), options, started, experiment="rvsm_lenet",
        measured_on="5,000 held-out training images" if options.select else "the test set",
        command=f"python -m experiments.rvsm_lenet --network {options.network}{' --select' if options.select else ''}",
        minutes=round(sum(row["seconds"] for row in rows) / 60, 2), table=table, rows=rows,
    )  # fmt: skip


def _name(options: LeNetOptions) -> str:
    return f"rvsm_lenet{'-selection' if options.select else ''}-{options.network}"


if __name__ == "__main__":
    common.run(main, LeNetOptions, __doc__)
