"""Simulated walks against the exact recursion, and every way of running them against every other.

Monte Carlo means may lie 4.5 standard errors from the exact value; a normal variable does so with probability 6.8e-6,
so that the roughly 500 comparisons here raise a false alarm three times in a thousand choices of keys. Most of the time
goes into compiling, once for each walk, number of walkers and of trajectories: tests share them where they can.
"""

import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import serw
from serw import Walk, constant, constant_escape, exact, linear, power, random_escape, simulate, simulation, statistics

TIMES = np.array([1, 4, 17, 60, 200])
ROOT = pathlib.Path(__file__).parents[1]
SIGMAS = 4.5
OK = Walk(1, linear(1.0))
PATIENCE = 900  # seconds, for processes that import and compile on a busy machine


def off_by(found, exact_values):
    """Largest distance in standard errors; where there is no spread, agreement must be exact."""
    still = found.sem == 0
    assert found.mean[still] == pytest.approx(exact_values[still])
    return np.abs((found.mean - exact_values)[~still] / found.sem[~still]).max(initial=0)


@pytest.mark.parametrize("method", ["events", "steps"])
@pytest.mark.parametrize(
    "walk",
    [
        Walk(1, linear(1.0)),
        Walk(1, linear(2.5), constant_escape(1e-3)),
        Walk(2, linear(0.5), constant_escape(0.1)),
        Walk(3, linear(3.0), constant_escape(1e-2)),
        Walk(1, power(1.5), random_escape(0.01, serw.exponential_growth(1.5))),
        Walk(1, lambda n: n % 3 - 1, random_escape(0.3, serw.exponential(), quenched=True, seed=2)),
    ],
    ids=["1-linear", "1-slope2.5", "2-slope0.5", "3-slope3", "1-growing", "1-quenched"],
)
def test_both_methods_follow_the_recursion(walk, method):
    found = simulate(jax.random.key(1), walk, walkers=200_000, times=TIMES, method=method, progress=False)
    assert off_by(found.moments.second, exact.msd(walk, TIMES[-1])[TIMES - 1]) < SIGMAS
    assert np.abs(found.moments.coordinate.mean / found.moments.coordinate.sem).max() < SIGMAS
    share = found.moments.coordinate_second.mean
    assert np.abs((share.sum(1) - found.msd) / found.msd).max() < 1e-12
    for n, seen in zip(TIMES, found.run_lengths.mean, strict=True):
        law = run_length_law(walk, n)
        assert (np.abs(seen - law) < SIGMAS * np.sqrt(law / 200_000) + 6 / 200_000).all()  # six more for rare ones
    bins, places = found.histogram.mean, 2 * statistics.EDGES  # x_1 = 2 x_1 / sqrt(4) is the left edge of a bin
    np.testing.assert_allclose(bins.sum(1), 1, rtol=1e-12)
    assert bins[1, 1:] @ places**2 == pytest.approx(share[1, 0], rel=1e-12)


def run_length_law(walk, n):
    """By renewal: length k at time n if it began at n - k + 1 and T >= k; summed over 2^i <= k < 2^(i + 1)."""
    alive = exact.survival(walk, n + 1)
    turn = np.zeros(n + 1)
    turn[1] = 1
    for m in range(2, n + 1):
        turn[m] = (alive[: m - 1] - alive[1:m]) @ turn[m - 1 : 0 : -1]
    length = np.append(turn[n:0:-1] * alive[:n], np.zeros(n))
    classes = [length[(1 << i) - 1 : (2 << i) - 1].sum() for i in range(int(n).bit_length())]
    return np.append(classes, np.zeros(statistics.LENGTHS - len(classes)))


def test_annealed_reading_is_a_fresh_xi_at_each_step():
    """A plain NumPy walker that draws xi at every step against the excursion law that sees its mean only."""
    rng, walkers, steps, delta = np.random.default_rng(0), 100_000, 40, 0.4
    walk = Walk(1, linear(1.0), random_escape(delta, serw.exponential()))
    run, x, e = np.ones(walkers), np.ones(walkers), np.ones(walkers)
    for _ in range(steps - 1):
        xi = rng.exponential(size=walkers)
        stay = (1 - np.minimum(1, delta * xi)) * (1 + run) / (2 + run)
        again = rng.random(walkers) < stay
        e, run = np.where(again, -e, e), np.where(again, run + 1, 1)
        x += e
    assert abs((x**2).mean() - exact.msd(walk, steps)[-1]) < SIGMAS * (x**2).std() / np.sqrt(walkers)


def test_moments_of_the_simple_random_walk():
    """d = 2: E|S|^4 = 2 n^2 - n, E x^2 = n / 2, E x^4 = 3 n (n - 1) / 4 + n / 2."""
    n = np.array([1, 10, 99])
    for method in ("events", "steps"):
        found = simulate(jax.random.key(2), Walk(2, constant(0.0)), walkers=100_000, times=n, method=method)
        moments = found.moments
        assert off_by(moments.fourth, 2.0 * n**2 - n) < SIGMAS
        assert off_by(moments.kurtosis, (2.0 * n**2 - n) / n**2) < SIGMAS
        assert off_by(moments.coordinate_second, np.stack([n / 2, n / 2], 1)) < SIGMAS
        fourth = 3 * n * (n - 1) / 4 + n / 2
        assert off_by(moments.coordinate_fourth, np.stack([fourth, fourth], 1)) < SIGMAS


def test_errors_are_the_spread_of_repetitions():
    walk = Walk(1, linear(1.0), constant_escape(0.1))
    runs = [simulate(jax.random.key(k), walk, walkers=1000, times=[300]) for k in range(40)]
    for name in ("second", "fourth", "kurtosis"):
        values = np.array([getattr(r.moments, name).mean[0] for r in runs])
        stated = np.mean([getattr(r.moments, name).sem[0] for r in runs])
        assert 0.5 < values.std(ddof=1) / stated < 1.6  # the ratio's own deviation is about 1 / sqrt(80)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("method", ["events", "steps"])
def test_chunks_and_devices_change_no_number(method, monkeypatch):
    walk = Walk(2, linear(2.0), constant_escape(1e-3))
    times, key, walkers = [5, 50, 500], jax.random.key(5), 20_001
    whole = simulate(key, walk, walkers=walkers, times=times, method=method, trajectories=4)
    monkeypatch.setattr(simulation, "FIRST_WORK", 1e5)  # chunks of 4, 32, 256, 208 steps, or smaller ones
    alone = Mesh(np.array(jax.devices()[:1]), ("walkers",))
    one = simulate(key, walk, walkers=walkers, times=times, method=method, trajectories=4, mesh=alone)
    same(whole[3:7], one[3:7])
    common = {"walkers": walkers, "method": method, "trajectories": 4}
    first = simulate(key, walk, times=[3, *range(4, 14), 77], **common)
    assert (np.abs(np.diff(first.trajectories[:-1], axis=0)).sum(1) == 1).all()  # a path: one axis, one step
    rest = simulate(None, walk, times=[500], state=first.state, **common)
    assert rest.msd[0] == whole.msd[2]
    np.testing.assert_array_equal(rest.trajectories[0], whole.trajectories[2])
    again = simulate(None, walk, times=[500], state=first.state, **common)
    assert again.msd[0] == rest.msd[0]  # a state can be used twice


def test_number_of_walkers_does_not_change_a_walker():
    few, many = (simulate(jax.random.key(6), OK, walkers=w, times=[99], trajectories=3) for w in (3, 3000))
    np.testing.assert_array_equal(few.trajectories, many.trajectories)


def test_long_clock_by_events():
    """1e12 steps, about 100 of them escapes: E|S_n|^2 / n against its limit."""
    walk = Walk(1, linear(100.0), constant_escape(1e-10))
    found = simulate(jax.random.key(7), walk, walkers=512, times=[10**12], progress=False)
    assert found.state.time == 10**12
    assert abs(found.msd[0] / 1e12 - exact.diffusivity(walk)) < SIGMAS * found.sem[0] / 1e12


def test_long_clock_by_steps():
    """A run of 1e12 traversals goes on counting in 64 bits."""
    from serw import steps

    walk = Walk(1, linear(1e9))
    begun = simulate(jax.random.key(8), walk, walkers=5, times=[3], method="steps")
    with jax.enable_x64(True):
        inner = begun.state.inner
        aged = inner._replace(run=inner.run + 10**12 - 3, time=inner.time + 10**12 - 3)
    assert isinstance(inner, steps.Walkers)
    state = begun.state._replace(inner=aged, time=10**12)
    after = simulate(None, walk, walkers=5, times=[10**12 + 100], method="steps", state=state)
    assert after.state.time == 10**12 + 100
    assert set(np.asarray(after.state.inner.run).ravel()[:5].tolist()) == {10**12 + 100}


def test_stuck_walkers_stay_on_an_edge():
    """Up to 2^61 steps, the longest that a clock can tell."""
    times = [10**4, 10**4 + 1, 10**15, 2**61]
    found = simulate(jax.random.key(9), Walk(1, power(3.0)), walkers=2000, times=times, trajectories=8)
    assert (found.msd[2:] < 50).all()
    assert np.abs(found.trajectories).max() < 1000
    assert found.run_lengths.mean[2, 40:].sum() > 0.9


CALL = """
import jax, sys
jax.config.update("jax_num_cpu_devices", {devices})
{before}
import numpy as np
from serw import Walk, linear, constant_escape, simulate
if __name__ == "__main__":
    walk = Walk(1, linear(1.0), constant_escape(1e-2))
    found = simulate(jax.random.key(3), walk, walkers={walkers}, times={times}, method="{method}",
                     checkpoint={checkpoint!r}, progress=False)
    print(jax.process_index(), [v.hex() for v in found.msd], [v.hex() for v in found.moments.kurtosis.sem])
"""


def launch(**options):
    filled = {"devices": 1, "before": "", "checkpoint": None, "method": "events"} | options
    code = CALL.format(**filled)
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


DIE_WRITING = """
import os, signal
from serw import simulation
simulation.FIRST_WORK = 3e5  # a first chunk of 100 steps
replace, files = os.replace, []
def dying(*paths):
    files.append(paths)
    if len(files) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = dying
"""


def test_killed_run_resumes_from_its_last_chunk(tmp_path):
    """It dies while it writes its third chunk, on one device; it goes on from the second one, on eight."""
    path, walkers, times = tmp_path / "run.npz", 3000, [10, 1000, 4000, 20_000]
    first = launch(checkpoint=str(path), before=DIE_WRITING, walkers=walkers, times=times)
    _, errors = first.communicate(timeout=PATIENCE)
    assert first.returncode == -signal.SIGKILL, errors
    with np.load(path) as file:
        reached = int(file["0.0"])
    assert 100 < reached < times[-1]
    walk, key = Walk(1, linear(1.0), constant_escape(1e-2)), jax.random.key(3)
    with pytest.raises(ValueError, match="belongs to another run"):
        simulate(jax.random.key(4), walk, walkers=walkers, times=times, checkpoint=path)
    resumed = simulate(key, walk, walkers=walkers, times=times, checkpoint=path, progress=False)
    straight = simulate(key, walk, walkers=walkers, times=times, progress=False)
    same(resumed[3:7], straight[3:7])
    assert resumed.state.time == times[-1]


def test_two_processes_get_the_single_process_answer():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = "jax.distributed.initialize('127.0.0.1:{}', num_processes=2, process_id={}, initialization_timeout={})"
    common = {"walkers": 3000, "times": [10, 1000]}
    runs = [launch(devices=2, before=joined.format(port, i, PATIENCE), **common) for i in range(2)]
    outputs = [run.communicate(timeout=PATIENCE) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    lines = [out.strip().splitlines()[-1].split(" ", 1) for out, _ in outputs]
    walk = Walk(1, linear(1.0), constant_escape(1e-2))
    alone = simulate(jax.random.key(3), walk, progress=False, **common)
    answer = f"{[v.hex() for v in alone.msd]} {[v.hex() for v in alone.moments.kurtosis.sem]}"
    assert lines == [["0", answer], ["1", answer]]


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: Walk(0, linear(1.0)), ValueError, "dim must be an integer >= 1, got 0"),
        (lambda: Walk(1.5, linear(1.0)), TypeError, "dim must be an integer"),
        (lambda: Walk(1, lambda n: -1.5 + 0 * n), ValueError, r"f\(n\) must be >= -1, got f\(1\) = -1.5"),
        (lambda: Walk(1, lambda n: np.where(n == 7, np.nan, n)), ValueError, r"got f\(7\) = nan"),
        (lambda: Walk(1, lambda n: 1.0), ValueError, "must map an array"),
        (lambda: Walk(1, 2.0), TypeError, "must be a function"),
        (lambda: Walk(1, linear(1.0), 0.1), TypeError, "escape must be"),
        (
            lambda: Walk(1, serw.Reinforcement(lambda n: 1 / n, nondecreasing=True)),
            ValueError,
            "declared non-decreasing",
        ),
        (lambda: linear(-1.0), ValueError, "slope"),
        (lambda: constant(-1.1), ValueError, "value"),
        (lambda: power(np.inf), ValueError, "exponent"),
        (lambda: constant_escape(1.5), ValueError, r"delta must lie in \[0, 1\], got 1.5"),
        (lambda: constant_escape(-0.1), ValueError, "delta"),
        (lambda: constant_escape(np.nan), ValueError, "delta"),
        (lambda: random_escape(2.0, serw.uniform()), ValueError, "delta"),
        (lambda: random_escape(0.1, serw.uniform), TypeError, "law must be"),
        (
            lambda: random_escape(0.1, serw.Law("odd", lambda t: t * np.nan, lambda u: u)),
            ValueError,
            "law odd .* got nan",
        ),
        (lambda: random_escape(0.1, serw.Law("odd", lambda t: t, lambda u: -u)), ValueError, "quantile of the law odd"),
        (lambda: serw.pareto(0.0), ValueError, "exponent"),
        (lambda: serw.exponential_growth(1.0), ValueError, "base"),
        (lambda: simulate(jax.random.key(0), OK, walkers=0, times=[1]), ValueError, "walkers must lie between 1"),
        (lambda: simulate(jax.random.key(0), OK, walkers=2.5, times=[1]), TypeError, "walkers must be an integer"),
        (lambda: simulate(jax.random.key(0), OK, walkers=1, times=[0, 1]), ValueError, "times must lie above 0"),
        (lambda: simulate(jax.random.key(0), OK, walkers=1, times=[2, 1]), ValueError, "times must increase"),
        (lambda: simulate(jax.random.key(0), OK, walkers=1, times=[1, 1]), ValueError, "times must increase"),
        (lambda: simulate(jax.random.key(0), OK, walkers=1, times=[1, 2**62]), ValueError, "at most 2.61"),
        (lambda: simulate(jax.random.key(0), OK, walkers=1, times=[]), TypeError, "times must be"),
        (lambda: simulate(jax.random.key(0), OK, walkers=1, times=[1.5]), TypeError, "times must be"),
        (lambda: simulate(jax.random.key(0), OK, walkers=1, times=[1], method="jump"), ValueError, "method"),
        (lambda: simulate(3, OK, walkers=1, times=[1]), TypeError, "key must be a JAX key"),
        (lambda: simulate(jax.random.key(0), linear(1.0), walkers=1, times=[1]), TypeError, "walk must be"),
        (lambda: exact.survival(OK, 0), ValueError, "steps must be >= 1"),
    ],
)
def test_one_clear_error_before_anything_is_compiled(call, error, message, monkeypatch):
    def compiled(*args, **kwargs):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(serw.devices, "advance", compiled)
    monkeypatch.setattr(serw.devices, "start", compiled)
    with pytest.raises(error, match=message):
        call()


def test_state_of_another_run_is_refused():
    found = simulate(jax.random.key(0), OK, walkers=3, times=[5], trajectories=3)
    with pytest.raises(ValueError, match="state belongs to 3 walkers"):
        simulate(None, OK, walkers=4, times=[9], state=found.state)
    with pytest.raises(ValueError, match="times must lie above 5"):
        simulate(None, OK, walkers=3, times=[5], state=found.state)


def test_default_times_are_log_spaced():
    found = simulate(jax.random.key(0), OK, walkers=3, times=1000, trajectories=3)
    assert found.times[0] == 1 and found.times[-1] == 1000
    assert 15 < len(found.times) <= 24


def test_walkers_at_the_origin_have_no_kurtosis():
    sums = statistics.Sums(np.zeros((1, 1, 8)), np.zeros((1, 66), int), np.zeros((1, 63), int))
    found = statistics.moments(sums, 3)
    assert found.second == (0, 0)
    assert np.isnan(found.kurtosis.mean).all() and np.isnan(found.kurtosis.sem).all()
