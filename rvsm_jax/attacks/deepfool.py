"""DeepFool: the smallest step across the nearest linearised boundary, until the network is wrong.

Shapes: B images ``[B, H, W, C]``, logits z ``[B, K]``, n classes that are looked at beside the label.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rvsm_jax.attacks import checks
from rvsm_jax.attacks.geometry import Geometry, clip, l_2, per_image
from rvsm_jax.attacks.loop import Attack, LogitsFn, Model, run
from rvsm_jax.attacks.losses import chosen


class _Options(NamedTuple):
    norm: Geometry
    classes: int


def deepfool(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    norm: Geometry = l_2,
    steps: int = 50,
    overshoot: float | jax.Array = 0.02,
    classes: int = 9,
    eot: int = 1,
) -> jax.Array:
    """``r <- r + |f_k| / |grad f_k|_* steepest(grad f_k)``, f_k = z_k - z_y, with k of the least |f_k| / |grad f_k|_*.

    The points are clip(x + (1 + overshoot) r). Where the network is linear and the box does not bind, one step is the
    smallest perturbation there is. Pixels at 0 or 1 that a step would move out of the box have no part in it: else most
    of a step would be cut off where most pixels are black, and the boundary approached but not crossed. An image that
    is misclassified is returned as it is.

    Args:
      logits_fn: ``images -> logits``, or ``(images, key) -> logits`` if the network is random.
      images: ``[B, H, W, C]`` in [0, 1].
      labels: integers ``[B]``.
      key: only for a random network.
      norm: `l_2`, or `l_inf` for the smallest largest change of a pixel.
      steps: at most.
      overshoot: how much further than the boundary to go.
      classes: how many other classes, the likeliest of the image; a step costs a forward and that many backward passes.
      eot: draws over which a random network is averaged.

    Returns:
      Images like ``images``, in [0, 1]; after all steps some may still be classified correctly.

    Raises:
      TypeError, ValueError, FloatingPointError: as `pgd`.

    References:
      Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep neural networks",
      arXiv 1511.04599, Algorithm 2 and section 3.3.

    >>> logits_fn = lambda x: x.reshape(len(x), -1) @ jnp.array([[3.0, 0.0], [4.0, 0.0]]) - jnp.array([[2.5, 0.0]])
    >>> near = deepfool(logits_fn, jnp.full((1, 1, 2, 1), 0.5), jnp.array([0]), overshoot=0.0)
    >>> print(near.ravel().round(2))
    [0.38 0.34]
    """
    images, labels = checks.arrays(images, labels)
    checks.count("steps", steps)
    checks.count("classes", classes)
    model, key = checks.network(logits_fn, key, eot)
    beyond = 1 + checks.radius("overshoot", overshoot, images)
    inputs = {"images": images, "labels": labels, "beyond": beyond, "key": key}
    attack = Attack(_init, _step, _finish, steps, _Options(norm, classes), _all_wrong)
    points, logits = run(attack, model, inputs)
    checks.outputs(logits, labels)
    return points


def _init(options: _Options, model: Model, inputs: dict[str, Any]) -> dict[str, jax.Array]:
    images, labels = inputs["images"], inputs["labels"]
    logits = model.logits(images, jax.random.fold_in(inputs["key"], 0))
    others = likeliest_others(logits, labels, options.classes)
    wrong = jnp.zeros(labels.shape, bool)
    return {"moved": jnp.zeros_like(images), "points": images, "wrong": wrong, "logits": logits, "others": others}


def _step(
    options: _Options, model: Model, inputs: dict[str, Any], i: jax.Array, state: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    labels, others, points = inputs["labels"], state["others"], state["points"]
    key = jax.random.fold_in(inputs["key"], i + 1)

    def differences(x):
        logits = model.logits(x, key)
        return jnp.take_along_axis(logits, others, 1).T - chosen(logits, labels)[None], logits

    values, pull, logits = jax.vjp(differences, points, has_aux=True)
    one = jnp.eye(others.shape[1], dtype=values.dtype)
    gradients = jax.vmap(lambda row: pull(jnp.broadcast_to(row[:, None], values.shape))[0])(one)
    down, up = (points <= 0)[None], (points >= 1)[None]
    gradients = jnp.where((down & (gradients < 0)) | (up & (gradients > 0)), 0, gradients)
    slopes = jax.vmap(options.norm.dual)(gradients)
    far = jnp.where(slopes > 0, jnp.abs(values).astype(slopes.dtype) / jnp.where(slopes > 0, slopes, 1), jnp.inf)
    nearest = far.argmin(0)
    gradient = jnp.take_along_axis(gradients, nearest.reshape(1, -1, *[1] * (points.ndim - 1)), 0)[0]
    distance = far.min(0)
    wrong = state["wrong"] | (logits.argmax(1) != labels)
    distance = jnp.where(wrong | ~jnp.isfinite(distance), 0, distance)
    moved = state["moved"] + per_image(distance, points) * options.norm.steepest(gradient)
    moved = clip(inputs["images"] + moved) - inputs["images"]
    further = clip(inputs["images"] + per_image(inputs["beyond"], points) * moved)
    points = jnp.where(per_image(wrong, points) > 0, points, further)
    return {"moved": moved, "points": points, "wrong": wrong, "logits": logits, "others": others}


def _all_wrong(state: dict[str, jax.Array]) -> jax.Array:
    return state["wrong"].all()


def _finish(
    options: _Options, model: Model, inputs: dict[str, Any], state: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return state["points"], state["logits"]


def likeliest_others(logits: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """The ``classes`` largest logits' classes, or as many as there are, without the label.

    Args:
      logits: ``[B, K]``.
      labels: ``[B]``.
      classes: n.

    Returns:
      int32 ``[B, min(n, K - 1)]``, the likeliest first.

    >>> likeliest_others(jnp.array([[1.0, 5.0, 3.0]]), jnp.array([1]), 9)
    Array([[2, 0]], dtype=int32)
    """
    own = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    others = jnp.where(own, -jnp.inf, logits)
    return jax.lax.top_k(others, min(classes, logits.shape[1] - 1))[1]
