"""The no-overlap network with binary activation, whose loss has no useful gradient and is trained by a coarse one.

    h(w; x) = sum_i v_i 1{w . x_i > 0},   x_i in R^d independent N(0, I),   f(w) = 1/2 E (h(w; x) - h*(x))^2

h* has weights w* and outer weights v*. The derivative of a step is 0 almost everywhere, so back-propagation puts that
of a relu in its place (the straight-through estimator). Its mean over x is the coarse gradient

    g(w) = p w / |w| - q w* / |w*|,
    p    = (|v|^2 + (1.v)^2 - (1.v)(1.v*)) / (2 sqrt(2 pi)),   q = v . v* / (2 sqrt(2 pi)).

For v = v*, with t the angle of w and w* and a = |v|^2 / (2 sqrt(2 pi)), f = |v|^2 t / (2 pi) and
g = a (w / |w| - w* / |w*|). On the unit sphere, where RVSCGD keeps its weights, this is the gradient of a (1 - cos t).
Both fall with t; but the slope of f is the same up to w*, where that of the other vanishes.

The angle of w = 0 is taken as pi / 2, and w / |w| as 0 there: the means over all directions.

Shapes: d weights, k patches; w and target (w*) are [d], v and v* are [k], floats of one dtype.

References:
  Dinh and Xin, arXiv:1901.09731 (RVSCGD). The text of its theorems was not at hand: what is stated here is derived.
  Yin, Lyu, Zhang, Osher, Qi and Xin, arXiv:1903.05662 (the coarse gradient).
"""

import math

import jax
import jax.numpy as jnp
import optax

from rvsm_jax.models.geometry import angle, length
from rvsm_jax.models.no_overlap import require_patches


def forward(w: jax.Array, patches: jax.Array, outer: jax.Array) -> jax.Array:
    """h(w; x) = sum_i v_i 1{w . x_i > 0}.

    Args:
      w: [d].
      patches: [..., k, d].
      outer: v, [k].

    Returns:
      [...].

    Raises:
      ValueError: if patches do not fit w or the outer weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.models import no_overlap_binary as binary
      >>> print(binary.forward(jnp.array([1.0, 0.0]), jnp.array([[3.0, 1.0], [-2.0, 1.0]]), jnp.array([0.5, 4.0])))
      0.5
    """
    require_patches(w, patches)
    if outer.shape != patches.shape[-2:-1]:
        raise ValueError(f"outer weights must be [k] for patches [..., k, d], got {outer.shape} and {patches.shape}")
    return (patches @ w > 0).astype(w.dtype) @ outer


def population_loss(
    w: jax.Array, target: jax.Array, outer: jax.Array, outer_target: jax.Array | None = None
) -> jax.Array:
    """f = 1/8 (|v|^2 + |v*|^2 - 2 (1 - 2 t / pi) v . v* + (1.v - 1.v*)^2); |v|^2 t / (2 pi) if v = v*.

    Args:
      w: [d].
      target: w*, [d].
      outer: v, [k].
      outer_target: v*, [k]; default: v.

    Returns:
      A scalar.

    References:
      Yin et al., arXiv:1903.05662, Lemma 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.models import no_overlap_binary as binary
      >>> print(binary.population_loss(jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0])))
      0.5
    """
    star = outer if outer_target is None else outer_target
    t = angle(w, target)
    apart = jnp.sum(jnp.square(outer - star)) + jnp.square(jnp.sum(outer) - jnp.sum(star))
    return apart / 8 + jnp.dot(outer, star) * t / (2 * math.pi)


def coarse_gradient(
    w: jax.Array, target: jax.Array, outer: jax.Array, outer_target: jax.Array | None = None
) -> jax.Array:
    """G(w) = E[(h - h*) sum_i v_i 1{w . x_i > 0} x_i] = p w / |w| - q w* / |w*|.

    Args:
      w: [d].
      target: w*, [d].
      outer: v, [k].
      outer_target: v*, [k]; default: v.

    Returns:
      [d].

    References:
      Yin et al., arXiv:1903.05662, Lemma 4 (the same, in terms of the half angle).

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.models import no_overlap_binary as binary
      >>> print(binary.coarse_gradient(jnp.array([0.0, 2.0]), jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0])))
      [-0.3989423  0.3989423]
    """
    star = outer if outer_target is None else outer_target
    away = jnp.sum(jnp.square(outer)) + jnp.sum(outer) * (jnp.sum(outer) - jnp.sum(star))
    (_, unit), (_, towards) = length(w), length(target)
    return (away * unit - jnp.dot(outer, star) * towards) / (2 * math.sqrt(2 * math.pi))


def attraction(outer: jax.Array) -> jax.Array:
    """A = |v|^2 / (2 sqrt(2 pi)), the strength of the coarse gradient a (w / |w| - w* / |w*|).

    Args:
      outer: v, [k].

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.models import no_overlap_binary as binary
      >>> print(binary.attraction(jnp.array([1.0, 1.0])))
      0.3989423
    """
    return jnp.sum(jnp.square(outer)) / (2 * math.sqrt(2 * math.pi))


def unit_sphere() -> optax.GradientTransformation:
    """d <- (w + d) / |w + d| - w: after every step each leaf has norm 1. The chain's last link.

    Returns:
      A transformation whose ``update`` needs the params.

    Raises:
      ValueError: from ``update``, if params are missing.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from rvsm_jax.models import no_overlap_binary as binary
      >>> tx = optax.chain(optax.sgd(1.0), binary.unit_sphere())
      >>> w = jnp.array([1.0, 0.0])
      >>> updates, _ = tx.update(jnp.array([-2.0, -4.0]), tx.init(w), w)
      >>> print(optax.apply_updates(w, updates))
      [0.6 0.8]
    """

    def update(updates, params=None):
        if params is None:
            raise ValueError("unit_sphere needs the parameters: call update(updates, state, params)")
        return jax.tree.map(lambda d, w: length(w + d)[1] - w, updates, params)

    return optax.stateless(update)
