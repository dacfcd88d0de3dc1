"""A convolution whose patches do not overlap, under Gaussian input: the network for which RVSM is proved to learn.

    h(w; x) = (1/k) sum_i relu(w . x_i),   x_i in R^d independent N(0, I),   f(w) = E (h(w; x) - h(w*; x))^2

With t the angle between w and w*, and b = (k^2 - k) / (2 pi),

    f(w)      = (1/k^2) [b (|w| - |w*|)^2 + (k/2) |w - w*|^2 - (k/pi) |w| |w*| (sin t - t cos t)]
    grad f(w) = A w - B w*,   B = (pi - t) / (k pi),   A = L - (|w*| / |w|) (2 b + (k/pi) sin t) / k^2,
    L         = (k + 2 b) / k^2.

The Hessian of f is A on what is orthogonal to w and w*, A - |w*| sin t / (k pi |w|) on the tangent towards w*, and L
along w. So f is L/2 |w|^2 minus a convex function, and f(w + s) <= f(w) + grad f(w) . s + L/2 |s|^2 holds everywhere,
through w = 0 too: nothing more is needed for the descent of a gradient step.

At w = 0 the gradient has no limit, its limits over all directions have the mean -w* / (2 k), and this is what the
functions return and what autodiff of them gives; it is also the network's own gradient with relu'(0) = 1/2. At t = 0
and t = pi all are continuous.

Shapes: d weights, k patches; w and target (w*) are [d], floats of one dtype. k is a number or a scalar array.

References:
  Brutzkus and Globerson, arXiv:1702.07966 (the network, its loss and critical points).
  Dinh and Xin, arXiv:1812.05719 (RVSM on it). The text of their theorem was not at hand:
  what is stated here is derived.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.models.geometry import angle, length


class CriticalPoints(NamedTuple):
    """Where the gradient of the population loss vanishes, or has no limit.

    Attributes:
      minimum: w*, the global minimum, f = 0.
      saddle: -(k^2 - k) / (k^2 + (pi - 1) k) w*, degenerate: its Hessian is 0 across w* and L along it.
      maximum: 0, a local maximum in the shape of a cone.
    """

    minimum: jax.Array
    saddle: jax.Array
    maximum: jax.Array


def forward(w: jax.Array, patches: jax.Array) -> jax.Array:
    """h(w; x) = (1/k) sum_i relu(w . x_i).

    Args:
      w: [d].
      patches: [..., k, d].

    Returns:
      [...].

    Raises:
      ValueError: if a patch has not as many entries as w.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.models import no_overlap
      >>> print(no_overlap.forward(jnp.array([1.0, -1.0]), jnp.array([[3.0, 1.0], [0.0, 1.0]])))
      1.0
    """
    require_patches(w, patches)
    return jax.nn.relu(patches @ w).mean(axis=-1)


def empirical_loss(w: jax.Array, labels: jax.Array, patches: jax.Array) -> jax.Array:
    """f_n(w) = (1/n) sum_j (h(w; x_j) - y_j)^2.

    Args:
      w: [d].
      labels: y, [n]: ``forward(target, patches)``, with or without noise.
      patches: [n, k, d].

    Returns:
      A scalar; its mean over Gaussian patches is ``population_loss``, if the labels have no noise.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rvsm_jax.models import no_overlap
      >>> x, target = jax.random.normal(jax.random.key(0), (100, 4, 3)), jnp.array([1.0, 0.0, 0.0])
      >>> print(no_overlap.empirical_loss(target, no_overlap.forward(target, x), x))
      0.0
    """
    return jnp.mean(jnp.square(forward(w, patches) - labels))


def population_loss(w: jax.Array, target: jax.Array, k: int | jax.Array) -> jax.Array:
    """f(w) = (1/k^2) [b (|w| - |w*|)^2 + (k/2) |w - w*|^2 - (k/pi) (|w| |w*| sin t - t w . w*)].

    Args:
      w: [d].
      target: w*, [d].
      k: patches.

    Returns:
      A scalar >= 0, up to rounding.

    Raises:
      ValueError: if w and target have different shapes, or k is not an integer >= 1 (if it is not traced).

    References:
      Brutzkus and Globerson, arXiv:1702.07966, section 3.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rvsm_jax.models import no_overlap
      >>> w, target = jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])
      >>> print(no_overlap.population_loss(w, target, 1).round(4), no_overlap.population_loss(target, target, 1))
      0.6817 0.0
    """
    k = checked(w, target, k)
    far = (k - 1) / (2 * math.pi) * jnp.square(length(w)[0] - length(target)[0])
    return (far + jnp.sum(jnp.square(w - target)) / 2 - _bend(w, target) / math.pi) / k


def population_gradient(w: jax.Array, target: jax.Array, k: int | jax.Array) -> jax.Array:
    """Grad f(w) = A w - B w*; at w = 0 the mean of its limits, -w* / (2 k).

    Args:
      w: [d].
      target: w*, [d].
      k: patches.

    Returns:
      [d].

    Raises:
      ValueError: as ``population_loss``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rvsm_jax.models import no_overlap
      >>> w, target = jnp.array([0.3, -1.0, 0.2]), jnp.array([1.0, 0.0, 0.0])
      >>> closed = no_overlap.population_gradient(w, target, 4)
      >>> print([round(float(x), 4) for x in closed])
      [-0.0901, -0.1923, 0.0385]
      >>> print(bool(jnp.allclose(jax.grad(no_overlap.population_loss)(w, target, 4), closed, atol=1e-6)))
      True
    """
    k = checked(w, target, k)
    (_, unit), (s, _), t = length(w), length(target), angle(w, target)
    return curvature(k) * w - s * _inward(t, k) * unit - _pull(t, k) * target


def coefficients(w: jax.Array, target: jax.Array, k: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """(A, B) with grad f(w) = A w - B w*.

    Args:
      w: [d], not 0.
      target: w*, [d].
      k: patches.

    Returns:
      Two scalars; at w = w* both are 1/k. At w = 0 they are (L, 1 / (2 k)).

    Raises:
      ValueError: as ``population_loss``.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.models import no_overlap
      >>> w = jnp.array([1.0, 2.0])
      >>> print([round(float(x), 4) for x in no_overlap.coefficients(w, w, 4)])
      [0.25, 0.25]
    """
    k = checked(w, target, k)
    return coefficients_at(length(w)[0], angle(w, target), length(target)[0], k)


def coefficients_at(r: jax.Array, t: jax.Array, s: jax.Array, k: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """(A, B) as functions of r = |w|, the angle t and s = |w*|: all that the gradient depends on.

    Args:
      r: |w|.
      t: the angle between w and w*.
      s: |w*|.
      k: patches.

    Returns:
      Two scalars.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.models import no_overlap
      >>> print(no_overlap.coefficients_at(jnp.float32(1.0), jnp.float32(jnp.pi), jnp.float32(1.0), 4)[1])
      0.0
    """
    k = jnp.asarray(k, r.dtype)
    inverse = jnp.where(r == 0, 0, 1 / jnp.where(r == 0, 1, r))
    return curvature(k) - s * inverse * _inward(t, k), _pull(t, k)


def curvature(k: int | jax.Array) -> jax.Array:
    """L = 1/k + (k - 1) / (k pi), the largest curvature of f anywhere: RVSM descends for eta < 2 / (beta + L).

    Args:
      k: patches.

    Returns:
      L.

    Example:
      >>> from rvsm_jax.models import no_overlap
      >>> round(float(no_overlap.curvature(1)), 6), round(float(no_overlap.curvature(4)), 6)
      (1.0, 0.488732)
    """
    return jnp.asarray((1 + (k - 1) / math.pi) / k)


def critical_points(target: jax.Array, k: int | jax.Array) -> CriticalPoints:
    """w*, -(k^2 - k) / (k^2 + (pi - 1) k) w* and 0: minimum, degenerate saddle, local maximum.

    Args:
      target: w*, [d].
      k: patches; for k = 1 the saddle is 0 too.

    Returns:
      The three points.

    References:
      Brutzkus and Globerson, arXiv:1702.07966, section 4.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.models import no_overlap
      >>> print(no_overlap.critical_points(jnp.array([1.0, 0.0]), 4).saddle.round(4))
      [-0.4885 -0.    ]
    """
    k = checked(target, target, k)
    return CriticalPoints(target, -(k - 1) / (k + math.pi - 1) * target, jnp.zeros_like(target))


def require_patches(w: jax.Array, patches: jax.Array) -> None:
    """Refuses patches that do not fit the weights.

    Args:
      w: [d].
      patches: [..., k, d].

    Raises:
      ValueError: if w is not a vector, or a patch has not as many entries as w.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.models import no_overlap
      >>> no_overlap.require_patches(jnp.ones(3), jnp.ones((8, 4, 2)))
      Traceback (most recent call last):
        ...
      ValueError: patches must be [..., k, d] for weights [d], got shapes (8, 4, 2) and (3,)
    """
    if w.ndim != 1 or patches.ndim < 2 or patches.shape[-1] != w.shape[0]:
        raise ValueError(f"patches must be [..., k, d] for weights [d], got shapes {patches.shape} and {w.shape}")


def checked(w: jax.Array, target: jax.Array, k: int | jax.Array) -> jax.Array:
    """K in the weights' dtype, if the weights fit the target and k is a number of patches.

    Args:
      w: [d].
      target: [d].
      k: patches.

    Returns:
      k, a scalar.

    Raises:
      ValueError: if w and target are not vectors of one length, or k is not an integer >= 1 (if it is not traced).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.models import no_overlap
      >>> no_overlap.checked(jnp.ones(3), jnp.ones(3), 2.5)
      Traceback (most recent call last):
        ...
      ValueError: k must be an integer >= 1, got 2.5
    """
    if w.ndim != 1 or w.shape != target.shape:
        raise ValueError(f"weights and target must be vectors of one length, got shapes {w.shape} and {target.shape}")
    if not isinstance(k, jax.core.Tracer):
        number = np.asarray(k)
        if number.ndim != 0 or not number >= 1 or number != np.floor(number):
            raise ValueError(f"k must be an integer >= 1, got {k}")
    return jnp.asarray(k, w.dtype)


@jax.custom_jvp
def _bend(w, v):
    """|w| |v| (sin t - t cos t); the rule keeps its second derivatives exact at t = 0 and pi, where t has none."""
    t = angle(w, v)
    return length(w)[0] * length(v)[0] * jnp.sin(t) - t * jnp.dot(w, v)


@_bend.defjvp
def _bend_jvp(primals, tangents):
    w, v = primals
    (r, a), (s, b), t = length(w), length(v), angle(w, v)
    slope = s * jnp.sin(t) * a - t * v, r * jnp.sin(t) * b - t * w
    return _bend(w, v), jnp.dot(slope[0], tangents[0]) + jnp.dot(slope[1], tangents[1])


def _pull(t, k):
    return (math.pi - t) / (math.pi * k)


def _inward(t, k):
    return (k - 1 + jnp.sin(t)) / (math.pi * k)
