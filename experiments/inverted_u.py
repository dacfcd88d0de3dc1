"""Whether a measure rises and falls again along paths of sparsity: its curves, a test, and a figure."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

PRUNED, CONTROL = "pruned", "control"
MEASURES = ("accuracy", "pgd 0.1", "deepfool")
TITLES = {"lenet_300_100": "LeNet-300-100", "lenet5": "LeNet-5"}
AXES = {"accuracy": "accuracy, %", "pgd 0.1": "$r_\\infty$: PGD, radius 0.1, %", "deepfool": "$r_2$: DeepFool"}


def inverted_u(values: Sequence[Sequence[float]], control: Sequence[Sequence[float]] | None = None) -> dict[str, Any]:
    """The middle level of the largest mean, and by how much it beats the ends, seed by seed.

    Args:
      values: [levels, seeds] of a measure, from dense to sparsest.
      control: likewise, of the controls from stage 1 on; NaN for seeds that have none.

    Returns:
      "level", its number; "dense", "sparsest" and "control": mean and standard error of its gain over each; "found":
      whether the gains over both ends are more than two standard errors; "by_sparsity": whether that over the control
      is, too. Without two seeds there are no standard errors, and nothing is found.

    >>> found = inverted_u([[1.0, 1.2], [2.0, 2.1], [0.0, 0.3]])
    >>> found["level"], found["found"], "control" in found
    (1, True, False)
    """
    x = np.asarray(values, float)
    level = 1 + int(x[1:-1].mean(1).argmax())
    others = {"dense": x[0], "sparsest": x[-1]}
    if control is not None:
        others["control"] = np.asarray(control, float)[level - 1]
    found: dict[str, Any] = {"level": level}
    for name, other in others.items():
        gain = x[level] - other
        gain = gain[np.isfinite(gain)]
        error = float(gain.std(ddof=1) / math.sqrt(gain.size)) if gain.size > 1 else None
        clear = error is not None and bool(gain.mean() > 2 * error)
        found[name] = {"gain": float(gain.mean()), "standard_error": error, "clear": clear}
    found["found"] = found["dense"]["clear"] and found["sparsest"]["clear"]
    if control is not None and found["control"]["standard_error"] is not None:
        found["by_sparsity"] = found["found"] and found["control"]["clear"]
    return found


def flat(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's measures by name: "accuracy", "fgsm 0.1", "pgd 0.1", "deepfool", "cw".

    >>> flat({"accuracy": 99.0, "fgsm": {"0.1": 50.0}, "pgd": {}, "deepfool": {"mean": 2.0}, "cw": {"mean": 1.0}})
    {'accuracy': 99.0, 'fgsm 0.1': 50.0, 'deepfool': 2.0, 'cw': 1.0}
    """
    named = {f"{kind} {eps}": value for kind in ("fgsm", "pgd") for eps, value in row[kind].items()}
    return {"accuracy": row["accuracy"], **named, **{kind: row[kind]["mean"] for kind in ("deepfool", "cw")}}


def summarised(rows: Sequence[Mapping[str, Any]], levels: int) -> list[dict[str, Any]]:
    """For each network and training its curves over the seeds that have finished their path, and the verdicts.

    Args:
      rows: of the experiment.
      levels: how many a path has; a control has one less.

    Returns:
      For each network and training "seeds", "curves" ([levels, seeds] of every measure) and "inverted_u".
    """
    table = []
    found = {(row["network"], row["training"]) for row in rows}
    for network, training in sorted(found, key=lambda one: (list(TITLES).index(one[0]), one[1] == "adversarial")):
        mine = [row for row in rows if (row["network"], row["training"]) == (network, training)]
        seeds = {kind: _whole(mine, kind, levels) for kind in (PRUNED, CONTROL)}
        if not seeds[PRUNED]:
            continue
        curves = {kind: _curves(mine, kind, whole) for kind, whole in seeds.items() if whole}
        matched = _matched(curves.get(CONTROL), seeds) if set(seeds[CONTROL]) & set(seeds[PRUNED]) else {}
        verdicts = {name: inverted_u(values, matched.get(name)) for name, values in curves[PRUNED].items()}
        table.append(
            {"network": network, "training": training, "seeds": seeds, "curves": curves, "inverted_u": verdicts}
        )
    return table


def _matched(curves: Any, seeds: Mapping[str, Sequence[int]]) -> dict[str, list[list[float]]]:
    """[stages, seeds of the paths] of the controls' measures, NaN where a seed has none."""
    at = {seed: i for i, seed in enumerate(seeds[CONTROL])}
    nothing = [math.nan] * len(next(iter(curves.values())))
    return {
        name: np.array([np.asarray(values)[:, at[s]] if s in at else nothing for s in seeds[PRUNED]]).T.tolist()
        for name, values in curves.items()
    }


def _whole(rows: Sequence[Mapping[str, Any]], kind: str, levels: int) -> list[int]:
    """The seeds that have all levels."""
    stages = levels - (kind == CONTROL)
    seeds = sorted({row["seed"] for row in rows})
    return [s for s in seeds if sum(row["seed"] == s and row["kind"] == kind for row in rows) == stages]


def _curves(rows: Sequence[Mapping[str, Any]], kind: str, seeds: Sequence[int]) -> dict[str, list[list[float]]]:
    """[levels, seeds] of every measure."""
    at = {(row["stage"], row["seed"]): flat(row) for row in rows if row["kind"] == kind}
    stages = sorted({stage for stage, _ in at})
    return {name: [[at[stage, s][name] for s in seeds] for stage in stages] for name in next(iter(at.values()))}


def draw(table: Sequence[Mapping[str, Any]], levels: Sequence[float], path: pathlib.Path) -> None:
    """Accuracy, r_inf and r_2 against sparsity: mean and standard error over the seeds; controls are dashed.

    Args:
      table: of ``summarised``.
      levels: of sparsity.
      path: of the figure.
    """
    networks = list(dict.fromkeys(row["network"] for row in table))
    figure, grid = plt.subplots(
        len(networks), 3, figsize=(10, 0.6 + 2.6 * len(networks)), layout="constrained", squeeze=False, sharex=True
    )
    ticks = [f"{100 * level:g}" for level in levels]
    for row in table:
        for axes, name in zip(grid[networks.index(row["network"])], MEASURES, strict=True):
            colour = "C0" if row["training"] == "natural" else "C1"
            for kind, style in ((PRUNED, "o-"), (CONTROL, "--")):
                if kind not in row["curves"]:
                    continue
                values = np.asarray(row["curves"][kind][name])
                at, n = np.arange(len(levels))[-len(values) :], values.shape[1]
                error = values.std(1, ddof=1) / math.sqrt(n) if n > 1 else np.zeros(len(values))
                label = row["training"] if kind == PRUNED else f"{row['training']}, no zeros"
                axes.errorbar(at, values.mean(1), error, fmt=style, color=colour, label=label, ms=3, lw=1, capsize=2)
            axes.set(ylabel=AXES[name], xticks=range(len(levels)))
            axes.set_xticklabels(ticks, fontsize="x-small")
            axes.set_title(TITLES[row["network"]], fontsize="small")
    for axes in grid.flat:
        axes.set_ylim(0, None)
    for axes in grid[-1]:
        axes.set_xlabel("zero weights, %")
    grid[0, 0].legend(fontsize="x-small", loc="lower left")
    figure.savefig(path, dpi=90)
    plt.close(figure)
