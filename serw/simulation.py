"""Simulating many walkers: what to run, in which chunks, and what to give back.

``simulate(key, walk, walkers=10**5, times=10**6)`` walks by excursions; ``method="steps"`` takes every step. The
walkers are laid out over a mesh, the run is cut into chunks of a few seconds, and neither changes any number. A run
with a `checkpoint` file, killed and called again, goes on from its last chunk.
"""

import pathlib
import time as clock
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from serw import checkpoints, devices, plan, statistics
from serw.plan import Plan, State
from serw.statistics import GROUP, Estimate, Moments, Sums
from serw.walk import Walk

SLOTS = 16  # times per chunk: those asked for, then the chunk's end
FIRST_WORK = 1e9  # steps of all walkers in the first chunk, before the speed is known


class Result(NamedTuple):
    """What many walkers did.

    Attributes:
      walk: the law.
      walkers: how many.
      times: [K] int64.
      moments: second and fourth moment, kurtosis, moments per coordinate, each with its standard error.
      histogram: [K, 66] fractions of walkers by x_1 / sqrt(n), between `serw.statistics.EDGES`.
      run_lengths: [K, 63] fractions of walkers whose run at time n has a length in [2^i, 2^(i + 1)); for a diffusive
        walk this tends, by renewal, to the fraction of its time that one walker spends so.
      trajectories: [K, d, trajectories] int64, positions of the first few walkers.
      state: to go on from.
    """

    walk: Walk
    walkers: int
    times: np.ndarray
    moments: Moments
    histogram: Estimate
    run_lengths: Estimate
    trajectories: np.ndarray
    state: State

    @property
    def msd(self) -> np.ndarray:
        """[K] E|S_n|^2."""
        return self.moments.second.mean

    @property
    def sem(self) -> np.ndarray:
        """[K] standard error of `msd`."""
        return self.moments.second.sem


def simulate(
    key: jax.Array | None,
    walk: Walk,
    *,
    walkers: int,
    times: int | Sequence[int] | np.ndarray,
    method: str = "events",
    trajectories: int = 0,
    state: State | None = None,
    mesh: Mesh | None = None,
    checkpoint: str | pathlib.Path | None = None,
    chunk_seconds: float = 5.0,
    progress: bool = True,
) -> Result:
    """E|S_n|^2 and its companions by Monte Carlo, with standard errors.

    Args:
      key: a JAX key; the same key gives the same numbers on any number of devices. Not used with `state`.
      walk: the law.
      walkers: how many independent walkers, >= 1.
      times: increasing numbers of steps, from 1 to 2^61; one number stands for 24 times up to it, log-spaced.
      method: "events", excursion by excursion, or "steps". Both follow the same law; the time they take
        grows with the number of excursions, or of steps.
      trajectories: of how many walkers (at most 1,024) to keep the position at every time.
      state: of an earlier result with the same walk, walkers and method: goes on from there, exactly as if the two runs
        had been one.
      mesh: with one axis; default: all devices.
      checkpoint: a file, rewritten after each chunk, from which the same call resumes if it is there.
      chunk_seconds: how long a chunk should last.
      progress: shows a bar once a run has taken three seconds.

    Returns:
      The estimates, and the state at the last time.

    Raises:
      ValueError: if an argument is out of range, or the checkpoint belongs to another run.
      TypeError: if one is of the wrong kind.

    >>> import jax
    >>> from serw import Walk, linear, constant_escape, exact
    >>> walk = Walk(1, linear(1.0), constant_escape(0.1))
    >>> found = simulate(jax.random.key(0), walk, walkers=20_000, times=[10, 100])
    >>> bool(np.all(abs(found.msd - exact.msd(walk, 100)[[9, 99]]) < 4.5 * found.sem))
    True
    """
    run = plan.checked(walk, walkers, method, trajectories, state, mesh)
    listed = plan.checked_times(times, state.time if state else 0)
    if state is None and not plan.is_key(key):
        raise TypeError(f"key must be a JAX key, such as jax.random.key(0), got {key!r}")
    with jax.enable_x64(True):
        name = checkpoints.fingerprint(walk, key, state, walkers, listed, method, trajectories)
        saved = checkpoints.read(checkpoint, name) if checkpoint is not None else None
        first, done = _begin(run, key, state, saved)
        return _run(run, listed, first, done, _Keeper(checkpoint, name, chunk_seconds, progress))


class _Keeper(NamedTuple):
    checkpoint: str | pathlib.Path | None
    name: str
    seconds: float
    progress: bool


class _Done(NamedTuple):
    """Chunks finished so far: sums and positions at the first of the times."""

    sums: Sums
    positions: np.ndarray


def _run(run: Plan, times: np.ndarray, state: State, done: _Done, keeper: _Keeper) -> Result:
    needed = devices.prepare(run)
    bar, budget = checkpoints.Bar(int(times[-1]), keeper.progress), FIRST_WORK / run.walkers
    while state.time < times[-1]:
        begun, before = clock.perf_counter(), state.time
        wanted, end = _next_chunk(times, before, budget)
        state, part = _chunk(run, needed, state, wanted, end)
        done = jax.tree.map(lambda a, b: np.concatenate([a, b]), done, part)
        if keeper.checkpoint is not None:
            checkpoints.write(keeper.checkpoint, keeper.name, (state.time, state.inner, done))
        speed = (end - before) / (clock.perf_counter() - begun)
        budget = min(8 * budget, max(speed * keeper.seconds, 1.0)) if jax.process_count() == 1 else np.inf
        bar.update(end)
    bar.close()
    return _result(run, times, state, done)


def _next_chunk(times: np.ndarray, now: int, budget: float) -> tuple[np.ndarray, int]:
    """The times to look at next, fewer than SLOTS, and where to stop."""
    ahead = times[times > now][: SLOTS - 1]
    end = now + int(min(float(ahead[-1] - now), max(budget, 1.0)))
    return ahead[ahead <= end], end


def _chunk(run: Plan, needed: Any, state: State, wanted: np.ndarray, end: int) -> tuple[State, _Done]:
    slots = np.concatenate([wanted, np.full(SLOTS - len(wanted), end)])
    inner, sums, positions = devices.advance(run, needed, state.inner, slots)
    groups, n = -(-run.walkers // GROUP), len(wanted)
    features = np.asarray(sums.features)[:n, :groups]
    part = Sums(features, np.asarray(sums.histogram)[:n], np.asarray(sums.runs)[:n])
    return state._replace(time=end, inner=inner), _Done(part, np.asarray(positions)[:n])


def _begin(run: Plan, key: jax.Array | None, state: State | None, saved: Any) -> tuple[State, _Done]:
    done = _nothing(run)
    if saved is not None:
        time, leaves, finished = saved
        inner = jax.tree.unflatten(jax.tree.structure(devices.blank(run)), leaves)
        done = jax.tree.unflatten(jax.tree.structure(done), finished)
        return State(run.walk, run.method, run.walkers, time, devices.lay_out(run, inner)), done
    if state is not None:
        return state._replace(inner=devices.lay_out(run, state.inner)), done
    assert key is not None
    return State(run.walk, run.method, run.walkers, 0, devices.start(run, key)), done


def _nothing(run: Plan) -> _Done:
    dim, groups = run.walk.dim, -(-run.walkers // GROUP)
    bins = np.zeros((0, len(statistics.EDGES) + 1), np.int64)
    sums = Sums(np.zeros((0, groups, 4 + 4 * dim)), bins, np.zeros((0, statistics.LENGTHS), np.int64))
    return _Done(sums, np.zeros((0, dim, run.trajectories), np.int64))


def _result(run: Plan, times: np.ndarray, state: State, done: _Done) -> Result:
    return Result(
        run.walk,
        run.walkers,
        times,
        statistics.moments(done.sums, run.walkers),
        statistics.fractions(done.sums.histogram, run.walkers),
        statistics.fractions(done.sums.runs, run.walkers),
        done.positions,
        state,
    )
