"""What the comparisons of compressors share: data, a training from given weights, and results that grow by rows."""

import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax

import rvsm_jax
from experiments import common
from experiments.sparse import Arrays
from rvsm_jax import data, models, storage, train

Row = dict[str, Any]
QUICK_EXAMPLES = 2000
FLOAT = "float"


@dataclasses.dataclass(frozen=True)
class StageOptions(common.Options):
    """Options of an experiment whose networks are trained in stages.

    Attributes:
      select: measure on 5,000 held-out training images, one seed, instead of the test set.
      seeds: how many seeds, from ``seed`` on.
      runs: folder of the checkpoints from which a killed run goes on.
    """

    select: bool = False
    seeds: int = 3
    runs: pathlib.Path = pathlib.Path("runs")

    @property
    def all_seeds(self) -> range:
        """The seeds of this run."""
        return range(self.seed, self.seed + (1 if self.quick or self.select else self.seeds))


def arrays(dataset: str, options: StageOptions, examples: int) -> tuple[Arrays, Arrays]:
    """Images and labels to train on, at most so many, and those to measure on."""
    found = data.load(dataset, options.data_dir)
    training, test = (found.train_images, found.train_labels), (found.test_images, found.test_labels)
    if options.select:
        training, test = data.split(*training, validation=5000, seed=0)
    few = min(examples, QUICK_EXAMPLES) if options.quick else examples
    return (training[0][:few], training[1][:few]), (test[0][:500], test[1][:500]) if options.quick else test


def decayed_sgd(rate: float, steps: int) -> optax.GradientTransformation:
    """SGD with Nesterov momentum 0.9, the rate divided by ten after 40 and 70 % of the steps, as 80 and 140 of 200."""
    schedule = optax.piecewise_constant_schedule(rate, {round(0.4 * steps): 0.1, round(0.7 * steps): 0.1})
    return optax.sgd(schedule, momentum=0.9, nesterov=True)


def fit(
    network: models.Network,
    method: rvsm_jax.Method,
    sets: tuple[Arrays, Arrays],
    epochs: int,
    seed: int,
    **options: Any,
) -> train.FitResult:
    """``train.fit`` from the network's weights, with images shifted at random, CIFAR's also mirrored.

    Args:
      network: where to begin.
      method: what to train with, and the network it leaves.
      sets: images and labels to train on and to measure on.
      epochs: how many.
      seed: for the order of the data.
      **options: of ``train.fit``; ``batch_size`` is 128.

    Returns:
      Its result.
    """
    grey = sets[0][0].shape[-1] == 1
    defaults: dict[str, Any] = {"batch_size": 128, "progress": False, "key": jax.random.key(seed)}
    defaults["augment"] = functools.partial(data.crop, padding=2) if grey else data.augment
    return train.fit(
        network.forward, network.params, network.state, method.tx, *sets, epochs=epochs, sparse=method.sparse,
        **(defaults | options),
    )  # fmt: skip


def plain(optimizer: optax.GradientTransformation) -> rvsm_jax.Method:
    """The optimiser alone: what ships is what is trained."""
    return rvsm_jax.Method(optimizer, lambda params, step: params)


def file_size(variables: Any) -> storage.Size:
    """The sizes of a network written to a file, which is read back bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "network.rvsm")
        size = storage.write(path, variables)
        back = storage.read(path, like=variables)
    same = jax.tree.map(lambda a, b: jax.numpy.asarray(a).tobytes() == b.tobytes(), variables, back)
    if not all(jax.tree.leaves(same)):
        raise AssertionError("the network read back must be the one that was written, bit for bit; it is not")
    return size


def grow(
    name: str,
    options: StageOptions,
    plan: Any,
    keys: Iterable[Row],
    run: Callable[[Row], Row],
    table: Callable[[list[Row]], Any],
    **more: Any,
) -> list[Row]:
    """Runs what the results file does not have yet, and saves it after every row.

    Args:
      name: of the results file; its first word up to a hyphen is the script's.
      options: of the run.
      plan: a dataclass of the settings all rows share; rows of another plan are dropped.
      keys: what makes a row, and tells it from the others.
      run: makes a row of its key; its ``seconds`` count.
      table: makes the summary of the rows.
      **more: to be saved beside them.

    Returns:
      All rows.
    """
    started, shared = time.time(), json.loads(json.dumps(dataclasses.asdict(plan)))
    rows = [row for row in common.saved_rows(name, options) if row["plan"] == shared]
    for key in keys:
        if any(common.agrees(row, key) for row in rows):
            continue
        row = key | run(key) | {"plan": shared, "revision": common.revision()}
        rows.append(row)
        print(", ".join(f"{k} {brief(v)}" for k, v in row.items() if isinstance(v, str | int | float)), flush=True)
        minutes = round(sum(row["seconds"] for row in rows) / 60, 2)
        script = name.split("-")[0]
        common.save(
            name, options, started, experiment=script, minutes=minutes, plan=plan, table=table(rows), rows=rows, **more
        )
    return rows


def summarised(rows: list[Row], by: tuple[str, ...], measures: tuple[str, ...]) -> list[Row]:
    """Mean and standard deviation of the measures over rows that agree in ``by``, which are seeds.

    >>> (row,) = summarised([{"name": "a", "x": 1.0}, {"name": "a", "x": 3.0}], ("name",), ("x", "y"))
    >>> row["name"], row["x"]["mean"], "y" in row
    ('a', 2.0, False)
    """
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[field] for field in by), []).append(row)
    return [
        dict(zip(by, group, strict=True))
        | {m: common.summary([r[m] for r in runs]) for m in measures if all(m in r for r in runs)}
        for group, runs in groups.items()
    ]


def seconds(result: train.FitResult) -> float:
    """What the epochs took."""
    return sum(record["seconds"] or 0.0 for record in result.history)


def brief(value: Any) -> Any:
    """A number in four digits, for the terminal."""
    return f"{value:.4g}" if isinstance(value, float) else value


def checkpoints(options: StageOptions, *names: object) -> dict[str, Any]:
    """The options of ``train.fit`` that keep a run's checkpoints in a folder of that name; none of a quick run."""
    kind = ("select",) if options.select else ()
    folder = options.runs.joinpath(*map(str, (*kind, *names)))
    return {} if options.quick else {"checkpoint_dir": folder, "keep": 1}
