"""Runs that last: a file after each chunk, whole or not at all, and a bar that says how long is left."""

import hashlib
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich import progress as rich_progress

QUIET = 3.0  # seconds before the bar appears


def fingerprint(*parts: Any) -> str:
    """A name for a run that is the same in another process: of the arguments' values and the functions' code."""
    return hashlib.sha256(repr([_described(part) for part in parts]).encode()).hexdigest()


def write(path: str | pathlib.Path, name: str, tree: Any) -> None:
    """Saves the leaves of a tree: a new file is written beside the old one and then takes its place.

    Args:
      path: of the file.
      name: of the run, by `fingerprint`.
      tree: (time, state, results); its arrays may be spread over processes, the first of which writes.

    Raises:
      OSError: if the folder cannot be written; the old file is left as it is.
    """
    leaves = [[gathered(leaf) for leaf in jax.tree.leaves(part)] for part in tree]
    if jax.process_index() != 0:
        return
    path = pathlib.Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    named = {f"{i}.{j}": leaf for i, part in enumerate(leaves) for j, leaf in enumerate(part)}
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, name=np.array(name), **named)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | pathlib.Path, name: str) -> tuple[int, list[np.ndarray], list[np.ndarray]] | None:
    """What `write` saved: the time and the leaves of state and results, or None without a file.

    Raises:
      ValueError: if the file belongs to a run with other arguments.
    """
    if not pathlib.Path(path).exists():
        return None
    with np.load(path) as file:
        if str(file["name"]) != name:
            raise ValueError(f"checkpoint {path} belongs to another run: other walk, key, walkers, times or method")
        state, results = ([file[f"{i}.{j}"] for j in range(_count(file, i))] for i in (1, 2))
        return int(file["0.0"]), state, results


def gathered(x: Any) -> np.ndarray:
    """The whole of an array on this host, also where other processes hold parts of it."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


class Bar:
    """A progress bar with an estimated time of arrival, from three seconds on."""

    def __init__(self, total: int, shown: bool) -> None:
        self._total, self._begun = total, time.perf_counter()
        self._bar: rich_progress.Progress | None = None
        self._shown = shown and jax.process_index() == 0

    def update(self, done: int) -> None:
        """Moves on to `done` steps of the total."""
        late = time.perf_counter() - self._begun > QUIET
        if self._bar is None and self._shown and late and done < self._total:
            self._bar = _bar()
            self._task = self._bar.add_task("walking", total=self._total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()


def _bar() -> rich_progress.Progress:
    return rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
    )


def _count(file: Any, part: int) -> int:
    return sum(1 for name in file.files if name.startswith(f"{part}."))


def _described(part: Any) -> Any:
    if hasattr(part, "__dataclass_fields__"):
        return [type(part).__name__, *(_described(getattr(part, field)) for field in part.__dataclass_fields__)]
    if callable(part) and hasattr(part, "__code__"):
        code = part.__code__
        return [part.__module__, part.__qualname__, code.co_code, repr(code.co_consts), _described(part.__closure__)]
    if isinstance(part, tuple | list):
        return [_described(one) for one in part]
    if isinstance(part, jax.Array) and jax.dtypes.issubdtype(part.dtype, jax.dtypes.prng_key):
        part = jax.random.key_data(part)
    if isinstance(part, jax.Array | np.ndarray):
        array = gathered(part)
        return [array.shape, str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()]
    if type(part).__name__ == "cell":
        return _described(part.cell_contents)
    return repr(part)
