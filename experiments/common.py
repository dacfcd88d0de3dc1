"""What every experiment shares: its options, and a results file that says where its figures come from."""

import ctypes
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import tyro

T = TypeVar("T")

RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "orbax-checkpoint", "tensorflow-datasets")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options that every experiment has.

    Attributes:
      quick: a small version of the same run, for a first look and for tests.
      seed: the first random seed; a script that repeats uses seed, seed + 1, ...
      data_dir: folder of prepared data sets; default: $RVSM_DATA_DIR, then the user's cache.
      out: folder for the results file and the figure.
    """

    quick: bool = False
    seed: int = 0
    data_dir: pathlib.Path | None = None
    out: pathlib.Path = RESULTS


def run(main: Callable[[T], Any], options: type[T], description: str | None) -> None:
    """What a script does when it is called: options from the command line, and memory that is kept.

    Args:
      main: the script.
      options: a dataclass of its options.
      description: its docstring, for ``--help``.
    """
    keep_freed_memory()
    given = tyro.cli(options, description=description)
    for name in ("epochs", "seeds", "rounds"):
        if (value := getattr(given, name, None)) is not None and value < 1:
            raise SystemExit(f"--{name} must be at least 1, got {value}")
    main(given)


def keep_freed_memory() -> bool:
    """Has the C library keep what is freed for the next call; before JAX is first used. Elsewhere than glibc: nothing.

    XLA's CPU backend allocates the temporary arrays of a step anew each time. Beyond 32 MiB glibc hands them back to
    the system after every step, which gives the next one empty pages, one fault for each 4 KiB. It holds for all
    libraries of the process, for PyTorch in comparisons as well.

    Returns:
      Whether it did.
    """
    arena_max, mmap_max, trim_threshold = -8, -4, -1  # of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = {arena_max: 1, mmap_max: 0, trim_threshold: 2**31 - 1}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


def summary(values: Sequence[float]) -> dict[str, Any]:
    """n, mean and sample standard deviation of repeated measurements, and the values themselves.

    >>> summary([1.0, 2.0, 3.0])
    {'n': 3, 'mean': 2.0, 'std': 1.0, 'values': [1.0, 2.0, 3.0]}
    """
    x = np.asarray(values, float)
    return {
        "n": x.size,
        "mean": float(x.mean()),
        "std": float(x.std(ddof=1)) if x.size > 1 else None,
        "values": x.tolist(),
    }


def plus_minus(measured: Mapping[str, Any], digits: int = 2) -> str:
    """mean ± standard deviation, for a table.

    >>> plus_minus(summary([1.0, 2.0, 3.0]))
    '2.00 ± 1.00'
    """
    spread = "" if measured["std"] is None else f" ± {measured['std']:.{digits}f}"
    return f"{measured['mean']:.{digits}f}{spread}"


def hardware() -> dict[str, Any]:
    """The backend and its devices, and the processor that drives them."""
    cpu = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    devices = jax.devices()
    return {
        "backend": jax.default_backend(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "cpu": cpu,
        "cores": cores(),
    }


def one_device_per_core() -> None:
    """Makes every core a device of the CPU backend, for what is split over devices; before JAX is first used."""
    jax.config.update("jax_num_cpu_devices", cores())


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """The git revision of the working tree, with ``-dirty`` after it if there are uncommitted changes."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(
            command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def save(name: str, options: Options, started: float, *, experiment: str | None = None, **results: Any) -> pathlib.Path:
    """Writes ``<out>/<name>.json`` (``<name>-quick.json`` for a quick run), whole or not at all.

    Args:
      name: the experiment's name.
      options: the options it ran with, saved beside the results.
      started: ``time.time()`` at its start.
      experiment: the script's name, if it is not the file's.
      **results: what it found: anything JSON can hold, and NumPy or JAX numbers and arrays.

    Returns:
      The path written.

    Raises:
      OSError: if the folder cannot be written; an older file of the same name is left untouched.
    """
    record = {
        "experiment": experiment or name,
        "command": shlex.join(["python", "-m", f"experiments.{experiment or name}", *_without_paths(sys.argv[1:])]),
        "options": {k: v for k, v in dataclasses.asdict(options).items() if not _is_folder(k, v)},
        "revision": revision(),
        "versions": versions(),
        "hardware": hardware(),
        "minutes": round((time.time() - started) / 60, 2),
        **results,
    }
    path = output_path(name, options, ".json")
    partial = path.with_suffix(".json.partial")
    try:
        partial.write_text(json.dumps(record, indent=1, default=_plain) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _is_folder(name: str, value: Any) -> bool:
    return name in ("out", "data_dir") or isinstance(value, pathlib.Path)


def _without_paths(arguments: Sequence[str]) -> list[str]:
    """Arguments without the folders, which mean nothing on another machine.

    >>> _without_paths(["--data-dir", "data", "--runs", "/a/b", "--seed", "1", "--out=/c"])
    ['--seed', '1']
    >>> _without_paths(["--runs", "300"])  # a number of runs
    ['--runs', '300']
    """
    kept, skip = [], False
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, given, value = argument.partition("=")
        folder = name in ("--data-dir", "--out") or (name == "--runs" and not (value or following).isdigit())
        if not (skip or folder):
            kept.append(argument)
        skip = folder and not given
    return kept


def output_path(name: str, options: Options, suffix: str) -> pathlib.Path:
    """``<out>/<name><suffix>``, with ``-quick`` in the name of a quick run; the folder is made."""
    options.out.mkdir(parents=True, exist_ok=True)
    return options.out / f"{name}{'-quick' if options.quick else ''}{suffix}"


def load(name: str, folder: pathlib.Path = RESULTS) -> Mapping[str, Any]:
    """Reads a results file back."""
    return json.loads((folder / f"{name}.json").read_text())


def saved_rows(name: str, options: Options) -> list[dict[str, Any]]:
    """The rows of a results file as it is now, so that a killed run goes on; none if there is no file."""
    try:
        return list(load(output_path(name, options, "").name, options.out)["rows"])
    except FileNotFoundError:
        return []


def agrees(row: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Whether a row has all fields of the key, with the same values.

    >>> agrees({"name": "l0", "seed": 1, "accuracy": 99.0}, {"name": "l0", "seed": 1})
    True
    """
    return all(row[field] == value for field, value in key.items())


def _plain(value: Any) -> Any:
    if isinstance(value, pathlib.Path):
        return str(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return np.asarray(value).tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"results hold numbers, texts, lists and dicts, got {value!r}")
