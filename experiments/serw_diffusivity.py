"""Enhanced diffusivity: v(delta) = lim E|S_n|^2 / n for f(n) = n in d = 1 falls like 0.7943 / |ln delta|, not delta^2.

    python -m experiments.serw_diffusivity

Result (1.3 minutes on two cores of an AMD EPYC, seed 0): v = 0.5076, 0.2174, 0.1343, 0.0967 at delta = 1e-1 .. 1e-4 and
0.02983 at 1e-12, there still 3.8 % above 0.7943 / |ln delta|. Walkers at delta >= 1e-4 lie within 1.3 standard errors
of the exact value, splitting at all twelve deltas within 1.6.
"""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import serw
from experiments import common
from serw import Walk, constant_escape, events, exact, generator, linear

NAME = "serw_diffusivity"
LIMIT = (1 - math.log(2)) / (2 * math.log(2) - 1)  # 0.7943


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """Options of this experiment.

    Attributes:
      walkers: of the direct simulations, for delta >= 1e-4.
      draws: excursions per factor of two in their length.
    """

    walkers: int = 65_536
    draws: int = 60_000


@functools.partial(jax.jit, static_argnums=0)
def doubled(walk: Walk, words: Any, reached: jax.Array) -> jax.Array:
    """Excursions known to last n = `reached`: T if T < 2 n, else 2 n; [B] int64."""
    zero = jnp.zeros(words[0].shape, jnp.int64)
    start = events.Walkers(words, (zero,), zero.astype(jnp.int32), zero, zero, zero + reached, words[0])

    def unknown(w: events.Walkers) -> jax.Array:
        return (w.length == 0) & (w.reached < 2 * reached)

    walkers = jax.lax.while_loop(lambda w: jnp.any(unknown(w)), lambda w: events.lengthen(walk, w, unknown(w)), start)
    return jnp.where(walkers.length == 0, 2 * reached, walkers.length)


def split(walk: Walk, draws: int, seed: int) -> dict[str, float]:
    """E[T], P(T odd) and v by splitting: P(T >= 2 n) / P(T >= n) for n = 1, 2, 4, ..., each from its own draws.

    Args:
      walk: the law.
      draws: excursions per doubling.
      seed: of the key.

    Returns:
      v and its standard error, by the spread of 20 independent batches.
    """
    batches = 20
    mean, odd, alive = np.zeros(batches), np.zeros(batches), np.ones(batches)
    with jax.enable_x64(True):
        for i in range(62):
            words = generator.seed(jax.random.fold_in(jax.random.key(seed), i), jnp.arange(draws, dtype=jnp.uint32))
            n = 1 << i
            ended = np.asarray(doubled(walk, words, jnp.int64(n))).reshape(batches, -1)
            mean += alive * (ended - (n if i else 0)).mean(1)
            odd += alive * ((ended < 2 * n) & (ended % 2 == 1)).mean(1)
            alive *= (ended == 2 * n).mean(1)
            if alive.max() == 0:
                break
    v = walk.dim * odd / ((walk.dim - odd) * mean)
    return {"v": float(v.mean()), "sem": float(v.std(ddof=1) / math.sqrt(batches))}


def direct(walk: Walk, walkers: int, steps: int, seed: int) -> dict[str, float]:
    """(E|S_n|^2 - E|S_m|^2) / (n - m) over walkers, n = `steps`, m = n / 4, by excursions."""
    found = serw.simulate(jax.random.key(seed), walk, walkers=walkers, times=[steps // 4, steps], progress=False)
    span = steps - steps // 4
    return {"v": float(np.diff(found.msd)[0] / span), "sem": float(np.hypot(*found.sem) / span), "steps": steps}


def measure(delta: float, options: Options) -> dict[str, Any]:
    """Exact, split and, where walkers can get there, directly simulated v."""
    walk = Walk(1, linear(1.0), constant_escape(delta))
    v, seed = exact.diffusivity(walk), options.seed + round(-10 * math.log10(delta))  # independent points
    point: dict[str, Any] = {"delta": delta, "exact": v, "asymptotic": LIMIT / abs(math.log(delta))}
    point["split"] = split(walk, 20_000 if options.quick else options.draws, seed)
    if delta >= (1e-2 if options.quick else 1e-4):
        walkers = 1024 if options.quick else options.walkers
        point["direct"] = direct(walk, walkers, int(50 / delta), seed)
    for name in ("split", "direct"):
        if name in point:
            point[name]["sigmas"] = (point[name]["v"] - v) / point[name]["sem"]
    return point


def draw(points: list[dict[str, Any]], path: Any) -> None:
    """V against delta, with its limit law and delta^2."""
    fine = np.logspace(-12, -1, 111)
    curve = [exact.diffusivity(Walk(1, linear(1.0), constant_escape(d))) for d in fine]
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    axis.loglog(fine, curve, "k-", label="exact")
    axis.loglog(fine, LIMIT / np.abs(np.log(fine)), "k--", label="0.7943 / |ln δ|")
    axis.loglog(fine, fine**2, "k:", label="δ²")
    for name, marker in (("split", "o"), ("direct", "s")):
        chosen = [p for p in points if name in p]
        axis.errorbar(
            [p["delta"] for p in chosen],
            [p[name]["v"] for p in chosen],
            [4.5 * p[name]["sem"] for p in chosen],
            fmt=marker,
            mfc="none",
            label=f"Monte Carlo, {name} (4.5 s.e.)",
        )
    axis.set(xlabel="δ", ylabel="v = lim E|Sₙ|² / n", ylim=(1e-3, 1))
    axis.legend()
    figure.savefig(path, dpi=90)


def main(options: Options) -> None:
    """Measures v at each delta, draws and saves."""
    started = time.time()
    deltas = [1e-1, 1e-2, 1e-12] if options.quick else [10.0**-k for k in range(1, 13)]
    points = [measure(delta, options) for delta in deltas]
    draw(points, common.output_path(NAME, options, ".png"))
    worst = {name: max(abs(p[name]["sigmas"]) for p in points if name in p) for name in ("split", "direct")}
    last = points[-1]
    ratio = last["exact"] / last["asymptotic"]
    path = common.save(NAME, options, started, points=points, largest_sigmas=worst, exact_over_asymptotic=ratio)
    for p in points:
        print(f"{p['delta']:.0e}  exact {p['exact']:.6f}  split {p['split']['v']:.6f} +- {p['split']['sem']:.6f}")
    print(f"largest deviations in standard errors: {worst}; {path}")


if __name__ == "__main__":
    common.one_device_per_core()
    common.run(main, Options, __doc__)
