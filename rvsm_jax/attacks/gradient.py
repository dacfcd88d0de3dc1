"""Gradient ascent in a ball: x <- project(x + a steepest(grad loss(logits(x), y))), with FGSM as its first step.

Shapes: B images ``[B, H, W, C]`` in [0, 1] (any ``[B, ...]`` will do), labels ``[B]``, logits ``[B, K]``.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rvsm_jax.attacks import checks
from rvsm_jax.attacks.geometry import Geometry, Start, l_inf, per_image
from rvsm_jax.attacks.loop import Attack, LogitsFn, Model, run
from rvsm_jax.attacks.losses import Loss, cross_entropy

Size = float | jax.Array | Callable[[jax.Array], jax.Array]


class _Options(NamedTuple):
    norm: Geometry
    loss: Loss
    start: Start | None
    schedule: Callable[[jax.Array], jax.Array] | None
    worst: bool


class Worst(NamedTuple):
    """Of all points met, the worst for the network: ``[B, H, W, C]``, whether it is misclassified, and its loss."""

    images: jax.Array
    broken: jax.Array
    loss: jax.Array


def fgsm(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array,
    norm: Geometry = l_inf,
    loss: Loss = cross_entropy,
    targets: jax.Array | None = None,
    eot: int = 1,
) -> jax.Array:
    """``x + eps sign(grad loss(logits(x), y))``, clipped to [0, 1]: one step of `pgd` as long as the radius.

    Args:
      logits_fn: as in `pgd`, like all that follow.
      images: ``[B, H, W, C]``.
      labels: ``[B]``.
      key: only for a random network.
      eps: the radius.
      norm: `l_inf`, or `l_2` for the step along the normalised gradient.
      loss: what is raised.
      targets: for a targeted loss.
      eot: draws of a random network.

    Returns:
      Images like ``images``.

    References:
      Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples", arXiv 1412.6572.

    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)
    >>> fgsm(logits_fn, jnp.full((1, 1, 2, 1), 0.5), jnp.array([0]), eps=0.125).ravel()
    Array([0.375, 0.375], dtype=float32)
    """
    return pgd(
        logits_fn, images, labels, key, eps=eps, step_size=eps, steps=1, norm=norm, loss=loss, targets=targets,
        random_start=False, eot=eot,
    )  # fmt: skip


def pgd(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array,
    step_size: Size | None = None,
    steps: int = 20,
    norm: Geometry = l_inf,
    loss: Loss = cross_entropy,
    targets: jax.Array | None = None,
    random_start: bool | Start = True,
    restarts: int = 1,
    keep: Literal["last", "worst"] = "last",
    eot: int = 1,
) -> jax.Array:
    """``x <- project(x + a steepest(grad loss(logits(x), y)))``, from a random point of the ball.

    With ``random_start=False`` this is IFGSM, the basic iterative method. A step costs one forward and one backward
    pass; ``keep="worst"`` and restarts cost one forward pass more.

    Args:
      logits_fn: any JAX function ``images -> logits``, or ``(images, key) -> logits`` if the network is random.
      images: ``[B, H, W, C]`` in [0, 1].
      labels: integers ``[B]``.
      key: for the starts and for a random network; None if there are neither.
      eps: radius, ``[]`` or ``[B]``.
      step_size: a, in units of pixels; or a function of the step 0, 1, ...; default 2.5 eps / steps.
      steps: how many.
      norm: `l_inf` or `l_2`.
      loss: what is raised; ``(logits, labels) -> [B]``, or ``(logits, labels, targets) -> [B]`` if there are targets.
      targets: integers ``[B]``, for a targeted loss.
      random_start: whether to start at random in the ball, not at the image; or ``(key, images, eps) -> images``.
      restarts: how many times from the beginning; of all, the worst for the network is kept.
      keep: of each image's points, the "last" or the "worst": one that is misclassified, then the one of largest
        loss. The worst of more steps of the same size, or of more restarts, is never better for the network.
      eot: draws over which a random network's logits and gradients are averaged, in every step.

    Returns:
      Images like ``images``, at most eps from them and in [0, 1], to the last bit.

    Raises:
      TypeError: if images are not floating-point or labels not integers.
      ValueError: for images outside [0, 1], labels that are no class, a negative radius, a missing key.
      FloatingPointError: if the network returns NaN.

    References:
      Madry et al., "Towards deep learning models resistant to adversarial attacks", arXiv 1706.06083, equation (3).
      Kurakin, Goodfellow, Bengio, "Adversarial examples in the physical world", arXiv 1607.02533.

    >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)
    >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
    >>> pgd(logits_fn, images, labels, jax.random.key(0), eps=0.125, step_size=0.05, steps=10).ravel()
    Array([0.375, 0.375], dtype=float32)
    """
    images, labels = checks.arrays(images, labels)
    checks.count("steps", steps)
    checks.count("restarts", restarts)
    if keep not in ("last", "worst"):
        raise ValueError(f'keep must be "last" or "worst", got {keep!r}')
    start = random_start if callable(random_start) else norm.start if random_start else None
    model, key = checks.network(logits_fn, key, eot, draws="random starts" if start else "")
    schedule = step_size if callable(step_size) else None
    eps = checks.radius("eps", eps, images)
    size = eps * (2.5 / steps) if step_size is None or schedule else checks.radius("step_size", step_size, images)
    options = _Options(norm, loss, start, schedule, keep == "worst" or restarts > 1)
    inputs: dict[str, Any] = {"images": images, "labels": labels, "eps": eps, "step_size": size, "targets": targets}
    attack = Attack(_init, _step, _finish, steps, options)
    worst = untouched(images, labels) if options.worst else None
    for k in range(restarts):
        points, logits, worst = run(attack, model, {**inputs, "key": jax.random.fold_in(key, k), "worst": worst})
    checks.outputs(logits, labels)
    return points if worst is None else worst.images


def _init(options: _Options, model: Model, inputs: dict[str, Any]) -> Any:
    images = points = inputs["images"]
    if options.start is not None:
        points = options.norm.project(
            options.start(jax.random.fold_in(inputs["key"], 0), images, inputs["eps"]), images, inputs["eps"]
        )
    shape = jax.eval_shape(model.logits, images, inputs["key"])
    return points, jnp.zeros(shape.shape, shape.dtype), inputs["worst"]


def _step(options: _Options, model: Model, inputs: dict[str, Any], i: jax.Array, state: Any) -> Any:
    points, _, worst = state
    key = jax.random.fold_in(inputs["key"], i + 1)
    values, logits, gradient = model.gradient(loss_of(options, inputs), points, key)
    if options.worst:
        worst = worse(worst, points, values, logits, inputs["labels"])
    size = inputs["step_size"] if options.schedule is None else options.schedule(i)
    moved = points + per_image(size, points) * options.norm.steepest(gradient)
    return options.norm.project(moved, inputs["images"], inputs["eps"]), logits, worst


def _finish(options: _Options, model: Model, inputs: dict[str, Any], state: Any) -> Any:
    points, logits, worst = state
    if options.worst:
        values, logits = model.loss(loss_of(options, inputs), points, jax.random.fold_in(inputs["key"], 2**31 - 1))
        worst = worse(worst, points, values, logits, inputs["labels"])
    return points, logits, worst


def loss_of(options: Any, inputs: dict[str, Any]) -> Callable[[jax.Array], jax.Array]:
    """``logits -> options.loss``, with the labels, and targets if there are any, filled in.

    >>> loss_of(_Options(l_inf, cross_entropy, None, None, False), {"labels": jnp.array([0]), "targets": None})(
    ...     jnp.zeros((1, 2))
    ... ).round(4)
    Array([0.6931], dtype=float32)
    """
    labels, targets = inputs["labels"], inputs["targets"]
    if targets is None:
        return lambda z: options.loss(z, labels)
    return lambda z: options.loss(z, labels, targets)


def untouched(images: jax.Array, labels: jax.Array) -> Worst:
    """The worst of no points: the images.

    >>> untouched(jnp.ones((2, 1)), jnp.array([0, 0])).loss
    Array([-inf, -inf], dtype=float32)
    """
    return Worst(images, jnp.zeros(labels.shape, bool), jnp.full(labels.shape, -jnp.inf, images.dtype))


def worse(worst: Worst, points: jax.Array, values: jax.Array, logits: jax.Array, labels: jax.Array) -> Worst:
    """Of two points for each image the misclassified one, or else the one of larger loss.

    Args:
      worst: the worst so far.
      points: ``[B, ...]``.
      values: their loss ``[B]``.
      logits: theirs.
      labels: ``[B]``.

    Returns:
      The worst now.

    >>> images, labels = jnp.zeros((1, 1)), jnp.array([0])
    >>> worse(untouched(images, labels), images + 0.5, jnp.array([1.0]), jnp.array([[1.0, 2.0]]), labels)
    Worst(images=Array([[0.5]], dtype=float32), broken=Array([ True], dtype=bool), loss=Array([1.], dtype=float32))
    """
    broken = logits.argmax(1) != labels
    better = (broken & ~worst.broken) | ((broken == worst.broken) & (values > worst.loss))
    return Worst(
        jnp.where(better.reshape(-1, *[1] * (points.ndim - 1)), points, worst.images),
        worst.broken | broken,
        jnp.where(better, values.astype(worst.loss.dtype), worst.loss),
    )
