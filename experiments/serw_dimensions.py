"""Diffusivity above the unperturbed one, v(delta) - v(0), in d = 1..4: O(delta) or const / |log delta|^(2 d - 2).

With f(n) = n, P(T >= n) falls as n^(1 - 2 d). An escape that grows as 2^n cuts it at n of the order of |log delta|: a
part of the order of |log delta|^(2 - 2 d) of E[T] is lost, const / log^2 delta in d = 2 and less in higher dimensions.

    python -m experiments.serw_dimensions

Result (1.1 minutes on two cores of an AMD EPYC; fits over the smaller half of the deltas, with the fit's own
error): the constant escape gives v - v(0) ~ delta^k with k = 0.9968 +- 0.0010 in d = 2, 0.99986 +- 0.00005 in d = 3 and
0.999997 +- 0.000001 in d = 4; the growing one |log delta|^-k with k = 1.9916 +- 0.0007, 3.955 +- 0.003 and
5.821 +- 0.006, that is const / log^2 delta in d = 2, where a fit of 1 / log^2 and its correction gives the constant
1.653. In d = 1, where v(0) = 0, the local order is 1.128 +- 0.007 in |log delta| for the constant escape and
0.198 +- 0.003 for the growing one. Eight simulations lie within 1.4 standard errors of the recursion.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import serw
from experiments import common
from serw import Escape, Walk, constant_escape, exact, exponential_growth, linear, random_escape

NAME = "serw_dimensions"
ESCAPES: dict[str, Callable[[float], Escape]] = {
    "constant": constant_escape,
    "growing as 2ⁿ": lambda delta: random_escape(delta, exponential_growth(2.0)),
}


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """Options of this experiment.

    Attributes:
      walkers: of the simulations at delta = 0.01.
    """

    walkers: int = 20_000


def power_law(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Least squares of log y = k log x + log c, with the standard errors of the fit."""
    (k, c), covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    k_error, c_error = np.sqrt(np.diag(covariance))
    return {"exponent": k, "exponent_error": k_error, "constant": math.exp(c), "relative_error": c_error}


def leading(logs: np.ndarray, y: np.ndarray, k: int) -> dict[str, float]:
    """Least squares of y |log delta|^k = a + b / |log delta|, with the standard error of a."""
    (b, a), covariance = np.polyfit(1 / logs, y * logs**k, 1, cov=True)
    return {"k": k, "constant": a, "error": math.sqrt(covariance[1, 1]), "correction": b}


def measure(dim: int, name: str, logs: np.ndarray, options: Options) -> dict[str, Any]:
    """v(delta) - v(0) exactly, its fits over the smaller half of the deltas, and a simulation at delta = 0.01."""
    escape = ESCAPES[name]
    v0 = exact.diffusivity(Walk(dim, linear(1.0)))
    gain = np.array([exact.diffusivity(Walk(dim, linear(1.0), escape(math.exp(-x)))) for x in logs]) - v0
    small = (logs > np.median(logs)) & (gain > 1e-9)
    fits = {"in_delta": power_law(np.exp(-logs[small]), gain[small]), "in_log": power_law(logs[small], gain[small])}
    walk = Walk(dim, linear(1.0), escape(0.01))
    walkers, steps = (1000, 300) if options.quick else (options.walkers, 3000)
    found = serw.simulate(jax.random.key(options.seed), walk, walkers=walkers, times=[steps], progress=False)
    return {
        "dim": dim,
        "escape": name,
        "v0": v0,
        "log_delta": -logs,
        "gain": gain,
        "fits": fits,
        "leading": leading(logs[small], gain[small], 2 * dim - 2) if name != "constant" and dim > 1 else None,
        "sigmas": float((found.msd[0] - exact.msd(walk, steps)[-1]) / found.sem[0]),
    }


def draw(rows: list[dict[str, Any]], path: Any) -> None:
    """V - v(0) against delta for the constant escape, against |log delta| for the growing one."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for row in rows:
        axis, logs = axes[int(row["escape"] != "constant")], -row["log_delta"]
        shown = row["gain"] > 1e-12
        x = np.exp(-logs) if row["escape"] == "constant" else logs
        axis.loglog(x[shown], row["gain"][shown], f"C{row['dim']}.-", label=f"d = {row['dim']}")
        if row["leading"]:
            axis.loglog(x, row["leading"]["constant"] / x ** row["leading"]["k"], f"C{row['dim']}:", lw=0.9)
    axes[0].set(xlabel="δ", ylabel="v(δ) - v(0)", title="constant escape")
    axes[1].set(xlabel="|ln δ|", title="escape growing as 2ⁿ; dotted: c / |ln δ|^(2d-2)")
    axes[0].legend()
    figure.savefig(path, dpi=90)


def main(options: Options) -> None:
    """Measures each dimension and escape, draws and saves."""
    started = time.time()
    spans = {"constant": np.geomspace(1, 18, 24), "growing as 2ⁿ": np.geomspace(3, 660, 12 if options.quick else 40)}
    dims = (1, 2) if options.quick else (1, 2, 3, 4)
    rows = [measure(dim, name, logs, options) for name, logs in spans.items() for dim in dims]
    draw(rows, common.output_path(NAME, options, ".png"))
    worst = max(abs(row["sigmas"]) for row in rows)
    path = common.save(NAME, options, started, rows=rows, largest_sigmas=worst)
    for row in rows:
        fit = row["fits"]["in_delta" if row["escape"] == "constant" else "in_log"]
        print(
            f"d = {row['dim']}, {row['escape']}: exponent {fit['exponent']:.4f} +- {fit['exponent_error']:.4f}", end=""
        )
        found = row["leading"]
        print(f", {found['constant']:.3f} +- {found['error']:.3f} / |log delta|^{found['k']}" if found else "")
    print(f"largest deviation from the recursion: {worst:.2f} standard errors; {path}")


if __name__ == "__main__":
    common.one_device_per_core()
    common.run(main, Options, __doc__)
