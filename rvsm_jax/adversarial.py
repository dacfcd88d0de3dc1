"""Adversarial training as options of the one training loop, whatever the chain: an adversary and what is minimised.

    train.fit(..., method.tx, ..., sparse=method.sparse, **pgd_training()._asdict())     # RVSM or RGSM under attack
    train.fit(..., attack=pgd_training(steps=20).perturb, select="best")                 # robust accuracy selects

Letters: x an image, x' its adversarial twin, |x' - x|_inf <= eps; z = f(x) its logits, z' = f(x'); CE the cross-entropy
and p, p' the softmax of z, z'. Images are in [0, 1]. A random network draws new noise at every step of the attack.

References:
  Madry et al., arXiv 1706.06083; Zhang et al., arXiv 1901.08573 (TRADES); Dinh et al., arXiv 2003.00631, section 4.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rvsm_jax import attacks
from rvsm_jax.attacks.losses import Loss
from rvsm_jax.step import Objective, Perturb, cross_entropy

Strength = float | Callable[[jax.Array], jax.Array]


class Adversary(NamedTuple):
    """Two options of ``train.fit`` and ``train.make_step``.

    Attributes:
      perturb: x -> x', inside the training step.
      objective: what is minimised, a function of z, z' and the labels; None for CE(z').
    """

    perturb: Perturb
    objective: Objective | None = None


def pgd_training(
    *,
    eps: Strength = 8 / 255,
    step_size: float | None = None,
    steps: int = 10,
    random_start: bool = True,
    training_mode: bool = False,
) -> Adversary:
    """min_w mean_b max_{x'} CE(z', y), the maximum by projected gradient ascent.

    Args:
      eps: the radius, in units of pixels; or a schedule of the training step: networks that a large radius keeps from
        learning at all learn with one that grows.
      step_size: of a step of the ascent; default: 2.5 eps / steps, which is the published 2/255 for the
        published radius and 10 steps.
      steps: how many; 1, with step_size 1.25 eps, is fast adversarial training.
      random_start: from a random point of the ball, rather than from the image.
      training_mode: whether the network under attack is in training mode, normalised by the batch, as in the authors'
        released runs; default: in evaluation mode.

    Returns:
      The adversary.

    Raises:
      ValueError: for a radius or step size that is negative or infinite, or fewer steps than 1.

    References:
      Madry et al., arXiv 1706.06083, equation (2.1); the defaults are those of Dinh et al., arXiv 2003.00631.

    >>> adversary = pgd_training(eps=0.25, step_size=0.1, steps=3)
    >>> logits_fn = lambda x, key=None, train=False: jnp.concatenate([x, -x], 1)
    >>> adversary.perturb(logits_fn, jnp.full((1, 1), 0.5), jnp.array([0]), jax.random.key(0))
    Array([[0.25]], dtype=float32)
    """
    sizes = {"eps": eps, "step_size": step_size}
    _check(steps=steps, **{name: s for name, s in sizes.items() if isinstance(s, float | int)})

    def ascend(logits_fn, images, labels, key, radius):
        return attacks.pgd(
            lambda x, k: logits_fn(x, k, training_mode), images, labels, key, eps=radius, step_size=step_size,
            steps=steps, random_start=random_start,
        )  # fmt: skip

    if isinstance(eps, float | int):
        return Adversary(lambda f, x, y, key: ascend(f, x, y, key, eps))
    return Adversary(lambda f, x, y, key, step: ascend(f, x, y, key, jnp.asarray(eps(step), x.dtype)))


def trade_off(*, natural: float = 1.0, adversarial: float = 8.0, **pgd: Any) -> Adversary:
    """min_w mean_b [natural CE(z, y) + adversarial CE(z', y)], x' as for `pgd_training`.

    The default weights are those of the released runs of arXiv 2008.13305; they sum to 9, and so does the gradient.

    Args:
      natural: weight of the images as they are.
      adversarial: weight of the adversarial ones.
      **pgd: options of `pgd_training`.

    Returns:
      The adversary.

    Raises:
      ValueError: for a weight that is negative or infinite, or as `pgd_training`.

    References:
      Wang, Chow, Yin, et al., "An integrated approach to produce robust models with high efficiency", arXiv
      2008.13305, loss (9).

    >>> loss = trade_off(natural=0.5, adversarial=0.5).objective
    >>> loss(jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.array([0])).round(4)
    Array([0.6931], dtype=float32)
    """
    _check(natural=natural, adversarial=adversarial)

    def objective(z, attacked, labels):
        return natural * cross_entropy(z, labels) + adversarial * cross_entropy(attacked, labels)

    return Adversary(pgd_training(**pgd).perturb, objective)


def trades(*, beta: float = 6.0, eps: float = 0.031, step_size: float = 0.007, steps: int = 10) -> Adversary:
    """min_w mean_b [CE(z, y) + beta max_{x'} KL(p | p')]: right where it can be, and the same all around.

    The ascent starts 0.001 N(0, 1) away from the image, where KL has a gradient.

    Args:
      beta: weight of being the same.
      eps: the radius, in units of pixels.
      step_size: of a step of the ascent.
      steps: how many.

    Returns:
      The adversary.

    Raises:
      ValueError: for a beta, radius or step size that is negative or infinite, or fewer steps than 1.

    References:
      Zhang et al., arXiv 1901.08573, Algorithm 1 and section 5; the defaults are theirs.

    >>> loss = trades(beta=6.0).objective
    >>> loss(jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.array([0])).round(4)
    Array([0.6931], dtype=float32)
    """
    _check(beta=beta, eps=eps, step_size=step_size, steps=steps)

    def perturb(logits_fn, images, labels, key):
        reference = logits_fn(images)
        loss: Loss = lambda logits, labels: divergence(reference, logits)  # noqa: E731
        return attacks.pgd(
            lambda x, k: logits_fn(x, k), images, labels, key, eps=eps, step_size=step_size, steps=steps, loss=loss,
            random_start=_nearby,
        )  # fmt: skip

    def objective(z, attacked, labels):
        return cross_entropy(z, labels) + beta * divergence(z, attacked)

    return Adversary(perturb, objective)


def divergence(logits: jax.Array, others: jax.Array) -> jax.Array:
    """KL(p | q) = sum_k p_k (log p_k - log q_k) for the softmax p and q of two sets of logits.

    Args:
      logits: ``[B, K]``, of p.
      others: ``[B, K]``, of q.

    Returns:
      ``[B]``.

    >>> f"{divergence(jnp.array([[0.0, 0.0]]), jnp.array([[0.0, jnp.log(3.0)]]))[0]:.4f}"
    '0.1438'
    """
    log_p, log_q = (jax.nn.log_softmax(z) for z in (logits, others))
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def _nearby(key: jax.Array, images: jax.Array, eps: jax.Array) -> jax.Array:
    return images + 0.001 * jax.random.normal(key, images.shape, images.dtype)


def _check(*, steps: int = 1, **sizes: float) -> None:
    for name, value in sizes.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    attacks.checks.count("steps", steps)
