"""RVSM on the no-overlap network: which penalty, lambda and beta find the true support, from one vmapped call.

    python -m experiments.no_overlap

Result (972,000 runs, 1.6 minutes on two cores of an AMD EPYC). Without noise a small threshold finds every
support. With label noise, and lambda such that u keeps as many weights as w* has, transformed l1 and l1 find it most
often, in 71.0 ± 1.3 % of the problems and, paired, 0.9 ± 0.3 % fewer, at beta = 0.1 and one lambda / beta. l0 finds
fewer than l1, the more so the larger beta: 0.4 ± 0.2 % at 0.003, 10.4 ± 0.9 % at 0.1, 25.3 ± 1.5 % at 1, as the band
grows in which its start decides. But its u is best: f(u) / f(0) = 2.1 ± 0.1 % at beta = 0.01, against 7.4 ± 0.2 % for
transformed l1 and 16.4 ± 0.3 % for l1. The rule: what counts is (1 + k beta) lambda / beta, the threshold of the limit
law near w*. For l1 it is 0.17 to 0.19 at every beta from 0.003 to 1, where 63.5 to 65.6 % (± 1.4 %) are found; lambda
/ beta itself goes from 0.18 to 0.03. From n samples, n = 1e2 to 1e6, the empirical loss is off by n^-0.53 and RVSM's
limit by n^-0.54, always with the population's support.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import common, no_overlap_samples
from experiments.no_overlap_problems import (
    AXES,
    PENALTIES,
    SHARE,
    Problems,
    drawn,
    mean_and_error,
    problems,
    run,
    strength,
)
from rvsm_jax.models import no_overlap

NAME = "no_overlap"
THRESHOLDS = np.geomspace(0.01, 0.8, 25)
BETAS = np.array([0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
CHUNK = 1024  # runs in cache at a time


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """Options of this experiment.

    Attributes:
      steps: of each run.
      draws: of the true weights, the start and the noise, at each of the angles, dimensions, k and noises.
      largest: 10^largest samples at most, where the population's loss is compared with that of samples.
      sets: of samples for each number of them, and at most 4 of the largest.
    """

    steps: int = 600
    draws: int = 30
    largest: int = 6
    sets: int = 16


def measured(problem: Problems, target: jax.Array, w: jax.Array, u: jax.Array, residual: jax.Array) -> dict[str, Any]:
    """What is kept of a run."""
    k, dim = problem.patches, problem.dim
    loss = no_overlap.population_loss
    return {
        "recovered": jnp.all((u != 0) == (target != 0)),
        "kept": jnp.sum(u != 0) / dim,
        "distance": no_overlap.length(u - target)[0],
        "residual": residual,
        "error": loss(u, target, k) / loss(jnp.zeros_like(u), target, k),
    }


@functools.partial(jax.jit, static_argnames="steps")
def sweep(key: jax.Array, grid: jax.Array, problem: Problems, steps: int) -> dict[str, Any]:
    """Every penalty at every (lambda, beta) on every problem.

    Args:
      key: random.
      grid: (lambda, beta), [penalties, settings, 2].
      problem: [problems].
      steps: of each run.

    Returns:
      For each penalty what ``measured`` gives, [settings, problems].
    """
    weights = jax.vmap(drawn, in_axes=(None, 0))(key, problem)
    settings, count = grid.shape[1], len(problem.number)

    def one(penalty, rows, i):
        (lam, beta), p = rows[i // count], jax.tree.map(lambda x: x[i % count], (problem, weights))
        return measured(p[0], p[1][0], *run(penalty, lam, beta, p[0].patches, p[1], steps))

    found = []
    for penalty, rows in zip(PENALTIES.values(), grid, strict=True):
        flat = jax.lax.map(functools.partial(one, penalty, rows), jnp.arange(settings * count), batch_size=CHUNK)
        found.append(jax.tree.map(lambda x: x.reshape(settings, count), flat))
    return dict(zip(PENALTIES, found, strict=True))


def settings() -> np.ndarray:
    """(lambda, beta) for every beta and threshold, [penalties, betas x thresholds, 2]."""
    rows = [[(strength(p, t, beta), beta) for beta in BETAS for t in THRESHOLDS] for p in PENALTIES]
    return np.array(rows, np.float32)


def on_grid(found: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """What was measured with one penalty, [betas, thresholds, problems]."""
    return {name: np.asarray(x, float).reshape(len(BETAS), len(THRESHOLDS), -1) for name, x in found.items()}


def at_equal_sparsity(
    found: dict[str, np.ndarray], beta: int, shift: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """The threshold at which u keeps as many weights as w* has, on average, and how each problem fares at it.

    Args:
      found: from ``on_grid``, of the problems to average over.
      beta: its place in the grid.
      shift: [problems]: the rule is one threshold for all problems divided by this.

    Returns:
      The threshold; recoveries and errors, [problems], linear in log threshold between the points of the grid.
    """
    x = np.log(THRESHOLDS)

    def interpolated(name, at):
        place = np.clip(np.interp(at - np.log(shift), x, np.arange(len(x))), 0, len(x) - 1)
        low = np.minimum(place.astype(int), len(x) - 2)
        rows, number = found[name][beta], np.arange(len(shift))
        return rows[low, number] * (low + 1 - place) + rows[low + 1, number] * (place - low)

    low, high = x[0] + np.log(shift.min()), x[-1] + np.log(shift.max())
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if interpolated("kept", middle).mean() > SHARE else (low, middle)
    return float(np.exp(low)), interpolated("recovered", low), interpolated("error", low)


def compared(grids: dict[str, dict[str, np.ndarray]], patches: np.ndarray) -> list[dict[str, Any]]:
    """Recovery at equal sparsity for each penalty, beta and rule, with standard errors, and paired with l1's."""
    rows = []
    rules = {
        "lambda / beta": lambda beta: np.ones_like(patches),
        "(1 + k beta) lambda / beta": lambda beta: 1 + patches * beta,
        "(1 + k beta) lambda / (beta sqrt k)": lambda beta: (1 + patches * beta) / np.sqrt(patches),
    }
    for rule, shift_at in rules.items():
        for place, beta in enumerate(BETAS):
            shift = shift_at(beta)
            found = {name: at_equal_sparsity(grid, place, shift) for name, grid in grids.items()}
            for name, (threshold, recovered, error) in found.items():
                rows.append({
                    "rule": rule, "penalty": name, "beta": float(beta), "threshold": threshold,
                    "recovered": mean_and_error(recovered),
                    "recovered_less_l1": mean_and_error(recovered - found["l1"][1]),
                    "error": mean_and_error(error), "error_less_l1": mean_and_error(error - found["l1"][2]),
                })  # fmt: skip
    return rows


def averaged(grids: dict[str, dict[str, np.ndarray]], problem: Problems) -> dict[str, Any]:
    """Means over problems: on the grid for each noise, and for each value of each axis."""
    names = ("recovered", "kept", "distance", "error")
    result: dict[str, Any] = {}
    for penalty, grid in grids.items():
        maps = {
            f"noise {nu:g}": {n: grid[n][:, :, np.isclose(problem.noise, nu)].mean(axis=2).round(4) for n in names}
            for nu in AXES["noise"]
        }
        lines = {
            axis: {f"{v:g}": mean_and_error(grid["recovered"][:, :, np.isclose(getattr(problem, axis), v)].mean((0, 1)))
                   for v in values}
            for axis, values in AXES.items()
        }  # fmt: skip
        result[penalty] = {"maps": maps, "recovered_along": lines}
    return result


def draw(means: dict[str, Any], rows: list[dict[str, Any]], samples: list[dict[str, Any]], path: Any) -> None:
    """Phase diagrams without noise, n samples; with noise, three measures against sparsity, recovery against beta."""
    figure, axes = plt.subplots(2, 4, figsize=(14.5, 6.4), layout="constrained")
    noisy = f"noise {AXES['noise'][-1]:g}"
    for axis, (name, mean) in zip(axes[0], means.items(), strict=False):
        shown = axis.pcolormesh(THRESHOLDS, BETAS, mean["maps"]["noise 0"]["recovered"], vmin=0, vmax=1)
        axis.set(xscale="log", yscale="log", title=name.replace("_", " "), xlabel="threshold of u", ylabel="β")
    figure.colorbar(shown, ax=axes[0, :3], label="P(support recovered), no noise")
    place = int(np.argmin(np.abs(BETAS - 0.3)))
    for name, mean in means.items():
        found = mean["maps"][noisy]
        zeros = 100 * (1 - found["kept"][place])
        axes[1, 0].plot(zeros, found["recovered"][place], "o-", ms=3, label=name.replace("_", " "))
        axes[1, 1].plot(zeros, 100 * (1 - found["error"][place]), "o-", ms=3, label=name.replace("_", " "))
        axes[1, 2].plot(zeros, found["distance"][place], "o-", ms=3, label=name.replace("_", " "))
    for rule, line in (("lambda / beta", "-"), ("(1 + k beta) lambda / beta", ":")):
        for name, color in zip(PENALTIES, ("C0", "C1", "C2"), strict=True):
            chosen = [r for r in rows if r["penalty"] == name and r["rule"] == rule]
            mean, error = np.array([r["recovered"] for r in chosen]).T
            axes[1, 3].errorbar(BETAS, mean, 2 * error, fmt=f"o{line}", ms=3, color=color)
    for axis in axes[1, :3]:
        axis.axvline(100 * (1 - SHARE), color="k", lw=0.7)
        axis.set_xlabel(f"zeros in u, %; β = {BETAS[place]:g}, with noise")
    axes[1, 0].set(ylabel="P(support recovered)")
    axes[1, 1].set(ylabel="1 − f(u) / f(0), %", ylim=(70, 100))
    axes[1, 2].set(ylabel="|u − w*|")
    n = [row["n"] for row in samples]
    axes[0, 3].loglog(n, [row["loss_error"] for row in samples], "o-", ms=3, label="loss, relative")
    axes[0, 3].loglog(n, [row["limit_error"] for row in samples], "s-", ms=3, label="limit, |w − w_pop|")
    axes[0, 3].set(xlabel="samples n", ylabel="root mean square error")
    axes[0, 3].legend(fontsize="small")
    axes[1, 3].set(xscale="log", xlabel="β; dotted: (1 + kβ) λ/β fixed", ylabel="P(recovered) at 75 % zeros (2 s.e.)")
    axes[1, 0].legend(fontsize="small")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(options: Options) -> None:
    """One call for all runs, what it says, and the same on samples; figure and record."""
    started = time.time()
    problem = problems(1 if options.quick else options.draws)
    steps = 150 if options.quick else options.steps
    grid = jnp.asarray(settings())
    found = jax.block_until_ready(sweep(jax.random.key(options.seed), grid, problem, steps))
    seconds, cpu_seconds = time.time() - started, time.process_time()
    runs = grid.shape[0] * grid.shape[1] * problem.number.size
    problem = jax.tree.map(np.asarray, problem)
    grids = {name: on_grid(x) for name, x in found.items()}
    noisy = problem.noise > 0
    rows = compared(
        {name: {n: x[:, :, noisy] for n, x in grid.items()} for name, grid in grids.items()}, problem.patches[noisy]
    )
    means = averaged(grids, problem)
    largest, sets = (3, 4) if options.quick else (options.largest, options.sets)
    samples = no_overlap_samples.errors(options.seed, largest, sets, 40 if options.quick else 100)
    slopes = {name: no_overlap_samples.slope(samples, name) for name in ("loss_error", "limit_error")}
    draw(means, rows, samples, common.output_path(NAME, options, ".png"))
    finite = all(np.isfinite(x).all() for grid in grids.values() for x in grid.values())
    left = np.concatenate([grid["residual"].ravel() for grid in grids.values()])
    path = common.save(
        NAME, options, started, runs=runs, steps=steps, seconds=seconds, cpu_seconds=cpu_seconds, finite=finite,
        unfinished=float((left > 1e-4).mean()), problems=int(noisy.sum()),
        axes=AXES, thresholds=THRESHOLDS, betas=BETAS, equal_sparsity=rows, means=means,
        samples=samples, slopes=slopes,
    )  # fmt: skip
    print(f"{runs:,} runs of {steps} steps in one call, {seconds:.0f} s with its compilation; {path}")
    for row in rows:
        values = ", ".join(
            f"{name} {row[name][0]:.3f} ± {row[name][1]:.3f}" for name in ("recovered", "recovered_less_l1", "error")
        )
        print(f"  {row['rule']}, {row['penalty']}, beta {row['beta']:g}, threshold {row['threshold']:.3f}: {values}")
    print(f"errors on n samples fall as n^k, k = {slopes}")


if __name__ == "__main__":
    common.run(main, Options, __doc__)
