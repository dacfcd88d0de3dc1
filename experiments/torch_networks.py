"""The networks of `rvsm_jax.models` in PyTorch, for timing them side by side (needs the ``bench`` extra)."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from rvsm_jax.models import Network


class LeNet5(nn.Module):
    """Convolutions of 20 and 50 filters, each with a 2x2 maximum, then 500 and 10 units."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.dense1, self.dense2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, 1, 28, 28) to logits (B, 10)."""
        x = functional.max_pool2d(self.conv1(x), 2)
        x = functional.max_pool2d(self.conv2(x), 2)
        return self.dense2(functional.relu(self.dense1(x.flatten(1))))


class LeNet5Relu(LeNet5):
    """The same with a relu after each pooling."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, 1, 28, 28) to logits (B, 10)."""
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
        return self.dense2(functional.relu(self.dense1(x.flatten(1))))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))."""

    preactivated = False

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = convolution(outputs, outputs, 3, 1), nn.BatchNorm2d(outputs)
        projection = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.shortcut = projection if stride != 1 or inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(residual + self.shortcut(x))


class PreactBlock(nn.Module):
    """shortcut(x) + conv2(relu(bn2(conv1(z)))) with z = relu(bn1(x)); a projecting shortcut reads z."""

    preactivated = True

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), convolution(outputs, outputs, 3, 1)
        self.shortcut = convolution(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        z = functional.relu(self.bn1(x))
        residual = self.conv2(functional.relu(self.bn2(self.conv1(z))))
        return residual + (x if self.shortcut is None else self.shortcut(z))


class ResNet(nn.Module):
    """A stem, stages of residual blocks, and a head."""

    def __init__(self, block: type[BasicBlock] | type[PreactBlock], blocks: Sequence[int], width: int) -> None:
        super().__init__()
        self.preactivated = block.preactivated
        self.conv1 = convolution(3, width, 3, 1)
        layers: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            for index in range(count):
                layers.append(block(inputs, outputs, 2 if stage > 0 and index == 0 else 1))
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.bn1 = nn.BatchNorm2d(inputs if block.preactivated else width)
        self.dense = nn.Linear(inputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) to logits (B, 10)."""
        x = self.conv1(x)
        x = self.layers(x if self.preactivated else functional.relu(self.bn1(x)))
        x = functional.relu(self.bn1(x)) if self.preactivated else x
        return self.dense(x.mean((2, 3)))


def vgg11(width: int = 64) -> nn.Module:
    """Five stages of 3x3 convolutions, BatchNorm and relu, each ended by a 2x2 maximum; then a dense layer."""
    layers: list[nn.Module] = []
    inputs = 3
    for stage in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
        for factor in stage:
            layers += [convolution(inputs, factor * width, 3, 1), nn.BatchNorm2d(factor * width), nn.ReLU()]
            inputs = factor * width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, 10))


def lenet_300_100() -> nn.Module:
    """784 - 300 - 100 - 10 units."""
    sizes = (784, 300, 100)
    hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))


def convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    """A convolution without bias, zero-padded by (size - 1) / 2 on each side."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "LeNet-300-100": lenet_300_100,
    "LeNet-5": LeNet5,
    "ResNet-20": lambda: ResNet(PreactBlock, (3, 3, 3), 16),
    "ResNet-18": lambda: ResNet(BasicBlock, (2, 2, 2, 2), 64),
    "VGG-11": vgg11,
}


def twin(name: str, network: Network) -> nn.Module:
    """The same network with the same weights, in evaluation mode and to be left as it is.

    Args:
      name: "LeNet-5", with a relu behind each pooling, or "ResNet-20".
      network: a network of `rvsm_jax.models`.

    Returns:
      The module.
    """
    module: Any = LeNet5Relu() if name == "LeNet-5" else NETWORKS[name]()
    with torch.no_grad():
        _copy(name, jax.tree.map(np.asarray, network.params), jax.tree.map(np.asarray, network.state), module)
    return module.eval().requires_grad_(False)


def _copy(name: str, params: Mapping[str, Any], state: Mapping[str, Any], module: Any) -> None:
    for key, value in params.items():
        if key.startswith("stage"):
            stage, block = (int(k) - 1 for k in key.removeprefix("stage").split("_block"))
            _copy(name, value, state[key], module.layers[3 * stage + block])
            continue
        part, arrays = getattr(module, key), dict(value)
        if key.startswith("bn"):
            part.running_mean.copy_(torch.tensor(state[key]["mean"]))
            part.running_var.copy_(torch.tensor(state[key]["var"]))
            arrays["kernel"] = arrays["scale"]
        kernel = arrays["kernel"]
        if kernel.ndim == 4:
            kernel = kernel.transpose(3, 2, 0, 1)
        elif kernel.ndim == 2:
            if name == "LeNet-5" and key == "dense1":
                kernel = kernel.reshape(4, 4, 50, 500).transpose(2, 0, 1, 3).reshape(800, 500)
            kernel = kernel.T
        part.weight.copy_(torch.tensor(kernel.copy()))
        if "bias" in arrays:
            part.bias.copy_(torch.tensor(arrays["bias"]))
