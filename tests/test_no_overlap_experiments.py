"""Experiments on the no-overlap network: their quick versions run and say what the theory says."""

import jax
import numpy as np
import pytest

from experiments import bench_no_overlap, common, no_overlap, no_overlap_checks, no_overlap_problems


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_sweep_recovers_what_the_limit_law_says(tmp_path):
    no_overlap.main(no_overlap.Options(quick=True, out=tmp_path))
    found = common.load("no_overlap-quick", tmp_path)
    assert found["finite"] and found["runs"] == 3 * len(no_overlap.BETAS) * len(no_overlap.THRESHOLDS) * 72
    for penalty in no_overlap_problems.PENALTIES:
        exact = np.array(found["means"][penalty]["maps"]["noise 0"]["recovered"])
        assert exact[0, :8].min() == 1 and exact[:, -1].max() < 0.2  # small thresholds find all, large ones nothing
    rows = {(r["rule"], r["penalty"], r["beta"]): r for r in found["equal_sparsity"]}
    less, error = rows["lambda / beta", "l0", 1.0]["recovered_less_l1"]
    assert less < -2 * error
    assert found["samples"][1]["loss_error"] < found["samples"][0]["loss_error"]
    assert (tmp_path / "no_overlap-quick.png").stat().st_size > 5_000


def test_one_cell_of_the_sweep_is_a_run_of_its_own():
    problem = no_overlap_problems.problems(1)
    key, grid = jax.random.key(3), no_overlap.settings()[:, 40:42]
    many = no_overlap.sweep(key, grid, problem, 60)
    for place, (name, penalty) in enumerate(no_overlap_problems.PENALTIES.items()):
        for i in (31,):
            own = jax.tree.map(lambda x, i=i: x[i], problem)
            weights = no_overlap_problems.drawn(key, own)
            w, u, residual = no_overlap_problems.run(penalty, *grid[place, 1], own.patches, weights, 60)
            alone = no_overlap.measured(own, weights[0], w, u, residual)
            for quantity, value in alone.items():
                np.testing.assert_allclose(many[name][quantity][1, i], value, atol=1e-5)


@pytest.mark.parametrize("angle", [0.25, 0.95])
def test_drawn_problems_are_what_they_are_said_to_be(angle):
    problem = no_overlap_problems.Problems(*(np.float32(x) for x in (angle, 16, 4, 0.1)), np.int32(7))
    target, start, tilt = (np.asarray(x) for x in no_overlap_problems.drawn(jax.random.key(0), problem))
    assert np.count_nonzero(target) == 4 and not target[16:].any() and not start[16:].any() and not tilt[16:].any()
    np.testing.assert_allclose([np.linalg.norm(target), np.linalg.norm(start)], 1, atol=1e-6)
    np.testing.assert_allclose(np.arccos(target @ start), angle * np.pi, atol=1e-5)
    magnitudes = np.abs(target[target != 0])
    assert magnitudes.min() / magnitudes.max() > 0.3


def test_tilts_have_the_covariance_of_the_label_noise():
    numbers = np.arange(4000)
    fill = lambda x: np.full(4000, x, np.float32)  # noqa: E731
    problem = no_overlap_problems.Problems(fill(0.5), fill(8), fill(4), fill(0.1), numbers)
    target, _, tilt = jax.vmap(no_overlap_problems.drawn, (None, 0))(jax.random.key(1), problem)
    along = np.asarray((target * tilt).sum(axis=1))
    whole = np.asarray((tilt**2).sum(axis=1))
    for found, variance in [(along**2, 0.01 * 0.488733), (whole - along**2, 0.01 * 7 * 0.25)]:
        mean, error = no_overlap_problems.mean_and_error(found)
        assert abs(mean - variance) < 4.5 * error


def test_at_equal_sparsity_is_where_the_shares_cross():
    x = np.log(no_overlap.THRESHOLDS)
    kept = np.broadcast_to(0.5 * (x[-1] - x) / (x[-1] - x[0]), (1, 3, len(x))).swapaxes(1, 2)
    found = {"kept": kept, "recovered": 1 - kept, "error": kept**0}
    threshold, recovered, error = no_overlap.at_equal_sparsity(found, 0, np.ones(3))
    np.testing.assert_allclose(threshold, np.exp((x[0] + x[-1]) / 2), rtol=1e-6)
    np.testing.assert_allclose(recovered, 0.75, atol=1e-6)
    np.testing.assert_allclose(error, 1)


def test_conditions(tmp_path):
    no_overlap_checks.main(no_overlap_checks.Options(quick=True, out=tmp_path))
    found = common.load("no_overlap_checks-quick", tmp_path)
    for point in found["conditions"]["step"]:
        assert point["rises"] == (point["value"] > 1)
    inside = [p for p in found["conditions"]["threshold"] if p["value"] <= 0.6]
    assert all(p["recovered"] == 1 for p in inside)


def test_rate(tmp_path):
    bench_no_overlap.main(bench_no_overlap.Options(quick=True, out=tmp_path))
    found = common.load("bench_no_overlap-quick", tmp_path)
    assert found["largest_difference"] < 1e-4
    assert found["vmapped"]["over numpy"]["median"] > 5
