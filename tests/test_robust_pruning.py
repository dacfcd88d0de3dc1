"""The experiment's rows, its evaluation on a network that is known exactly, and a run of it on a tiny network."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import common, ensemble_weights, robust_pruning, robust_rows
from experiments.robust_evaluation import accuracies, published_attacks, sparsities
from rvsm_jax import attacks, models


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's schedules rely on it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_rows_have_a_name_a_network_and_what_was_published():
    rows = robust_rows.PUBLISHED
    assert len({row.name for row in rows}) == len(rows) == 20
    assert all(len(row.published) == 5 and row.net in robust_rows.NETS and row.tables for row in rows)
    counted = {t: sum(t in row.tables for row in rows) for t in (1, 2, 3, 4)}
    assert counted == {1: 8, 2: 9, 3: 6, 4: 4}


@pytest.mark.parametrize("name", ["ADMM", "ADMM-channels"])
def test_admm_leaves_its_share_of_weights_or_channels(name):
    (row,) = (row for row in robust_rows.PUBLISHED if row.method == name)
    params = {"conv": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 10, 4))}, "dense": {"kernel": jnp.ones(4)}}
    method = row.chain(optax.sgd(0.1), None, every=3)
    state = method.tx.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = method.tx.update(zeros, state, params)
    u = method.sparse(params, 0)
    pulled = jax.tree.map(lambda w, z: -0.1 * row.beta * (w - z), params, u)  # z is the projection, the dual still 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), updates, pulled)
    found = sparsities(u)
    share = found["zero_channels"] if row.structured else found["zeros"]
    assert share == pytest.approx(100 * (1 - row.lam)) and u["dense"]["kernel"].all()


@pytest.mark.parametrize(("net", "published"), [("ResNet38", 0.56e6), ("En2ResNet20", 0.54e6)])
def test_the_networks_compared_have_their_published_sizes(net, published):
    params = jax.eval_shape(lambda: robust_rows.NETS[net].build(jax.random.key(0), 3)[1])
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert abs(size - published) < 0.01e6


def test_accuracies_are_exact_on_a_linear_network_with_and_without_noise():
    rng = np.random.default_rng(0)
    images = rng.integers(80, 176, (64, 2, 2, 1)).astype(np.uint8)  # no pixel can reach 0 or 255
    labels, w, eps = rng.integers(0, 2, 64), np.float32([1.0, -2.0, 0.5, 1.5]), 0.05
    margin = (1 - 2 * labels) * ((images.reshape(64, 4) / 255 - 0.5) @ w)
    worst = 100 * (margin > eps * np.abs(w).sum()).mean()

    def logits(x):
        z = (x.reshape(len(x), 4) - 0.5) @ w
        return jnp.stack([z, -z], 1)

    attacked = {name: published_attacks(eps)[name] for name in ("fgsm", "ifgsm20")}
    for logits_fn in (logits, lambda x, key: logits(x) * (1 + jax.random.uniform(key, ()))):
        found = accuracies(logits_fn, attacked, images, labels, jax.random.key(0))
        assert found == {"natural": 100 * (margin > 0).mean(), "fgsm": worst, "ifgsm20": worst}
    assert 0 < worst < found["natural"]


def test_sparsity_counts_weights_and_channels_of_convolutions_alone():
    kernel = jnp.ones((3, 3, 4, 2)).at[:, :, 1].set(0).at[:, :, 2].set(1e-17).at[0, 0, 0, 0].set(0)
    u = {"conv1": {"kernel": kernel}, "dense": {"kernel": jnp.zeros((2, 3))}}
    assert sparsities(u) == {"zeros": pytest.approx(100 * 19 / 72), "zero_channels": 50.0}


class Tiny:
    """Two convolutions, in the place of a ResNet."""

    words = None

    def build(self, key, channels, noise_over):
        keys = jax.random.split(key, 3)
        params = {
            "conv1": {"kernel": jax.random.normal(keys[0], (3, 3, channels, 4))},
            "conv2": {"kernel": jax.random.normal(keys[1], (3, 3, 4, 4)) / 6},
            "dense": {"kernel": jax.random.normal(keys[2], (4, 10))},
        }

        def forward(params, state, x, key, train):
            for name in ("conv1", "conv2"):
                x = jax.lax.conv_general_dilated(
                    x, params[name]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = jax.nn.relu(x)
            return x.mean((1, 2)) @ params["dense"]["kernel"], state

        return models.Network(forward, params, {})


def remembered(function):
    """The function, which gives its first answer for ever."""
    answers = []
    return lambda *a: answers[0] if answers else answers.append(function(*a)) or answers[0]


def test_rows_are_run_once_saved_and_given_autoattack_later(tmp_path, real_data_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(robust_rows.NETS, "ResNet8", Tiny())
    monkeypatch.setattr(robust_pruning, "published_attacks", lambda eps: {"fgsm": published_attacks(eps)["fgsm"]})
    monkeypatch.setattr(robust_pruning, "QUICK", robust_pruning.QUICK | {"epochs": 1})
    options = {"quick": True, "out": tmp_path, "data_dir": real_data_dir, "seeds": 1, "datasets": ("cifar10",)}
    options |= {"rows": ("ResNet8-RGSM-0.02",)}
    for name in ("_fit", "ship"):  # each is called once
        monkeypatch.setattr(robust_pruning, name, remembered(getattr(robust_pruning, name)))
    robust_pruning.main(robust_pruning.RobustOptions(**options))
    read = lambda: json.loads((tmp_path / "robust_pruning-quick.json").read_text())  # noqa: E731
    first = read()
    (row,) = first["rows"]
    assert {"natural", "fgsm"} == set(row["accuracy"]) and row["multiply_adds"]["before"] == 64 * (108 + 144) + 40
    assert {"name", "zeros", "zero_channels", "work", "natural"} <= set(first["table"][0])
    robust_pruning.main(robust_pruning.RobustOptions(**options))  # there is nothing left to do
    assert read() == first
    found = types.SimpleNamespace(robust=np.array([True, False]), accuracy={"clean": 1.0})
    monkeypatch.setattr(attacks, "autoattack", lambda *a, **k: found)
    robust_pruning.main(robust_pruning.RobustOptions(**options, autoattack=2))
    assert read()["rows"][0]["accuracy"] == row["accuracy"] | {"autoattack": 50.0, "autoattack_clean": 100.0}
    with pytest.raises(SystemExit, match=r"unknown rows \['ResNet9'\]; there are En2ResNet8-RGSM-0.02"):
        robust_pruning.main(robust_pruning.RobustOptions(**options | {"rows": ("ResNet9",)}))
    assert common.load("robust_pruning-quick", tmp_path)["table"][0]["autoattack"]["mean"] == 50.0


def test_the_published_protocol_and_rows_are_listed(capsys):
    robust_pruning.main(robust_pruning.RobustOptions(list=True))
    assert capsys.readouterr().out.split("\n")[:2] == ["cifar10 ResNet20-dense", "cifar10 En2ResNet20-dense"]
    rate = robust_pruning.FULL.rate(352)
    np.testing.assert_allclose([rate(epoch * 352) for epoch in (0, 79, 80, 120, 160)], [0.1, 0.1, 0.01, 1e-3, 1e-4])


def test_weights_of_ensembles_are_read_by_layer_whatever_their_scale(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    drawn = {"ResNet8": [rng.normal(0, 0.1, (3, 3, 30, 30))], "En2ResNet8": rng.laplace(0, 5e-3, (2, 3, 3, 30, 30))}

    def trained(options, protocol, row, seed):
        member = lambda kernel: {"stage3_block1": {"conv1": {"kernel": kernel + 9}, "conv2": {"kernel": kernel}}}  # noqa: E731
        params = {f"member{i}": member(kernel) for i, kernel in enumerate(drawn[row.net])}
        return None, types.SimpleNamespace(sparse_params=params), None

    monkeypatch.setattr(ensemble_weights, "trained", trained)
    ensemble_weights.main(ensemble_weights.WeightOptions(out=tmp_path, seeds=2))
    table = common.load("ensemble_weights", tmp_path)["table"]
    normal, laplace = (7.97, 0, 0.2, 0.1), (13.19, 3, 1.2, 5e-3 * 2**0.5)  # tolerances of three standard errors
    for row, (near, kurtosis, error, deviation) in zip(table, 2 * [normal, laplace], strict=True):
        assert row["near zero"]["mean"] == pytest.approx(near, abs=0.9)
        assert row["kurtosis"]["mean"] == pytest.approx(kurtosis, abs=error)
        assert row["deviation"]["mean"] == pytest.approx(deviation, rel=0.05)
    small = [row["small"]["mean"] for row in table]
    assert small[0] == pytest.approx(0.8, abs=0.4) and small[1] == pytest.approx(18.1, abs=1.7)
    assert (tmp_path / "ensemble_weights.png").stat().st_size > 0
