"""A network turns sparse on 1,797 real images of digits: dense against RVSM with l0, l1 and transformed l1.

    python -m experiments.quickstart            # about a minute on two cores, no download

LeNet-300-100 on scikit-learn's 8 x 8 digits (50,200 weights), three seeds; the table goes to the terminal, figures to
experiments/results/quickstart.json and quickstart.png. Then one reinforced random walk, simulated and exact.
"""

import dataclasses
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
import rich.box
import rich.console
import rich.table

import rvsm_jax
import serw
from experiments import common
from experiments.sparse import DENSE, Protocol, Setting, run
from rvsm_jax import data, models

SETTINGS = {
    DENSE: Setting(DENSE),
    "l0": Setting("l0", threshold=5e-3, beta=0.1, ramp=0.8, weight_decay=5e-4),
    "l1": Setting("l1", threshold=2e-3, beta=0.1),
    "transformed l1": Setting("transformed_l1", threshold=5e-4, beta=0.1),
}
NEXT = """[b]Next[/b]
  python -m experiments.rvsm_lenet --quick        LeNet on MNIST, the penalties side by side
  python -m experiments.lambda_path --quick       a grid of (lambda, beta) trained as one vmapped run
  python -m experiments.rvsm_resnet18 --quick     ResNet-18 on CIFAR-10
README.md says where to put the data."""


def main(options: common.Options) -> None:
    """Trains every setting with every seed, prints the table, saves figures and numbers."""
    started, console = time.time(), rich.console.Console()
    digits = data.load("digits")
    training, test = (digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels)
    protocol = Protocol(epochs=8 if options.quick else 40, batch_size=64, learning_rate=0.05)
    seeds = range(options.seed, options.seed + (1 if options.quick else 3))
    rows, last = [], {}
    for name, setting in SETTINGS.items():
        for seed in seeds:
            network = models.lenet_300_100(jax.random.key(seed), image_shape=(8, 8, 1))
            with console.status(f"{name}, seed {seed}"):
                row, last[name] = run(network, setting, protocol, training, test, seed, progress=False)
            rows.append({"name": name, **row})
    table = [_summary(name, [row for row in rows if row["name"] == name]) for name in SETTINGS]
    console.print(_table(table, len(test[1]), time.time() - started))
    figure = common.output_path("quickstart", options, ".png")
    _draw({name: result.history for name, result in last.items()}, last["transformed l1"].sparse_params, figure)
    walk = _walk(options.seed, walkers=2000 if options.quick else 100_000)
    path = common.save(
        "quickstart", options, started, protocol=dataclasses.asdict(protocol), table=table, rows=rows, walk=walk
    )
    found, spread = walk["simulated"], walk["standard_error"]
    console.print(
        f"A senile reinforced random walk, f(n) = n, escape {walk['delta']}, after {walk['steps']:,} steps: "
        f"E|S|^2 = {found:.2f} ± {spread:.2f} of {walk['walkers']:,} walkers, {walk['exact']:.2f} exactly\n"
    )
    console.print(f"Numbers in {path}\nFigure in {figure}\n\n{NEXT}", highlight=False)


def _walk(seed: int, walkers: int, steps: int = 1000, delta: float = 0.01) -> dict[str, float]:
    """The mean-square displacement of a walk on the line, by Monte Carlo and by its exact recursion."""
    walk = serw.Walk(1, serw.linear(1.0), serw.constant_escape(delta))
    found = serw.simulate(jax.random.key(seed), walk, walkers=walkers, times=[steps], progress=False)
    return {
        "delta": delta, "steps": steps, "walkers": walkers, "simulated": float(found.msd[-1]),
        "standard_error": float(found.sem[-1]), "exact": float(serw.exact.msd(walk, steps)[-1]),
    }  # fmt: skip


def _summary(name: str, rows: list[dict]) -> dict:
    keys = ("accuracy", "zeros", "compression", "bitmask_bytes")
    return {"name": name, "weights": rows[0]["weights"]} | {k: common.summary([r[k] for r in rows]) for k in keys}


def _table(table: list[dict], images: int, seconds: float) -> rich.table.Table:
    drawn = rich.table.Table(
        title=f"LeNet-300-100 on digits, n = {table[0]['accuracy']['n']} seeds, {images} test images, {seconds:.0f} s",
        box=rich.box.SIMPLE,
    )
    for heading in ("", "test accuracy %", "zeros %", "smaller by", "weights kept, kB"):
        drawn.add_column(heading, justify="right" if heading else "left")
    for row in table:
        size = row["bitmask_bytes"]["mean"] if row["name"] != DENSE else 4 * row["weights"]
        drawn.add_row(
            row["name"], common.plus_minus(row["accuracy"]), common.plus_minus(row["zeros"], 1),
            f"{row['compression']['mean']:.0f}x", f"{size / 1000:.1f}",
        )  # fmt: skip
    return drawn


def _draw(histories: dict[str, list], sparse_params: dict, path) -> None:
    """Accuracy and zeros of u over the epochs, and which pixels the sparse network still reads."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    for name, history in histories.items():
        epochs = [record["epoch"] for record in history]
        left.plot(epochs, [100 * record["u_accuracy"] for record in history], label=name)
        middle.plot(epochs, [100 * record["zeros"] for record in history])
    left.set(xlabel="epoch", ylabel="test accuracy of u, %", ylim=(60, 100))
    middle.set(xlabel="epoch", ylabel="zeros in u, %", ylim=(0, 101))
    left.legend(fontsize="small", loc="lower right")
    read = np.asarray(rvsm_jax.channels(sparse_params["dense1"]["kernel"])[0]).reshape(8, 8)
    image = right.imshow(read, cmap="viridis")
    right.set(title="norm of the weights\nthat read each pixel", xticks=[], yticks=[])
    figure.colorbar(image, ax=right, shrink=0.8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    common.run(main, common.Options, __doc__)
