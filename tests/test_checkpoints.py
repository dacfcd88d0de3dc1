"""Killed at any moment, a run resumes and ends bit for bit as if it had not been; what is damaged is refused."""

import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rvsm_jax import train
from rvsm_jax.checkpoints import CheckpointError, Checkpoints

RUN = """
import os, signal, sys
import jax, jax.numpy as jnp, numpy as np, optax
from rvsm_jax import checkpoints, train

where, deadly = sys.argv[1], sys.argv[2]
save = checkpoints.Checkpoints.save


def announced(self, *arguments):
    print("saving", flush=True)
    return save(self, *arguments)


def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


checkpoints.Checkpoints.save = announced
if deadly == "the arrays are written":
    import orbax.checkpoint as ocp
    ocp.StandardCheckpointer.save = die
if deadly == "the manifest is written":
    os.fsync = die
if deadly == "the folder is renamed":
    os.replace = die
if deadly == "the oldest is removed":
    checkpoints.shutil.rmtree = lambda path, **_: os.path.exists(path) and (os.remove(path / "manifest.json"), die())

rng = np.random.default_rng(0)
images = rng.integers(0, 256, (120, 4, 4, 1)).astype(np.uint8)
labels = (images.reshape(120, 16) @ rng.normal(size=(16, 3))).argmax(1).astype(np.int32)
params = {"kernel": jnp.asarray(rng.normal(size=(16, 3)) / 4, jnp.float32), "bias": jnp.zeros(3)}


def forward(params, state, x, key, train):
    noise = 0.1 * jax.random.normal(key, (16,)) if train else jnp.zeros(16)
    logits = (x.reshape(len(x), 16) + noise[None]) @ params["kernel"] + params["bias"][None]
    return logits, {"mean": 0.9 * state["mean"] + 0.1 * logits.mean()}


result = train.fit(
    forward, params, {"mean": jnp.zeros(())}, optax.sgd(0.3, momentum=0.9),
    (images, labels), (images[:50], labels[:50]), epochs=8, batch_size=11, key=jax.random.key(3),
    sparse=lambda w, step: jax.tree.map(lambda x: jnp.where(jnp.abs(x) > 0.1, x, 0), w), select="best",
    checkpoint_dir=where + "/checkpoints", checkpoint_every=4, metrics_path=where + "/metrics.jsonl", progress=False,
)
np.savez(where + "/end.npz", result.step, *jax.tree.leaves((result[:3], result.state._replace(key=()))))
print("done", flush=True)
"""


def start(folder, deadly="never"):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
    }
    command = [sys.executable, "-c", RUN, str(folder), deadly]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0 and out.endswith("done\n"), err
    return err


def ending(folder):
    """The arrays that the run ends with, and its records without the seconds."""
    with np.load(folder / "end.npz") as arrays:
        found = [arrays[name] for name in arrays]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return found, [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    finish(start(folder))
    arrays, lines = ending(folder)
    assert len(lines) == 8 and len(arrays) > 8
    return arrays, lines


def assert_ends_alike(folder, wanted):
    arrays, lines = ending(folder)
    for found, array in zip(arrays, wanted[0], strict=True):
        assert found.dtype == array.dtype and found.tobytes() == array.tobytes()
    assert lines == wanted[1]
    left = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert left == ["step-00000076", "step-00000080"]


def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(tmp_path, uninterrupted):
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)  # shown if the test fails
    chance = random.Random(seed)
    for _ in range(3):
        with start(tmp_path) as process:
            for _ in range(chance.randint(1, 5)):
                process.stdout.readline()  # "saving"
            time.sleep(chance.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.communicate()
    finish(start(tmp_path))
    assert_ends_alike(tmp_path, uninterrupted)


def test_killed_within_saves_it_ends_bit_for_bit_the_same(tmp_path, uninterrupted):
    moments = ("the oldest is removed", "the arrays are written", "the manifest is written", "the folder is renamed")
    for moment in moments:
        with start(tmp_path, moment) as process:
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert list((tmp_path / "checkpoints").glob(".step-*.partial")), moment
    assert "could not be used" not in finish(start(tmp_path))
    assert_ends_alike(tmp_path, uninterrupted)


# one process


def tree(seed=0):
    """All kinds of leaves: several dtypes, a typed key, nothing at all."""
    rng = np.random.default_rng(seed)
    return {
        "weights": [jnp.asarray(rng.normal(size=(40, 30)), d) for d in (jnp.float32, jnp.bfloat16)],
        "count": jnp.int32(seed),
        "key": jax.random.key(seed),
        "old key": jax.random.PRNGKey(seed),
        "flags": jnp.asarray(rng.normal(size=5) > 0),
        "empty": (jnp.zeros((0, 3)), optax.EmptyState()),
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.sharding == y.sharding
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_what_is_saved_is_restored_and_the_newest_are_kept(tmp_path):
    store = Checkpoints(tmp_path, {"batch_size": 8}, keep=2)
    assert store.restore(tree()) is None
    for step in (9, 10, 11):
        assert store.save(step, tree(step), {"records": [step]})
    found, extra = Checkpoints(tmp_path, {"batch_size": 8}).restore(tree())
    assert_same(found, tree(11))
    assert extra == {"records": [11]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def test_what_is_saved_on_one_device_is_restored_on_eight(tmp_path):
    Checkpoints(tmp_path, {}).save(1, tree(1))
    everywhere = jax.sharding.NamedSharding(train.data_mesh(jax.devices()), jax.sharding.PartitionSpec())
    found, _ = Checkpoints(tmp_path, {}).restore(jax.device_put(tree(0), everywhere))
    assert_same(found, jax.device_put(tree(1), everywhere))


def biggest(path):
    return max((p for p in (path / "arrays").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(path):
    file = biggest(path)
    file.write_bytes(file.read_bytes()[:-100])


def flip(path):
    file = biggest(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def swap(path):
    """Puts sound arrays of another step there."""
    other = Checkpoints(path.parent / "elsewhere", {})
    other.save(1, tree(5))
    shutil.rmtree(path / "arrays")
    shutil.move(path.parent / "elsewhere" / "step-00000001" / "arrays", path / "arrays")
    shutil.rmtree(path.parent / "elsewhere")


def edit(path):
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"batch_size": 8', '"batch_size": 16'))


def shorten(path):
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])


def empty(path):
    (path / "manifest.json").write_text('{"body": [], "digest": 5}')


DAMAGES = {
    empty: "found format None, wanted 'rvsm-jax checkpoint 1'",
    truncate: r"its arrays are damaged: .*: found \[\d+, '\w{16}'\], wanted \[\d+, '\w{16}'\]",
    flip: "its arrays are damaged: ",
    swap: "its arrays are damaged: ",
    lambda path: shutil.rmtree(path / "arrays"): "its arrays are damaged: .*: found nothing, wanted",
    edit: r"its manifest.json has digest \w{12}, wanted \w{12}",
    shorten: "its manifest.json is missing or damaged",
    lambda path: (path / "manifest.json").unlink(): "its manifest.json is missing or damaged",
}


@pytest.mark.parametrize(("damage", "match"), DAMAGES.items(), ids=[f"damage{i}" for i in range(len(DAMAGES))])
def test_a_damaged_checkpoint_is_refused_and_the_older_one_used(tmp_path, damage, match):
    store = Checkpoints(tmp_path, {"batch_size": 8})
    for step in (1, 2):
        store.save(step, tree(step), step)
    damage(tmp_path / "step-00000002")
    with pytest.warns(UserWarning, match=f"resuming from .*step-00000001, .*step-00000002: {match}"):
        found, extra = store.restore(tree())
    assert_same(found, tree(1))
    assert extra == 1
    assert store.save(2, tree(7), 7) and store.restore(tree())[1] == 7
    shutil.rmtree(tmp_path / "step-00000001")
    damage(tmp_path / "step-00000002")
    with pytest.raises(CheckpointError, match=f"step-00000002: {match}.*another directory"):
        store.restore(tree())


@pytest.mark.parametrize(
    ("agree", "template", "match"),
    [
        ({"batch_size": 16}, tree(), "of another run: batch_size: found 8, wanted 16"),
        ({"batch_size": 8, "seed": 1}, tree(), "seed: found nothing, wanted 1"),
        (
            {"batch_size": 8},
            tree() | {"count": jnp.zeros(3)},
            r"count: found \[\[\], 'int32'\], wanted \[\[3\], 'float32'\]",
        ),
        ({"batch_size": 8}, {"weights": tree()["weights"]}, "and 6 more"),
    ],
)
def test_a_foreign_checkpoint_is_refused_by_name(tmp_path, agree, template, match):
    Checkpoints(tmp_path, {"batch_size": 8}).save(3, tree(3))
    with pytest.raises(CheckpointError, match=match):
        Checkpoints(tmp_path, agree).restore(template)
    Checkpoints(tmp_path, agree, keep=1).save(4, template)
    Checkpoints(tmp_path, agree, keep=1).save(5, template)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000005"]


def test_another_runs_checkpoint_of_the_same_step_stays(tmp_path):
    first, second = (Checkpoints(tmp_path, {"batch_size": size}) for size in (8, 16))
    first.save(3, tree(3), "first")
    with pytest.warns(UserWarning, match="step-00000003 could not be written: there is one of another run"):
        assert not second.save(3, tree(4))
    assert first.restore(tree())[1] == "first"


def test_checkpoints_of_ours_further_down_are_nobodys_business(tmp_path):
    Checkpoints(tmp_path / "inner", {}).save(1, tree(1))
    assert Checkpoints(tmp_path, {}).restore(tree()) is None


def test_a_checkpoint_of_another_program_is_refused_by_name(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "100" / "default", {"kernel": jnp.ones(3)})
    with pytest.raises(CheckpointError, match=r"100/default: not a checkpoint of this package \(wanted"):
        Checkpoints(tmp_path, {}).restore(tree())


def test_a_full_disk_leaves_the_older_checkpoint_and_the_run(tmp_path):
    """A limit on the size of files stands for the full disk: the kernel refuses the write just so."""
    store = Checkpoints(tmp_path, {}, keep=1)
    store.save(1, tree(1))
    large = {"large": jnp.asarray(np.random.default_rng(0).normal(size=200_000))}
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.warns(UserWarning, match="no checkpoint at step 2, .*could not be written"):
            assert not store.save(2, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert_same(store.restore(tree())[0], tree(1))


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, {}, keep=0)


# fit


def fit(folder, epochs=3, tx=None, **changes):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 4, 4, 1)).astype(np.uint8)
    labels = rng.integers(0, 3, 60).astype(np.int32)
    arguments = {"batch_size": 20, "key": jax.random.key(0), "progress": False, "checkpoint_dir": folder} | changes
    return train.fit(
        lambda p, s, x, k, t: (x.reshape(len(x), 16) @ p, s),
        jnp.zeros((16, 3)),
        {},
        optax.sgd(0.3) if tx is None else tx,
        (images, labels),
        epochs=epochs,
        **arguments,
    )


def test_a_finished_run_is_returned_and_a_longer_one_goes_on(tmp_path):
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "parts", epochs=2)
    again, on = fit(tmp_path / "parts", epochs=2), fit(tmp_path / "parts")
    assert int(again.state.step) == 6 and len(again.history) == 2
    np.testing.assert_array_equal(on.params, whole.params)
    with pytest.raises(ValueError, match=r"epochs = 1, but .*parts is at step 9, 3 an epoch"):
        fit(tmp_path / "parts", epochs=1)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"batch_size": 30}, "batch_size: found 20, wanted 30"),
        ({"key": jax.random.key(1)}, r"key: found \[0, 0\], wanted \[0, 1\]"),
        ({"weight_decay": 0.1}, "weight_decay: found 0.0, wanted 0.1"),
        ({"config": {"lam": 0.1}}, r"config: found {}, wanted {'lam': 0.1}"),
        ({"tx": optax.sgd(0.3, momentum=0.9)}, "trace: found nothing"),
    ],
)
def test_another_run_does_not_resume(tmp_path, changes, match):
    fit(tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match=match):
        fit(tmp_path, **changes)


def test_a_run_that_stops_being_finite_keeps_its_good_checkpoint(tmp_path):
    good = fit(tmp_path / "good", epochs=2)
    tx = optax.sgd(lambda count: jnp.where(count < 7, 0.3, jnp.inf))
    with pytest.raises(train.NonFiniteLoss, match="at step 7"):
        fit(tmp_path / "bad", tx=tx)
    assert sorted(p.name for p in (tmp_path / "bad").iterdir()) == ["step-00000003", "step-00000006"]
    resumed = fit(tmp_path / "bad", epochs=2, tx=tx)
    np.testing.assert_array_equal(resumed.params, good.params)
