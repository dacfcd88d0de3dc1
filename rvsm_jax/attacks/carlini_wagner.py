"""Carlini and Wagner's l_2 attack, and the weakened protocol under which the papers of this package report it.

Shapes: B images x ``[B, H, W, C]``, logits z ``[B, K]``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rvsm_jax.attacks import checks
from rvsm_jax.attacks.geometry import euclidean, per_image
from rvsm_jax.attacks.loop import Attack, LogitsFn, Model, run
from rvsm_jax.attacks.losses import margin

B1, B2, TINY = 0.9, 0.999, 1e-8
MOST = 1e10


class _Options(NamedTuple):
    searches: int
    steps: int


class _Adam(NamedTuple):
    """Where an optimisation stands: w, and Adam's two moments."""

    w: jax.Array
    mean: jax.Array
    square: jax.Array


class _State(NamedTuple):
    adam: _Adam
    c: jax.Array
    low: jax.Array
    high: jax.Array
    found: jax.Array
    best: jax.Array
    distance: jax.Array
    logits: jax.Array


def carlini_wagner(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    steps: int = 1000,
    searches: int = 9,
    step_size: float | jax.Array = 0.01,
    initial_c: float | jax.Array = 0.01,
    confidence: float | jax.Array = 0.0,
    eot: int = 1,
) -> jax.Array:
    """``argmin |x' - x|^2 + c max(z_y - max over k != y of z_k + kappa, 0)``, x' = (tanh w + 1) / 2, for the best c.

    Adam minimises over w, from the image, for each c; c is multiplied by 10 until the network is fooled, and then found
    by bisection. Of all points met that fool the network, by kappa at least, the nearest to the image is returned.

    Args:
      logits_fn: ``images -> logits``, or ``(images, key) -> logits`` if the network is random.
      images: ``[B, H, W, C]`` in [0, 1].
      labels: integers ``[B]``.
      key: only for a random network.
      steps: of Adam, for each c; a step costs a forward and a backward pass.
      searches: how many values of c are tried.
      step_size: Adam's, in units of w.
      initial_c: the first c.
      confidence: kappa.
      eot: draws over which a random network is averaged.

    Returns:
      Images like ``images``, in [0, 1]; the image itself where the network was never fooled, or is wrong as it is.

    Raises:
      TypeError, ValueError, FloatingPointError: as `pgd`.

    References:
      Carlini, Wagner, "Towards evaluating the robustness of neural networks", arXiv 1608.04644, section VI.A.

    >>> logits_fn = lambda x: x.reshape(len(x), -1) @ jnp.array([[3.0, 0.0], [4.0, 0.0]]) - jnp.array([[2.5, 0.0]])
    >>> near = carlini_wagner(logits_fn, jnp.full((1, 1, 2, 1), 0.5), jnp.array([0]), steps=100, searches=8)
    >>> print(near.ravel().round(2))
    [0.38 0.34]
    """
    images, labels = checks.arrays(images, labels)
    checks.count("steps", steps)
    checks.count("searches", searches)
    model, key = checks.network(logits_fn, key, eot)
    inputs = {
        "images": images,
        "labels": labels,
        "key": key,
        "step_size": checks.radius("step_size", step_size, images, zero=False),
        "c": checks.radius("initial_c", initial_c, images, zero=False),
        "confidence": checks.radius("confidence", confidence, images),
    }
    best, logits = run(Attack(_init, _step, _finish, steps * searches, _Options(searches, steps)), model, inputs)
    checks.outputs(logits, labels)
    return best


def _init(options: _Options, model: Model, inputs: dict[str, Any]) -> _State:
    x = inputs["images"]
    each = jnp.zeros(x.shape[:1], x.dtype)
    logits = model.logits(x, jax.random.fold_in(inputs["key"], 0))
    wrong = logits.argmax(1) != inputs["labels"]
    distance = jnp.where(wrong, each, each + jnp.inf)
    adam = _Adam(jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros_like(x))
    return _State(adam, each + inputs["c"], each, each + MOST, wrong, x, distance, logits)


def _step(options: _Options, model: Model, inputs: dict[str, Any], i: jax.Array, s: _State) -> _State:
    x, labels, kappa = inputs["images"], inputs["labels"], inputs["confidence"]
    t = i % options.steps
    fresh = t == 0
    adam = jax.tree.map(
        lambda new, old: jnp.where(fresh, new, old), _Adam(_arctanh(x), *[jnp.zeros_like(x)] * 2), s.adam
    )
    found = s.found & ~fresh

    def objective(w):
        points = _box(w)
        _, logits = model.loss(lambda z: margin(z, labels), points, jax.random.fold_in(inputs["key"], i + 1))
        behind = jnp.maximum(kappa - margin(logits, labels), 0).astype(x.dtype)
        squared = jnp.square(points - x).reshape(x.shape[0], -1).sum(1)
        return (squared + s.c * behind).sum(), (points, logits)

    gradient, (points, logits) = jax.grad(objective, has_aux=True)(adam.w)
    fooled = (logits.argmax(1) != labels) & (margin(logits, labels) >= kappa)
    distance = euclidean(points - x)
    nearer = fooled & (distance < s.distance)
    found = found | fooled
    low, high, c = _bisect(s, found)
    last = t == options.steps - 1
    return _State(
        _adam(adam, gradient, inputs["step_size"], t + 1),
        jnp.where(last, c, s.c),
        jnp.where(last, low, s.low),
        jnp.where(last, high, s.high),
        found,
        jnp.where(_mask(nearer, x), points, s.best),
        jnp.where(nearer, distance, s.distance),
        logits,
    )


def _finish(options: _Options, model: Model, inputs: dict[str, Any], s: _State) -> tuple[jax.Array, jax.Array]:
    return s.best, s.logits


def _bisect(s: _State, found: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    high = jnp.where(found, jnp.minimum(s.c, s.high), s.high)
    low = jnp.where(found, s.low, jnp.maximum(s.c, s.low))
    return low, high, jnp.where(high < MOST, (low + high) / 2, s.c * 10)


def _adam(adam: _Adam, gradient: jax.Array, size: jax.Array, t: jax.Array) -> _Adam:
    """``w - a m / (sqrt(v) + tiny)`` with both moments corrected for starting at 0."""
    mean = B1 * adam.mean + (1 - B1) * gradient
    square = B2 * adam.square + (1 - B2) * jnp.square(gradient)
    t = t.astype(gradient.dtype)
    root = jnp.sqrt(square / (1 - B2**t))
    return _Adam(adam.w - per_image(size, gradient) * (mean / (1 - B1**t)) / (root + TINY), mean, square)


def _box(w: jax.Array) -> jax.Array:
    return (jnp.tanh(w) + 1) / 2


def _arctanh(x: jax.Array) -> jax.Array:
    """W of x, a little inside the box, where w is finite and its gradient does not vanish."""
    return jnp.arctanh((2 * x - 1) * (1 - 1e-6))


def _mask(which: jax.Array, images: jax.Array) -> jax.Array:
    return which.reshape(-1, *[1] * (images.ndim - 1))


def carlini_wagner_as_released(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array = 0.031,
    steps: int = 50,
    step_size: float | jax.Array = 6e-4,
    c: float | jax.Array = 10.0,
    eot: int = 1,
) -> jax.Array:
    """``x + eps (w - x)``, w the best of 50 steps of Adam on ``|w - x|^2 + c max(z_k - max over j != k of z_j, 0)``.

    A weak attack, kept to reproduce published columns: k is the class that the network predicts, c is not searched,
    and what was found is scaled down by eps. As released it has no box: images may leave [0, 1].

    Args:
      logits_fn: ``images -> logits``, or ``(images, key) -> logits`` if the network is random.
      images: ``[B, H, W, C]`` in [0, 1].
      labels: integers ``[B]``; checked, and otherwise not used.
      key: only for a random network.
      eps: the factor.
      steps: of Adam.
      step_size: Adam's, in units of pixels.
      c: the weight of the margin.
      eot: draws over which a random network is averaged.

    Returns:
      Images like ``images``; w is the point of least objective among those met.

    Raises:
      TypeError, ValueError, FloatingPointError: as `pgd`.

    References:
      Wang, Yuan, Shi, Osher, "ResNets ensemble via the Feynman-Kac formalism", arXiv 1811.10745.
      Dinh, Wang, Bertozzi, Osher, Xin, "Sparsity meets robustness", arXiv 2003.00631.

    >>> logits_fn = lambda x: x.reshape(len(x), -1) @ jnp.array([[3.0, 0.0], [4.0, 0.0]])
    >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
    >>> near = carlini_wagner_as_released(logits_fn, images, labels, eps=1.0)
    >>> print(near.ravel().round(2))
    [0.47 0.47]
    """
    images, labels = checks.arrays(images, labels)
    checks.count("steps", steps)
    model, key = checks.network(logits_fn, key, eot)
    inputs = {
        "images": images,
        "key": key,
        "step_size": checks.radius("step_size", step_size, images, zero=False),
        "c": checks.radius("c", c, images),
    }
    best, logits = run(Attack(_released_init, _released_step, _released_finish, steps, None), model, inputs)
    checks.outputs(logits, labels)
    return images + per_image(checks.radius("eps", eps, images), images) * (best - images)


def _released_init(options: None, model: Model, inputs: dict[str, Any]) -> Any:
    x = inputs["images"]
    logits = model.logits(x, jax.random.fold_in(inputs["key"], 0))
    least = jnp.full(x.shape[:1], jnp.inf, x.dtype)
    return _Adam(x, jnp.zeros_like(x), jnp.zeros_like(x)), x, least, logits.argmax(1), logits


def _released_step(options: None, model: Model, inputs: dict[str, Any], i: jax.Array, state: Any) -> Any:
    x, (adam, best, least, predicted, _) = inputs["images"], state

    def objective(w):
        logits = model.logits(w, jax.random.fold_in(inputs["key"], i + 1))
        ahead = jnp.maximum(-margin(logits, predicted), 0).astype(x.dtype)
        values = jnp.square(w - x).reshape(x.shape[0], -1).sum(1) + inputs["c"] * ahead
        return values.sum(), (values, logits)

    gradient, (values, logits) = jax.grad(objective, has_aux=True)(adam.w)
    better = values < least
    best, least = jnp.where(_mask(better, x), adam.w, best), jnp.where(better, values, least)
    return _adam(adam, gradient, inputs["step_size"], i + 1), best, least, predicted, logits


def _released_finish(options: None, model: Model, inputs: dict[str, Any], state: Any) -> Any:
    return state[1], state[4]
