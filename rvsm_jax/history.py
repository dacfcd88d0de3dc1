"""What a run leaves for its reader: a line of JSON an epoch, a progress bar, a figure."""

import json
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import rich.progress

Record = dict[str, float | None]  # None stands for what is not finite, as JSON has no word for it


class Recorder:
    """Keeps the records of a run in a file of JSON lines and the last one in view.

    Args:
      path: file of JSON lines, or None. It is begun anew, from ``records``.
      records: those of the epochs already done, if the run is resumed.
      epochs: how many there will be.
      progress: whether to show a bar with the time that remains.

    A file that cannot be written is warned about and the run goes on. Of several processes the first writes and shows.
    """

    def __init__(self, path: str | os.PathLike[str] | None, records: Sequence[Record], epochs: int, progress: bool):
        first = jax.process_index() == 0
        self._path = pathlib.Path(path) if path is not None and first else None
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("epoch"),
            rich.progress.MofNCompleteColumn(),
            rich.progress.BarColumn(bar_width=10),
            rich.progress.TimeRemainingColumn(compact=True),
            rich.progress.TextColumn("left  {task.description}"),
            disable=not (progress and first),
            speed_estimate_period=1e6,
        )
        self._task = self._bar.add_task("", total=epochs, completed=len(records))
        self._write("".join(map(_line, records)), fresh=True)

    def __enter__(self) -> "Recorder":
        if not self._bar.disable:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._bar.disable:  # an older rich ends a disabled bar with an empty line, too
            self._bar.stop()

    def add(self, record: Record) -> None:
        """Appends the record of an epoch."""
        self._write(_line(record), fresh=False)
        self._bar.update(self._task, advance=1, description=describe(record))

    def _write(self, text: str, fresh: bool) -> None:
        if self._path is None:
            return
        try:
            if fresh:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("w" if fresh else "a") as file:
                file.write(text)
        except OSError as error:
            warnings.warn(f"metrics are kept in memory only, {self._path} cannot be written: {error}", stacklevel=2)


def describe(record: Mapping[str, Any]) -> str:
    """One line for a reader.

    >>> describe({"train_loss": 0.12345, "u_accuracy": 0.991, "zeros": 0.95})
    'loss 0.1235  u 99.10 %  zeros 95.00 %'
    """
    shown = {"w_accuracy": "w", "u_accuracy": "u", "zeros": "zeros"}
    parts = [f"loss {record['train_loss']:.4f}"] if record.get("train_loss") is not None else []
    parts += [f"{word} {100 * record[key]:.2f} %" for key, word in shown.items() if record.get(key) is not None]
    return "  ".join(parts)


def plot_history(history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draws accuracy of w and u, sparsity of u and the distance ``|w - u|`` over the epochs.

    Args:
      history: records as of `fit`; quantities they lack are left out.
      path: the picture; its suffix says the format.

    Raises:
      ValueError: if the history is empty.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plot_history([{"epoch": 1, "zeros": 0.5}, {"epoch": 2, "zeros": 0.9}], os.path.join(folder, "run.png"))
    ...     os.listdir(folder)
    ['run.png']
    """
    if not history:
        raise ValueError("cannot plot an empty history")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.5), layout="constrained")
    panels: tuple[tuple[str, dict[str, str]], ...] = (
        ("accuracy", {"train_accuracy": "train", "w_accuracy": "w", "u_accuracy": "u"}),
        ("share of zero weights in u", {"zeros": "u"}),
        ("|w - u|", {"distance": "|w - u|"}),
    )
    for axes, (title, lines) in zip(figure.subplots(1, 3), panels, strict=True):
        for key, label in lines.items():
            points = [(r["epoch"], r[key]) for r in history if r.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=label)
        axes.set(title=title, xlabel="epoch")
        axes.locator_params(axis="x", integer=True)
        if len(axes.lines) > 1:
            axes.legend()
    figure.savefig(path)


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
