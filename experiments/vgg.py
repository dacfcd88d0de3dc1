"""VGG-11 for 32 x 32 images, with BatchNorm and one dense layer: a plain chain of convolutions, for benchmarks.

References:
  Simonyan, Zisserman, "Very deep convolutional networks for large-scale image recognition", arXiv 1409.1556, table 1.
"""

import jax
from flax import nnx

from rvsm_jax.models import Network, functional
from rvsm_jax.models.convolution import conv_general_dilated
from rvsm_jax.models.normalisation import BatchNorm
from rvsm_jax.models.pooling import max_pool
from rvsm_jax.models.resnet import he_normal

STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # channels of each stage's convolutions, in units of the width


class Vgg11(nnx.Module):
    """Five stages of 3x3 convolutions, BatchNorm and relu, each ended by a 2x2 maximum; then a dense layer."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        inputs = 3
        self.names = [[f"stage{i}_{j}" for j in range(len(stage))] for i, stage in enumerate(STAGES)]
        for names, stage in zip(self.names, STAGES, strict=True):
            for name, factor in zip(names, stage, strict=True):
                convolution = nnx.Conv(
                    inputs, factor * width, (3, 3), padding=1, use_bias=False, kernel_init=he_normal,
                    conv_general_dilated=conv_general_dilated, rngs=rngs,
                )  # fmt: skip
                setattr(self, f"{name}_conv", convolution)
                setattr(self, f"{name}_bn", BatchNorm(factor * width))
                inputs = factor * width
        self.dense = nnx.Linear(inputs, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (B, 32, 32, 3) to logits (B, 10)."""
        for names in self.names:
            for name in names:
                x = nnx.relu(getattr(self, f"{name}_bn")(getattr(self, f"{name}_conv")(x)))
            x = max_pool(x)
        return self.dense(x.reshape(x.shape[0], -1))


def vgg11(key: jax.Array, *, width: int = 64) -> Network:
    """VGG-11, 9.2 million parameters at width 64."""
    return functional(Vgg11(width, nnx.Rngs(key)))
