"""How fast a senile reinforced walker walks: excursions, steps, a Numba loop and a C loop, interleaved in one run.

    python -m experiments.bench_serw

The faster Numba loop has xoshiro128++ written out; the other draws from Numba's own generator. Then the cost against
walkers, steps, delta and dimension, and the peak memory of fresh processes. Results: README.md, from
experiments/results/bench_serw.json; bench_serw.png.
"""

import ctypes
import dataclasses
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import serw
from experiments import common
from serw import Walk, constant_escape, exact, linear

NAME = "bench_serw"
C_SOURCE = r"""
#include <stdint.h>
static inline uint32_t rotl(uint32_t x, int k) { return (x << k) | (x >> (32 - k)); }
void walk(uint32_t seed, int64_t walkers, int64_t steps, double delta, double *total) {
  double sum = 0;
#pragma omp parallel for reduction(+ : sum) schedule(static)
  for (int64_t w = 0; w < walkers; w++) {
    uint32_t s[4] = {seed, (uint32_t)w * 2654435769u + 1u, 0x85ebca6bu, 0xc2b2ae35u};
    int64_t x = 0;
    int32_t e = 1, run = 0;
    for (int64_t t = -20; t < steps; t++) {
      uint32_t word = rotl(s[0] + s[3], 7) + s[0], shifted = s[1] << 9;
      s[2] ^= s[0]; s[3] ^= s[1]; s[1] ^= s[2]; s[0] ^= s[3]; s[2] ^= shifted; s[3] = rotl(s[3], 11);
      if (t < 0) continue;
      double leave = delta + (1 - delta) / (2.0 + run);
      int turns = run == 0 || word * 0x1p-32 < leave;
      e = turns ? e : -e;
      run = turns ? 1 : run + 1;
      x += e;
    }
    sum += (double)x * x;
  }
  *total = sum;
}
"""


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """Options of the benchmark.

    Attributes:
      repeats: how often each contestant runs, in turn.
      seconds: how long one run should take.
    """

    repeats: int = 5
    seconds: float = 4.0


def numba_walk() -> Callable[[int, int, float], float]:
    """A step-by-step walker compiled by Numba, parallel over walkers: (walkers, steps, delta) -> E|S|^2."""
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def walk(walkers, steps, delta):
        total = 0.0
        for _w in numba.prange(walkers):
            x, e, run = 0, 1, 0
            for _t in range(steps):
                leave = delta + (1 - delta) / (2.0 + run)
                if run == 0 or np.random.random() < leave:  # noqa: NPY002 (Numba's own generator)
                    run = 1
                else:
                    e = -e
                    run += 1
                x += e
            total += x * x
        return total / walkers

    return walk


def numba_xoshiro_walk() -> Callable[[int, int, float], float]:
    """The same, with xoshiro128++ written out and no branch on the coin: the fastest Numba loop tried."""
    import numba

    u32 = np.uint32

    @numba.njit(parallel=True, fastmath=True)
    def walk(walkers, steps, delta):
        total = 0.0
        for w in numba.prange(walkers):
            s0, s1, s2, s3 = u32(12345), u32(w * 2654435769 + 1), u32(0x85EBCA6B), u32(0xC2B2AE35)
            x, e, run = np.int32(0), np.int32(1), np.int32(0)
            for t in range(-20, steps):
                a = u32(s0 + s3)
                word = u32(u32(u32(a << u32(7)) | u32(a >> u32(25))) + s0)
                shifted = u32(s1 << u32(9))
                s2 = u32(s2 ^ s0)
                s3 = u32(s3 ^ s1)
                s1 = u32(s1 ^ s2)
                s0 = u32(s0 ^ s3)
                s2 = u32(s2 ^ shifted)
                s3 = u32(u32(s3 << u32(11)) | u32(s3 >> u32(21)))
                if t < 0:
                    continue
                leave = delta + (1 - delta) / (2.0 + run)
                turns = run == 0 or word * 2.0**-32 < leave
                e = e if turns else -e
                run = np.int32(1) if turns else np.int32(run + 1)
                x += e
            total += float(x) * float(x)
        return total / walkers

    return walk


def c_walk(folder: pathlib.Path) -> Callable[[int, int, float], float] | None:
    """The same loop in C, compiled here with OpenMP, or None without a compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    source, library = folder / "walk.c", folder / "walk.so"
    source.write_text(C_SOURCE)
    flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    if subprocess.run([compiler, *flags, str(source), "-o", str(library)], capture_output=True).returncode != 0:
        return None
    function = ctypes.CDLL(str(library)).walk
    function.argtypes = [ctypes.c_uint32, ctypes.c_int64, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p]

    def walk(walkers: int, steps: int, delta: float) -> float:
        total = ctypes.c_double()
        function(7, walkers, steps, delta, ctypes.byref(total))
        return total.value / walkers

    return walk


def ours(method: str, dim: int = 1) -> Callable[[int, int, float], float]:
    """`serw.simulate` with one time, as a function (walkers, steps, delta) -> E|S|^2."""

    def walk(walkers: int, steps: int, delta: float) -> float:
        law = Walk(dim, linear(1.0), constant_escape(delta))
        found = serw.simulate(
            jax.random.key(1), law, walkers=walkers, times=[steps], method=method, chunk_seconds=1e9, progress=False
        )
        return float(found.msd[0])

    return walk


def timed(walk: Callable[[int, int, float], float], walkers: int, steps: int, delta: float) -> float:
    """Steps a second of one call."""
    begun = time.perf_counter()
    walk(walkers, steps, delta)
    return walkers * steps / (time.perf_counter() - begun)


def fitted(walk: Callable[[int, int, float], float], walkers: int, delta: float, seconds: float) -> int:
    """How many steps take about that many seconds, after a first call outside the clock."""
    steps = 2000
    timed(walk, walkers, steps, delta)
    while True:
        begun = time.perf_counter()
        walk(walkers, steps, delta)
        took = time.perf_counter() - begun
        if took > seconds / 3:
            return max(int(steps * seconds / took), 100)
        steps *= 4


def compare(contestants: dict[str, Any], options: Options, delta: float, walkers: int) -> dict[str, Any]:
    """Speeds of all contestants in turn, and the medians of their ratios to the faster Numba loop, run by run."""
    seconds = 0.2 if options.quick else options.seconds
    steps = {name: fitted(walk, walkers, delta, seconds) for name, walk in contestants.items()}
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(2 if options.quick else options.repeats):
        for name, walk in contestants.items():
            speeds[name].append(timed(walk, walkers, steps[name], delta))
    table = np.array([speeds[name] for name in contestants])
    rival = np.max([speeds[name] for name in contestants if name.startswith("numba")], axis=0)
    return {
        "delta": delta,
        "walkers": walkers,
        "steps": steps,
        "steps_per_second": {name: common.summary(speeds[name]) for name in contestants},
        "median_ratio_to_numba": dict(zip(contestants, np.median(table / rival, axis=1).tolist(), strict=True)),
        "mean_excursion": exact.excursion(Walk(1, linear(1.0), constant_escape(delta))).mean,
    }


def costs(options: Options) -> dict[str, list[dict[str, float]]]:
    """Seconds against walkers, steps, delta and dimension, one varied at a time, for both methods."""
    walkers, steps, small = (4096, 400, True) if options.quick else (16384, 4000, False)
    sweeps: dict[str, list[dict[str, Any]]] = {
        "walkers": [{"walkers": w} for w in ([1024, 4096] if small else [4096, 16384, 65536])],
        "steps": [{"steps": n} for n in ([100, 400] if small else [1000, 4000, 16000, 64000])],
        "delta": [{"delta": d} for d in ([1e-1, 1e-4] if small else [1e-1, 1e-2, 1e-4, 1e-8])],
        "dim": [{"dim": d} for d in ([1, 2] if small else [1, 2, 3])],
    }
    base = {"walkers": walkers, "steps": steps, "delta": 1e-4, "dim": 1}
    return {
        f"{method}/{what}": [_cost(method, base | point, what) for point in points]
        for what, points in sweeps.items()
        for method in ("events", "steps")
    }


def _cost(method: str, at: dict[str, Any], what: str) -> dict[str, float]:
    walk = ours(method, at["dim"])
    walk(at["walkers"], at["steps"], at["delta"])
    seconds = []
    for _ in range(2):
        begun = time.perf_counter()
        walk(at["walkers"], at["steps"], at["delta"])
        seconds.append(time.perf_counter() - begun)
    return {what: at[what], "seconds": float(np.median(seconds))}


def memory(options: Options) -> list[dict[str, Any]]:
    """Peak resident memory of a fresh process for each number of steps, in MB."""
    code = (
        "import re, jax; from serw import *; "
        "simulate(jax.random.key(0), Walk(1, linear(1.0), constant_escape(1e-2)), walkers=8192, times=[{}], "
        "method='{}', progress=False); "
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024)"
    )
    found = []
    for method in ("events", "steps"):
        for steps in (100, 1000) if options.quick else (1000, 100_000):
            run = subprocess.run(
                [sys.executable, "-c", code.format(steps, method)],
                capture_output=True,
                text=True,
                check=True,
                cwd=pathlib.Path(__file__).parents[1],
            )
            found.append({"method": method, "steps": steps, "peak_mb": float(run.stdout)})
    return found


def draw(sweeps: dict[str, list[dict[str, float]]], peaks: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Cost against each of the four, and memory against steps."""
    figure, axes = plt.subplots(1, 5, figsize=(16, 3.2), layout="constrained")
    for axis, what in zip(axes, ("walkers", "steps", "delta", "dim"), strict=False):
        for method in ("events", "steps"):
            points = sweeps[f"{method}/{what}"]
            axis.plot([p[what] for p in points], [p["seconds"] for p in points], "o-", label=method)
        axis.set(xlabel=what, ylabel="seconds", yscale="log", xscale="linear" if what == "dim" else "log")
    for method in ("events", "steps"):
        points = [p for p in peaks if p["method"] == method]
        axes[4].plot([p["steps"] for p in points], [p["peak_mb"] for p in points], "o-", label=method)
    axes[4].set(xlabel="steps", ylabel="peak memory, MB", xscale="log", ylim=(0, None))
    axes[0].legend()
    figure.savefig(path, dpi=90)


def main(options: Options) -> None:
    """Runs the comparison, the sweeps and the memory runs."""
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        contestants = {
            "events": ours("events"),
            "steps": ours("steps"),
            "numba": numba_walk(),
            "numba xoshiro": numba_xoshiro_walk(),
        }
        loop = c_walk(pathlib.Path(folder))
        if loop is not None:
            contestants["c"] = loop
        walkers = 4096
        tables = [compare(contestants, options, delta, walkers) for delta in (1e-4, 1e-8)]
    load = pathlib.Path("/proc/loadavg")
    found: dict[str, Any] = {"comparison": tables, "load": load.read_text().split()[:3] if load.exists() else None}
    report(tables)
    path = common.save(NAME, options, started, **found)
    sweeps, peaks = costs(options), memory(options)
    draw(sweeps, peaks, common.output_path(NAME, options, ".png"))
    path = common.save(NAME, options, started, **found, costs=sweeps, memory=peaks)
    print(path)


def report(tables: list[dict[str, Any]]) -> None:
    """Prints speeds and ratios."""
    for table in tables:
        print(f"delta = {table['delta']:g}")
        for name, ratio in table["median_ratio_to_numba"].items():
            print(f"  {name:14s} {table['steps_per_second'][name]['mean']:.3g} steps/s, {ratio:.2f} x numba")


if __name__ == "__main__":
    common.one_device_per_core()
    common.run(main, Options, __doc__)
