"""The training loop: any chain, any forward function, an optional adversary; on one device or on many.

::

    state = init_state(params, model_state, tx, key)          # everything explicit
    step = make_step(forward, tx, weight_decay=5e-4)          # pure: (state, images, labels) -> (state, metrics)
    epoch = make_epoch(step, mesh)                            # many steps in one call, data chosen by index
    result = fit(forward, params, model_state, tx, train, validation, epochs=10, batch_size=128, key=key,
                 sparse=lambda w, step: prox(w, lam / beta))  # all of it, evaluated, recorded and checkpointed

Letters: w, the weights that are trained; u = sparse(w), those that are shipped. Shapes: N images ``[N, H, W, C]``,
which stay on the device as they are, labels int32 ``[N]``, B of them a batch, S = N // B steps an epoch.
"""

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rvsm_jax.checkpoints import CheckpointError, Checkpoints
from rvsm_jax.epochs import (
    Measure,
    Sparse,
    check_count,
    check_examples,
    check_labels,
    data_mesh,
    evaluate,
    make_epoch,
    replicate,
    shuffle,
    take,
)
from rvsm_jax.finite import NonFiniteLoss, all_finite, explain, nonfinite
from rvsm_jax.history import Record, Recorder, plot_history
from rvsm_jax.step import (
    Forward,
    Perturb,
    PyTree,
    TrainState,
    init_state,
    make_gradient,
    make_step,
    to_unit,
)

__all__ = ["CheckpointError", "FitResult", "Forward", "NonFiniteLoss", "Perturb", "Record", "TrainState"]
__all__ += ["data_mesh", "evaluate", "fit", "init_state", "make_epoch"]
__all__ += ["make_gradient", "make_step", "plot_history", "shuffle"]

Arrays = tuple[Any, Any]  # images [N, H, W, C] and labels [N]


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
      params: w, of the last epoch or of the best.
      sparse_params: u = sparse(w); w itself if no ``sparse`` was given, or if w has been replaced by u.
      model_state: the model's state that belongs to them.
      history: a record of every epoch, see `fit`.
      state: where training ended, to go on from.
      step: the number of steps after which ``params`` were taken.
    """

    params: PyTree
    sparse_params: PyTree
    model_state: PyTree
    history: list[Record]
    state: TrainState
    step: int


def fit(
    forward: Forward,
    params: PyTree,
    model_state: PyTree,
    tx: optax.GradientTransformation,
    train: Arrays,
    validation: Arrays | None = None,
    *,
    epochs: int,
    batch_size: int,
    key: jax.Array,
    sparse: Sparse | None = None,
    replace_weights: bool = False,
    select: Literal["last", "best"] = "last",
    attack: Perturb | None = None,
    metrics_path: str | os.PathLike[str] | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    keep: int = 2,
    config: Mapping[str, Any] | None = None,
    progress: bool = True,
    devices: Sequence[jax.Device] | None = None,
    **options: Any,
) -> FitResult:
    """``w = w + tx.update(g)`` over minibatches; evaluates w and u = sparse(w) each epoch, resumes where it was killed.

    Args:
      forward: ``(params, model_state, images, key, train) -> (logits, new model_state)``, pure.
      params: tree of floating-point arrays; neither it nor the arrays below are changed or donated.
      model_state: the model's other arrays; ``{}`` if none.
      tx: any chain.
      train: images ``[N, H, W, C]``, uint8 as a rule, and labels int32 ``[N]``.
      validation: the same, to evaluate on.
      epochs: how often the data are gone through; a resumed run counts those already done.
      batch_size: B; a multiple of the number of devices, and at most N.
      key: random key: order of the data, augmentation, noise.
      sparse: ``(w, step) -> u``, jitted here; step is the number of steps made, for strengths that are scheduled.
        Under ``optax.MultiSteps`` of k, whose schedules count updates: ``lambda w, step: sparse(w, step // k)``.
      replace_weights: put w := u at the end of each epoch, as the published runs did; sound is False.
      select: return the weights of the last epoch or of the best by validation accuracy, of u if there is one; by
        accuracy under ``attack`` if there is that.
      attack: an adversary, see ``perturb`` in `make_step`, that u meets on the validation data at each epoch's end.
      metrics_path: file of JSON lines, one an epoch. A resumed run rewrites it up to where it resumes.
      checkpoint_dir: where to save at each epoch's end, and to resume from if there is something.
      checkpoint_every: save also whenever so many steps are made.
      keep: how many checkpoints to keep.
      config: settings that a checkpoint must agree with to be resumed from, such as those of ``tx``; plain values.
      progress: whether to show a bar with the time that remains.
      devices: see `data_mesh`.
      **options: see `make_step`.

    Returns:
      The weights and the history. A record holds ``epoch`` (from 1), ``step``, means over the epoch ``train_loss``,
      ``train_accuracy`` and ``gradient_norm``; with ``validation`` also ``w_loss`` and ``w_accuracy``, and with
      ``sparse`` ``u_loss``, ``u_accuracy``, ``zeros`` (share of exact zeros in u's matrices, arrays of rank 2 or more),
      ``distance`` (Euclidean |w - u|, before any replacement); with ``attack`` also ``u_robust_loss`` and
      ``u_robust_accuracy``, or those of w if there is no u; and ``seconds``.

    Raises:
      TypeError: if labels, or arguments that count, are not integers, or weights not floating-point.
      ValueError: on arguments that do not fit together, labels out of range, weights that are not finite.
      NonFiniteLoss: when the loss, a gradient or a weight stops being finite; checkpoints hold good states only.
      CheckpointError: if ``checkpoint_dir`` holds checkpoints but none that this run may resume from.

    >>> forward = lambda w, state, images, key, train: (images.reshape(len(images), 2) @ w, state)
    >>> data = np.array([[255, 0], [0, 255]] * 8, np.uint8).reshape(16, 1, 2, 1), np.array([0, 1] * 8)
    >>> start, settings = jnp.zeros((2, 2)), {"epochs": 2, "batch_size": 4, "key": jax.random.key(0), "progress": False}
    >>> result = fit(forward, start, {}, optax.sgd(1.0), data, data, **settings)
    >>> result.step, result.history[-1]["epoch"], result.history[-1]["w_accuracy"]
    (8, 2, 1.0)
    """
    counts = {"epochs": epochs, "batch_size": batch_size, "keep": keep}
    counts |= {} if checkpoint_every is None else {"checkpoint_every": checkpoint_every}
    steps = _check_run(counts, train, validation, select, replace_weights, sparse, attack)
    mesh, (step_key, order_key) = data_mesh(devices, batch_size), jax.random.split(key)
    state = replicate(init_state(params, model_state, tx, step_key), mesh)
    _check_model(forward, sparse, params, model_state, train, validation, options.get("preprocess"))
    run, store = _Run(state, _best(state, -1.0) if select == "best" else None, [], {}), None
    if checkpoint_dir is not None:
        agree = _fingerprint(train, key, batch_size, select, replace_weights, options, config)
        store = Checkpoints(checkpoint_dir, agree, keep)
        found = store.restore(run[:2])
        run = _Run(*found[0], *found[1]) if found else run
        if int(run.state.step) > epochs * steps:
            raise ValueError(f"epochs = {epochs}, but {checkpoint_dir} is at step {run.state.step}, {steps} an epoch")
    advance = _make_chunk(forward, tx, replicate(train, mesh), order_key, batch_size, checkpoint_every, mesh, options)
    shared = {name: options[name] for name in ("preprocess", "compute_dtype") if options.get(name) is not None}
    measure, started = Measure(forward, sparse, validation, mesh, attack, **shared), time.perf_counter()
    with Recorder(metrics_path, run.records, epochs, progress) as recorder:
        while int(run.state.step) < epochs * steps:
            run = advance(run)
            if int(run.state.step) % steps == 0:
                run = _end_epoch(run, measure, replace_weights, time.perf_counter() - started)
                recorder.add(run.records[-1])
                started = time.perf_counter()
            if store is not None:
                store.save(int(run.state.step), run[:2], run[2:])
    step, w, kept = run.state[:3] if run.best is None else run.best[:3]
    u = w if replace_weights else measure.sparse(w, step)  # not twice: u is what was measured
    return FitResult(w, u, kept, run.records, run.state, int(step))


class _Best(NamedTuple):
    """The best weights so far, with the model's state and the number of steps that go with them."""

    step: jax.Array
    params: PyTree
    model_state: PyTree
    score: jax.Array


class _Run(NamedTuple):
    """All that a run is between two chunks of steps: arrays, and what JSON can hold."""

    state: TrainState
    best: _Best | None
    records: list[Record]
    part: dict[str, list[float]]  # the metrics of the steps made since the epoch began


def _best(state: TrainState, score: float) -> _Best:
    step, params, model_state = _copy(state[:3])
    return _Best(step, params, model_state, jnp.float32(score))


def _make_chunk(forward, tx, data, key, batch_size, every, mesh, options) -> Callable[[_Run], _Run]:
    """``chunk(run) -> run``: steps up to the epoch's end or the next checkpoint; raises if they are not finite."""
    step, gradient = make_step(forward, tx, **options), make_gradient(forward, **options)
    epoch, (images, labels), size = make_epoch(step, mesh), data, len(data[1])
    steps = size // batch_size

    def chunk(run):
        at = int(run.state.step)
        count = min(steps - at % steps, every - at % every if every else steps)
        order = replicate(shuffle(key, at // steps, examples=size, batch_size=batch_size), mesh)
        good = _copy(run.state)
        state, metrics = epoch(run.state, images, labels, order, count)
        if not all_finite(metrics, state):
            found = explain(gradient, step, lambda state: take(mesh, state, images, labels, order), good, count)
            raise NonFiniteLoss(*found, run.records)
        part = {name: run.part.get(name, []) + values.tolist() for name, values in metrics.items()}
        return run._replace(state=state, part=part)

    return chunk


def _end_epoch(run: _Run, measure: Measure, replace_weights: bool, seconds: float) -> _Run:
    """Evaluates, records and selects; puts w := u if asked to."""
    state, best = run.state, run.best
    u, found = measure(state)
    if replace_weights:
        if bad := nonfinite(u):
            message = f"sparse(w) is not finite after {state.step} steps; first leaf: {bad[0]!r}"
            raise NonFiniteLoss(message, int(state.step), bad[0], state, run.records)
        state = state._replace(params=_copy(u))
    ranked = ("u_robust_accuracy", "w_robust_accuracy", "u_accuracy", "w_accuracy")
    score = next((found[name] for name in ranked if name in found), 0.0)
    if best is not None and score > float(best.score):
        best = _best(state, score)
    means = {name: float(np.mean(values)) for name, values in run.part.items()}
    every = {
        "epoch": len(run.records) + 1,
        "step": int(state.step),
        "train_loss": means["loss"],
        "train_accuracy": means["accuracy"],
        "gradient_norm": means["gradient_norm"],
        **found,
        "seconds": round(seconds, 3),
    }
    record = {name: value if math.isfinite(value) else None for name, value in every.items()}
    return _Run(state, best, [*run.records, record], {})


def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


def _fingerprint(train, key, batch_size, select, replace_weights, options, config) -> dict[str, Any]:
    """What a checkpoint must agree with, as far as JSON can say it."""
    plain = {"weight_decay": 0.0, "label_smoothing": 0.0, "compute_dtype": None} | options
    dtype = plain["compute_dtype"]
    return {
        "batch_size": int(batch_size),
        "select": select,
        "replace_weights": replace_weights,
        "weight_decay": float(plain["weight_decay"]),
        "label_smoothing": float(plain["label_smoothing"]),
        "compute_dtype": None if dtype is None else str(jnp.dtype(dtype)),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "data": [zlib.crc32(np.asarray(array).tobytes()) for array in train],
        "config": _plain(config or {}),
    }


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, if JSON can hold them."""
    try:
        return json.loads(json.dumps(dict(config)))
    except TypeError as error:
        raise TypeError(f"config must hold plain values, for JSON: {error}; got {dict(config)}") from error


def _check_run(counts, train, validation, select, replace_weights, sparse, attack) -> int:
    """The number of steps an epoch, if the arguments fit together."""
    for name, value in counts.items():
        check_count(name, value)
    for part, examples in {"train": train, "validation": train if validation is None else validation}.items():
        if not (isinstance(examples, Sequence) and len(examples) == 2):
            raise TypeError(f"{part} must be a pair (images, labels), got {_kind(examples)}")
        check_examples(part, *examples)
    batch_size, size = counts["batch_size"], len(train[1])
    if batch_size > size:
        raise ValueError(f"batch_size must be in 1..{size}, the number of training examples, got {batch_size}")
    if replace_weights and sparse is None:
        raise ValueError("replace_weights=True puts w := sparse(w) and wants a function sparse, got sparse=None")
    if select not in ("last", "best"):
        raise ValueError(f"select must be 'last' or 'best', got {select!r}")
    for name, given in (("select='best'", select == "best"), ("attack", attack is not None)):
        if given and validation is None:
            raise ValueError(f"{name} needs validation data")
    return size // batch_size


def _kind(x: Any) -> str:
    return f"{type(x).__name__} of {len(x)}" if isinstance(x, Sequence) else type(x).__name__


def _check_model(forward, sparse, params, model_state, train, validation, preprocess) -> None:
    """Raises unless every label has a logit, w is finite and u is like w."""
    for part, (images, labels) in {"train": train, "validation": validation or train}.items():
        x = jax.eval_shape(lambda x: (preprocess or to_unit)(jnp.asarray(x)), images[:1])
        logits, _ = jax.eval_shape(lambda *a: forward(*a, False), params, model_state, x, jax.random.key(0))
        check_labels(part, int(labels.min()), int(labels.max()), logits.shape[-1])
    if bad := nonfinite(params):
        raise ValueError(f"the weights to start from must be finite; {bad[0]!r} is not")
    w, u = (jax.eval_shape(f, params, jnp.int32(0)) for f in (lambda w, _: w, sparse or (lambda w, _: w)))
    if w != u:
        raise ValueError(f"sparse must return a tree like the one it is given: {w}; got {u}")
