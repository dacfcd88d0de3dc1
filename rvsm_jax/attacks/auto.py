"""AutoAttack: Auto-PGD on two losses, FAB and Square, in turn, each on the examples that still stand.

``version="standard"``: APGD on the cross-entropy, APGD on the targeted DLR loss, FAB on targets, Square. ``"rand"``,
for random networks: APGD on the cross-entropy and on the DLR loss, each gradient and logit the mean over 20 draws.

It decides on the host who stands, so it is not for ``jit``; the attacks themselves are.

Shapes: N images ``[N, H, W, C]`` in [0, 1], labels ``[N]``, logits ``[B, K]`` of a batch.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.attacks import checks
from rvsm_jax.attacks.apgd import apgd
from rvsm_jax.attacks.deepfool import likeliest_others
from rvsm_jax.attacks.fab import SECANTS, fab
from rvsm_jax.attacks.geometry import Geometry, l_inf
from rvsm_jax.attacks.loop import LOOK_EVERY, Attack, LogitsFn, Model, run, traced
from rvsm_jax.attacks.losses import cross_entropy, dlr, margin, targeted_dlr, targeted_margin
from rvsm_jax.attacks.square import search

Batch = dict[str, Any]
Candidate = Callable[[Batch], tuple[jax.Array, int, int]]


class AutoAttack(NamedTuple):
    """What the attacks left standing.

    Attributes:
      images: ``[N, H, W, C]``: adversarial where one was found, else the image.
      robust: bool ``[N]``: classified correctly, and by no attack otherwise.
      accuracy: share of all N, "clean" and then after each attack: "apgd-ce", "apgd-t", "fab-t", "square".
      forward: image-wise forward passes of each attack.
      backward: image-wise gradients of each attack.
    """

    images: jax.Array
    robust: np.ndarray
    accuracy: dict[str, float]
    forward: dict[str, int]
    backward: dict[str, int]


def autoattack(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None,
    *,
    eps: float,
    norm: Geometry = l_inf,
    version: Literal["standard", "rand"] = "standard",
    batch_size: int = 128,
    steps: int = 100,
    queries: int = 5000,
    classes: int = 9,
    eot: int = 20,
    draws: int = 100,
) -> AutoAttack:
    """``robust = correct(x) and no attack in the ball found x' with argmax logits(x') != y``, one attack after another.

    With fewer than 4 classes, where the targeted DLR loss is not defined, the margin z_t - z_y takes its place; with
    fewer than 3, the margin that of the DLR loss.

    Args:
      logits_fn: ``images -> logits``, or ``(images, key) -> logits`` if the network is random.
      images: ``[N, H, W, C]`` in [0, 1].
      labels: integers ``[N]``.
      key: a random key.
      eps: radius.
      norm: `l_inf` or `l_2`.
      version: "standard", or "rand" for random networks.
      batch_size: images attacked at a time; what is compiled serves all batches.
      steps: of APGD and FAB.
      queries: of Square.
      classes: targets of APGD and FAB, the likeliest of the image.
      eot: draws over which a random network's gradients and logits are averaged in every step.
      draws: over which a random network's logits are averaged where it is decided whether an image still stands.

    Returns:
      The images, who stands, and the accuracy after each attack. An attack never raises the accuracy.

    Raises:
      TypeError, FloatingPointError: as `pgd`.
      ValueError: as `pgd`, or for another version.
      RuntimeError: under ``jit`` or another trace.

    Warns:
      AttackWarning: for a random network under "standard", for logits that look like probabilities, for gradients that
        are exactly zero, and when Square breaks what the gradients did not: robust accuracy may then be overestimated.

    References:
      Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
      arXiv 2003.01690.

    >>> w = jnp.array([[3.0, 0.0], [4.0, 1.0]])
    >>> logits_fn = lambda x: x.reshape(len(x), -1) @ w - jnp.array([[2.5, 0.0]])
    >>> images, labels = jnp.array([[0.9, 0.9], [0.5, 0.5]]).reshape(2, 1, 2, 1), jnp.array([0, 0])
    >>> found = autoattack(logits_fn, images, labels, jax.random.key(0), eps=0.1, steps=5, queries=5)
    >>> found.accuracy["clean"], found.robust
    (1.0, array([ True, False]))
    """
    if traced(images, labels):
        raise RuntimeError("autoattack decides on the host which images stand; under jit call apgd, fab or square")
    images, labels = checks.arrays(images, labels)
    if version not in ("standard", "rand"):
        raise ValueError(f'version must be "standard" or "rand", got {version!r}')
    for name, value in (("batch_size", batch_size), ("classes", classes), ("draws", draws), ("eot", eot)):
        checks.count(name, value)
    model, key = checks.network(logits_fn, key, eot, draws="random starts")
    if model.random and version == "standard":
        checks.warn('the network is random: use version="rand", which averages over draws')
    radius = checks.radius("eps", eps, images)
    judge = Judge(model, jax.random.fold_in(key, 0), -(-draws // model.eot) if model.random else 1)
    logits = jnp.concatenate([judge(images[i])[:n] for i, n in _batches(np.arange(len(images)), batch_size)])
    checks.outputs(logits, labels)
    common: Batch = {"logits_fn": logits_fn, "eps": radius, "norm": norm, "eot": eot, "steps": steps}
    stages = _standard(classes, logits.shape[1], queries) if version == "standard" else _rand(logits.shape[1])
    state = _State(np.array(images), np.array(logits.argmax(1) != labels), {}, {}, {})
    state.accuracy["clean"] = float(1 - state.broken.mean())
    _warn_of_zero_gradients(model, images, labels, state.broken, batch_size, key)
    others = likeliest_others(logits, labels, classes)
    for k, (name, target, candidate) in enumerate(stages):
        before = state.broken.sum()
        for i, n in _batches(np.flatnonzero(~state.broken), batch_size):
            batch = {**common, "images": images[i], "labels": labels[i], "key": jax.random.fold_in(key, 100 + k)}
            state = _attacked(state, name, {**batch, "targets": others[i, target]}, candidate, judge, i[:n])
        state.accuracy[name] = float(1 - state.broken.mean())
        if name == "square" and state.broken.sum() > before:
            checks.warn(
                f"Square broke {state.broken.sum() - before} images that the attacks by gradient did not: the gradients"
                " may be masked, and the robust accuracy overestimated"
            )
    accuracy, forward, backward = state.accuracy, state.forward, state.backward
    return AutoAttack(jnp.asarray(state.images), ~state.broken, accuracy, forward, backward)


class _State(NamedTuple):
    images: np.ndarray
    broken: np.ndarray
    accuracy: dict[str, float]
    forward: dict[str, int]
    backward: dict[str, int]


class Judge(NamedTuple):
    """Logits that decide: of a random network the mean over ``calls`` times ``eot`` draws."""

    model: Model
    key: jax.Array
    calls: int

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images ``[B, H, W, C]`` to logits ``[B, K]``."""

        def call(k):
            inputs = {"images": images, "key": jax.random.fold_in(self.key, k)}
            return run(Attack(_nothing, _nothing, _logits, 0, None), self.model, inputs)

        total = call(0)
        for k in range(1, self.calls):
            total = total + call(k)
        return total / self.calls


def _nothing(options: None, model: Model, inputs: Batch, *rest: Any) -> None:
    return None


def _logits(options: None, model: Model, inputs: Batch, state: None) -> jax.Array:
    return model.logits(inputs["images"], inputs["key"])


def _slopes(options: None, model: Model, inputs: Batch, state: None) -> jax.Array:
    """The largest entry of each image's gradient of the cross-entropy."""
    gradient = model.gradient(lambda z: cross_entropy(z, inputs["labels"]), inputs["images"], inputs["key"])[2]
    return jnp.abs(gradient.reshape(len(gradient), -1)).max(1)


def _attacked(state: _State, name: str, batch: Batch, candidate: Candidate, judge: Judge, index: np.ndarray) -> _State:
    """The state after one attack on one batch, of which the first ``len(index)`` images are not padding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", checks.AttackWarning)  # said once, of the clean images
        points, forward, backward = candidate(batch)
    points = batch["norm"].project(points, batch["images"], batch["eps"])
    wrong = np.asarray(judge(points).argmax(1) != batch["labels"])[: len(index)]
    state.images[index[wrong]] = np.asarray(points)[: len(index)][wrong]
    state.broken[index[wrong]] = True
    state.forward[name] = state.forward.get(name, 0) + len(index) * (forward + judge.calls * judge.model.eot)
    state.backward[name] = state.backward.get(name, 0) + len(index) * backward
    return state


def _standard(classes: int, total: int, queries: int) -> list[tuple[str, int, Candidate]]:
    targets, loss = range(min(classes, total - 1)), targeted_dlr if total > 3 else targeted_margin
    return [
        ("apgd-ce", 0, lambda b: _apgd(b, cross_entropy, None)),
        *(("apgd-t", k, lambda b: _apgd(b, loss, b["targets"])) for k in targets),
        *(("fab-t", k, _fab) for k in targets),
        ("square", 0, lambda b: _square(b, queries)),
    ]


def _rand(total: int) -> list[tuple[str, int, Candidate]]:
    return [
        ("apgd-ce", 0, lambda b: _apgd(b, cross_entropy, None)),
        ("apgd-dlr", 0, lambda b: _apgd(b, dlr if total > 2 else margin, None)),
    ]


def _apgd(b: Batch, loss: Any, targets: jax.Array | None) -> tuple[jax.Array, int, int]:
    points = apgd(
        b["logits_fn"], b["images"], b["labels"], b["key"], eps=b["eps"], norm=b["norm"], steps=b["steps"], loss=loss,
        targets=targets, eot=b["eot"],
    )  # fmt: skip
    draws = checks.network(b["logits_fn"], b["key"], b["eot"])[0].eot
    return points, draws * (b["steps"] + 1), draws * (b["steps"] + 1)


def _fab(b: Batch) -> tuple[jax.Array, int, int]:
    points = fab(
        b["logits_fn"], b["images"], b["labels"], b["key"], norm=b["norm"], steps=b["steps"], targets=b["targets"],
        eot=b["eot"],
    )  # fmt: skip
    return points, 2 * b["steps"] + SECANTS + 3, b["steps"]


def _square(b: Batch, queries: int) -> tuple[jax.Array, int, int]:
    found = search(
        b["logits_fn"], b["images"], b["labels"], b["key"], eps=b["eps"], norm=b["norm"], queries=queries, fraction=0.8,
        eot=b["eot"],
    )  # fmt: skip
    longest = int(found.queries.max())
    return found.points, min(queries, -(-(longest - 1) // LOOK_EVERY) * LOOK_EVERY + 1) + 1, 0


def _batches(standing: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Indices in batches of one of three sizes, so that little is compiled, with how many of each are not padding."""
    for start in range(0, len(standing), size):
        chunk = standing[start : start + size]
        room = min(s for s in (size, -(-size // 4), -(-size // 16)) if s >= len(chunk))
        yield np.concatenate([chunk, np.full(room - len(chunk), chunk[0], chunk.dtype)]), len(chunk)


def _warn_of_zero_gradients(
    model: Model, images: jax.Array, labels: jax.Array, broken: np.ndarray, size: int, key: jax.Array
) -> None:
    zero, standing = 0, np.flatnonzero(~broken)
    for i, n in _batches(standing, size):
        inputs = {"images": images[i], "labels": labels[i], "key": key}
        zero += int((run(Attack(_nothing, _nothing, _slopes, 0, None), model, inputs)[:n] == 0).sum())
    if zero:
        checks.warn(
            f"the gradient is exactly zero at {zero} of {len(standing)} images: attacks by gradient cannot work there"
        )
