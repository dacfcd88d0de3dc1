"""RGSM on channels, shrunk: accuracy against channels, multiply-adds and measured time, penalty by penalty.

    python -m experiments.rgsm_channels                 # trains what is missing, three seeds each, then times it all
    python -m experiments.rgsm_channels --select        # strengths compared on held-out training images, one seed
    python -m experiments.rgsm_channels --measure       # only times the networks that are trained
    python -m experiments.rgsm_channels --quick         # a dense network on 8 x 8 digits

MNIST on LeNet-5, and CIFAR-10 on a pre-activation ResNet-20 that is reduced to what a core can train: width 8, 10,000
images, 4 epochs. Groups are channels with all that writes and scales them, and in the ResNet all that reads them (the
channels inside its blocks); how many are left of a layer is a multiple of 4. Every point is the network that `shrink`
returns: its test accuracy, its multiply-adds and its time at batch 64, in turns with the dense network. Beside them
RVSM, whose zeros are single weights. Strengths were chosen on held-out training images. Networks are kept in runs/, so
that a killed run goes on and timing can be repeated.
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import rvsm_jax
from experiments import common
from experiments.shrunk import evaluated, example, shrunk
from experiments.sparse import DENSE, Arrays, Protocol, Setting, percent, run
from experiments.timing import interleaved, ratio
from rvsm_jax import data, models, shrinking

RVSM = "RVSM, single weights"
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, what it is trained on, and the settings to compare.

    Attributes:
      title: for tables and figures.
      make: the network from a key.
      dataset: its name.
      examples: how many training images.
      protocol: how it is trained.
      groups: which of the network's coupled channels are the groups.
      settings: by name, from weak to strong.
    """

    title: str
    make: Callable[[jax.Array], models.Network]
    dataset: str
    examples: int
    protocol: Protocol
    groups: Callable[[rvsm_jax.Coupled], rvsm_jax.Coupled]
    settings: Mapping[str, tuple[Setting, ...]]


def strengths(penalty: str, *thresholds: float, **options: Any) -> tuple[Setting, ...]:
    """Settings of one penalty, one for each threshold in units of a group's root mean square."""
    options = {"beta": 1.0, "a": 1.0, "lasso": 1e-5, "multiple": 4, "replace": False} | options
    return tuple(Setting(penalty, threshold=threshold, **options) for threshold in thresholds)


single = functools.partial(strengths, "transformed_l1", beta=0.1, a=0.1, lasso=0.0, multiple=1)
CASES = {
    "lenet5": Case(
        "LeNet-5, MNIST",
        functools.partial(models.lenet5, activation=jax.nn.relu),
        "mnist",
        60_000,
        Protocol(epochs=3),
        lambda found: found.written,
        {
            DENSE: (Setting(DENSE),),
            "l0": strengths("l0", 1e-3, 4e-3, lasso=1e-4),
            "l1": strengths("l1", 2e-4, 4e-4),
            "transformed l1": strengths("transformed_l1", 1.5e-4, 3e-4),
            RVSM: single(5e-4),
        },
    ),
    "resnet20": Case(
        "ResNet-20, CIFAR-10: width 8, 10,000 images",
        functools.partial(models.preact_resnet, width=8),
        "cifar10",
        10_000,
        Protocol(epochs=4, batch_size=64, learning_rate=0.1),
        lambda found: found.inner,
        {
            DENSE: (Setting(DENSE),),
            "l0": strengths("l0", 0.1, 0.14),
            "l1": strengths("l1", 4e-4, 7e-4),
            "transformed l1": strengths("transformed_l1", 8e-4, 1.2e-3),
            RVSM: single(5e-4),
        },
    ),
}
QUICK = Case(
    "LeNet-300-100, digits",
    functools.partial(models.lenet_300_100, image_shape=(8, 8, 1)),
    "digits",
    1000,
    Protocol(epochs=2, batch_size=50),
    lambda found: found.written,
    {DENSE: (Setting(DENSE),), "l0": strengths("l0", 5e-2)},
)


@dataclasses.dataclass(frozen=True)
class ChannelOptions(common.Options):
    """Options of this experiment.

    Attributes:
      network: which network; default: all.
      select: compare the settings on held-out training images, one seed, instead of measuring on the test set.
      measure: train nothing.
      names: names of settings; default: all.
      seeds: how many seeds, from ``seed`` on.
      rounds: how often each network is timed.
      runs: folder of the trained networks.
    """

    network: Literal["lenet5", "resnet20"] | None = None
    select: bool = False
    measure: bool = False
    names: tuple[str, ...] = ()
    seeds: int = 3
    rounds: int = 21
    runs: pathlib.Path = pathlib.Path("runs/rgsm_channels")


def main(options: ChannelOptions) -> None:
    """Trains what the results file does not have yet, then times every network and draws the figures."""
    started = time.time()
    cases = {"digits": QUICK} if options.quick else CASES
    if options.network:
        cases = {options.network: cases[options.network]}
    for name, case in cases.items():
        sets = _data(case, options)
        for key in _missing(name, case, options):
            row = key | _run(case, key, *sets, _path(key, options)) | {"revision": common.revision()}
            print(_line(row), flush=True)
            _write(options, started, [*_rows(options), row])
    if not options.select:
        rows = _timed(_rows(options), options, cases)
        _write(options, started, rows)
        _draw(rows, common.output_path("rgsm_channels", options, ".png"))
        _draw_norms(rows, options)


def _missing(name: str, case: Case, options: ChannelOptions) -> Iterator[dict[str, Any]]:
    """What there is still to run: network, name, setting, protocol and seed, which together are a run's identity."""
    if options.measure:
        return
    seeds = range(options.seed, options.seed + (1 if options.quick or options.select else options.seeds))
    for seed, (kind, settings) in itertools.product(seeds, case.settings.items()):
        for setting in settings:
            key = {"network": name, "name": kind, "setting": setting, "protocol": case.protocol, "seed": seed}
            wanted = not options.names or kind in options.names
            if wanted and not any(common.agrees(row, key) for row in _rows(options)):
                yield key


def _data(case: Case, options: ChannelOptions) -> tuple[Arrays, Arrays, Arrays]:
    """Images to train on, some held out, and those to measure on: the test set, or with ``select`` more held out."""
    found = data.load(case.dataset, options.data_dir)
    rest, held_out = data.split(
        found.train_images, found.train_labels, validation=len(found.train_labels) // 10, seed=0
    )
    training = rest[0][: case.examples], rest[1][: case.examples]
    few = held_out[0][:500], held_out[1][:500]
    return training, few, held_out if options.select else (found.test_images, found.test_labels)


def _run(case: Case, key: dict[str, Any], training: Arrays, few: Arrays, test: Arrays, path: pathlib.Path) -> dict:
    """Trains one network and keeps it; what is left of it, and its accuracy when shrunk."""
    network, setting = case.make(jax.random.key(key["seed"])), key["setting"]
    groups = case.groups(rvsm_jax.coupled_channels(*_of_params(network, training[0].shape)))
    single_weights = key["name"] in (DENSE, RVSM)
    row, result = run(
        network, setting, case.protocol, training, few, key["seed"],
        groups=None if single_weights else groups, progress=False,
    )  # fmt: skip
    _keep(path, {"params": result.sparse_params, "state": result.model_state})
    small = shrunk(network, result.sparse_params, result.model_state, training[0].shape)
    report = small.report
    channels = sum(family.size for family in groups.families)
    made = {leaf.path: leaf.after[-1] for leaf in report.leaves if leaf.after}
    left = sum(made[f"params/{family.writers[0]}"] for family in groups.families)
    return {
        "title": case.title,
        "accuracy": small.accuracy(test),
        "accuracy_of_w": percent(result.history[-1], "w_accuracy"),
        "channels": channels,
        "channel_sparsity": 100 * (1 - left / channels),
        "zeros": row["zeros"],
        "parameters": report.parameters.share,
        "multiply_adds": report.multiply_adds.share,
        "widths": {layer.name: [layer.inputs.after, layer.outputs.after] for layer in report.layers},
        "seconds": row["seconds"],
    }


def _of_params(network: models.Network, shape: tuple[int, ...]) -> tuple[Callable, Any, jax.ShapeDtypeStruct]:
    fn = evaluated(network)
    return lambda params, x: fn({"params": params, "state": network.state}, x), network.params, example(shape)


def _timed(rows: list[dict[str, Any]], options: ChannelOptions, cases: Mapping[str, Case]) -> list[dict[str, Any]]:
    """The rows with ``milliseconds`` and ``time``, the time of the shrunk network over that of its dense one."""
    timed = [row for row in rows if row["network"] not in cases]
    for name, case in cases.items():
        mine = [row for row in rows if row["network"] == name]
        for seed in sorted({row["seed"] for row in mine}):
            few = [row for row in mine if row["seed"] == seed]
            seconds = interleaved(_calls(case, few, options), options.rounds)
            dense = next(str(i) for i, row in enumerate(few) if row["name"] == DENSE)
            for i, row in enumerate(few):
                ms = 1e3 * float(np.median(seconds[str(i)]))
                timed.append(row | {"milliseconds": ms, "time": ratio(seconds, str(i), dense)})
    return timed


def _calls(case: Case, rows: list[dict[str, Any]], options: ChannelOptions) -> dict[str, Callable[[], Any]]:
    """A call of each row's shrunk network on a batch, compiled."""
    calls: dict[str, Callable[[], Any]] = {}
    for i, row in enumerate(rows):
        network = case.make(jax.random.key(row["seed"]))
        variables = _kept(_path(row, options), {"params": network.params, "state": network.state})
        shape = data.load(case.dataset, options.data_dir).train_images.shape
        fn, small, _ = shrunk(network, variables["params"], variables["state"], shape)
        x = jax.random.uniform(jax.random.key(0), (BATCH, *shape[1:]))
        calls[str(i)] = functools.partial(jax.jit(fn).lower(small, x).compile(), small, x)
    return calls


def _path(key: Mapping[str, Any], options: ChannelOptions) -> pathlib.Path:
    setting = key["setting"]
    name = f"{key['network']}-{key['name']}-{setting.threshold:g}-{key['seed']}".replace(" ", "_").replace(",", "")
    return options.runs / ("select" if options.select else "") / f"{name}.npz"


def _keep(path: pathlib.Path, variables: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, *map(np.asarray, jax.tree.leaves(variables)))


def _kept(path: pathlib.Path, like: Any) -> Any:
    with np.load(path) as found:
        return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(found[name]) for name in found.files])


def _rows(options: ChannelOptions) -> list[dict[str, Any]]:
    """The rows of the results file as it is now, with their settings."""
    rows = common.saved_rows(_name(options), options)
    return [row | {"setting": Setting(**row["setting"]), "protocol": Protocol(**row["protocol"])} for row in rows]


def _line(row: dict[str, Any]) -> str:
    left = f"{row['channel_sparsity']:.1f} % of channels gone, {row['multiply_adds']:.2f} of the multiply-adds"
    setting = f"{row['name']} {row['setting'].threshold:g}, seed {row['seed']}"
    accuracy = f"{row['accuracy']:.2f} % (w {row['accuracy_of_w']:.1f})"
    return f"{row['network']} {setting}: {accuracy}, {left}, {row['seconds']:.0f} s"


def _write(options: ChannelOptions, started: float, rows: list[dict[str, Any]]) -> None:
    """Saves after every run, so that a killed experiment keeps what it has."""
    measures = ("accuracy", "channel_sparsity", "zeros", "parameters", "multiply_adds", "milliseconds")
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        groups.setdefault((row["network"], row["title"], row["name"], row["setting"]), []).append(row)
    table = [
        dict(zip(("network", "title", "name", "setting"), group, strict=True))
        | {name: common.summary([r[name] for r in runs]) for name in measures if all(name in r for r in runs)}
        | ({"time": common.summary([r["time"]["median"] for r in runs])} if all("time" in r for r in runs) else {})
        for group, runs in groups.items()
    ]
    minutes = round(sum(row["seconds"] for row in rows) / 60, 2)
    common.save(
        _name(options), options, started, experiment="rgsm_channels", minutes=minutes, batch=BATCH,
        command=f"python -m experiments.rgsm_channels{' --select' if options.select else ''}", table=table, rows=rows,
        measured_on="held-out training images" if options.select else "the test set",
    )  # fmt: skip


def _name(options: ChannelOptions) -> str:
    return f"rgsm_channels{'-selection' if options.select else ''}"


def _draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Accuracy against channels that are gone, multiply-adds and time: a point a network."""
    networks = list(dict.fromkeys(row["title"] for row in rows))
    axes = {
        "channels that are gone, %": lambda row: row["channel_sparsity"],
        "multiply-adds, share of dense": lambda row: row["multiply_adds"],
        f"time at batch {BATCH}, share of dense": lambda row: row["time"]["median"],
    }
    figure, grid = plt.subplots(
        len(networks), 3, figsize=(11, 3.2 * len(networks)), layout="constrained", squeeze=False
    )
    for line, title in zip(grid, networks, strict=True):
        mine = [row for row in rows if row["title"] == title]
        for panel, (label, value) in zip(line, axes.items(), strict=True):
            for name in dict.fromkeys(row["name"] for row in mine):
                points = [(value(row), row["accuracy"]) for row in mine if row["name"] == name]
                panel.plot(*zip(*points, strict=True), "x" if name == RVSM else "o", label=name, alpha=0.7)
            panel.set(xlabel=label, title=title.replace(": ", "\n"))
        line[0].set_ylabel("test accuracy, %")
        line[0].legend(fontsize="small")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_norms(rows: list[dict[str, Any]], options: ChannelOptions) -> None:
    """Norms of the inner channels of one seed's last network, dense and at each penalty's strongest setting."""
    name = rows[-1]["network"]
    case = QUICK if options.quick else CASES[name]
    like = case.make(jax.random.key(0))
    mine = [row for row in rows if row["network"] == name and row["seed"] == options.seed]
    found = {row["name"]: _kept(_path(row, options), {"params": like.params, "state": like.state}) for row in mine}
    shrinking.plot_channel_norms(
        {name: variables["params"] for name, variables in found.items()},
        common.output_path("rgsm_channels-norms", options, ".png"),
        where=lambda path, leaf: rvsm_jax.kernels(path, leaf) and path.split("/")[-2] in ("conv2", "dense2"),
    )


if __name__ == "__main__":
    common.run(main, ChannelOptions, __doc__)
