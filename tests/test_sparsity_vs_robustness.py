"""Robustness against sparsity: measures against closed forms, the verdict, and runs that stop and go on."""

import dataclasses
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import inverted_u as iu
from experiments import robust_figures, sparse, tables
from experiments import sparsity_vs_robustness as svr
from rvsm_jax import attacks, models, storage, train


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's schedules rely on it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def affine(w, b, x):
    z = (x.reshape(len(x), -1) @ w + b) / 2
    return jnp.stack([z, -z], 1)


def linear(w, b):
    """The logits of a binary linear classifier, whose difference is w x + b."""
    return jax.tree_util.Partial(affine, jnp.asarray(w, jnp.float32), jnp.float32(b))


def test_r_inf_and_r_2_of_a_linear_network_are_the_closed_forms_dense_and_pruned():
    """r_inf = P[m > eps |w|_1], r_2 = E[max(m, 0)] / |w|_2, m = y (w x + b): where the box is far away."""
    rng = np.random.default_rng(0)
    images = rng.integers(96, 160, (80, 2, 4, 1)).astype(np.uint8)
    x, w = images.reshape(80, 8) / 255, np.float32([1.0, -2.0, 0.1, 0.2, 1.5, -0.05, 0.15, -0.1])
    labels = (x @ w - 0.5 * w.sum() + 0.1 * rng.normal(size=80) < 0).astype(np.int32)
    measures = svr.Measures((0.02, 0.05), 80, 5, 80, 80, 100, 8)
    sparse_w = np.asarray(svr.pruned({"kernel": jnp.asarray(w)[:, None]}, 5 / 8)["kernel"])[:, 0]
    np.testing.assert_array_equal(sparse_w, np.where(np.abs(w) >= 1, w, 0))
    found = {}
    for name, v in (("dense", w), ("sparse", sparse_w)):
        margin = (1 - 2 * labels) * (x @ v - 0.5 * v.sum())
        found[name] = svr.robustness(linear(v, -0.5 * v.sum()), measures, images, labels, jax.random.key(0))
        exact = {str(eps): pytest.approx(100 * (margin > eps * np.abs(v).sum()).mean()) for eps in (0.02, 0.05)}
        assert found[name]["fgsm"] == found[name]["pgd"] == exact
        r_2 = np.maximum(margin, 0).mean() / np.linalg.norm(v)
        for attack, over in (("deepfool", 1.0201), ("cw", 1.05)):
            assert r_2 * (1 - 1e-5) < found[name][attack]["mean"] < r_2 * over and found[name][attack]["unfooled"] == 0
    assert found["sparse"]["pgd"]["0.05"] > found["dense"]["pgd"]["0.05"]  # |w|_1 is less


def test_deepfool_is_not_stopped_by_the_box():
    """Most pixels are black or white, where half of all steps would leave the box: against the exact minimum in it."""
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(20, 100)).round() * (rng.uniform(size=(20, 100)) < 0.9) + 0.0
    w = rng.normal(size=100)
    w -= w @ x.mean(0) * x.mean(0) / (x.mean(0) @ x.mean(0))  # the boundary goes through the images
    margin = x @ w
    images, labels = jnp.asarray(x.reshape(20, 10, 10, 1), jnp.float32), jnp.asarray(margin < 0, jnp.int32)
    for norm, size in ((attacks.l_2, lambda d: np.linalg.norm(d, axis=1)), (attacks.l_inf, lambda d: abs(d).max(1))):
        found = attacks.deepfool(linear(w, 0.0), images, labels, norm=norm, steps=6)
        assert np.all(linear(w, 0.0)(found).argmax(1) != labels)
        assert found.min() >= 0 and found.max() <= 1
        moved = size(np.asarray(found, float).reshape(20, 100) - x)
        exact = np.array([minimum_in_the_box(*one, w, norm) for one in zip(x, margin, strict=True)])
        assert np.all(moved > exact * (1 - 1e-4)) and np.all(moved < 1.1 * exact + 1e-3), moved / exact


def minimum_in_the_box(x, margin, w, norm):
    """min |d| subject to w d = -margin and 0 <= x + d <= 1, by bisection on the multiplier, or on the radius."""
    step = -np.sign(margin) * (w if norm is attacks.l_2 else np.sign(w))
    low, high = 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        d = np.clip(x + middle * step, 0, 1) - x
        low, high = (middle, high) if abs(w @ d) < abs(margin) else (low, middle)
    return np.linalg.norm(d) if norm is attacks.l_2 else abs(d).max()


def test_pruning_keeps_the_largest_weights_of_all_layers_together():
    rng = np.random.default_rng(0)
    params = {k: {"kernel": jnp.asarray(rng.normal(size=s), jnp.float32), "bias": jnp.ones(s[1])}
              for k, s in {"a": (20, 30), "b": (30, 13)}.items()}  # fmt: skip
    kept = svr.pruned(params, 0.98)
    size = np.abs(np.concatenate([np.ravel(params[k]["kernel"]) for k in "ab"]))
    least = np.sort(size)[-round(0.02 * size.size)]
    for k in "ab":
        w = np.asarray(params[k]["kernel"])
        np.testing.assert_array_equal(kept[k]["kernel"], np.where(np.abs(w) >= least, w, 0))
        np.testing.assert_array_equal(kept[k]["bias"], 1)


def test_an_inverted_u_beats_both_ends_and_its_control_by_two_standard_errors():
    dense, best = np.array([1.0, 1.2, 1.1]), np.array([1.2, 1.3, 1.4])
    error = np.std(best - dense, ddof=1) / np.sqrt(3)
    found = iu.inverted_u([dense, best, [0.5, 0.6, 1.0], [0.0, 0.0, 0.0]], [best - 0.1, best, best])
    assert (found["level"], found["found"], found["by_sparsity"]) == (1, True, True)
    assert found["dense"] == {"gain": pytest.approx(0.2), "standard_error": pytest.approx(error), "clear": True}
    rises = iu.inverted_u([dense, best, best + 1])  # and does not fall
    falls = iu.inverted_u([best, dense, [0.0, 0.0, 0.0]])
    noisy = iu.inverted_u([dense, dense + np.array([1.0, -0.4, 0.3]), [0.0, 0.0, 0.0]])  # 0.3 +- 0.4
    nan = np.array([1.0, np.nan, 1.0])
    gap = iu.inverted_u([dense, best, [0.0, 0.0, 0.0]], [dense * nan, dense * nan])  # a seed without a control
    assert gap["control"]["gain"] == pytest.approx((best - dense)[::2].mean()) and gap["by_sparsity"]
    alike = iu.inverted_u([dense, best, [0.0, 0.0, 0.0]], [best, best])  # but not because of its zeros
    assert not (rises["found"] or falls["found"] or noisy["found"] or alike["by_sparsity"]) and alike["found"]
    assert not iu.inverted_u([[1.0], [2.0], [0.0]])["found"]  # one seed has no standard error


def tiny(key, image_shape):
    """Two dense layers, made without a compilation."""
    rng = np.random.default_rng(jax.random.key_data(key).tolist())
    sizes = {"dense1": (math.prod(image_shape), 20), "dense2": (20, 10)}
    params = {k: {"kernel": jnp.asarray(rng.normal(size=s) / 8, jnp.float32)} for k, s in sizes.items()}

    def forward(w, state, x, key, train):
        x = x.reshape(len(x), -1) @ w["dense1"]["kernel"]
        return jax.nn.relu(x) @ w["dense2"]["kernel"], state

    return models.Network(forward, params, {})


@pytest.fixture
def small(tmp_path, monkeypatch):
    """One middle level, a network that compiles fast, noise for data, and few steps."""
    monkeypatch.setitem(svr.NETWORKS, "lenet_300_100", tiny)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8), rng.integers(0, 10, 64).astype(np.int32)
    case = dataclasses.replace(svr.QUICK, training="natural", protocol=sparse.Protocol(2, 16, fine_tune_epochs=1))
    monkeypatch.setattr(svr, "QUICK", case)
    for module in (svr, robust_figures):
        monkeypatch.setattr(module, "load", lambda options: (noise, noise))
        monkeypatch.setattr(module, "LEVELS", (0.0, 0.5, 0.9))
    return svr.SparsityOptions(quick=True, out=tmp_path, runs=tmp_path / "runs")


def test_a_killed_run_goes_on_and_every_level_is_run_once(small, monkeypatch, capsys):
    calls = iter(range(10))

    def measured(logits_fn, measures, images, labels, key):  # the second one is killed
        if (call := next(calls)) == 1:
            raise KeyboardInterrupt
        distance = {"mean": 1.0 + call % 2, "unfooled": 0.0}
        return {"fgsm": {"0.1": 10.0 * call}, "pgd": {"0.1": 9.0 * call}, "deepfool": distance, "cw": distance}

    monkeypatch.setattr(svr, "robustness", measured)
    monkeypatch.setattr(train, "fit", one_in_earnest(train.fit))
    with pytest.raises(KeyboardInterrupt):
        svr.main(small)
    read = lambda: json.loads((small.out / "sparsity_vs_robustness-quick.json").read_text())  # noqa: E731
    first = read()
    assert [row["stage"] for row in first["rows"]] == [0] and first["table"] == []
    svr.main(small)
    second = read()
    rows = sorted(second["rows"], key=lambda row: row["kind"] == "control")
    assert rows[0] == first["rows"][0] and len(capsys.readouterr().out.splitlines()) == len(rows) == 5
    paths = [(row["kind"], row["stage"]) for row in rows]
    assert paths == [("pruned", 0), ("pruned", 1), ("pruned", 2), ("control", 1), ("control", 2)]
    weights = 64 * 20 + 20 * 10
    assert [row["nonzeros"] for row in rows] == [weights, weights // 2, weights // 10, weights, weights]
    (table,) = second["table"]
    assert table["seeds"] == {"pruned": [0], "control": [0]} and not table["inverted_u"]["deepfool"]["found"]
    assert table["curves"]["control"]["pgd 0.1"] == [[row["pgd"]["0.1"]] for row in rows[3:]]
    supports = [np.asarray(kernel(small, stage)) != 0 for stage in (0, 1, 2)]
    assert np.all(supports[0] >= supports[1]) and np.all(supports[1] >= supports[2]) and not supports[1].all()
    assert (small.out / "sparsity_vs_robustness-quick.png").stat().st_size > 5000
    svr.main(small)  # there is nothing left to do
    assert read() == second
    written = tables.sparsity_vs_robustness(second)
    assert "| LeNet-300-100, natural, 1/1 | r_inf: PGD, 0.1, % | 0.0 | 18.0 at 50 % |" in written


def one_in_earnest(fit):
    """Calls but the second make one step of the chain, against a gradient of ones."""
    earnest = iter([False, True])

    def cheap(forward, params, state, tx, training, **options):
        if next(earnest, False):
            return fit(forward, params, state, tx, training, **options)
        updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
        return types.SimpleNamespace(params=optax.apply_updates(params, updates))

    return cheap


def kernel(options, stage):
    return storage.read(svr.network_path(options.runs, svr.QUICK, "pruned", 0, stage))["dense1"]["kernel"]


def test_robust_figures_of_the_networks_they_are_given(small, tmp_path, monkeypatch):
    made = {}

    def trained(runs, case, kind, seed, stage, network, training):
        made[case.training, stage] = svr.pruned(network.params, 0.3 * stage + 0.1 * (case.training == "natural"))
        return made[case.training, stage]

    for name, value in {"trained": trained, "SHOWN": 2, "STEPS": 2}.items():
        monkeypatch.setattr(robust_figures, name, value)
    options = robust_figures.FigureOptions(quick=True, out=tmp_path, level=0.5, images=32)
    robust_figures.main(options)
    found = json.loads((tmp_path / "robust_figures-quick.json").read_text())
    assert set(found["curves"]) == {"natural", "adversarial"} and len(made) == 4
    for curve in (curve for both in found["curves"].values() for curve in both.values()):
        assert len(curve) == len(found["radii"]) and curve == sorted(curve, reverse=True)
    w = made["natural", 0]
    kernels = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(w) if leaf.ndim == 2])
    assert found["small_weights"]["natural"] == pytest.approx(100 * (np.abs(kernels) < 1e-3).mean())
    assert found["small_weights"]["natural"] > found["small_weights"]["adversarial"] + 9
    norms = np.linalg.norm(w["dense2"]["kernel"], axis=1)
    np.testing.assert_allclose(robust_figures.channel_norms(w), norms, rtol=1e-6)
    for name in ("robust_figures-quick.png", "robust_figures-images-quick.png"):
        assert 5000 < (tmp_path / name).stat().st_size < 150_000
    with pytest.raises(SystemExit, match=r"level must be one of 0\.5, 0\.9, got 0\.7"):
        robust_figures.main(dataclasses.replace(options, level=0.7))
