"""Every compressor on the same LeNet-5: accuracy against non-zeros, against bytes, and against measured time.

    python -m experiments.methods_compared                # trains what is missing, three seeds each, then times it all
    python -m experiments.methods_compared --select       # candidates compared on 5,000 held-out training images
    python -m experiments.methods_compared --no-measure   # only trains
    python -m experiments.methods_compared --measure-only # only times the networks that are trained
    python -m experiments.methods_compared --quick        # two methods, little data

Reduced to what two cores can train: MNIST, 12,800 training images, shifted at random by up to 2 pixels, in the same
order for all; six epochs for every method, retraining included. Bytes are those of the file, which is read back and
gives the same logits bit for bit; the accuracy is that network's. Time is at batch 64, in turns with the dense network,
in the fastest form that the network has: as it is, shrunk, or with its factors as thin layers. Single zeros buy time
where they leave whole units unread. Ours: README.md, from experiments/results/methods_compared.json. Strengths are
those of rvsm_lenet.py, rgsm_channels.py and admm_lenet.py, or were chosen on held-out training images; energies, blocks
and ranks were not tuned. Networks are kept in runs/, so that a killed run goes on and timing can be repeated.
"""

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import rvsm_jax
from experiments import common
from experiments.admm_lenet import same_predictions
from experiments.methods import CANDIDATES, METHODS, Method, Stage
from experiments.methods_forms import check, compiled, evaluated, example, lenet, revived, ways
from experiments.sparse import DENSE, Arrays
from experiments.timing import interleaved, ratio
from rvsm_jax import data, factors, storage, train

EXAMPLES, BATCH_SIZE, BATCH = 12_800, 64, 64
MEASURES = ("accuracy", "nonzeros", "compression", "file_bytes", "weight_bytes", "dense_bytes", "seconds")


@dataclasses.dataclass(frozen=True)
class ComparedOptions(common.Options):
    """Options of this experiment.

    Attributes:
      select: compare the candidates on held-out training images, one seed, instead of measuring on the test set.
      names: names of methods; default: all.
      seeds: how many seeds, from ``seed`` on.
      measure: time the networks that are trained.
      measure_only: train nothing.
      rounds: how often each network is timed.
      runs: folder of the trained networks.
    """

    select: bool = False
    names: tuple[str, ...] = ()
    seeds: int = 3
    measure: bool = True
    measure_only: bool = False
    rounds: int = 31
    runs: pathlib.Path = pathlib.Path("runs/methods_compared")


def main(options: ComparedOptions) -> None:
    """Trains what the results file does not have yet, seed by seed; then times every network and draws the figure."""
    started, known = time.time(), CANDIDATES if options.select else METHODS
    if unknown := set(options.names) - set(known):
        raise SystemExit(f"unknown methods {sorted(unknown)}; there are {', '.join(map(repr, known))}")
    chosen = [known[name] for name in options.names or (list(known)[:2] if options.quick else known)]
    if not options.measure_only:
        sets = _data(options)
        for method, seed in _missing(chosen, options):
            row = _run(method, seed, *sets, _path(method.name, seed, options))
            print(_line(row), flush=True)
            _write(options, started, [*_rows(options), row])
    if options.measure and not options.select:
        rows = _timed(_rows(options), options)
        _write(options, started, rows)
        _draw(rows, common.output_path("methods_compared", options, ".png"))


def _missing(chosen: Sequence[Method], options: ComparedOptions) -> Iterator[tuple[Method, int]]:
    """What there is still to run, all methods with one seed and then with the next."""
    for seed in range(options.seed, options.seed + (1 if options.quick or options.select else options.seeds)):
        for method in chosen:
            if not any(row["name"] == method.name and row["seed"] == seed for row in _rows(options)):
                yield method, seed


def _data(options: ComparedOptions) -> tuple[Arrays, Arrays, Arrays]:
    """Images to train on, a few held out, and those to measure on: the test set, or with ``select`` more held out."""
    found = data.load("mnist", options.data_dir)
    rest, held_out = data.split(found.train_images, found.train_labels, validation=5000, seed=0)
    count = 640 if options.quick else EXAMPLES
    test = held_out if options.select else (found.test_images, found.test_labels)
    return (rest[0][:count], rest[1][:count]), (held_out[0][:500], held_out[1][:500]), test


def _run(method: Method, seed: int, training: Arrays, few: Arrays, test: Arrays, path: pathlib.Path) -> dict[str, Any]:
    """Trains one network through its stages, writes it to a file, and measures what is read back."""
    network = lenet(seed)
    forward = factors.factored(network.forward)
    groups = rvsm_jax.coupled_channels(evaluated(forward, network.state), network.params, example(1))
    params, seconds, done = network.params, 0.0, 0
    for stage in method.stages:
        params, took = _trained(stage, forward, network.state, stage.begin(params), groups, training, few, seed, done)
        seconds, done = seconds + took, done + stage.epochs
    path.parent.mkdir(parents=True, exist_ok=True)
    size, back = storage.write(path, params, where=_in_kernel), revived(storage.read(path))
    same_predictions(network._replace(forward=forward), params, back, test[0])
    report = rvsm_jax.sparsity(params, where=_in_kernel)
    weights = rvsm_jax.sparsity(network.params).weights
    return {
        "name": method.name,
        "family": method.family,
        "strength": method.strength,
        "seed": seed,
        "accuracy": 100 * train.evaluate(forward, back, network.state, *test)["accuracy"],
        "nonzeros": report.nonzeros,
        "compression": weights / report.nonzeros,
        "layers": {row.path: row.nonzeros for row in report.rows},
        "file_bytes": size.file,
        "weight_bytes": size.weights,
        "dense_bytes": sum(x.nbytes for x in jax.tree.leaves(network.params)),
        "seconds": seconds,
        "cores": common.cores(),
        "revision": common.revision(),
    }


def _trained(
    stage: Stage,
    forward: train.Forward,
    state: Any,
    params: Any,
    groups: rvsm_jax.Coupled,
    training: Arrays,
    few: Arrays,
    seed: int,
    done: int,
) -> tuple[Any, float]:
    """The weights after a stage, of which so many epochs went before, and its seconds."""
    steps = stage.epochs * (len(training[1]) // BATCH_SIZE)
    method = stage.make(stage.optimizer(steps), steps, groups)
    result = train.fit(
        forward, params, state, method.tx, training, few, epochs=stage.epochs, batch_size=BATCH_SIZE,
        key=jax.random.fold_in(jax.random.key(seed), done), sparse=method.sparse, replace_weights=stage.replace,
        augment=functools.partial(data.crop, padding=2), progress=False,
    )  # fmt: skip
    seconds = math.fsum(record["seconds"] or 0.0 for record in result.history)
    return result.sparse_params if stage.ships else result.params, seconds


def _timed(rows: list[dict[str, Any]], options: ComparedOptions) -> list[dict[str, Any]]:
    """The rows with the network's fastest form, its milliseconds, and its time over that of the dense network."""
    timed = []
    for seed in sorted({row["seed"] for row in rows}):
        mine = [row for row in rows if row["seed"] == seed]
        calls = {(DENSE, DENSE): compiled(ways(lenet(seed).params)[DENSE], BATCH)}
        for row in mine:
            found = ways(revived(storage.read(_path(row["name"], seed, options))))
            others = {way: compiled(parts, BATCH) for way, parts in found.items() if way != DENSE}
            if others:
                check(row["name"], others, compiled(found[DENSE], BATCH))
            calls |= {(row["name"], way): call for way, call in others.items()}
        seconds = interleaved({str(key): call for key, call in calls.items()}, options.rounds)
        for row in mine:
            mean = {key: float(np.median(seconds[str(key)])) for key in calls if key[0] in (row["name"], DENSE)}
            best = min(mean, key=lambda key: mean[key])
            form = best[1] if best[0] == row["name"] else DENSE
            over = ratio(seconds, str(best), str((DENSE, DENSE)))
            timed.append(row | {"form": form, "milliseconds": 1e3 * mean[best], "time": over})
    return timed


def _in_kernel(path: str, leaf: Any) -> bool:
    """Kernels and the factors of kernels."""
    return "kernel" in path.split("/")


def _path(name: str, seed: int, options: ComparedOptions) -> pathlib.Path:
    plain = "".join(c if c.isalnum() or c in ".-" else "_" for c in name)
    return options.runs / ("select" if options.select else "") / f"{plain}-{seed}.rvsm"


def _rows(options: ComparedOptions) -> list[dict[str, Any]]:
    return common.saved_rows(_name(options), options)


def _name(options: ComparedOptions) -> str:
    return f"methods_compared{'-selection' if options.select else ''}"


def _line(row: dict[str, Any]) -> str:
    left = f"{row['nonzeros']} left ({row['compression']:.1f}x), {row['file_bytes']} bytes"
    return f"{row['name']}, seed {row['seed']}: {row['accuracy']:.2f} %, {left}, {row['seconds']:.0f} s"


def _write(options: ComparedOptions, started: float, rows: list[dict[str, Any]]) -> None:
    """Saves after every run, so that a killed experiment keeps what it has."""
    known = CANDIDATES if options.select else METHODS
    order = list(dict.fromkeys([*known, *(row["name"] for row in rows)]))
    rows = sorted(rows, key=lambda row: (row["seed"], order.index(row["name"])))
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in order}
    for row in rows:
        groups[row["name"]].append(row)
    table = [_summary(runs) for runs in groups.values() if runs]
    command = "python -m experiments.methods_compared" + (" --select" if options.select else "")
    common.save(
        _name(options), options, started, experiment="methods_compared", table=table, rows=rows, command=command,
        minutes=round(sum(row["seconds"] for row in rows) / 60, 2), examples=EXAMPLES, batch=BATCH,
        rounds=options.rounds, measured_on="held-out training images" if options.select else "the test set",
    )  # fmt: skip


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    row = {key: runs[0][key] for key in ("name", "family", "strength")}
    row |= {measure: common.summary([run[measure] for run in runs]) for measure in MEASURES}
    if all("time" in run for run in runs):
        row |= {"form": max({run["form"] for run in runs}, key=[run["form"] for run in runs].count)}
        row |= {"milliseconds": common.summary([run["milliseconds"] for run in runs])}
        row |= {"time": common.summary([run["time"]["median"] for run in runs])}
    return row


def _draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Test error against what is left: a point a network, a colour a method."""
    axes: Mapping[str, Callable[[dict[str, Any]], float]] = {
        "non-zero weights": lambda row: row["nonzeros"],
        "bytes of the file": lambda row: row["file_bytes"],
        f"time at batch {BATCH}, share of dense": lambda row: row["time"]["median"],
    }
    figure, panels = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained", sharey=True)
    families = list(dict.fromkeys(row["family"] for row in rows))
    colours = plt.colormaps["tab10"](np.linspace(0, 1, 10))
    for panel, (label, value) in zip(panels, axes.items(), strict=True):
        for i, family in enumerate(families):
            points = [(value(row), 100 - row["accuracy"]) for row in rows if row["family"] == family]
            marker = "os^Dv"[i // 10 + i % 5]
            panel.plot(*zip(*points, strict=True), marker, color=colours[i % 10], label=family, alpha=0.75)
        panel.set(xlabel=label, yscale="log", xscale="linear" if "time" in label else "log")
    panels[0].set_ylabel("test error, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    common.run(main, ComparedOptions, __doc__)
