"""A grid of (lambda / beta, beta) trained as one vmapped run: the front of accuracy against sparsity in one picture.

    python -m experiments.lambda_path                 # LeNet-300-100 on MNIST, 8 thresholds x 3 betas, l1
    python -m experiments.lambda_path --penalty l0
    python -m experiments.lambda_path --quick         # the embedded digits

Every lane is the same network from the same start on the same batches; only its strengths differ. Lanes are split over
the devices, on a CPU over its cores. Settings are compared on held-out training images. Results:
experiments/results/lambda_path.json and lambda_path.png.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import rvsm_jax
from experiments import common
from rvsm_jax import data, models, train

PENALTIES: dict[str, Callable[[], rvsm_jax.Penalty]] = {
    "l0": rvsm_jax.l0,
    "l1": rvsm_jax.l1,
    "transformed_l1": functools.partial(rvsm_jax.transformed_l1, 0.1),
}
THRESHOLDS = {
    "l0": np.geomspace(1e-5, 1e-2, 8),
    "l1": np.geomspace(1e-4, 5e-3, 8),
    "transformed_l1": np.geomspace(5e-5, 2e-3, 8),
}
BETAS = np.array([0.03, 0.1, 0.3])


@dataclasses.dataclass(frozen=True)
class PathOptions(common.Options):
    """Options of this experiment.

    Attributes:
      penalty: what makes u sparse.
      epochs: of training, instead of 10, or 60 of the quick version.
    """

    penalty: Literal["l0", "l1", "transformed_l1"] = "l1"
    epochs: int | None = None


def make_lane(
    forward: train.Forward, penalty: rvsm_jax.Penalty, optimizer: optax.GradientTransformation, **options: Any
) -> tuple[Callable, Callable]:
    """init and epoch of RVSM at given strengths, which `vmapped` turns into a whole path.

    Args:
      forward: the network.
      penalty: P.
      optimizer: what the pull is put in front of.
      **options: of ``train.make_step``.

    Returns:
      ``init(params, model_state, key, lam, beta) -> state`` and ``epoch(state, lam, beta, images, labels, order) ->
      (state, metrics)``, where a row of ``order`` [steps, batch] chooses a batch.
    """

    def init(params, model_state, key, lam, beta):
        return train.init_state(params, model_state, rvsm_jax.rvsm(optimizer, penalty, lam, beta).tx, key)

    def epoch(state, lam, beta, images, labels, order):
        step = train.make_step(forward, rvsm_jax.rvsm(optimizer, penalty, lam, beta).tx, **options)
        return jax.lax.scan(lambda state, chosen: step(state, images[chosen], labels[chosen]), state, order)

    return init, epoch


def vmapped(init: Callable, epoch: Callable, lanes: int, *, at_once: int | None = None) -> tuple[Callable, Callable]:
    """The same for many strengths in one call, on shared batches; the states are donated.

    Lanes are split over the devices, as many of them as divide their number.

    Args:
      init: from `make_lane`.
      epoch: from `make_lane`; its steps are one scan.
      lanes: how many strengths.
      at_once: how many lanes of a device advance step by step together, batched by ``vmap``; the others wait for the
        epoch's end. Default: on a CPU one, whose weights then stay in its core's cache; elsewhere all.

    Returns:
      ``init`` and ``epoch`` with an axis of lanes in state, lam, beta and metrics.
    """
    devices = math.gcd(lanes, jax.device_count())
    mesh = jax.make_mesh((devices,), ("lanes",), (AxisType.Auto,), devices=jax.devices()[:devices])
    at_once = at_once or (1 if jax.default_backend() == "cpu" else lanes)
    split, same = P("lanes"), P()

    def many_epochs(state, lam, beta, images, labels, order):
        lanes = (state, lam, beta)
        return jax.lax.map(lambda lane: epoch(*lane, images, labels, order), lanes, batch_size=min(at_once, len(lam)))

    many_init = jax.vmap(init, in_axes=(None, None, None, 0, 0))
    sharded = functools.partial(jax.shard_map, mesh=mesh, out_specs=split, check_vma=False)
    return (
        jax.jit(sharded(many_init, in_specs=(same, same, same, split, split))),
        jax.jit(sharded(many_epochs, in_specs=(split, split, split, same, same, same)), donate_argnums=0),
    )


def main(options: PathOptions) -> None:
    """Trains the grid, measures every u, and draws the front."""
    started = time.time()
    dataset = data.load("digits" if options.quick else "mnist", options.data_dir)
    training, held_out = data.split(
        dataset.train_images, dataset.train_labels, 300 if options.quick else 5000, options.seed
    )
    network = models.lenet_300_100(jax.random.key(options.seed), image_shape=training[0].shape[1:])
    thresholds, betas = (grid.ravel() for grid in np.meshgrid(THRESHOLDS[options.penalty], BETAS))
    penalty, prepare = PENALTIES[options.penalty](), _normalized(training[0])
    batch, epochs = 128, options.epochs or (60 if options.quick else 10)
    steps = epochs * (len(training[1]) // batch)
    optimizer = optax.sgd(optax.cosine_decay_schedule(0.05, steps), momentum=0.9, nesterov=True)
    lam, beta = jnp.float32(thresholds * betas), jnp.float32(betas)
    lane = make_lane(network.forward, penalty, optimizer, preprocess=prepare)
    init, epoch = vmapped(*lane, lanes=len(lam))
    state = init(network.params, network.state, jax.random.key(options.seed), lam, beta)
    images, labels = (jnp.asarray(x) for x in training)
    for number in range(epochs):
        order = train.shuffle(jax.random.key(options.seed), number, examples=len(labels), batch_size=batch)
        state, _ = epoch(state, lam, beta, images, labels, order)
    shipped = jax.vmap(rvsm_jax.proximal_operator(penalty))(state.params, lam / beta)
    rows = _measured(network, shipped, held_out, prepare, thresholds, betas)
    path = common.output_path("lambda_path", options, ".png")
    _draw(rows, options.penalty, path)
    saved = common.save("lambda_path", options, started, penalty=options.penalty, epochs=epochs, rows=rows)
    print(
        f"{len(rows)} runs of {steps} steps as one, {time.time() - started:.0f} s. Numbers in {saved}, figure in {path}"
    )
    for row in _front(rows):
        print(f"  {_show(row)}")


def _normalized(images: np.ndarray) -> Callable[[jax.Array], jax.Array]:
    mean, std = data.moments(images)
    return functools.partial(data.normalize, mean=mean, std=std)


def _measured(network, shipped, held_out, prepare, thresholds, betas) -> list[dict[str, float]]:
    rows = []
    for i, (threshold, beta) in enumerate(zip(thresholds, betas, strict=True)):
        u = jax.tree.map(lambda x, i=i: x[i], shipped)
        found = train.evaluate(network.forward, u, network.state, *held_out, preprocess=prepare)
        report = rvsm_jax.sparsity(u)
        measured = {"accuracy": 100 * found["accuracy"], "zeros": 100 * report.fraction, "nonzeros": report.nonzeros}
        compression = report.weights / max(report.nonzeros, 1)
        rows.append({"threshold": threshold, "beta": beta, **measured, "compression": compression})
    return rows


def _front(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Rows that no other one beats in one of accuracy and compression and equals in the other."""

    def beats(s, r):
        no_worse = s["accuracy"] >= r["accuracy"] and s["compression"] >= r["compression"]
        return no_worse and (s["accuracy"], s["compression"]) != (r["accuracy"], r["compression"])

    return [r for r in rows if not any(beats(s, r) for s in rows)]


def _show(row: dict[str, float]) -> str:
    strengths = f"lambda / beta = {row['threshold']:.1e}, beta = {row['beta']:g}"
    return f"{row['accuracy']:.2f} % with {row['compression']:.0f}x fewer weights: {strengths}"


def _draw(rows: list[dict[str, float]], penalty: str, path) -> None:
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for beta in BETAS:
        lane = [row for row in rows if row["beta"] == beta]
        axes.semilogx([r["compression"] for r in lane], [r["accuracy"] for r in lane], "o-", label=f"beta = {beta:g}")
        for row in lane[::2]:
            axes.annotate(f"{row['threshold']:.0e}", (row["compression"], row["accuracy"]), fontsize="xx-small")
    top = max(row["accuracy"] for row in rows)
    axes.set(
        xlabel="weights / non-zero weights of u", ylabel="held-out accuracy of u, %", ylim=(top - 6, top + 0.4),
        title=f"LeNet-300-100, {penalty.replace('_', ' ')}; labels: lambda / beta",
    )  # fmt: skip
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    common.one_device_per_core()
    common.run(main, PathOptions, __doc__)
