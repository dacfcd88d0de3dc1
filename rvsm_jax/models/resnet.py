"""Residual networks for small images: ResNet-18 in its CIFAR form, and pre-activation ResNet-8 to ResNet-56.

Residual branches are two 3x3 convolutions without bias; a stage after the first halves height and width and doubles
the channels; the head is a global average, then a dense layer. Convolutions start as He-normal draws (fan-out).

Shapes: B images, H x W pixels, C channels.

References:
  He, Zhang, Ren, Sun, "Deep residual learning for image recognition", arXiv 1512.03385.
  He, Zhang, Ren, Sun, "Identity mappings in deep residual networks", arXiv 1603.05027.
  Wang, Yuan, Shi, Osher, "ResNets ensemble via the Feynman-Kac formalism", arXiv 1811.10745.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax.nn.initializers import variance_scaling

from rvsm_jax.models.convolution import conv_general_dilated
from rvsm_jax.models.network import Network, functional
from rvsm_jax.models.noise import Noise
from rvsm_jax.models.normalisation import BatchNorm

Convolve = Callable[..., jax.Array]
Convolution = Callable[[int, int, int, int], nnx.Conv]

PREACT_DEPTHS = (8, 20, 32, 38, 44, 56)

he_normal = variance_scaling(2.0, "fan_out", "normal")
head_uniform = variance_scaling(1 / 3, "fan_in", "uniform")  # U(-r, r) with r = 1 / sqrt(fan_in)


def resnet18(
    key: jax.Array,
    *,
    num_classes: int = 10,
    width: int = 64,
    channels: int = 3,
    conv_general_dilated: Convolve = conv_general_dilated,
) -> Network:
    """Stem -> 4 stages of 2 blocks relu(x + F(x)) -> average -> dense; 11.2 million parameters at width 64.

    The stem is a 3x3 convolution that keeps the size, for images of about 32 x 32. Where a block changes the shape its
    shortcut is a 1x1 convolution with stride and BatchNorm.

    Args:
      key: a random key for the initial weights.
      num_classes: number of logits.
      width: channels of the first stage; the others have 2, 4 and 8 times as many.
      channels: C of the images.
      conv_general_dilated: the convolution; ``jax.lax.conv_general_dilated`` for XLA's own.

    Returns:
      The network, with layers conv1, bn1, stage1_block1, ..., stage4_block2, dense.

    Raises:
      ValueError: if width is not positive.

    >>> network = resnet18(jax.random.key(0), width=4)
    >>> sorted(network.params["stage2_block1"])
    ['bn1', 'bn2', 'conv1', 'conv2', 'shortcut', 'shortcut_bn']
    """
    return _build(BasicBlock, (2, 2, 2, 2), num_classes, width, channels, conv_general_dilated, key)


def preact_resnet(
    key: jax.Array,
    *,
    depth: int = 20,
    num_classes: int = 10,
    width: int = 16,
    channels: int = 3,
    conv_general_dilated: Convolve = conv_general_dilated,
) -> Network:
    """Stem -> 3 stages of (depth - 2) / 6 blocks x + F(relu(bn(x))) -> bn -> relu -> average -> dense.

    The stem is a 3x3 convolution without BatchNorm. Where a block changes the shape its shortcut is a 1x1 convolution
    with stride of the activated input.

    Args:
      key: a random key for the initial weights.
      depth: 8, 20, 32, 38, 44 or 56.
      num_classes: number of logits.
      width: channels of the first stage; the others have 2 and 4 times as many.
      channels: C of the images.
      conv_general_dilated: the convolution; ``jax.lax.conv_general_dilated`` for XLA's own.

    Returns:
      The network, with layers conv1, stage1_block1, ..., bn1, dense.

    Raises:
      ValueError: for any other depth, or if width is not positive.

    >>> network = preact_resnet(jax.random.key(0), depth=20)
    >>> sum(leaf.size for leaf in jax.tree.leaves(network.params))
    272282
    """
    return _build(PreactBlock, preact_blocks(depth), num_classes, width, channels, conv_general_dilated, key)


def preact_blocks(depth: int) -> tuple[int, int, int]:
    """(n, n, n) with n = (depth - 2) / 6, the blocks of each stage of a `preact_resnet`.

    Args:
      depth: 8, 20, 32, 38, 44 or 56.

    Returns:
      The numbers of blocks.

    Raises:
      ValueError: for any other depth.

    >>> preact_blocks(20)
    (3, 3, 3)
    """
    if depth not in PREACT_DEPTHS:
        raise ValueError(f"depth must be one of {', '.join(map(str, PREACT_DEPTHS))}, got {depth}")
    return ((depth - 2) // 6,) * 3


def between_shortcuts(path: str, leaf: Any) -> bool:
    """True for the 3x3 convolutions of residual branches, which a shortcut bypasses: a layer that may go as a whole.

    Args:
      path: the leaf's path.
      leaf: the leaf.

    Returns:
      Whether it is such a kernel of the networks above; 18 of ResNet-20.

    >>> between_shortcuts("stage1_block1/conv2/kernel", None), between_shortcuts("conv1/kernel", None)
    (True, False)
    """
    return "_block" in path and path.endswith(("conv1/kernel", "conv2/kernel"))


class BasicBlock(nnx.Module):
    """relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))."""

    preactivated = False

    def __init__(self, inputs: int, outputs: int, stride: int, convolution: Convolution):
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn1 = BatchNorm(outputs)
        self.conv2 = convolution(outputs, outputs, 3, 1)
        self.bn2 = BatchNorm(outputs)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut = convolution(inputs, outputs, 1, stride)
            self.shortcut_bn = BatchNorm(outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, inputs) to (B, H / stride, W / stride, outputs)."""
        residual = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        return nnx.relu(residual + (self.shortcut_bn(self.shortcut(x)) if self.projects else x))


class PreactBlock(nnx.Module):
    """shortcut(x) + conv2(relu(bn2(conv1(z)))) with z = relu(bn1(x)); a projecting shortcut reads z."""

    preactivated = True

    def __init__(self, inputs: int, outputs: int, stride: int, convolution: Convolution):
        self.bn1 = BatchNorm(inputs)
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.bn2 = BatchNorm(outputs)
        self.conv2 = convolution(outputs, outputs, 3, 1)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut = convolution(inputs, outputs, 1, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, inputs) to (B, H / stride, W / stride, outputs)."""
        z = nnx.relu(self.bn1(x))
        residual = self.conv2(nnx.relu(self.bn2(self.conv1(z))))
        return residual + (self.shortcut(z) if self.projects else x)


class ResNet(nnx.Module):
    """A stem, stages of residual blocks, and a head.

    BatchNorm and relu stand after the stem, or in front of the head if the blocks activate their inputs themselves.

    Args:
      block: makes a block from (inputs, outputs, stride, convolution); ``block.preactivated`` says where bn1 stands.
      blocks: number of blocks of each stage.
      num_classes: number of logits.
      width: channels of the first stage.
      channels: C of the images.
      convolution: makes a convolution from (inputs, outputs, size, stride).
      rngs: random keys for the weights of the head.
      noise: what every block's output passes through, if the network is called with random words.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[PreactBlock],
        blocks: Sequence[int],
        num_classes: int,
        width: int,
        channels: int,
        convolution: Convolution,
        rngs: nnx.Rngs,
        noise: Noise | None = None,
    ):
        self.noise = noise
        self.preactivated = block.preactivated
        self.conv1 = convolution(channels, width, 3, 1)
        self.names: list[str] = []
        inputs = width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"stage{stage + 1}_block{index + 1}"
                setattr(self, name, block(inputs, outputs, stride, convolution))
                self.names.append(name)
                inputs = outputs
        self.bn1 = BatchNorm(inputs if block.preactivated else width)
        self.dense = nnx.Linear(inputs, num_classes, kernel_init=head_uniform, rngs=rngs)

    def __call__(self, images: jax.Array, words: jax.Array | None = None) -> jax.Array:
        """Images (B, H, W, C), and words uint32 [blocks, 2] for noise, to logits (B, classes)."""
        x = self.conv1(images)
        x = x if self.preactivated else nnx.relu(self.bn1(x))
        for i, name in enumerate(self.names):
            x = getattr(self, name)(x)
            x = x if self.noise is None or words is None else self.noise(x, words[i])
        x = nnx.relu(self.bn1(x)) if self.preactivated else x
        return self.dense(x.mean((1, 2)))


def _build(
    block: type[BasicBlock] | type[PreactBlock],
    blocks: Sequence[int],
    num_classes: int,
    width: int,
    channels: int,
    convolve: Convolve,
    key: jax.Array,
) -> Network:
    """The network of `ResNet`, see `build`."""
    return functional(build(block, blocks, num_classes, width, channels, convolve, nnx.Rngs(key)))


def build(
    block: type[BasicBlock] | type[PreactBlock],
    blocks: Sequence[int],
    num_classes: int,
    width: int,
    channels: int,
    convolve: Convolve,
    rngs: nnx.Rngs,
    noise: Noise | None = None,
) -> ResNet:
    """A `ResNet` whose convolutions have no bias and are zero-padded by (size - 1) / 2 on each side.

    Args:
      block: as for `ResNet`, like all but two of the others.
      blocks: number of blocks of each stage.
      num_classes: number of logits.
      width: channels of the first stage.
      channels: C of the images.
      convolve: the convolution; ``jax.lax.conv_general_dilated`` for XLA's own.
      rngs: random keys for the weights.
      noise: what every block's output passes through.

    Returns:
      The module.

    Raises:
      ValueError: if width is not positive.

    >>> module = build(PreactBlock, (1, 1, 1), 10, 8, 3, jax.lax.conv_general_dilated, nnx.Rngs(0))
    >>> module(jax.numpy.ones((2, 32, 32, 3))).shape
    (2, 10)
    """
    if width < 1:
        raise ValueError(f"width must be a positive number of channels, got {width}")

    def convolution(inputs: int, outputs: int, size: int, stride: int) -> nnx.Conv:
        return nnx.Conv(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=size // 2,
            use_bias=False,
            kernel_init=he_normal,
            conv_general_dilated=convolve,
            rngs=rngs,
        )

    return ResNet(block, blocks, num_classes, width, channels, convolution, rngs, noise)
