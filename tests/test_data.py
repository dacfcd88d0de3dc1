import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvsm_jax import data

GREY = data.Dataset(
    "mnist",
    "3.0.1",
    np.arange(6 * 28 * 28).astype(np.uint8).reshape(6, 28, 28, 1),
    np.arange(6, dtype=np.int32),
    np.ones((4, 28, 28, 1), np.uint8),
    np.array([9, 8, 7, 6], np.int32),
    10,
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty user's cache and no data directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RVSM_DATA_DIR", raising=False)
    (tmp_path / "home" / "rvsm_jax").mkdir(parents=True)
    return tmp_path / "home" / "rvsm_jax"


def store(folder, dataset, **changes):
    """Writes a cache by hand, as the documentation describes it."""
    folder.mkdir(exist_ok=True)
    arrays = {key: getattr(dataset, key) for key in data.ARRAYS} | changes
    np.savez(folder / f"{dataset.name}-{dataset.version}.npz", **arrays)
    return folder / f"{dataset.name}-{dataset.version}.npz"


def assert_same(found, wanted):
    assert found[:2] == wanted[:2] and found.num_classes == wanted.num_classes
    for a, b in zip(found[2:6], wanted[2:6], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def prepared(real_data_dir, tmp_path):
    """A data directory that holds the prepared folder of MNIST, and nothing else."""
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "mnist").symlink_to(real_data_dir / "mnist")
    return tmp_path / "prepared"


def test_mnist_is_mnist_and_is_cached(prepared, cache):
    mnist = data.load("mnist", prepared)
    assert mnist.train_images.shape == (60000, 28, 28, 1) and mnist.test_images.shape == (10000, 28, 28, 1)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_array_equal(np.bincount(mnist.train_labels), counts)
    np.testing.assert_allclose(data.moments(mnist.train_images), [[0.1307], [0.3081]], atol=5e-5)
    assert (prepared / "mnist-3.0.1.npz").exists() and not list(cache.iterdir())
    (prepared / "mnist").unlink()
    assert_same(data.load("mnist", prepared), mnist)


def test_a_damaged_cache_is_rebuilt(prepared, cache, monkeypatch):
    monkeypatch.setattr(data, "_decode", lambda name, folder: GREY)  # decoding is tested above
    path = store(prepared, GREY)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.warns(UserWarning, match="damaged cache, rebuilding"):
        assert_same(data.load("mnist", prepared), GREY)
    assert_same(data.load("mnist", prepared), GREY)
    assert sorted(p.name for p in prepared.iterdir()) == ["mnist", "mnist-3.0.1.npz"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped", "array missing"])
def test_a_damaged_cache_alone_is_one_clear_error(cache, damage):
    path = store(cache, GREY)
    whole = path.read_bytes()
    middle = len(whole) // 2
    if damage == "array missing":
        np.savez(path, train_images=GREY.train_images)
    else:
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        damaged = {"truncated": whole[:middle], "empty": b"", "text": b"not an archive", "flipped": flipped}
        path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"no usable copy of mnist.*mnist-3\.0\.1\.npz") as error:
        data.load("mnist")
    assert "download_and_prepare" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"train_labels": np.full(6, 10, np.int32)}, r"labels in 0\.\.9, found 10\.\.10"),
        ({"test_labels": np.full(4, -1, np.int32)}, r"labels in 0\.\.9, found -1\.\.-1"),
        ({"test_labels": np.zeros(3, np.int32)}, r"found uint8\(4, 28, 28, 1\), int32\(3,\)"),
        ({"train_images": np.zeros((6, 28, 28, 1))}, "found float64"),
    ],
)
def test_a_cache_with_wrong_contents_is_refused(cache, changes, match):
    store(cache, GREY, **changes)
    with pytest.raises(ValueError, match=match):
        data.load("mnist")


def test_missing_data_say_where_and_what_to_do(cache, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        data.load("cifar100", tmp_path / "there")
    for part in ("cifar100-*.npz", str(tmp_path / "there"), str(cache), "rvsm-jax[download]", "RVSM_DATA_DIR"):
        assert part in str(error.value)
    assert "tfds.builder('cifar100', data_dir=" in str(error.value) and not (tmp_path / "there").exists()


def test_another_file_format_is_refused_by_name(cache):
    (cache / "mnist" / "3.0.1").mkdir(parents=True)
    (cache / "mnist" / "3.0.1" / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(ValueError, match=r"prepared as tfrecord, wanted array_record: .*file_format='array_record'"):
        data.load("mnist")


def test_a_damaged_shard_is_one_clear_error(prepared, cache, real_data_dir):
    source = real_data_dir / "mnist" / "3.0.1"
    (prepared / "mnist").unlink()
    (prepared / "mnist" / "3.0.1").mkdir(parents=True)
    for file in source.iterdir():
        content = file.read_bytes()
        (prepared / "mnist" / "3.0.1" / file.name).write_bytes(content[:100000] if "train" in file.name else content)
    with pytest.raises(ValueError, match=r"mnist/3.0.1 is damaged or incomplete"):
        data.load("mnist", prepared)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown data set 'minst'; known names: cifar10, .*mnist"):
        data.load("minst")


def test_the_environment_names_the_data_directory(cache, tmp_path, monkeypatch):
    store(tmp_path / "given", GREY)
    monkeypatch.setenv("RVSM_DATA_DIR", str(tmp_path / "given"))
    assert_same(data.load("mnist"), GREY)


def test_the_data_directory_goes_before_the_cache_and_the_newest_version_first(cache, tmp_path):
    store(cache, GREY._replace(version="9.0.0"))
    for version in ("3.0.9", "3.0.10"):
        store(tmp_path / "given", GREY._replace(version=version))
    assert data.load("mnist", tmp_path / "given").version == "3.0.10"
    assert data.load("mnist").version == "9.0.0"


def test_a_read_only_directory_sends_the_cache_home(prepared, cache, monkeypatch):
    monkeypatch.setattr(data, "_decode", lambda name, folder: GREY)
    prepared.chmod(0o555)
    try:
        data.load("mnist", prepared)
    finally:
        prepared.chmod(0o755)
    assert not (prepared / "mnist-3.0.1.npz").exists()
    monkeypatch.delattr(data, "_decode")
    assert_same(data.load("mnist", prepared), GREY)


def test_a_full_disk_warns_and_goes_on_in_memory(prepared, cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data, "_decode", lambda name, folder: GREY)
    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="could not be cached.*No space left"):
        assert_same(data.load("mnist", prepared), GREY)
    assert not list(cache.iterdir()) and [p.name for p in prepared.iterdir()] == ["mnist"]


def test_a_cache_alone_needs_no_tensorflow_datasets(cache):
    store(cache, GREY)
    code = "import sys; from rvsm_jax import data; data.load('mnist'); print('tensorflow_datasets' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_digits_are_all_there():
    digits = data.load("digits")
    assert digits.train_images.max() == 255 and digits.train_images.dtype == np.uint8
    counts = np.bincount(digits.train_labels) + np.bincount(digits.test_labels)
    np.testing.assert_array_equal(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])


def test_split_partitions_and_follows_its_seed():
    images, labels = np.arange(100).reshape(100, 1, 1, 1), np.arange(100)
    (kept, kept_labels), (held, held_labels) = data.split(images, labels, 30, seed=1)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept_labels, held_labels])), labels)
    np.testing.assert_array_equal(held[:, 0, 0, 0], held_labels)
    np.testing.assert_array_equal(kept[:, 0, 0, 0], kept_labels)
    np.testing.assert_array_equal(data.split(images, labels, 30, seed=1)[1][1], held_labels)
    assert (data.split(images, labels, 30, seed=2)[1][1] != held_labels).any()
    with pytest.raises(ValueError, match=r"validation must be in 0\.\.99 for 100 examples, got 100"):
        data.split(images, labels, 100, seed=0)
    with pytest.raises(TypeError, match=r"validation must be a number of examples, got 0\.1"):
        data.split(images, labels, 0.1, seed=0)
    with pytest.raises(ValueError, match="differ in length: 100 and 99"):
        data.split(images, labels[1:], 3, seed=0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalize_is_its_definition(dtype):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    mean, std = data.moments(images)
    found = jax.jit(lambda x: data.normalize(x, mean, std, dtype))(images)
    wanted = (images / 255 - np.array(mean)) / np.array(std)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(np.float32), wanted, atol=1e-6 if dtype == jnp.float32 else 0.01)
    np.testing.assert_allclose(wanted.mean((0, 1, 2)), 0, atol=1e-12)
    with pytest.raises(ValueError, match="std must be positive"):
        data.normalize(images, 0.5, 0.0)
    with pytest.raises(ValueError, match=r"mean must be one number or one a channel, 3, got \[0\.5, 0\.25\]"):
        data.normalize(images, (0.5, 0.25), 1.0)
    with pytest.raises(ValueError, match=r"std must be one number or one a channel, 3, got \[\[1\.0\]\]"):
        data.normalize(images, 0.5, [[1.0]])


def test_crops_are_all_the_shifts_of_the_padded_image():
    image = np.arange(1, 17, dtype=np.uint8).reshape(4, 4, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    shifts = {padded[i : i + 4, j : j + 4].tobytes() for i in range(3) for j in range(3)}
    crops = jax.jit(lambda key, x: data.crop(key, x, 1))(jax.random.key(0), np.stack([image] * 200))
    assert {np.asarray(c).tobytes() for c in crops} == shifts and crops.dtype == jnp.uint8
    with pytest.raises(ValueError, match="padding must be >= 0, got -1"):
        data.crop(jax.random.key(0), image[None], padding=-1)


def test_half_of_the_images_are_flipped():
    image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    flipped = np.asarray(jax.jit(data.flip)(jax.random.key(1), np.stack([image] * 1000)))
    mirrored = (flipped == image[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == image).all((1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)


def test_augment_depends_on_its_key_alone():
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    first, again, other = (jax.jit(data.augment)(jax.random.key(k), images) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any() and first.shape == images.shape
    batches = jax.vmap(data.augment)(jax.random.split(jax.random.key(0), 2), np.stack([images] * 2))
    np.testing.assert_array_equal(batches[0], data.augment(jax.random.split(jax.random.key(0), 2)[0], images))
