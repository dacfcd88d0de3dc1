"""Sub-diffusion of f(n) = n in d = 1 without escape, E|S_n|^2 ~ c n / log n, and how a small delta ends it.

    python -m experiments.serw_subdiffusion

Result (1.4 minutes on two shared cores of an AMD EPYC): without escape n / E|S_n|^2 is a straight line in ln n to
within 0.02 for n up to 20,000, E|S_n|^2 = 0.819 n / (ln n - 1.08); the limit of its constant as n grows is 0.7943. A
small delta ends the decline near n = 1 / delta: at n = 300,000, E|S_n|^2 / n is 0.0693 for delta = 0, 0.0962 for 1e-4
(limit 0.0967), 0.1340 for 1e-3 (limit 0.1343). All means lie within 2.0 standard errors of the recursion.
"""

import dataclasses
import math
import time
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import serw
from experiments import common
from serw import Walk, constant_escape, exact, linear

NAME = "serw_subdiffusion"


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """Options of this experiment.

    Attributes:
      walkers: per delta.
      steps: of the exact recursion.
      far: of the simulation.
    """

    walkers: int = 20_000
    steps: int = 20_000
    far: int = 300_000


def law(msd: np.ndarray, n: np.ndarray) -> dict[str, float]:
    """Least squares of n / E|S_n|^2 = (ln n + b) / c over the later half of the times."""
    late = n >= n[-1] / 30
    slope, shift = np.polyfit(np.log(n[late]), n[late] / msd[late], 1)
    residual = n[late] / msd[late] - (slope * np.log(n[late]) + shift)
    return {"c": 1 / slope, "b": shift / slope, "largest_residual": float(np.abs(residual).max())}


def measure(delta: float, options: Options) -> dict[str, Any]:
    """Exact and simulated E|S_n|^2 at log-spaced times."""
    walk = Walk(1, linear(1.0), constant_escape(delta))
    steps, far, walkers = (1000, 3000, 1000) if options.quick else (options.steps, options.far, options.walkers)
    curve, times = exact.msd(walk, steps), serw.log_times(far, 15)
    found = serw.simulate(jax.random.key(options.seed), walk, walkers=walkers, times=times, progress=False)
    known = (times <= steps) & (found.sem > 0)
    sigmas = (found.msd[known] - curve[times[known] - 1]) / found.sem[known]
    shown = serw.log_times(steps, 60)
    return {
        "delta": delta,
        "times": times,
        "msd": found.msd,
        "sem": found.sem,
        "kurtosis": found.moments.kurtosis.mean,
        "exact_times": shown,
        "exact_msd": curve[shown - 1],
        "largest_sigmas": float(np.abs(sigmas).max()),
        "v": exact.diffusivity(walk),
        "law": law(curve[shown - 1], shown) if delta == 0 else None,
    }


def draw(runs: list[dict[str, Any]], path: Any) -> None:
    """E|S_n|^2 / n against n for each delta, and n / log n."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for i, run in enumerate(runs):
        axis.semilogx(
            run["exact_times"], run["exact_msd"] / run["exact_times"], f"C{i}-", label=f"δ = {run['delta']:g}"
        )
        axis.errorbar(run["times"], run["msd"] / run["times"], 4.5 * run["sem"] / run["times"], fmt=f"C{i}o", ms=3)
        if run["v"] > 0:
            axis.axhline(run["v"], color=f"C{i}", ls=":", lw=0.8)
    fitted = runs[0]["law"]
    n = np.logspace(2, math.log10(runs[0]["times"][-1]), 50)
    axis.semilogx(n, fitted["c"] / (np.log(n) + fitted["b"]), "k--", label="c / (ln n + b)")
    axis.set(xlabel="n", ylabel="E|Sₙ|² / n")
    axis.legend()
    figure.savefig(path, dpi=90)


def main(options: Options) -> None:
    """Measures each delta, draws and saves."""
    started = time.time()
    runs = [measure(delta, options) for delta in ([0.0, 1e-2] if options.quick else [0.0, 1e-4, 1e-3, 1e-2])]
    draw(runs, common.output_path(NAME, options, ".png"))
    worst = max(run["largest_sigmas"] for run in runs)
    path = common.save(NAME, options, started, runs=runs, largest_sigmas=worst)
    print(f"delta = 0: E|S_n|^2 = c n / (ln n + b), {runs[0]['law']}")
    print(f"largest deviation from the recursion: {worst:.2f} standard errors; {path}")


if __name__ == "__main__":
    common.one_device_per_core()
    common.run(main, Options, __doc__)
