"""Escape with probability delta xi_n: which laws of xi give 1 / |log delta|, which 1 / log |log delta|, which between.

    python -m experiments.serw_random_escape

Result (0.7 minutes on two shared cores of an AMD EPYC), local order k of v ~ |log delta|^-k near |ln delta| = 660:
uniform, exponential, half-normal, Pareto 1/2 and xi growing as n^2 have k = 1.00 to 1.01, that is 1 / |log delta|;
super-heavy has 0.19 and growth as 2^n has 0.16, with v ln|ln delta| = 0.94 and 0.80: 1 / log |log delta|. Laws with
P(xi > x) = exp(-(log x)^k) lie between, with orders 0.71 for k = 0.7 and 0.44 for k = 0.4. At delta = 1e-3 simulations
of all nine lie within 2.3 standard errors of the recursion.
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
from serw import Law, Walk, exact, linear, random_escape

NAME = "serw_random_escape"
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """Options of this experiment.

    Attributes:
      walkers: of the simulations that check the laws at delta = 1e-3.
    """

    walkers: int = 20_000


def _between_clipped(theta: Any, power: float) -> np.ndarray:
    level = -np.log(np.clip(np.atleast_1d(theta), 1e-300, 1.0))
    reach = np.minimum(level, 50.0)[:, None]
    z = reach * (NODES + 1) / 2
    tail = np.exp(-z - np.maximum(level[:, None] - z, 0) ** power)
    found = (reach[:, 0] / 2) * (tail @ WEIGHTS) + np.exp(-level)
    return found.reshape(np.shape(theta))


def _between_quantile(u: Any, power: float) -> Any:
    xp = u.__array_namespace__()
    return xp.exp(xp.minimum((-xp.log1p(-u)) ** (1 / power), 700.0))


def between(power: float) -> Law:
    """P(xi > x) = exp(-(log x)^power), 0 < power < 1: heavier than any power law, lighter than 1 / log x."""
    return Law(f"exp(-(log x)^{power:g})", _between_clipped, _between_quantile, (power,))


LAWS = {
    "uniform": serw.uniform(),
    "exponential": serw.exponential(),
    "half-normal": serw.half_normal(),
    "Pareto 1/2": serw.pareto(0.5),
    "growing as n²": serw.polynomial_growth(2.0),
    "exp(-(log x)^0.7)": between(0.7),
    "exp(-(log x)^0.4)": between(0.4),
    "super-heavy": serw.super_heavy(),
    "growing as 2ⁿ": serw.exponential_growth(2.0),
}


def order(logs: np.ndarray, v: np.ndarray) -> float:
    """-d log v / d log |log delta| at the smallest delta: 1 for 1 / |log delta|, near 0 for 1 / log |log delta|."""
    return float(-np.polyfit(np.log(logs[-5:]), np.log(v[-5:]), 1)[0])


def measure(name: str, law: Law, logs: np.ndarray, options: Options) -> dict[str, Any]:
    """The exact curve of one law, and a simulation at delta = 1e-3."""
    v = np.array([exact.diffusivity(Walk(1, linear(1.0), random_escape(math.exp(-x), law))) for x in logs])
    walk = Walk(1, linear(1.0), random_escape(1e-3, law))
    steps, walkers = (1000, 1000) if options.quick else (10_000, options.walkers)
    found = serw.simulate(jax.random.key(options.seed), walk, walkers=walkers, times=[steps], progress=False)
    recursion = exact.msd(walk, steps)[-1]
    return {
        "law": name,
        "v": v,
        "order": order(logs, v),
        "v_log": float(v[-1] * logs[-1]),
        "v_loglog": float(v[-1] * math.log(logs[-1])),
        "sigmas": float((found.msd[0] - recursion) / found.sem[0]),
        "msd_over_n": float(found.msd[0] / steps),
        "sem_over_n": float(found.sem[0] / steps),
    }


def draw(logs: np.ndarray, rows: list[dict[str, Any]], path: Any) -> None:
    """V against |log delta| for all laws, with the two published rates."""
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for row in rows:
        axis.loglog(logs, row["v"], label=f"{row['law']} ({row['order']:.2f})")
    axis.loglog(logs, 0.7943 / logs, "k--", label="0.7943 / |ln δ|")
    axis.loglog(logs, 0.7943 / np.log(logs), "k:", label="0.7943 / ln|ln δ|")
    axis.set(xlabel="|ln δ|", ylabel="v")
    axis.legend(fontsize=7, title="law (local order in |ln δ|)", title_fontsize=7, ncols=2)
    figure.savefig(path, dpi=90)


def main(options: Options) -> None:
    """Measures each law, draws and saves."""
    started = time.time()
    logs = np.geomspace(5, 660, 8 if options.quick else 40)
    chosen = dict(list(LAWS.items())[:: 8 if options.quick else 1])
    rows = [measure(name, law, logs, options) for name, law in chosen.items()]
    draw(logs, rows, common.output_path(NAME, options, ".png"))
    worst = max(abs(row["sigmas"]) for row in rows)
    path = common.save(NAME, options, started, log_delta=-logs, laws=rows, largest_sigmas=worst)
    for row in rows:
        print(
            f"{row['law']:20s} order {row['order']:.3f}  v|ln d| {row['v_log']:.3f}  v ln|ln d| {row['v_loglog']:.3f}"
        )
    print(f"largest deviation from the recursion: {worst:.2f} standard errors; {path}")


if __name__ == "__main__":
    common.one_device_per_core()
    common.run(main, Options, __doc__)
