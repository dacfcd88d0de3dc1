"""A file gives back every bit, is as small as it says, refuses what it is not, and is written whole or not at all."""

import errno
import math
import os
import resource

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import rvsm_jax
from rvsm_jax import models, storage
from tests.problems import TREES

RNG = np.random.default_rng(3)


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def sparse(shape, count, values):
    x = np.zeros(math.prod(shape), np.float32)
    x[RNG.choice(x.size, count, replace=False)] = RNG.choice(np.float32(values), count)
    return x.reshape(shape)


ARRAYS = {
    "dense": RNG.normal(size=(7, 9)).astype(np.float32),
    "all zero": np.zeros((300, 11), np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.float64(3.5),
    "one far away": sparse((100, 100), 1, [0.5]),
    "gaps": sparse((80, 90), 30, [-0.25, 0.25, 0.5]),
    "mask": sparse((80, 90), 3000, [-0.25, 0.25]),
    "columns": np.where(np.arange(64) % 16 == 3, RNG.normal(size=(50, 64)), 0).astype(np.float32),
    "many values": np.where(RNG.random((60, 60)) < 0.2, RNG.normal(size=(60, 60)), 0),
    "odd floats": np.array([0.0, -0.0, np.nan, -np.nan, np.inf, 1e-45], np.float32),
    "half": RNG.normal(size=(5, 5)).astype(np.float16),
    "bfloat16": np.eye(20).astype(ml_dtypes.bfloat16),
    "integers": np.array([[3, -1], [0, 7]], np.int64),
    "booleans": np.eye(9, dtype=bool),
    "complex": np.array([1 + 2j, 0], np.complex64),
    "places at bytes' ends": np.isin(np.arange(2000), [0, 254, 255, 256, 511, 767, 1023, 1999]).astype(np.float32),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_every_bit_comes_back(name):
    back = storage.decode(storage.encode({"a": {"b": ARRAYS[name]}}))
    assert same_bits(back["a"]["b"], ARRAYS[name])


@pytest.mark.parametrize("tree", TREES)
def test_every_kind_of_tree(tree, tmp_path):
    params = TREES[tree]()
    storage.write(tmp_path / "w", params)
    back = storage.read(tmp_path / "w", like=params)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(same_bits, back, params))
    if tree in ("dict", "linen"):
        assert jax.tree.structure(storage.read(tmp_path / "w")) == jax.tree.structure(params)


def pruned_lenet():
    network = models.lenet_300_100(jax.random.key(0), image_shape=(8, 8, 1))
    prune = rvsm_jax.proximal_operator(rvsm_jax.top_k(0.05))
    snap = rvsm_jax.proximal_operator(rvsm_jax.levels(8, zero=False, fit="scan"))
    weights = jax.tree.map(lambda x: jnp.asarray(0.1 * RNG.normal(size=x.shape), jnp.float32), network.params)
    return network, snap(prune(weights, 1.0), 1.0)


def test_a_network_predicts_the_same_from_its_file(tmp_path):
    network, params = pruned_lenet()
    size = storage.write(tmp_path / "net", params)
    back = storage.read(tmp_path / "net")
    images = jax.random.uniform(jax.random.key(1), (64, 8, 8, 1))
    forward = jax.jit(lambda params: network.forward(params, network.state, images, None, False)[0])
    assert same_bits(forward(params), forward(back))
    assert size.file == (tmp_path / "net").stat().st_size
    assert size.dense == sum(x.nbytes for x in jax.tree.leaves(params))
    kept = [np.asarray(params[name]["kernel"]) for name in ("dense1", "dense2", "dense3")]
    distinct = [np.unique(x[x != 0]).size for x in kept]
    assert max(distinct) > 8
    assert size.weights == sum((x != 0).sum() * np.ceil(np.log2(n)) / 8 for x, n in zip(kept, distinct, strict=True))


def test_the_file_is_near_the_entropy_of_its_places_and_values(tmp_path):
    count, shape, values = 3000, (500, 800), np.arange(-8, 9, dtype=np.float32)
    values = values[values != 0] * 0.01
    size = storage.write(tmp_path / "net", {"kernel": sparse(shape, count, values)})
    share = count / math.prod(shape)
    places = -math.prod(shape) * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    entropy = places + count * 4 / 8
    assert entropy < size.file < 1.06 * entropy + 200
    assert size.weights == count * 4 / 8


@pytest.mark.parametrize("share", [0.0, 0.001, 0.4, 0.99])
def test_a_cut_file_is_refused(tmp_path, share):
    path = tmp_path / "net"
    storage.write(path, {"kernel": ARRAYS["gaps"]})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(storage.FormatError, match=r"net (is damaged or cut off|ends after|is not a network)"):
        storage.read(path)


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    path = tmp_path / "net"
    storage.write(path, {"kernel": ARRAYS["gaps"]})
    content = bytearray(path.read_bytes())
    for at in (6, 12, len(content) // 2, len(content) - 1):
        damaged = content.copy()
        damaged[at] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(storage.FormatError, match="net is damaged or cut off"):
            storage.read(path)
    for foreign in (b"PK\x03\x04 and so on", b"rvsm\x02" + bytes(40)):
        path.write_bytes(foreign)
        with pytest.raises(storage.FormatError, match="net is not a network written by rvsm_jax: it begins with b'"):
            storage.read(path)
    with pytest.raises(FileNotFoundError):
        storage.read(tmp_path / "nothing")


def test_arrays_of_another_network_are_refused(tmp_path):
    storage.write(tmp_path / "net", {"a": np.zeros((2, 3), np.float32)})
    with pytest.raises(
        storage.FormatError, match=r"net holds 'a' of shape \(2, 3\) and float32 where 'a' of shape \(3"
    ):
        storage.read(tmp_path / "net", like={"a": np.zeros((3, 2), np.float32)})
    with pytest.raises(storage.FormatError, match="net holds 1 arrays, 2 are wanted"):
        storage.read(tmp_path / "net", like={"a": np.zeros((2, 3), np.float32), "b": np.zeros(1)})
    with pytest.raises(TypeError, match="stored as arrays of numbers, 'a' is str"):
        storage.encode({"a": "text"})
    with pytest.raises(TypeError, match="1, 2, 4 or 8 bytes, those of complex128 have 16"):
        storage.encode({"a": np.ones(3, complex)})
    with pytest.raises(TypeError, match="stored as arrays of numbers, 'key' is"):
        storage.encode({"key": jax.random.key(0)})


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    path, old = tmp_path / "net", {"kernel": ARRAYS["gaps"]}
    storage.write(path, old)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # no file may grow beyond 100 bytes
    try:
        with pytest.raises(OSError, match="too large"):
            storage.write(path, {"kernel": ARRAYS["dense"]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write(path, {"kernel": ARRAYS["dense"]})
    monkeypatch.undo()
    assert same_bits(storage.read(path)["kernel"], old["kernel"])
    assert os.listdir(tmp_path) == ["net"]  # and leaves nothing behind


def test_the_bytes_are_flushed_before_the_name_is_given(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    storage.write(tmp_path / "net", {"kernel": ARRAYS["gaps"]})
    assert calls == ["fsync", "replace", "fsync"]


def test_weights_are_counted_by_their_levels():
    leaf = jnp.array([[0.0, 1.0, -1.0, 2.0, -2.0, 2.0]])
    assert storage.weight_bytes({"kernel": leaf, "bias": jnp.ones(9)}) == 5 * 2 / 8
    assert storage.weight_bytes({"kernel": jnp.zeros((3, 3))}) == 0
    assert storage.weight_bytes({"kernel": jnp.ones((4, 4))}) == 16 / 8  # one bit at the least
