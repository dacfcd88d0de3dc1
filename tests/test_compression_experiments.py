"""The comparisons of compressors run, in their quick forms, and count what they say they count."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments import bcr_blocks, bench_structures, binary_relax, ssl_resnet20, stages, svd_training, tables
from experiments.bench_structures import Kernel, Layer
from rvsm_jax import factors, models, train


class OneLayer(nnx.Module):
    """Logits = W x + b: trains and compiles fast."""

    def __init__(self, key):
        self.dense1 = nnx.Linear(64, 16, rngs=nnx.Rngs(key))

    def __call__(self, images):
        return self.dense1(images.reshape(len(images), -1))


@pytest.fixture
def small(monkeypatch):
    """One layer on noise in the place of LeNet-5 on MNIST."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (256, 8, 8, 1), dtype=np.uint8), rng.integers(0, 10, 256).astype(np.int32)
    monkeypatch.setattr(stages, "arrays", lambda *arguments: (noise, noise))
    monkeypatch.setattr(models, "lenet5", lambda key, activation: models.functional(OneLayer(key)))
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules rely on it
        yield


def untrained(network, method, sets, epochs, seed, **options):
    """A training of no steps: what ships is what is left of the network's own weights."""
    state = train.init_state(network.params, {}, method.tx, jax.random.key(seed))
    record = {"u_accuracy": 0.5, "seconds": 1.0}
    return train.FitResult(network.params, method.sparse(network.params, 0), {}, [record], state, 0)


def result(folder, name):
    return json.loads((folder / f"{name}-quick.json").read_text())


def test_binary_relax_goes_on_where_it_stopped(tmp_path, monkeypatch, small, capsys):
    options = binary_relax.BinaryOptions(quick=True, out=tmp_path, runs=tmp_path)
    monkeypatch.setattr(binary_relax, "NAMES", ("float", "binary"))
    binary_relax.main(options)
    found = result(tmp_path, "binary_relax-lenet5")
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["binary"]["values"] == {"dense1/kernel": 2} and rows["binary"]["weight_bytes"] == 64 * 16 / 8
    assert rows["binary"]["file_bytes"] < rows["float"]["file_bytes"] / 4
    assert rows["binary"]["loss"] == rows["float"]["accuracy"] - rows["binary"]["accuracy"]
    assert f"{rows['binary']['file_bytes']:,}" in tables.quantised(found)
    assert len(capsys.readouterr().out.splitlines()) == 2
    binary_relax.main(options)
    assert capsys.readouterr().out == "" and result(tmp_path, "binary_relax-lenet5") == found


@jax.numpy_dtype_promotion("standard")
def test_the_second_phase_is_binary_connect():
    plan = binary_relax.PLANS["lenet5"]
    method = binary_relax.second_training("binary", 8, plan, lambda path, leaf: True)
    w = {"w": jnp.array([1.0, -2.0, 3.0])}
    state, distances = method.tx.init(w), []
    for _ in range(8):
        updates, state = method.tx.update({"w": jnp.array([0.0, 0.0, 1e-3])}, state, w)
        w = jax.tree.map(jnp.add, w, updates)
        distances.append(float(jnp.ptp(jnp.abs(w["w"]))))
    assert np.all(np.diff(distances[:6]) < 0) and distances[5] > 1e-4 > max(distances[6:])


def test_bcr_blocks(tmp_path, monkeypatch, small):
    """Of every size of block as many weights are left, also after training, here none."""

    monkeypatch.setattr(stages, "fit", untrained)
    monkeypatch.setattr(bcr_blocks, "PRUNED", ("dense1/kernel",))
    monkeypatch.setattr(bcr_blocks, "SIZES", {"4 x 16": (4, 16), bcr_blocks.WHOLE: (2**30, 2**30)})
    bcr_blocks.main(bcr_blocks.BlockOptions(quick=True, out=tmp_path))
    found = result(tmp_path, "bcr_blocks")
    left = {row["name"]: row["nonzeros"] for row in found["rows"]}
    assert left == {"dense": 1024} | dict.fromkeys(("single weights", *bcr_blocks.SIZES), 64)
    assert "| 4 x 16 | 6.2 | 50.00 | 1 | 50.00 |" in tables.block_sizes(found)


def test_bcr_latency(tmp_path, monkeypatch, capsys):
    layers = {"convolution": Layer((3, 3, 2, 8), (5, 5, 2))}
    monkeypatch.setattr(bcr_blocks, "LAYERS", layers)
    monkeypatch.setattr(bcr_blocks, "SIZES", {"4 x 4": (4, 4)})
    bcr_blocks.main(bcr_blocks.BlockOptions(quick=True, latency=True, rounds=2, out=tmp_path))
    rows = result(tmp_path, "bcr_blocks-latency")["rows"]
    assert [(row["layer"], row["structure"]) for row in rows] == [
        (layer, name) for layer in layers for name in ("dense", "single weights", "4 x 4")
    ]
    weights = [found["weights"] for found in rows[2]["kernels"].values()]
    assert len(weights) == 2 and 1 / 16 <= weights[0] == weights[1] < 0.1


def test_bench_structures(tmp_path, monkeypatch):
    """The kernels that are the benchmark's own; those of the blocks are the library's, and tested there."""
    structures = {name: bench_structures.STRUCTURES[name] for name in ("single zeros", "low rank")}
    monkeypatch.setattr(bench_structures, "STRUCTURES", structures)
    bench_structures.main(bench_structures.StructureOptions(quick=True, rounds=2, out=tmp_path))
    found = result(tmp_path, "bench_structures")
    kept = {row["structure"]: [k["weights"] for k in row["kernels"].values()] for row in found["rows"]}
    assert kept["single zeros"] == [0.25] * 4
    assert kept["low rank"] == [2 * (72 + 8) / 576, 3 * (24 + 24) / 576]
    assert "| single zeros | " in tables.structures(found | {"table": [with_times(row) for row in found["table"]]})
    assert (tmp_path / "bench_structures-quick.png").stat().st_size > 5000


def with_times(row):
    return row | {"times": {"0.9": 1.0, "0.99": 1.0}}


def test_a_kernel_that_computes_something_else_is_found(monkeypatch):
    def wrong(w, keep):
        yield "wrong", Kernel(lambda w, x: x @ w, 1.01 * w, w)

    with pytest.raises(AssertionError, match="a structure, wrong: must give what the dense layer gives, is off by"):
        bench_structures.measure(Layer((4, 3), (4,)), 2, 0.5, 1, {"a structure": wrong})


def test_a_hopeless_kernel_is_timed_once(monkeypatch):
    def same(w, keep):
        yield "same", Kernel(lambda w, x: x @ w, w, w)

    monkeypatch.setattr(bench_structures, "HOPELESS", 0)
    (row,) = bench_structures.measure(Layer((4, 3), (4,)), 2, 0.5, 1, {"a structure": same})
    assert "ms" not in row["kernels"]["same"] and row["time"] == 1e3 * row["kernels"]["same"]["once"] / row["dense_ms"]


def test_svd_training(tmp_path, monkeypatch, small):
    """What is counted is the rank that is left, unless the whole layer is less work."""
    monkeypatch.setattr(stages, "fit", untrained)
    monkeypatch.setattr(models, "lenet_300_100", lambda key: models.functional(OneLayer(key)))
    monkeypatch.setattr(svd_training, "ENERGIES", (0.0, 0.3))
    svd_training.main(svd_training.SvdOptions(quick=True, out=tmp_path))
    found = result(tmp_path, "svd_training-lenet300-reduced")
    rows = {(row["penalty"], row["energy"]): row for row in found["rows"]}
    s = np.linalg.svd(OneLayer(jax.random.key(0)).dense1.kernel[...], compute_uv=False)
    rank = next(k for k in range(17) if (s[:k] ** 2).sum() >= 0.7 * (s**2).sum())
    for penalty in ("none", "Hoyer"):
        assert rows[penalty, 0.0]["ranks"] == {"dense1": 16} and rows[penalty, 0.0]["speed_up"] == 1
        assert rows[penalty, 0.3]["ranks"] == {"dense1": rank}
        assert rows[penalty, 0.3]["speed_up"] == 64 * 16 / (rank * (64 + 16))
    assert f"| {rows['Hoyer', 0.3]['speed_up']:.2f}" in tables.ranks(found)


def test_work_of_the_published_network():
    """ResNet-20 at 32 x 32: 40.8 million multiply-adds, most of them in 18 convolutions, as is known."""
    params = jax.eval_shape(lambda key: factors.factorize(models.preact_resnet(key).params), jax.random.key(0))
    found = svd_training.work(params)["multiply_adds"]
    stages_work = 6 * 9 * 16 * 16 * 1024 + (9 * 16 * 32 + 5 * 9 * 32 * 32) * 256 + (9 * 32 * 64 + 5 * 9 * 64 * 64) * 64
    shortcuts = 16 * 32 * 256 + 32 * 64 * 64
    assert sum(found.values()) == 9 * 3 * 16 * 1024 + stages_work + shortcuts + 640


def test_the_reduced_network_is_narrow():
    options = svd_training.SvdOptions(network="resnet20-reduced")
    params = jax.eval_shape(lambda: svd_training._network(options, 0).params)
    assert params["conv1"]["kernel"].shape == (3, 3, 3, 8) and "stage3_block3" in params


ZERO = "stage2_block1/conv2/kernel"


def test_ssl_resnet20(tmp_path, monkeypatch):
    """A branch with one zero convolution goes as a whole, shortcut and predictions stay."""
    monkeypatch.setattr(models, "preact_resnet", functools.partial(models.preact_resnet, depth=8))
    plan = ssl_resnet20.Plan(256, 2, 1, 1, 64)
    monkeypatch.setattr(ssl_resnet20, "PLANS", {"resnet20-reduced": plan})
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (256, 8, 8, 3), dtype=np.uint8), rng.integers(0, 10, 256).astype(np.int32)
    monkeypatch.setattr(stages, "arrays", lambda *arguments: (noise, noise))
    trained = []

    def fit(network, method, sets, epochs, seed, **options):
        trained.append((options["config"]["lasso"], jax.tree.structure(method.tx.init(network.params))))
        killed = jax.tree.map_with_path(
            lambda path, x: 0 * x if jax.tree_util.keystr(path, simple=True, separator="/") == ZERO else x,
            network.params,
        )
        params = killed if options["config"]["lasso"] else network.params
        return untrained(network._replace(params=params), method, sets, epochs, seed)._replace(
            model_state=network.state
        )

    monkeypatch.setattr(stages, "fit", fit)
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules rely on it
        ssl_resnet20.main(ssl_resnet20.DepthOptions(quick=True, out=tmp_path, lassos=(0.0, 0.5)))
    found = result(tmp_path, "ssl_resnet20-resnet20-reduced")
    dense, sparse = found["rows"]
    assert [lasso for lasso, _ in trained] == [0, 0, 0.5, 0.5] and trained[0][1] != trained[2][1]
    assert (dense["layers"], dense["zero_kernels"], dense["multiply_adds"], dense["gone"]) == (8, 0, 1, [])
    assert (sparse["layers"], sparse["zero_kernels"], sparse["norms"][ZERO]) == (6, 1, 0)
    assert sparse["gone"] == ["stage2_block1/conv1/kernel", ZERO]
    branches = [64 * 9 * (2 * 2 + 2 * 2), 16 * 9 * (2 * 4 + 4 * 4), 4 * 9 * (4 * 8 + 8 * 8)]
    whole = 64 * 9 * 3 * 2 + sum(branches) + 16 * 2 * 4 + 4 * 4 * 8 + 8 * 10  # stem, branches, shortcuts, head
    assert sparse["multiply_adds"] == (whole - branches[1]) / whole
    network = models.preact_resnet(jax.random.key(0), width=2)
    network.params["stage2_block1"]["conv2"]["kernel"] *= 0
    assert sparse["shrunk"] == 100 * train.evaluate(*network, *noise)["accuracy"]
    assert "| SSL 0.5 | 1 | 6 |" in tables.depths(found)


def test_retraining_keeps_zero_convolutions_and_moves_single_zeros():
    kernels = {"conv1": {"kernel": jnp.zeros((3, 3, 2, 2))}, "conv2": {"kernel": jnp.eye(2).reshape(1, 1, 2, 2)}}
    params = {"stage1_block1": kernels}
    tx = ssl_resnet20.retraining(optax.sgd(1.0), params).tx
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert not updates["stage1_block1"]["conv1"]["kernel"].any()
    assert (updates["stage1_block1"]["conv2"]["kernel"] == -1).all()
