"""Are the weights of a robust ensemble nearer to zero than those of a robust single network?

    python -m experiments.ensemble_weights            # the dense networks of robust_pruning --reduced, three seeds
    python -m experiments.ensemble_weights --quick    # trained for two epochs on a few hundred images

Of two networks trained under attack, a ResNet-8 and an ensemble of two, the weights of the last square convolution,
as measured by what does not depend on their scale: the share below a tenth of their standard deviation, and the excess
kurtosis; and by what does, their standard deviation and the share below 1e-3. Networks that robust_pruning left in
runs/ are read from there, others trained.

Published (arXiv 2003.00631, Figure 2): a layer of En5ResNet20 has its weights more concentrated at zero than that of
ResNet20. Ours, after 8 and 10 epochs: in shape no, both are as normal weights would be; in scale by 12 % on MNIST, and
on CIFAR-10 no more than seeds differ. Results: experiments/results/ensemble_weights.json and .png.
"""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import common
from experiments.robust_pruning import REDUCED, RobustOptions, quick, trained
from experiments.robust_rows import Row

LAYER = "stage3_block1/conv2/kernel"
NETS = ("ResNet8", "En2ResNet8")
SMALL = 1e-3  # a weight below it counts as small, as published


@dataclasses.dataclass(frozen=True)
class WeightOptions(common.Options):
    """Options of this experiment.

    Attributes:
      seeds: how many seeds, from ``seed`` on.
    """

    seeds: int = 3


def main(options: WeightOptions) -> None:
    """Loads or trains the networks, measures and draws their weights."""
    started, rows = time.time(), list[dict[str, Any]]()
    weights: dict[tuple[str, str], list[np.ndarray]] = {}
    small = RobustOptions(quick=options.quick, reduced=not options.quick, data_dir=options.data_dir)
    for dataset, protocol in REDUCED.items():
        protocol = quick(protocol) if options.quick else protocol
        for net in NETS:
            for seed in range(options.seed, options.seed + (1 if options.quick else options.seeds)):
                found = layer_weights(trained(small, protocol, Row(net), seed)[1].sparse_params)
                weights.setdefault((dataset, net), []).append(found)
                rows.append({"dataset": dataset, "net": net, "seed": seed, **concentration(found)})
    table = summarised(rows)
    picture = common.output_path("ensemble_weights", options, ".png")
    draw(weights, picture)
    path = common.save("ensemble_weights", options, started, layer=LAYER, table=table, rows=rows)
    for row in table:
        cells = ", ".join(f"{name} {row[name]['mean']:.4g}" for name in concentration(np.ones(2)))
        print(f"{row['dataset']} {row['net']}: {cells}")
    print(f"Numbers in {path}, figure in {picture}")


def layer_weights(params: Mapping[str, Any]) -> np.ndarray:
    """The weights of the layer, of all members one after the other; a KeyError if there is no such layer.

    >>> member = {"stage3_block1": {"conv2": {"kernel": np.ones((3, 3, 2, 2))}}}
    >>> layer_weights({"member0": member, "member1": member}).shape
    (72,)
    """
    leaves = jax.tree.leaves_with_path(params)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    found = [np.ravel(leaf) for name, leaf in named.items() if name.endswith(LAYER)]
    if not found:
        raise KeyError(f"there is no {LAYER} among {', '.join(named)}")
    return np.concatenate(found)


def concentration(weights: np.ndarray) -> dict[str, float]:
    """How near to zero weights are: the first two measures do not depend on their scale, the others do.

    Args:
      weights: [n].

    Returns:
      "near zero": the share below a tenth of the standard deviation, percent; 8.0 for normal weights. "kurtosis": in
      excess of theirs. "deviation": the standard deviation. "small": the share below 1e-3, percent.

    >>> found = concentration(np.array([-1.0, 1.0, 0.0, 0.0]))
    >>> {name: round(value, 3) for name, value in found.items()}
    {'near zero': 50.0, 'kurtosis': -1.0, 'deviation': 0.707, 'small': 50.0}
    """
    x = np.asarray(weights, np.float64)
    deviation = float(x.std())
    return {
        "near zero": 100 * float((np.abs(x) < 0.1 * deviation).mean()),
        "kurtosis": float(((x - x.mean()) ** 4).mean() / max(deviation, 1e-30) ** 4) - 3,
        "deviation": deviation,
        "small": 100 * float((np.abs(x) < SMALL).mean()),
    }


def summarised(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of every network."""
    table = []
    for dataset, net in dict.fromkeys((row["dataset"], row["net"]) for row in rows):
        mine = [row for row in rows if (row["dataset"], row["net"]) == (dataset, net)]
        measured = {name: common.summary([row[name] for row in mine]) for name in concentration(np.ones(2))}
        table.append({"dataset": dataset, "net": net, **measured})
    return table


def draw(weights: Mapping[tuple[str, str], Sequence[np.ndarray]], path: pathlib.Path) -> None:
    """For each data set the densities of both networks' weights, over their standard deviation, all seeds together."""
    datasets = dict.fromkeys(dataset for dataset, _ in weights)
    figure, axes = plt.subplots(1, len(datasets), figsize=(8, 3), layout="constrained", squeeze=False)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        for net in NETS:
            scaled = np.concatenate([found / found.std() for found in weights[dataset, net]])
            axis.hist(scaled, np.linspace(-4, 4, 81).tolist(), histtype="step", density=True, label=net)
        axis.set(xlabel="weight / standard deviation", ylabel="density", title=dataset)
        axis.legend(fontsize="x-small")
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", "runs/compiled")
    common.run(main, WeightOptions, __doc__)
