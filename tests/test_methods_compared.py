"""Every compressor of the comparison trains, is written, read back and timed; SSL's table counts what it says."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import methods, methods_compared, methods_forms, ssl_lenet, tables
from rvsm_jax import models, storage
from rvsm_jax.factors import Factors, decompose, factorize


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's schedules rely on it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def noise():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (128, 8, 8, 1), dtype=np.uint8), rng.integers(0, 10, 128).astype(np.int32)


def small(key, activation=None):
    return models.lenet_300_100(key, image_shape=(8, 8, 1))


def test_methods_compared(tmp_path, monkeypatch, noise, capsys):
    """A dense row that is there already, and one of thin factors that is trained, written, read back and timed."""
    monkeypatch.setattr(methods_compared, "_data", lambda options: (noise,) * 3)
    monkeypatch.setattr(methods_forms, "IMAGE", (8, 8, 1))
    monkeypatch.setattr(models, "lenet5", small)

    def two_of_dense1(params):
        u, s, v = decompose(params["dense1"]["kernel"])
        return params | {"dense1": params["dense1"] | {"kernel": Factors(u[:, :2], s[:2], v[:2])}}

    stage = dataclasses.replace(methods.dense(1), begin=two_of_dense1)
    rank = methods.Method("low rank", "2", (stage,))
    monkeypatch.setattr(methods_compared, "METHODS", {rank.name: rank})
    options = methods_compared.ComparedOptions(quick=True, out=tmp_path, runs=tmp_path / "runs", rounds=2)
    methods_compared.main(options)
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert not list(methods_compared._missing([rank], options))
    found = json.loads((tmp_path / "methods_compared-quick.json").read_text())
    (row,) = found["rows"]
    assert row["nonzeros"] == 2 * (64 + 300 + 1) + 300 * 100 + 100 * 10 and row["form"] in ("factors", "dense")
    (file,) = (tmp_path / "runs").glob("*.rvsm")
    assert file.stat().st_size == row["file_bytes"] < row["dense_bytes"]
    assert (tmp_path / "methods_compared-quick.png").stat().st_size > 5000
    assert f"{row['file_bytes']:,}" in tables.methods_compared(found)
    with pytest.raises(SystemExit, match=r"unknown methods \['l7'\]; there are 'low rank, 2'"):
        methods_compared.main(methods_compared.ComparedOptions(quick=True, out=tmp_path, names=("l7",)))
    with pytest.raises(AssertionError, match=r"x: 'factors' must give the logits of the dense form, off by 5\.0e-01"):
        methods_forms.check("x", {"factors": lambda: np.ones(2)}, lambda: 2 * np.ones(2))


def test_every_method_has_the_same_budget_and_a_name_of_its_own():
    for method in (*methods.METHODS.values(), *methods.CANDIDATES.values()):
        assert sum(stage.epochs for stage in method.stages) == methods.EPOCHS, method.name
    assert len({method.name for method in methods.METHODS.values()}) == len(methods.METHODS)


def test_thin_keeps_factors_only_where_they_are_fewer(tmp_path):
    params = {name: {"kernel": jax.random.normal(jax.random.key(0), (8, 8))} for name in ("few", "many")}
    split = factorize(params)
    few = split["few"]["kernel"]
    split["few"]["kernel"] = few._replace(u=few.u[:, :2], s=few.s[:2], v=few.v[:2])
    found = methods.thin(split)
    assert found["few"]["kernel"].s.shape == (2,)
    np.testing.assert_allclose(found["many"]["kernel"], params["many"]["kernel"], atol=1e-5)
    storage.write(tmp_path / "network.rvsm", found)
    back = methods_forms.revived(storage.read(tmp_path / "network.rvsm"))
    assert jax.tree.structure(back) == jax.tree.structure(found)
    jax.tree.map(np.testing.assert_array_equal, back, found)


def test_ssl_lenet(tmp_path, monkeypatch, noise):
    """What is left is counted and shrunk: here every unit but 30 of the first layer is put to zero."""
    monkeypatch.setattr(ssl_lenet, "_data", lambda options: (noise, noise))
    monkeypatch.setattr(models, "lenet5", small)
    monkeypatch.setattr(ssl_lenet, "CONVOLUTIONS", ("dense1", "dense2"))

    def trained(network, params, tx, training, seed, options, epochs=1):
        if seed < 100:
            return params, 1.0
        return params | {"dense1": {"kernel": params["dense1"]["kernel"].at[:, 30:].set(0), "bias": jnp.ones(300)}}, 1.0

    monkeypatch.setattr(ssl_lenet, "WHERE", lambda path, leaf: leaf.ndim == 2)
    monkeypatch.setattr(ssl_lenet, "_trained", trained)
    options = ssl_lenet.SslOptions(quick=True, out=tmp_path, settings=("filters and shapes 0.005",))
    ssl_lenet.main(options)
    found = json.loads((tmp_path / "ssl_lenet-quick.json").read_text())
    dense, sparse = found["rows"]
    assert dense["filters"] == [300, 100] and dense["multiply_adds"] == 1
    assert sparse["filters"] == [30, 100] and sparse["channels"] == [64, 300] and sparse["shapes"] == [64, 300]
    assert sparse["retrained"] == pytest.approx(sparse["shrunk"], abs=1e-9)
    works = [a * b + b * 100 + 1000 for a, b in ((64, 30), (64, 300))]
    assert sparse["multiply_adds"] == pytest.approx(works[0] / works[1])
    assert "5, 19" in tables.ssl_lenet(found)
    with pytest.raises(SystemExit, match=r"unknown settings \['l7'\]; there are 'filters and channels 0.005'"):
        ssl_lenet.main(ssl_lenet.SslOptions(quick=True, out=tmp_path, settings=("l7",)))
