"""Attacks on any JAX function from images to logits: one loop x the geometry of a norm x a loss.

    adversarial = pgd(logits_fn, images, labels, key, eps=8 / 255)           # l_inf, cross-entropy
    adversarial = pgd(logits_fn, images, labels, key, eps=0.5, norm=l_2, loss=dlr, restarts=5)

Images are ``[B, H, W, C]`` in [0, 1]. Everything runs under ``jit``, inside a training step and vmapped over images.
"""

from rvsm_jax.attacks.apgd import apgd
from rvsm_jax.attacks.auto import AutoAttack, autoattack
from rvsm_jax.attacks.carlini_wagner import carlini_wagner, carlini_wagner_as_released
from rvsm_jax.attacks.checks import AttackWarning
from rvsm_jax.attacks.curve import accuracy_curve
from rvsm_jax.attacks.deepfool import deepfool
from rvsm_jax.attacks.fab import fab
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
from rvsm_jax.attacks.square import square

__all__ = [
    "AttackWarning",
    "AutoAttack",
    "Geometry",
    "accuracy_curve",
    "apgd",
    "autoattack",
    "carlini_wagner",
    "carlini_wagner_as_released",
    "cross_entropy",
    "deepfool",
    "dlr",
    "fab",
    "fgsm",
    "l_2",
    "l_inf",
    "margin",
    "pgd",
    "square",
    "targeted_cross_entropy",
    "targeted_dlr",
    "targeted_margin",
]
