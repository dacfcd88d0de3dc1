"""Every experiment runs, in its quick form, and leaves a results file that says what it found."""

import ast
import functools
import json
import os
import pathlib
import platform
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import rvsm_jax
from experiments import (
    admm_lenet,
    bench_shrink,
    bench_splitting,
    common,
    lambda_path,
    quickstart,
    rgsm_channels,
    rvsm_lenet,
    rvsm_resnet18,
    sparse,
    tables,
    timing,
)
from experiments.vgg import vgg11
from rvsm_jax import models, storage


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's schedules rely on it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def result(folder, name):
    return json.loads((folder / f"{name}-quick.json").read_text())


def test_quickstart(tmp_path, capsys):
    quickstart.main(common.Options(quick=True, out=tmp_path))
    rows = {row["name"]: row for row in result(tmp_path, "quickstart")["table"]}
    assert list(rows) == list(quickstart.SETTINGS)
    assert rows["dense"]["zeros"]["mean"] == 0 and rows["transformed l1"]["zeros"]["mean"] > 20
    assert (tmp_path / "quickstart-quick.png").stat().st_size > 5000
    walk = result(tmp_path, "quickstart")["walk"]
    assert 0 < abs(walk["simulated"] - walk["exact"]) < 4.5 * walk["standard_error"]
    printed = capsys.readouterr().out
    assert "transformed l1" in printed and f"{walk['exact']:.2f} exactly" in printed


def test_rvsm_lenet(tmp_path, real_data_dir):
    options = rvsm_lenet.LeNetOptions(
        quick=True, out=tmp_path, data_dir=real_data_dir, network="lenet_300_100", settings=("dense", "l1")
    )
    rvsm_lenet.main(options)
    found = result(tmp_path, "rvsm_lenet-lenet_300_100")
    assert [row["name"] for row in found["table"]] == ["dense", "l1"]
    assert found["table"][0]["accuracy"]["mean"] > 60
    with pytest.raises(SystemExit, match="unknown settings \\['l7'\\]; lenet5 has 'dense', 'transformed l1'"):
        rvsm_lenet.main(rvsm_lenet.LeNetOptions(quick=True, out=tmp_path, data_dir=real_data_dir, settings=("l7",)))


def test_admm_lenet(tmp_path, monkeypatch):
    """The first and the last stage of ADMM-NN, the file and the table, on a network that compiles fast."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (256, 8, 8, 1), dtype=np.uint8), rng.integers(0, 10, 256).astype(np.int32)
    monkeypatch.setattr(admm_lenet, "mnist", lambda folder, **kind: (noise, noise))
    small = functools.partial(models.lenet_300_100, image_shape=(8, 8, 1))
    monkeypatch.setattr(models, "lenet5", lambda key, activation: small(key))
    monkeypatch.setattr(admm_lenet, "EPOCHS", {"prune": 1, "finish": 1})
    for name, value in {"KEEP": 0.1, "LEVELS": 4}.items():
        monkeypatch.setattr(admm_lenet, name, {f"dense{i}/kernel": value for i in (1, 2, 3)})
    admm_lenet.main(admm_lenet.AdmmOptions(quick=True, out=tmp_path))
    found = result(tmp_path, "admm_lenet")
    weights = 64 * 300 + 300 * 100 + 100 * 10
    assert [row["nonzeros"]["mean"] for row in found["table"]] == [weights // 10] * 2
    last, file = found["table"][-1], tmp_path / "admm_lenet-0-quick.rvsm"
    assert last["file_bytes"]["mean"] == file.stat().st_size < 0.1 * last["dense_bytes"]["mean"]
    assert last["weight_bytes"]["mean"] == storage.weight_bytes(storage.read(file)) <= weights // 10 * 3 / 8
    assert f"{file.stat().st_size:,}" in tables.admm_lenet(found)


@pytest.mark.parametrize("options", [{"protocol": "fast"}, {"protocol": "published", "as_released": True}])
def test_rvsm_resnet18(tmp_path, real_data_dir, monkeypatch, options):
    """Both protocols from the data to the record, on a network that compiles fast."""
    small = functools.partial(models.preact_resnet, depth=8)
    monkeypatch.setattr(models, "resnet18", lambda key, width: small(key, width=width // 2))
    options = rvsm_resnet18.ResNetOptions(quick=True, out=tmp_path, data_dir=real_data_dir, **options)
    rvsm_resnet18.main(options)
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert found["label"] == "quick look" and len(found["rows"]) == 2
    assert {"dense", "sparse", "zeros", "loss"} == set(found["table"])


def test_lambda_path(tmp_path):
    lambda_path.main(lambda_path.PathOptions(quick=True, out=tmp_path))
    rows = result(tmp_path, "lambda_path")["rows"]
    assert len(rows) == 24
    for beta in lambda_path.BETAS:
        zeros = [row["zeros"] for row in rows if row["beta"] == beta]
        assert zeros[-1] > zeros[0]


@pytest.mark.parametrize("at_once", [None, 2])
def test_a_lane_of_the_path_is_a_run_of_its_own(at_once):
    network = models.lenet_300_100(jax.random.key(0), image_shape=(8, 8, 1))
    images = jax.random.randint(jax.random.key(1), (32, 8, 8, 1), 0, 256).astype("uint8")
    labels = jax.random.randint(jax.random.key(2), (32,), 0, 10)
    init, epoch = lambda_path.make_lane(network.forward, rvsm_jax.l1(), optax.sgd(0.1, momentum=0.9))
    many_init, many_epochs = lambda_path.vmapped(init, epoch, lanes=12, at_once=at_once)
    lam, beta = np.geomspace(1e-4, 1e-3, 12, dtype=np.float32), np.linspace(0.1, 0.2, 12, dtype=np.float32)
    start = network.params, network.state, jax.random.key(3)
    order = np.arange(32).reshape(4, 8)
    together, _ = many_epochs(many_init(*start, lam, beta), lam, beta, images, labels, order)
    for lane in (0, 5, 11):
        alone, _ = epoch(init(*start, lam[lane], beta[lane]), lam[lane], beta[lane], images, labels, order)
        expected = jax.tree.map(lambda x, lane=lane: x[lane], together.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), expected, alone.params)


def test_fine_tuning_keeps_the_support():
    network = models.lenet_300_100(jax.random.key(0), image_shape=(8, 8, 1))
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (256, 8, 8, 1), dtype=np.uint8), rng.integers(0, 10, 256).astype(np.int32)
    protocol = sparse.Protocol(epochs=2, batch_size=32, fine_tune_epochs=1)
    row, _ = sparse.run(network, sparse.Setting("l1", 0.02, 0.5), protocol, data, data, 0, progress=False)
    assert row["nonzeros"] < 0.9 * row["weights"] and 0 <= row["fine_tuned"] <= 100


def test_bench_splitting(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "lenet5", models.lenet_300_100)
    bench_splitting.main(bench_splitting.BenchOptions(quick=True, out=tmp_path, rounds=3))
    found = result(tmp_path, "bench_splitting")
    assert len(found["steps"]) == 5 and found["path"]["lanes"] == 4


def test_rgsm_channels_goes_on_where_it_stopped(tmp_path, capsys):
    options = rgsm_channels.ChannelOptions(quick=True, out=tmp_path, runs=tmp_path / "runs", rounds=2)
    rgsm_channels.main(options)
    assert len(capsys.readouterr().out.splitlines()) == 2
    rows = {row["name"]: row for row in result(tmp_path, "rgsm_channels")["rows"]}
    assert rows["dense"]["multiply_adds"] == 1 and rows["dense"]["channel_sparsity"] == 0
    assert rows["l0"]["channel_sparsity"] > 10 and rows["l0"]["multiply_adds"] < 0.9
    assert all(inputs % 4 == 0 for inputs, _ in rows["l0"]["widths"].values())
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert not list(rgsm_channels._missing("digits", rgsm_channels.QUICK, options))


def test_bench_shrink(monkeypatch):
    network = functools.partial(models.lenet_300_100, image_shape=bench_shrink.IMAGE)
    monkeypatch.setitem(bench_shrink.NETWORKS, "VGG-11", (network, bench_shrink.VGG[:1]))
    (row,) = bench_shrink.jax_rows("VGG-11", 2, (2,), {})
    assert 0.4 < row["multiply_adds"] < 0.6 and row["error"] < 1e-5 and row["batches"][2]["time"]["median"] > 0


def test_vgg_has_the_published_number_of_weights():
    params = jax.eval_shape(lambda key: vgg11(key).params, jax.random.key(0))
    kernels = [leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    assert sum(kernels) == 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256**2 + 256 * 512 + 3 * 512**2)


def test_interleaved_calls_take_turns():
    order = []
    timing.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warm_up=1)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"


FAULTS = """
import ctypes, resource
from experiments import common
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(2**26)
    libc.memset(block, 1, 2**26)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(((faults(), faults()), common.keep_freed_memory(), (faults(), faults())))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is told")
def test_memory_freed_is_kept_for_the_next_call():
    root = pathlib.Path(__file__).parents[1]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", FAULTS]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=plain).stdout
    (fresh, again), kept, (first, second) = ast.literal_eval(found)
    if fresh < 2**26 // 4096:
        pytest.skip(f"pages are larger than 4 KiB here: {fresh} faults in 64 MiB")
    assert kept and again > 16_000 and first > 16_000 and second < 100
