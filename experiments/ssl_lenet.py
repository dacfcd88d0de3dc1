"""LeNet on MNIST under SSL: how many filters, channels and filter shapes are left, and the network shrunk to them.

    python -m experiments.ssl_lenet              # one seed, on the test set
    python -m experiments.ssl_lenet --seeds 3
    python -m experiments.ssl_lenet --quick      # an epoch on 640 images

Published (Wen et al. 2016, LeNet): from 20 and 50 filters, 5 and 19 at an error of 0.8 %, 3 and 12 at 1.0 %. Recipe:
SGD at 0.01, momentum 0.9, no weight decay, the rate divided by 10 after 6,000 and 8,000 of 10,000 steps, coefficient
0.005 for each kind of groups, subgradients, weights below 1e-4 put to zero. Batches of 64 are ours, as are a dense
training as long in front of it and two epochs of retraining behind it. Ours, one seed: from an error of 0.84 %, 3 and
41 filters at 0.98 % by filters and channels, 2 and 44 at 1.29 % by filters and shapes. Caffe's LeNet, without ReLUs
behind its poolings; images are not shifted.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

import rvsm_jax
from experiments import common
from experiments.shrunk import shrunk
from experiments.sparse import DENSE, Arrays
from rvsm_jax import data, models, train

FILTERS, CHANNELS, SHAPES = rvsm_jax.filters, rvsm_jax.channels, rvsm_jax.shapes
BATCH_SIZE, EPOCHS, FINE_EPOCHS, RATE = 64, 11, 2, 0.01
SETTINGS: Mapping[str, Mapping[rvsm_jax.groups.Groups, rvsm_jax.splitting.Strength]] = {
    "filters and channels 0.005": {FILTERS: 0.005, CHANNELS: 0.005},
    "filters and channels 0.01": {FILTERS: 0.01, CHANNELS: 0.01},
    "filters and shapes 0.005": {FILTERS: 0.005, SHAPES: 0.005},
}
PUBLISHED = (
    {"filters": [20, 50], "error": None},
    {"filters": [5, 19], "error": 0.8},
    {"filters": [3, 12], "error": 1.0},
)
KINDS: Mapping[str, rvsm_jax.groups.Groups] = {"filters": FILTERS, "channels": CHANNELS, "shapes": SHAPES}
CONVOLUTIONS, WHERE = ("conv1", "conv2"), rvsm_jax.convolutions


@dataclasses.dataclass(frozen=True)
class SslOptions(common.Options):
    """Options of this experiment.

    Attributes:
      seeds: how many seeds, from ``seed`` on.
      settings: names of settings; default: all.
    """

    seeds: int = 1
    settings: tuple[str, ...] = ()


def main(options: SslOptions) -> None:
    """Trains a dense network for each seed, and from it every setting that the results file does not have yet."""
    started, (training, test) = time.time(), _data(options)
    if unknown := set(options.settings) - set(SETTINGS):
        raise SystemExit(f"unknown settings {sorted(unknown)}; there are {', '.join(map(repr, SETTINGS))}")
    for seed in range(options.seed, options.seed + (1 if options.quick else options.seeds)):
        done = {row["name"] for row in _rows(options) if row["seed"] == seed}
        wanted = [name for name in options.settings or SETTINGS if name not in done]
        if not wanted:
            continue
        network = models.lenet5(jax.random.key(seed))
        start, seconds = _trained(network, network.params, _optimizer(training, options), training, seed, options)
        if DENSE not in done:
            _write(options, started, [*_rows(options), _row(network, DENSE, seed, start, start, test, seconds)])
        for name in wanted:
            method = rvsm_jax.ssl(_optimizer(training, options), SETTINGS[name], where=WHERE).tx
            sparse, first = _trained(network, start, method, training, seed + 100, options)
            fine = optax.chain(optax.sgd(RATE / 10, momentum=0.9), rvsm_jax.fixed_support())
            tuned, last = _trained(network, sparse, fine, training, seed + 200, options, FINE_EPOCHS)
            _write(options, started, [*_rows(options), _row(network, name, seed, sparse, tuned, test, first + last)])


def _optimizer(training: Arrays, options: SslOptions) -> optax.GradientTransformation:
    """SGD with the published rate, divided by 10 at 0.6 and 0.8 of the steps."""
    steps = (1 if options.quick else EPOCHS) * (len(training[1]) // BATCH_SIZE)
    rate = optax.piecewise_constant_schedule(RATE, {round(share * steps): 0.1 for share in (0.6, 0.8)})
    return optax.sgd(rate, momentum=0.9)


def _trained(
    network: models.Network,
    params: Any,
    tx: Any,
    training: Arrays,
    seed: int,
    options: SslOptions,
    epochs: int = EPOCHS,
) -> tuple[Any, float]:
    result = train.fit(
        network.forward, params, network.state, tx, training, epochs=1 if options.quick else epochs,
        batch_size=BATCH_SIZE, key=jax.random.key(seed), progress=False,
    )  # fmt: skip
    return result.params, math.fsum(record["seconds"] or 0.0 for record in result.history)


def _row(
    network: models.Network, name: str, seed: int, sparse: Any, tuned: Any, test: Arrays, seconds: float
) -> dict[str, Any]:
    """What is left of the convolutions, errors before and after retraining, and the shrunk network's work and error."""

    def error(params: Any) -> float:
        return 100 * (1 - train.evaluate(network.forward, params, network.state, *test)["accuracy"])

    small = shrunk(network, tuned, network.state, test[0].shape)
    work = {layer.name.removeprefix("params/"): layer.multiply_adds.share for layer in small.report.layers}
    row = {
        "name": name,
        "seed": seed,
        "error": error(sparse),
        "retrained": error(tuned),
        "shrunk": 100 - small.accuracy(test),
        **{
            kind: [left(tuned[conv]["kernel"], kind) for conv in CONVOLUTIONS]
            for kind in ("filters", "channels", "shapes")
        },
        "zeros": 100 * rvsm_jax.sparsity(tuned, where=WHERE).fraction,
        "multiply_adds": small.report.multiply_adds.share,
        "work": {name: share for name, share in work.items() if name.startswith(CONVOLUTIONS)},
        "seconds": seconds,
        "revision": common.revision(),
    }
    print(
        f"{name}, seed {seed}: {row['filters']} filters, {row['shapes']} shapes, error {row['error']:.2f} %,", end=" "
    )
    print(f"retrained {row['retrained']:.2f} %, {row['multiply_adds']:.2f} of the work, {seconds:.0f} s", flush=True)
    return row


def left(kernel: jax.Array, kind: str) -> int:
    """How many groups of a convolution kernel are not zero.

    Args:
      kernel: (height, width, input, output).
      kind: "filters", "channels" or "shapes".

    Returns:
      The number.

    Example:
      >>> kernel = jax.numpy.zeros((5, 5, 2, 3)).at[0, 0, 1].set(1.0)
      >>> left(kernel, "filters"), left(kernel, "channels"), left(kernel, "shapes")
      (3, 1, 1)
    """
    return int(np.count_nonzero(KINDS[kind](kernel)[0]))


def _data(options: SslOptions) -> tuple[Arrays, Arrays]:
    mnist = data.load("mnist", options.data_dir)
    count = 640 if options.quick else None
    return (mnist.train_images[:count], mnist.train_labels[:count]), (mnist.test_images, mnist.test_labels)


def _rows(options: SslOptions) -> list[dict[str, Any]]:
    return common.saved_rows("ssl_lenet", options)


def _write(options: SslOptions, started: float, rows: list[dict[str, Any]]) -> None:
    """Saves after every run, so that a killed experiment keeps what it has."""
    table = []
    for name in (DENSE, *SETTINGS):
        runs = [row for row in rows if row["name"] == name]
        if runs:
            measures = ("error", "retrained", "shrunk", "multiply_adds")
            row: dict[str, Any] = {m: common.summary([r[m] for r in runs]) for m in measures}
            row |= {k: [common.summary([r[k][i] for r in runs]) for i in (0, 1)] for k in KINDS}
            table.append({"name": name} | row)
    common.save(
        "ssl_lenet", options, started, table=table, rows=rows, published=PUBLISHED, measured_on="the test set",
        minutes=round(sum(row["seconds"] for row in rows) / 60, 2), command="python -m experiments.ssl_lenet",
    )  # fmt: skip


if __name__ == "__main__":
    common.run(main, SslOptions, __doc__)
