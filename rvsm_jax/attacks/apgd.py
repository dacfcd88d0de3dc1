"""Auto-PGD: gradient ascent with momentum whose step halves by itself, restarting from the best point so far.

    z       = project(x_k + a steepest(grad f(x_k)))
    x_{k+1} = project(x_k + 3/4 (z - x_k) + 1/4 (x_k - x_{k-1})),        x_1 = z
    at a checkpoint, if f rose in fewer than 3/4 of the steps since the last one, or if since then neither a nor the
    largest f has changed: a <- a / 2 and x_{k+1} <- the point of largest f

with a = 2 eps at first, image by image.

Shapes: B images ``[B, H, W, C]`` in [0, 1], labels ``[B]``, logits ``[B, K]``.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.attacks import checks
from rvsm_jax.attacks.geometry import Geometry, l_inf, per_image
from rvsm_jax.attacks.gradient import Worst, loss_of, untouched, worse
from rvsm_jax.attacks.loop import Attack, LogitsFn, Model, run
from rvsm_jax.attacks.losses import Loss, cross_entropy

MOMENTUM = 0.75


class _Options(NamedTuple):
    norm: Geometry
    loss: Loss
    steps: int


class _State(NamedTuple):
    points: jax.Array
    before: jax.Array
    gradient: jax.Array
    loss: jax.Array
    best: jax.Array
    best_loss: jax.Array
    best_gradient: jax.Array
    size: jax.Array
    rises: jax.Array
    loss_then: jax.Array
    halved_then: jax.Array
    worst: Worst
    logits: jax.Array


def apgd(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array,
    steps: int = 100,
    norm: Geometry = l_inf,
    loss: Loss = cross_entropy,
    targets: jax.Array | None = None,
    restarts: int = 1,
    eot: int = 1,
) -> jax.Array:
    """``x <- project(x + 3/4 (project(x + a steepest(grad f)) - x) + 1/4 (x - x_before))``, a halved by itself.

    Args:
      logits_fn: ``images -> logits``, or ``(images, key) -> logits`` if the network is random.
      images: ``[B, H, W, C]`` in [0, 1].
      labels: integers ``[B]``.
      key: for the random starts, and for a random network.
      eps: radius, ``[]`` or ``[B]``.
      steps: how many; each costs a forward and a backward pass, and the start one more.
      norm: `l_inf` or `l_2`.
      loss: f, what is raised: `cross_entropy`, `dlr`, or with targets `targeted_dlr`.
      targets: integers ``[B]``, for a targeted loss.
      restarts: how many times from the beginning.
      eot: draws over which a random network's logits and gradients are averaged, in every step.

    Returns:
      Images like ``images``: of all points met one that is misclassified if there is any, else the one of largest f.

    Raises:
      TypeError, ValueError, FloatingPointError: as `pgd`.

    References:
      Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
      arXiv 2003.01690, Algorithm 1.

    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)
    >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
    >>> apgd(logits_fn, images, labels, jax.random.key(0), eps=0.125, steps=10).ravel()
    Array([0.375, 0.375], dtype=float32)
    """
    images, labels = checks.arrays(images, labels)
    checks.count("steps", steps)
    checks.count("restarts", restarts)
    model, key = checks.network(logits_fn, key, eot, draws="random starts")
    inputs = {"images": images, "labels": labels, "targets": targets, "eps": checks.radius("eps", eps, images)}
    attack, worst = Attack(_init, _step, _finish, steps, _Options(norm, loss, steps)), untouched(images, labels)
    for k in range(restarts):
        worst, logits = run(attack, model, {**inputs, "key": jax.random.fold_in(key, k), "worst": worst})
    checks.outputs(logits, labels)
    return worst.images


def checkpoints(steps: int) -> list[int]:
    """``ceil(p_j N)`` with p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).

    Args:
      steps: N.

    Returns:
      Those below N, without 0.

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    found, before, at = [], 0.0, 0.22
    while math.ceil(round(at * steps, 9)) < steps:
        found.append(math.ceil(round(at * steps, 9)))
        before, at = at, at + max(at - before - 0.03, 0.06)
    return found


def _init(options: _Options, model: Model, inputs: dict[str, Any]) -> _State:
    images, labels, key, eps = inputs["images"], inputs["labels"], inputs["key"], inputs["eps"]
    x = options.norm.start(jax.random.fold_in(key, 0), images, eps)
    values, logits, gradient = model.gradient(loss_of(options, inputs), x, jax.random.fold_in(key, 1))
    worst = worse(inputs["worst"], x, values, logits, labels)
    each = jnp.zeros_like(values)
    size = jnp.zeros(x.shape[:1], x.dtype) + 2 * eps
    return _State(
        x, x, gradient, values, x, values, gradient, size, each.astype(jnp.int32), values, each > 0, worst, logits
    )


def _step(options: _Options, model: Model, inputs: dict[str, Any], i: jax.Array, s: _State) -> _State:
    images, eps = inputs["images"], inputs["eps"]

    def project(points):
        return options.norm.project(points, images, eps)

    z = project(s.points + per_image(s.size, images) * options.norm.steepest(s.gradient))
    z = jnp.where(i == 0, z, project(s.points + MOMENTUM * (z - s.points) + (1 - MOMENTUM) * (s.points - s.before)))
    values, logits, gradient = model.gradient(loss_of(options, inputs), z, jax.random.fold_in(inputs["key"], i + 2))
    higher = values > s.best_loss
    wide = per_image(higher, images) > 0
    new = s._replace(
        points=z,
        before=s.points,
        gradient=gradient,
        loss=values,
        best=jnp.where(wide, z, s.best),
        best_loss=jnp.where(higher, values, s.best_loss),
        best_gradient=jnp.where(wide, gradient, s.best_gradient),
        rises=s.rises + (values > s.loss).astype(jnp.int32),
        worst=worse(s.worst, z, values, logits, inputs["labels"]),
        logits=logits,
    )
    return _adapted(new, *_schedule(options.steps, i))


def _adapted(s: _State, check: jax.Array, interval: jax.Array) -> _State:
    """Halves the step and goes back to the best point, where a checkpoint finds that it should."""
    few = 4 * s.rises < 3 * interval
    stuck = ~s.halved_then & (s.best_loss <= s.loss_then)
    halve = check & (few | stuck)
    wide = per_image(halve, s.points) > 0
    return s._replace(
        points=jnp.where(wide, s.best, s.points),
        gradient=jnp.where(wide, s.best_gradient, s.gradient),
        loss=jnp.where(halve, s.best_loss, s.loss),
        size=jnp.where(halve, s.size / 2, s.size),
        rises=jnp.where(check, 0, s.rises),
        loss_then=jnp.where(check, s.best_loss, s.loss_then),
        halved_then=jnp.where(check, halve, s.halved_then),
    )


def _schedule(steps: int, i: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether step i ends at a checkpoint, and the steps since the last one."""
    at = checkpoints(steps)
    interval = np.zeros(steps, np.int32)
    interval[np.array(at, int) - 1] = np.diff([0, *at])
    since = jnp.asarray(interval)[i]
    return since > 0, since


def _finish(options: _Options, model: Model, inputs: dict[str, Any], s: _State) -> tuple[Worst, jax.Array]:
    return s.worst, s.logits
