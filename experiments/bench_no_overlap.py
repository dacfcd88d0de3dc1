"""Runs of RVSM a second on the no-overlap network: one vmapped call, a Python loop over jitted runs, the loop in NumPy.

    python -m experiments.bench_no_overlap

All three take turns in one run and do the same steps on the same problems; the medians over rounds are of time per run.

Result (two cores of an AMD EPYC): 39,051 runs of 300 steps a second in one vmapped call, 123 (122 to 124) times the
loop in NumPy and 7 times the loop over jitted runs.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, no_overlap, no_overlap_problems
from experiments.timing import interleaved, ratio

NAME = "bench_no_overlap"


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """Options of this benchmark.

    Attributes:
      rounds: how often everything is timed.
      steps: of each run.
      vmapped: runs in the vmapped call, for each penalty.
      jitted: runs in the loop over jitted runs, for each penalty.
      numpy: runs in the loop in NumPy, for each penalty.
    """

    rounds: int = 11
    steps: int = 300
    vmapped: int = 4096
    jitted: int = 16
    numpy: int = 3


def numpy_prox(penalty: str, lam: float, beta: float) -> Callable[[np.ndarray], np.ndarray]:
    """U of w, by the textbook formulas."""
    t = lam / beta
    if penalty == "l0":
        return lambda w: np.where(np.abs(w) > math.sqrt(2 * t), w, 0)
    if penalty == "l1":
        return lambda w: np.sign(w) * np.maximum(np.abs(w) - t, 0)
    jump = 2 * t if t <= 0.25 else math.sqrt(4 * t) - 0.5

    def transformed(w):
        m = np.abs(w)
        phi = np.arccos(np.clip(1 - 27 * t / (1 + m) ** 3, -1, 1))
        return np.sign(w) * np.where(m > jump, 2 / 3 * (1 + m) * np.cos(phi / 3) - 2 / 3 + m / 3, 0)

    return transformed


def numpy_run(
    penalty: str, lam: float, beta: float, k: float, target: np.ndarray, w: np.ndarray, tilt: np.ndarray, steps: int
) -> np.ndarray:
    """The u that RVSM ends with, as one writes it in NumPy.

    Args:
      penalty: its name.
      lam: its weight.
      beta: the pull's weight.
      k: patches.
      target: w*, [d].
      w: the start, [d].
      tilt: added to the gradient, [d].
      steps: how many.

    Returns:
      [d].
    """
    prox, size = numpy_prox(penalty, lam, beta), math.sqrt(target @ target)
    largest = (1 + (k - 1) / math.pi) / k
    eta = 1 / (beta + largest)
    for _ in range(steps):
        r = math.sqrt(w @ w)
        cosine = min(max((w @ target) / (r * size), -1.0), 1.0)
        t = math.acos(cosine)
        a = largest - size / r * (k - 1 + math.sin(t)) / (math.pi * k)
        gradient = a * w - (math.pi - t) / (math.pi * k) * target + tilt
        w = w - eta * (gradient + beta * (w - prox(w)))
    return prox(w)


def main(options: Options) -> None:
    """Times the three, says how far their results are apart, and saves."""
    started = time.time()
    rounds, steps = (3, 50) if options.quick else (options.rounds, options.steps)
    counts = {"vmapped": 256 if options.quick else options.vmapped, "jitted": options.jitted, "numpy": options.numpy}
    problem = jax.tree.map(lambda x: jnp.tile(x, 60)[: counts["vmapped"]], no_overlap_problems.problems(1))
    problem = problem._replace(number=jnp.arange(counts["vmapped"]))
    weights = jax.jit(jax.vmap(no_overlap_problems.drawn, in_axes=(None, 0)))(jax.random.key(options.seed), problem)
    beta, threshold = 0.1, 0.1
    strengths = {p: (no_overlap_problems.strength(p, threshold, beta), beta) for p in no_overlap_problems.PENALTIES}
    runs = {
        p: functools.partial(no_overlap_problems.run, penalty, steps=steps)
        for p, penalty in no_overlap_problems.PENALTIES.items()
    }
    one = {p: jax.jit(lambda lam, beta, k, x, f=f: f(lam, beta, k, x)[1]) for p, f in runs.items()}

    @jax.jit
    def together(k, weights):
        chunk = functools.partial(jax.lax.map, xs=(k, weights), batch_size=no_overlap.CHUNK)
        return {p: chunk(lambda x, p=p: runs[p](*strengths[p], *x)[1]) for p in runs}

    def in_turn():
        problems = [(problem.patches[i], tuple(x[i] for x in weights)) for i in range(counts["jitted"])]
        return {p: jnp.stack([f(*strengths[p], *x) for x in problems]) for p, f in one.items()}

    k_host, host = np.asarray(problem.patches, float).tolist(), [np.asarray(x) for x in weights]

    def in_numpy():
        rows = range(counts["numpy"])
        return {
            p: np.stack(
                [numpy_run(p, *strengths[p], k_host[i], host[0][i], host[1][i], host[2][i], steps) for i in rows]
            )
            for p in runs
        }

    results = [together(problem.patches, weights), in_turn(), in_numpy()]
    apart = max(float(np.abs(np.asarray(x[p]) - results[0][p][: len(x[p])]).max()) for x in results[1:] for p in runs)
    calls = {"vmapped": lambda: together(problem.patches, weights), "jitted": in_turn, "numpy": in_numpy}
    seconds = {name: s / (3 * counts[name]) for name, s in interleaved(calls, rounds, warm_up=1).items()}
    rates = {name: float(1 / np.median(s)) for name, s in seconds.items()}
    ratios = {f"over {name}": ratio(seconds, name, "vmapped") for name in ("jitted", "numpy")}
    path = common.save(
        NAME, options, started, rounds=rounds, steps=steps, counts=counts, runs_a_second=rates, vmapped=ratios,
        largest_difference=apart, dim=no_overlap_problems.LARGEST,
    )  # fmt: skip
    for name, rate in rates.items():
        print(f"{name}: {rate:,.0f} runs of {steps} steps a second")
    for name, r in ratios.items():
        print(f"vmapped {name}: {r['median']:.0f}x ({r['low']:.0f} to {r['high']:.0f})")
    print(f"largest difference between their u: {apart:.1e}; {path}")


if __name__ == "__main__":
    common.run(main, Options, __doc__)
