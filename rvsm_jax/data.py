"""Images by name: arrays in, arrays out.

Shapes: N images of H x W pixels and C channels, uint8 ``[N, H, W, C]``; labels int32 ``[N]``; a batch has B of them.

A data set is looked for as a cache ``<name>-<version>.npz``, first in the data directory and then in the user's cache;
failing that as a folder ``<name>/<version>/`` that TensorFlow Datasets prepared in array_record form, which is decoded
once and cached. A cache is all that later runs need, so TensorFlow Datasets is imported only to make one.
"""

import contextlib
import json
import numbers
import os
import pathlib
import warnings
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CLASSES = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
Levels = float | Sequence[float]  # one number, or one a channel
Part = tuple[np.ndarray, np.ndarray]  # images and labels
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class Dataset(NamedTuple):
    """A data set in memory: uint8 images ``[N, H, W, C]`` and int32 labels ``[N]``, for training and for testing."""

    name: str
    version: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads a data set from its cache, or from a prepared folder which is then cached.

    Args:
      name: ``"digits"`` (embedded in scikit-learn), ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"`` or ``"cifar100"``.
      data_dir: folder of caches and prepared data sets, possibly read-only; default: ``$RVSM_DATA_DIR``. The user's
        cache, ``$XDG_CACHE_HOME/rvsm_jax`` or ``~/.cache/rvsm_jax``, is looked into after it.

    Returns:
      The data set; a damaged cache is rebuilt with a warning if the prepared folder is there.

    Raises:
      ValueError: if the name is unknown, or all that was found is damaged or has labels out of range.
      FileNotFoundError: if there is neither a cache nor a prepared folder; the message says where and what to do.

    >>> digits = load("digits")
    >>> digits.train_images.shape, digits.test_images.shape, digits.num_classes
    ((1437, 8, 8, 1), (360, 8, 8, 1), 10)
    """
    if name not in CLASSES:
        raise ValueError(f"unknown data set {name!r}; known names: {', '.join(sorted(CLASSES))}")
    if name == "digits":
        return _digits()
    folders, problems = _folders(data_dir), list[str]()
    prepared = _prepared(name, folders)
    for path in _caches(name, folders, prepared):
        try:
            return _read_cache(name, path)
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            problems.append(f"{path}: {type(error).__name__}: {error}")
    if prepared is None:
        raise _missing(name, folders, problems)
    if problems:
        warnings.warn(f"damaged cache, rebuilding it from {prepared}: {'; '.join(problems)}", stacklevel=2)
    dataset = _decode(name, prepared)
    _write_cache(dataset, folders)
    return dataset


def split(images: np.ndarray, labels: np.ndarray, validation: int, seed: int) -> tuple[Part, Part]:
    """Holds ``validation`` examples out, drawn without replacement by ``seed``.

    Args:
      images: ``[N, ...]``.
      labels: ``[N]``.
      validation: how many to hold out, ``0 <= validation < N``.
      seed: the same seed gives the same split on every machine.

    Returns:
      ``((images, labels), (images, labels))``: what remains, ``N - validation`` of them, and what is held out.

    Raises:
      TypeError: if ``validation`` is not an integer.
      ValueError: if lengths differ or ``validation`` is out of range.

    >>> (images, _), (held_out, _) = split(np.zeros((10, 2, 2, 1)), np.arange(10), validation=3, seed=0)
    >>> len(images), len(held_out)
    (7, 3)
    """
    if len(images) != len(labels):
        raise ValueError(f"images and labels differ in length: {len(images)} and {len(labels)}")
    if not isinstance(validation, numbers.Integral):
        raise TypeError(f"validation must be a number of examples, got {validation!r}")
    if not 0 <= validation < len(labels):
        raise ValueError(f"validation must be in 0..{len(labels) - 1} for {len(labels)} examples, got {validation}")
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out, kept = np.sort(order[:validation]), np.sort(order[validation:])
    return (images[kept], labels[kept]), (images[held_out], labels[held_out])


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel of ``images / 255``, over N, H and W.

    Args:
      images: uint8 ``[N, H, W, C]``.

    Returns:
      The means and the standard deviations, C each.

    >>> moments(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1))
    ((0.5,), (0.5,))
    """
    counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])]
    levels = np.arange(256) / 255
    means = [float(count @ levels / count.sum()) for count in counts]
    squares = [float(count @ levels**2 / count.sum()) for count in counts]
    return tuple(means), tuple(float(np.sqrt(s - m * m)) for s, m in zip(squares, means, strict=True))


def normalize(images: jax.Array, mean: Levels, std: Levels, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """``(images / 255 - mean) / std``, channel by channel.

    Args:
      images: uint8 ``[..., C]``.
      mean: of the images scaled to [0, 1]: one number, or C of them.
      std: likewise; positive.
      dtype: of the result; the arithmetic is in float32.

    Returns:
      ``[..., C]`` of ``dtype``.

    Raises:
      ValueError: if a standard deviation is not positive, or there are neither one nor C of them, or of the means.

    >>> normalize(jnp.array([[0, 255]], jnp.uint8), mean=(0.0, 0.5), std=(1.0, 0.5))
    Array([[0., 1.]], dtype=float32)
    """
    m, s = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if not (s > 0).all():
        raise ValueError(f"std must be positive, got {std}")
    for name, levels in (("mean", m), ("std", s)):
        if levels.shape not in ((), images.shape[-1:]):
            raise ValueError(f"{name} must be one number or one a channel, {images.shape[-1]}, got {levels.tolist()}")
    m, s = (np.broadcast_to(x, (1,) * (images.ndim - 1) + images.shape[-1:]) for x in (m, s))
    return (images.astype(jnp.float32) * (1 / (255 * s)) - m / s).astype(dtype)


def crop(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Pads every image by ``padding`` zeros and cuts the old size out again at a place of its own, drawn uniformly.

    Args:
      key: random key.
      images: ``[B, H, W, C]``.
      padding: of each of the four sides.

    Returns:
      ``[B, H, W, C]``, same dtype.

    Raises:
      ValueError: if ``padding`` is negative.

    >>> crop(jax.random.key(0), jnp.ones((2, 8, 8, 1), jnp.uint8), padding=2).shape
    (2, 8, 8, 1)
    """
    if padding < 0:
        raise ValueError(f"padding must be >= 0, got {padding}")
    shape = images.shape[1:]
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), shape))(padded, corners)


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors every image left to right with probability one half.

    Args:
      key: random key.
      images: ``[B, H, W, C]``.

    Returns:
      ``[B, H, W, C]``, same dtype.

    >>> images = jnp.tile(jnp.arange(2), 20).reshape(20, 1, 2, 1)
    >>> sorted(set(flip(jax.random.key(0), images)[:, 0, 0, 0].tolist()))
    [0, 1]
    """
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """``flip(k2, crop(k1, images))``, k1 and k2 split from ``key``: the usual augmentation of CIFAR.

    Args:
      key: random key.
      images: ``[B, H, W, C]``.

    Returns:
      ``[B, H, W, C]``, same dtype.

    >>> augment(jax.random.key(0), jnp.ones((2, 32, 32, 3), jnp.uint8)).shape
    (2, 32, 32, 3)
    """
    cropping, flipping = jax.random.split(key)
    return flip(flipping, crop(cropping, images))


def _digits() -> Dataset:
    """Scikit-learn's 8 x 8 digits; a fixed fifth of them is the test set."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    (train_images, train_labels), (test_images, test_labels) = split(images, labels.astype(np.int32), 360, seed=0)
    return Dataset("digits", "1.0.0", train_images, train_labels, test_images, test_labels, CLASSES["digits"])


def _folders(data_dir: str | os.PathLike[str] | None) -> list[pathlib.Path]:
    given = data_dir or os.environ.get("RVSM_DATA_DIR")
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "rvsm_jax")
    return [pathlib.Path(given).expanduser(), cache] if given else [cache]


def _by_version(path: pathlib.Path) -> tuple[int, ...]:
    """Sorts 3.10.0 after 3.9.0; what is no version comes first."""
    version = path.stem.rpartition("-")[2] if path.suffix == ".npz" else path.name
    return tuple(int(part) if part.isdigit() else -1 for part in version.split("."))


def _prepared(name: str, folders: Sequence[pathlib.Path]) -> pathlib.Path | None:
    """The newest prepared version in the first folder that has one."""
    versions = ([info.parent for info in folder.glob(f"{name}/*/dataset_info.json")] for folder in folders)
    return next((max(found, key=_by_version) for found in versions if found), None)


def _caches(name: str, folders: Sequence[pathlib.Path], prepared: pathlib.Path | None) -> list[pathlib.Path]:
    """Caches to try, newest first: of any version, but from the prepared folder on only of the prepared one."""
    found, version = [], "*"
    for folder in folders:
        version = prepared.name if prepared and folder == prepared.parents[1] else version
        found += sorted(folder.glob(f"{name}-{version}.npz"), key=_by_version, reverse=True)
    return found


def _read_cache(name: str, path: pathlib.Path) -> Dataset:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in ARRAYS}
    return _checked(Dataset(name, path.stem.rpartition("-")[2], **arrays, num_classes=CLASSES[name]))


def _checked(dataset: Dataset) -> Dataset:
    for part, images, labels in (("train", *dataset[2:4]), ("test", *dataset[4:6])):
        if images.dtype != np.uint8 or images.ndim != 4 or labels.dtype != np.int32 or labels.shape != images.shape[:1]:
            found = f"{images.dtype}{images.shape}, {labels.dtype}{labels.shape}"
            raise ValueError(f"{dataset.name} {part}: wanted uint8 [N, H, W, C] and int32 [N], found {found}")
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= dataset.num_classes:
            seen = f"{labels.min()}..{labels.max()}" if len(labels) else "no labels"
            raise ValueError(f"{dataset.name} {part}: wanted labels in 0..{dataset.num_classes - 1}, found {seen}")
    return dataset


def _write_cache(dataset: Dataset, folders: Sequence[pathlib.Path]) -> None:
    """Writes the cache into the first folder that takes it, whole or not at all; if none does, warns."""
    problems = []
    for folder in folders:
        path = folder / f"{dataset.name}-{dataset.version}.npz"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not folder.stat().st_mode & 0o222:  # else root would write where nobody is meant to
                raise PermissionError(f"{folder} is read-only")
            with partial.open("wb") as file:
                np.savez(file, **{key: getattr(dataset, key) for key in ARRAYS})
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            return
        except OSError as error:
            problems.append(f"{path}: {error}")
        finally:
            with contextlib.suppress(OSError):  # a read-only file system complains even of a file that is not there
                partial.unlink(missing_ok=True)
    warnings.warn(f"{dataset.name} is in memory but could not be cached: {'; '.join(problems)}", stacklevel=3)


def _decode(name: str, folder: pathlib.Path) -> Dataset:
    """Reads both parts of a prepared folder."""
    form = json.loads((folder / "dataset_info.json").read_text()).get("fileFormat", "tfrecord")
    if form != "array_record":
        raise ValueError(f"{folder} is prepared as {form}, wanted array_record: {_command(name, folder.parents[1])}")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(folder))
        train, test = (_read_source(builder.as_data_source(split=part)) for part in ("train", "test"))
    except Exception as error:  # array_record raises what it likes on a damaged shard
        raise ValueError(f"{folder} is damaged or incomplete: {type(error).__name__}: {error}") from error
    return _checked(Dataset(name, folder.name, *train, *test, num_classes=CLASSES[name]))


def _read_source(source: Sequence[dict[str, np.ndarray]], chunk: int = 1000) -> Part:
    images = np.empty((len(source), *source[0]["image"].shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), chunk):
        at = range(start, min(start + chunk, len(source)))
        examples = source.__getitems__(at) if hasattr(source, "__getitems__") else [source[i] for i in at]
        images[start : at.stop] = [example["image"] for example in examples]
        labels[start : at.stop] = [example["label"] for example in examples]
    return images, labels


def _command(name: str, folder: pathlib.Path) -> str:
    call = f"tfds.builder('{name}', data_dir='{folder}').download_and_prepare(file_format='array_record')"
    return f'pip install "rvsm-jax[download]" && python -c "import tensorflow_datasets as tfds; {call}"'


def _missing(name: str, folders: Sequence[pathlib.Path], problems: Sequence[str]) -> Exception:
    places = ", ".join(map(str, folders))
    looked = f"looked for {name}-*.npz and {name}/<version>/ in {places}"
    ways = f"""Either download it once:
  {_command(name, folders[0])}
or put the cache {name}-<version>.npz or the prepared folder {name}/<version>/ into one of these folders;
--data-dir or RVSM_DATA_DIR names another one."""
    damaged = f"no usable copy of {name}: {'; '.join(problems)}; {looked}.\n{ways}"
    return ValueError(damaged) if problems else FileNotFoundError(f"no {name}: {looked}.\n{ways}")
