"""Relaxed variable splitting for sparse networks: penalties x groups -> proximal operators -> links of a chain.

prox = proximal_operator(l0(), groups=weights)                       # u = prox(w, lam / beta)
tx = optax.chain(relaxed_splitting(prox, lam=1e-6, beta=1e-2),       # g + beta (w - u)
                 optax.sgd(0.1, momentum=0.9, nesterov=True))
sparse_network = prox(params, 1e-6 / 1e-2)                           # the model that is shipped
"""

import importlib
from typing import Any

from rvsm_jax.compressors import (
    AdmmNN,
    admm_nn,
    bcr,
    bcr_reweighted,
    binary_relax,
    low_rank,
    ssl,
    svd_training,
)
from rvsm_jax.constraints import binary, levels, submatrix, ternary, top_k
from rvsm_jax.coupled import Coupled
from rvsm_jax.gradients import penalty_gradient, reweighted_penalty
from rvsm_jax.groups import Groups, channels, filters, layers, over, shapes, weights
from rvsm_jax.links import admm_splitting, partial_projection, relaxed_projection
from rvsm_jax.matrices import blocks, spatial_spectrum, spectrum
from rvsm_jax.multiples import in_multiples
from rvsm_jax.penalties import (
    Penalty,
    half_norm,
    l0,
    l1,
    mcp,
    scad,
    transformed_l1,
    two_thirds_norm,
)
from rvsm_jax.proximal import ProximalOperator, convolutions, in_turn, kernels, proximal_operator
from rvsm_jax.recipes import Method, prox_sgd, rgsm, rvsm, sparse_group
from rvsm_jax.report import Sparsity, sparsity
from rvsm_jax.shrinking import ShrinkError, coupled_channels, shrink
from rvsm_jax.splitting import fixed_support, group_penalty, proximal_step, relaxed_splitting

__all__ = [
    "AdmmNN",
    "Coupled",
    "Groups",
    "Method",
    "Penalty",
    "ProximalOperator",
    "ShrinkError",
    "Sparsity",
    "admm_nn",
    "admm_splitting",
    "bcr",
    "bcr_reweighted",
    "binary",
    "binary_relax",
    "blocks",
    "channels",
    "convolutions",
    "coupled_channels",
    "filters",
    "fixed_support",
    "group_penalty",
    "half_norm",
    "in_multiples",
    "in_turn",
    "kernels",
    "l0",
    "l1",
    "layers",
    "levels",
    "low_rank",
    "mcp",
    "over",
    "partial_projection",
    "penalty_gradient",
    "prox_sgd",
    "proximal_operator",
    "proximal_step",
    "relaxed_projection",
    "relaxed_splitting",
    "reweighted_penalty",
    "rgsm",
    "rvsm",
    "scad",
    "shapes",
    "shrink",
    "sparse_group",
    "sparsity",
    "spatial_spectrum",
    "spectrum",
    "ssl",
    "submatrix",
    "svd_training",
    "ternary",
    "top_k",
    "transformed_l1",
    "two_thirds_norm",
    "weights",
]


def __getattr__(name: str) -> Any:
    """Modules such as ``rvsm_jax.attacks``, ``.data`` or ``.train``, imported when they are first used."""
    if name in ("adversarial", "attacks", "data", "factors", "layouts", "models", "storage", "train"):
        return importlib.import_module(f"rvsm_jax.{name}")
    raise AttributeError(f"module 'rvsm_jax' has no attribute {name!r}")
