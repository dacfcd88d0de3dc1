"""Stuck, sub-diffusive or diffusive: f(n) = n^a over a and d, f(n) = s n over s and d, with the theory's boundaries.

    python -m experiments.serw_regimes

Result (0.3 minutes on two shared cores of an AMD EPYC): of the 148 walks 71 are diffusive, 37 sub-diffusive and 40
stuck, along the theory's lines a = 1 and s = 2 d - 1. The boundary itself, f(n) = n, is sub-diffusive in d = 1 (growth
exponent 0.854 at n = 4,000) and diffusive in d >= 2. A walk past the boundary may need long to notice: with a = 1.1 in
d = 3 the exponent is still 1.000 at n = 4,000. Four simulations lie within 1.5 standard errors of the recursion.
"""

import dataclasses
import time
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import serw
from experiments import common
from serw import Walk, exact, linear, power

NAME = "serw_regimes"
MARKS = {"diffusive": "o", "sub-diffusive": "^", "stuck": "x"}


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """Options of this experiment.

    Attributes:
      steps: of the exact recursion.
      walkers: of the simulations at a few points.
    """

    steps: int = 4000
    walkers: int = 20_000


def growth(msd: np.ndarray) -> float:
    """D log E|S_n|^2 / d log n over the last octave."""
    n = len(msd)
    return float(np.log(msd[-1] / msd[n // 2 - 1]) / np.log(n / (n // 2)))


def measure(family: str, parameter: float, dim: int, options: Options) -> dict[str, Any]:
    """The regime in words, and the growth exponent at a finite time."""
    walk = Walk(dim, power(parameter) if family == "power" else linear(parameter))
    msd = exact.msd(walk, 400 if options.quick else options.steps)
    regime = exact.regime(walk).split(":")[0]
    return {"family": family, "parameter": parameter, "dim": dim, "regime": regime, "growth": growth(msd)}


def check(dim: int, exponent: float, options: Options) -> dict[str, Any]:
    """A simulation against the recursion at the last step."""
    walk, steps = Walk(dim, power(exponent)), 400 if options.quick else options.steps
    walkers = 1000 if options.quick else options.walkers
    found = serw.simulate(jax.random.key(options.seed), walk, walkers=walkers, times=[steps], progress=False)
    sigmas = (found.msd[0] - exact.msd(walk, steps)[-1]) / found.sem[0]
    return {"dim": dim, "exponent": exponent, "msd": float(found.msd[0]), "sigmas": float(sigmas)}


def draw(points: list[dict[str, Any]], path: Any) -> None:
    """Regimes as marks, growth exponents as colours, boundaries as lines."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained", sharey=True)
    for axis, family in zip(axes, ("power", "linear"), strict=True):
        for regime, mark in MARKS.items():
            chosen = [p for p in points if p["family"] == family and p["regime"] == regime]
            x, y, c = ([p[key] for p in chosen] for key in ("parameter", "dim", "growth"))
            shown = axis.scatter(x, y, c=c, marker=mark, vmin=0, vmax=1, cmap="viridis", s=45, label=regime)
        axis.legend(fontsize=7, loc="upper right")
    axes[0].axvline(1, color="k", ls="--")
    d = np.linspace(0.7, 4.3, 2)
    axes[1].plot(2 * d - 1, d, "k--")
    axes[0].set(xlabel="a, f(n) = nᵃ", ylabel="d", yticks=[1, 2, 3, 4])
    axes[1].set(xlabel="s, f(n) = s n; boundary s = 2 d - 1")
    figure.colorbar(shown, ax=axes, label="d log E|Sₙ|² / d log n at the last step")
    figure.savefig(path, dpi=90)


def main(options: Options) -> None:
    """Measures the grid, draws and saves."""
    started = time.time()
    dims = (1, 2) if options.quick else (1, 2, 3, 4)
    grid = {
        "power": np.linspace(0, 2, 5 if options.quick else 21),
        "linear": np.linspace(0.5, 8, 4 if options.quick else 16),
    }
    points = [measure(f, round(float(x), 6), d, options) for f, xs in grid.items() for x in xs for d in dims]
    checks = [
        check(d, a, options) for d, a in ([(1, 1.0)] if options.quick else [(1, 0.5), (1, 1.0), (2, 1.0), (2, 1.5)])
    ]
    draw(points, common.output_path(NAME, options, ".png"))
    worst = max(abs(c["sigmas"]) for c in checks)
    counts = {r: sum(p["regime"] == r for p in points) for r in MARKS}
    path = common.save(NAME, options, started, points=points, checks=checks, largest_sigmas=worst, counts=counts)
    print(f"{counts}; largest deviation from the recursion: {worst:.2f} standard errors; {path}")


if __name__ == "__main__":
    common.one_device_per_core()
    common.run(main, Options, __doc__)
