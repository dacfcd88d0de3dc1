"""Checkpoints that are whole or not there: a folder a step, written by Orbax beside a manifest, renamed when complete.

::

    <directory>/step-00000938/arrays/          every array, by Orbax
    <directory>/step-00000938/manifest.json    their names, shapes, dtypes; sizes and digests of the files; the run

A process killed at any moment leaves at worst a hidden ``.partial`` folder, which the next run removes. What was cut
short later on, or comes from another run, is recognised by the manifest and refused; the newest good one is used.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from rvsm_jax.step import PyTree, leaf_name

FORMAT = "rvsm-jax checkpoint 1"
STEP = re.compile(r"step-\d+")


class CheckpointError(RuntimeError):
    """There are checkpoints, but none that may be resumed from; the message names each, what was found and wanted."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: where they are; made if it is not there.
      agree: what identifies the run, anything JSON can hold; others' checkpoints are neither used nor removed.
      keep: how many to keep, the newest.

    Raises:
      ValueError: if ``keep`` is less than 1.
      OSError: if the directory cannot be made.
    """

    def __init__(self, directory: str | os.PathLike[str], agree: Mapping[str, Any], keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._directory, self._keep = pathlib.Path(directory).absolute(), keep
        self._agree = json.loads(json.dumps(dict(agree)))
        self._directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            for left in self._directory.glob(".step-*.partial"):
                shutil.rmtree(left, ignore_errors=True)

    def save(self, step: int, tree: PyTree, extra: Any = None) -> bool:
        """Saves a tree of arrays, and ``extra``, anything JSON can hold.

        Returns:
          Whether it was saved. If not, on a full disk say, there is a warning, and older checkpoints are as they were.
        """
        final = self._directory / f"step-{step:08d}"
        partial = self._hidden(final)
        try:
            if (run := _run(final)) is not None and run[0] != self._agree:
                raise ValueError("there is one of another run")
            _write(partial, step, tree, extra, self._agree)
            if jax.process_index() == 0:
                if final.exists():
                    self._remove(final)
                os.replace(partial, final)
                self._prune(final)
        except (OSError, ValueError, RuntimeError) as error:  # of which TensorStore raises all three
            shutil.rmtree(partial, ignore_errors=True)
            warnings.warn(f"no checkpoint at step {step}, {final} could not be written: {error}", stacklevel=2)
            return False
        return True

    def restore(self, template: PyTree) -> tuple[PyTree, Any] | None:
        """The newest good checkpoint.

        Args:
          template: a tree of arrays with the structure, shapes, dtypes and shardings that are wanted.

        Returns:
          ``(tree, extra)``, or None if there are no checkpoints at all. Bad ones that are newer are warned about.

        Raises:
          CheckpointError: if there are checkpoints but no good one.
        """
        problems = [f"{path}: not a checkpoint of this package (wanted {FORMAT!r})" for path in self._strangers()]
        for path in reversed(self._paths()):
            try:
                restored = _read(path, template, self._agree)
            except CheckpointError as error:
                problems.append(f"{path}: {error}")
                continue
            if problems:
                warnings.warn(f"resuming from {path}, as others could not be used: {'; '.join(problems)}", stacklevel=2)
            return restored
        if problems:
            raise CheckpointError("; ".join(problems) + ". Remove them or choose another directory to start anew.")
        return None

    def _paths(self) -> list[pathlib.Path]:
        found = (path for path in self._directory.glob("step-*") if STEP.fullmatch(path.name))
        return sorted(found, key=lambda path: int(path.name[5:]))

    def _strangers(self) -> list[pathlib.Path]:
        """Folders that Orbax wrote for somebody else, the directory itself included."""
        found = (path.parent for path in self._directory.glob("**/_CHECKPOINT_METADATA"))
        return sorted(path for path in found if not STEP.fullmatch(path.parent.name))

    def _prune(self, newest: pathlib.Path) -> None:
        run = _run(newest)
        for path in [path for path in self._paths() if _run(path) == run][: -self._keep]:
            self._remove(path)

    def _remove(self, path: pathlib.Path) -> None:
        hidden = self._hidden(path).with_suffix(".old.partial")
        os.replace(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _hidden(self, path: pathlib.Path) -> pathlib.Path:
        return path.with_name(f".{path.name}.partial")


def _write(folder: pathlib.Path, step: int, tree: PyTree, extra: Any, agree: Mapping[str, Any]) -> None:
    import orbax.checkpoint as ocp

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    leaves = _leaves(tree)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "arrays", _stored(leaves))
        checkpointer.wait_until_finished()
    if jax.process_index() == 0:
        body = {"format": FORMAT, "step": step, "agree": agree, "leaves": _describe(leaves), "extra": extra}
        body["files"] = _files(folder / "arrays")
        with (folder / "manifest.json").open("w") as file:
            json.dump({"body": body, "digest": _digest_text(body)}, file)
            file.flush()
            os.fsync(file.fileno())


def _read(path: pathlib.Path, template: PyTree, agree: Mapping[str, Any]) -> tuple[PyTree, Any]:
    import orbax.checkpoint as ocp

    body, wanted = _manifest(path), _leaves(template)
    differences = _differences(body["agree"], agree) or _differences(dict(body["leaves"]), dict(_describe(wanted)))
    if differences:
        raise CheckpointError(f"it is of another run: {differences}")
    if differences := _differences(_files(path / "arrays"), body["files"]):
        raise CheckpointError(f"its arrays are damaged: {differences}")
    abstract = [(n, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)) for n, leaf in wanted]
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.restore(path / "arrays", _stored(abstract))
    except Exception as error:  # Orbax and TensorStore raise what they like
        summary = str(error).splitlines()[0][:200] if str(error) else ""
        raise CheckpointError(f"its arrays cannot be read: {type(error).__name__}: {summary}") from error
    leaves = [stored.get(f"{i:05d}", leaf) for i, (_, leaf) in enumerate(wanted)]
    templates, structure = jax.tree.flatten(template)
    return jax.tree.unflatten(structure, map(_from_raw, leaves, templates)), body["extra"]


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    """The checked body of a manifest."""
    try:
        stored = json.loads((path / "manifest.json").read_text())
        body, digest = dict(stored["body"]), str(stored["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"its manifest.json is missing or damaged: {error!r}") from error
    if body.get("format") != FORMAT:
        raise CheckpointError(f"found format {body.get('format')!r}, wanted {FORMAT!r}")
    if digest != _digest_text(body):
        raise CheckpointError(f"its manifest.json has digest {_digest_text(body)[:12]}, wanted {digest[:12]}")
    return body


def _run(path: pathlib.Path) -> tuple[Any, Any] | None:
    """What tells the runs apart to which checkpoints belong; None if it cannot be read."""
    try:
        body = _manifest(path)
    except CheckpointError:
        return None
    return body["agree"], body["leaves"]


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs, three items at most; empty if nothing does."""
    absent = "nothing"
    keys = [key for key in {**wanted, **found} if found.get(key, absent) != wanted.get(key, absent)]
    parts = [f"{key}: found {found.get(key, absent)}, wanted {wanted.get(key, absent)}" for key in keys[:3]]
    return ", ".join(parts) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _leaves(tree: PyTree) -> list[tuple[str, Any]]:
    return [(leaf_name(path), _raw(leaf)) for path, leaf in jax.tree.leaves_with_path(tree)]


def _stored(leaves: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The arrays by number; Orbax does not store empty ones, and they need not be."""
    return {f"{i:05d}": leaf for i, (_, leaf) in enumerate(leaves) if leaf.size}


def _describe(leaves: Sequence[tuple[str, Any]]) -> list[list[Any]]:
    return [[f"{i} {name}", [list(leaf.shape), str(leaf.dtype)]] for i, (name, leaf) in enumerate(leaves)]


def _raw(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _from_raw(leaf: jax.Array, template: jax.Array) -> jax.Array:
    typed = jax.numpy.issubdtype(template.dtype, jax.dtypes.prng_key)
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(template)) if typed else leaf


def _files(folder: pathlib.Path) -> dict[str, list[Any]]:
    """Size and digest of every file, by its path."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[str(path.relative_to(folder))] = [path.stat().st_size, digest[:16]]
    return found


def _digest_text(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
