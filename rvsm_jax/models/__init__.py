"""Neural networks as Flax NNX modules and pure forward functions."""

from rvsm_jax.models.enresnet import draw_noise, enresnet
from rvsm_jax.models.lenet import lenet5, lenet_300_100
from rvsm_jax.models.network import Network, functional
from rvsm_jax.models.noise import Over
from rvsm_jax.models.resnet import between_shortcuts, preact_resnet, resnet18

__all__ = [
    "Network",
    "Over",
    "between_shortcuts",
    "draw_noise",
    "enresnet",
    "functional",
    "lenet5",
    "lenet_300_100",
    "preact_resnet",
    "resnet18",
]
