"""The two LeNets that pruning papers compare on: LeNet-300-100 and Caffe's LeNet-5 (20-50-500).

Shapes: B images, H x W pixels, C channels.

References:
  LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 1998.
  Jia et al., "Caffe: convolutional architecture for fast feature embedding", arXiv 1408.5093.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import variance_scaling, zeros

from rvsm_jax.models.blocks import convolve_max_pool
from rvsm_jax.models.network import Network, functional

ConvolvePool = Callable[[jax.Array, jax.Array], jax.Array]
xavier = variance_scaling(1.0, "fan_in", "uniform")  # Caffe's: U(-r, r) with r = sqrt(3 / fan_in)


def lenet_300_100(key: jax.Array, *, num_classes: int = 10, image_shape: tuple[int, int, int] = (28, 28, 1)) -> Network:
    """Logits = W3 relu(W2 relu(W1 x + b1) + b2) + b3 with 300 and 100 hidden units: 266,200 weights on 28 x 28 images.

    Args:
      key: a random key for the initial weights.
      num_classes: number of logits.
      image_shape: (H, W, C) of the images.

    Returns:
      The network, with layers dense1, dense2, dense3.

    >>> network = lenet_300_100(jax.random.key(0))
    >>> [network.params[name]["kernel"].shape for name in sorted(network.params)]
    [(784, 300), (300, 100), (100, 10)]
    """
    return functional(LeNet300100(num_classes, image_shape, nnx.Rngs(key)))


def lenet5(
    key: jax.Array,
    *,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (28, 28, 1),
    activation: Callable[[jax.Array], jax.Array] | None = None,
    convolve_pool: ConvolvePool = convolve_max_pool,
) -> Network:
    """Convolution 5x5, 20 -> pool -> 5x5, 50 -> pool -> dense 500, relu -> dense: 430,500 weights on 28 x 28 images.

    As in Caffe, convolutions are unpadded, pooling is the maximum over 2 x 2, and the one nonlinearity besides it
    follows the first dense layer.

    Args:
      key: a random key for the initial weights.
      num_classes: number of logits.
      image_shape: (H, W, C) of the images.
      activation: applied after each pooling, such as ``jax.nn.relu``; None is Caffe's network. An increasing
        function commutes with the maximum, so this is also the network with activations in front of the pooling.
      convolve_pool: (images, kernel) to the pooled convolution without its bias.

    Returns:
      The network, with layers conv1, conv2, dense1, dense2.

    Raises:
      ValueError: if the images are smaller than 16 x 16, which leaves nothing after two convolutions and poolings.

    >>> network = lenet5(jax.random.key(0))
    >>> [network.params[name]["kernel"].shape for name in sorted(network.params)]
    [(5, 5, 1, 20), (5, 5, 20, 50), (800, 500), (500, 10)]
    """
    return functional(LeNet5(num_classes, image_shape, activation, convolve_pool, nnx.Rngs(key)))


class LeNet300100(nnx.Module):
    """The module of `lenet_300_100`."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int], rngs: nnx.Rngs):
        height, width, channels = image_shape
        self.dense1 = nnx.Linear(height * width * channels, 300, kernel_init=xavier, rngs=rngs)
        self.dense2 = nnx.Linear(300, 100, kernel_init=xavier, rngs=rngs)
        self.dense3 = nnx.Linear(100, num_classes, kernel_init=xavier, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) to logits (B, classes)."""
        x = images.reshape(images.shape[0], -1)
        x = nnx.relu(self.dense1(x))
        x = nnx.relu(self.dense2(x))
        return self.dense3(x)


class PooledConvolution(nnx.Module):
    """max over 2 x 2 of (x * kernel), then + bias, which a maximum leaves where it is: a quarter of the additions."""

    def __init__(self, inputs: int, outputs: int, convolve_pool: ConvolvePool, rngs: nnx.Rngs):
        self.kernel = nnx.Param(xavier(rngs.params(), (5, 5, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(zeros(rngs.params(), (outputs,), jnp.float32))
        self.convolve_pool = convolve_pool

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, inputs) to (B, (H - 4) // 2, (W - 4) // 2, outputs)."""
        return self.convolve_pool(x, self.kernel[...]) + self.bias[...].reshape(1, 1, 1, -1)


class LeNet5(nnx.Module):
    """The module of `lenet5`."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        activation: Callable[[jax.Array], jax.Array] | None,
        convolve_pool: ConvolvePool,
        rngs: nnx.Rngs,
    ):
        height, width, channels = image_shape
        if min(height, width) < 16:
            raise ValueError(f"LeNet-5 needs images of at least 16 x 16 pixels, got {height} x {width}")
        left = [((size - 4) // 2 - 4) // 2 for size in (height, width)]
        self.activation = activation
        self.conv1 = PooledConvolution(channels, 20, convolve_pool, rngs)
        self.conv2 = PooledConvolution(20, 50, convolve_pool, rngs)
        self.dense1 = nnx.Linear(50 * left[0] * left[1], 500, kernel_init=xavier, rngs=rngs)
        self.dense2 = nnx.Linear(500, num_classes, kernel_init=xavier, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) to logits (B, classes)."""
        x = images
        for layer in (self.conv1, self.conv2):
            x = layer(x) if self.activation is None else self.activation(layer(x))
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        return self.dense2(x)
