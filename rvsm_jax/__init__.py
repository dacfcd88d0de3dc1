"""Relaxed variable splitting for sparse networks: penalties x groups -> proximal operators -> links of a chain.

prox = proximal_operator(l0(), groups=weights)                       # u = prox(w, lam / beta)
tx = optax.chain(relaxed_splitting(prox, lam=1e-6, beta=1e-2),       # g + beta (w - u)
                 optax.sgd(0.1, momentum=0.9, nesterov=True))
sparse_network = prox(params, 1e-6 / 1e-2)                           # the model that is shipped
"""

import importlib
from typing import Any

from rvsm_jax.coupled import Coupled
from rvsm_jax.groups import Groups, channels, filters, layers, over, shapes, weights
from rvsm_jax.multiples import in_multiples
from rvsm_jax.penalties import (
    Penalty,
    half_norm,
    l0,
    l1,
    mcp,
    scad,
    top_k,
    transformed_l1,
    two_thirds_norm,
)
from rvsm_jax.proximal import ProximalOperator, convolutions, kernels, proximal_operator
from rvsm_jax.recipes import Method, prox_sgd, rgsm, rvsm, sparse_group
from rvsm_jax.report import Sparsity, sparsity
from rvsm_jax.shrinking import ShrinkError, coupled_channels, shrink
from rvsm_jax.splitting import fixed_support, group_penalty, proximal_step, relaxed_splitting

__all__ = [
    "Coupled",
    "Groups",
    "Method",
    "Penalty",
    "ProximalOperator",
    "ShrinkError",
    "Sparsity",
    "channels",
    "convolutions",
    "coupled_channels",
    "filters",
    "fixed_support",
    "group_penalty",
    "half_norm",
    "in_multiples",
    "kernels",
    "l0",
    "l1",
    "layers",
    "mcp",
    "over",
    "prox_sgd",
    "proximal_operator",
    "proximal_step",
    "relaxed_splitting",
    "rgsm",
    "rvsm",
    "scad",
    "shapes",
    "shrink",
    "sparse_group",
    "sparsity",
    "top_k",
    "transformed_l1",
    "two_thirds_norm",
    "weights",
]


def __getattr__(name: str) -> Any:
    """``rvsm_jax.adversarial``, ``.attacks``, ``.data``, ``.models`` and ``.train``, imported when first used."""
    if name in ("adversarial", "attacks", "data", "models", "train"):
        return importlib.import_module(f"rvsm_jax.{name}")
    raise AttributeError(f"module 'rvsm_jax' has no attribute {name!r}")
