"""Attacks on any JAX function from images to logits: one loop x the geometry of a norm x a loss.

    adversarial = pgd(logits_fn, images, labels, key, eps=8 / 255)           # l_inf, cross-entropy
    adversarial = pgd(logits_fn, images, labels, key, eps=0.5, norm=l_2, loss=dlr, restarts=5)

Images are ``[B, H, W, C]`` in [0, 1]. Everything runs under ``jit``, inside a training step and vmapped over images.
"""

from rvsm_jax.attacks.checks import AttackWarning
from rvsm_jax.attacks.geometry import Geometry, l_2, l_inf
from rvsm_jax.attacks.gradient import fgsm, pgd
from rvsm_jax.attacks.losses import (
    cross_entropy,
    dlr,
    margin,
    targeted_cross_entropy,
    targeted_dlr,
    targeted_margin,
)

__all__ = [
    "AttackWarning",
    "Geometry",
    "cross_entropy",
    "dlr",
    "fgsm",
    "l_2",
    "l_inf",
    "margin",
    "pgd",
    "targeted_cross_entropy",
    "targeted_dlr",
    "targeted_margin",
]
