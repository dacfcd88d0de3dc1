"""Tiny networks of many kinds and libraries, as fn(variables, x), for tests that take them apart."""

import functools
import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from rvsm_jax import models

KEY = jax.random.key(0)


def lenient(function):
    """A function that promotes ranks and dtypes, as other libraries' layers do."""

    def call(*arguments):
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return function(*arguments)

    return call


def of_library(network):
    """Evaluation mode of one of the library's networks."""
    variables = {"params": network.params, "state": network.state}
    return lambda v, x: network.forward(v["params"], v["state"], x, None, False)[0], variables


def of_linen(module, shape):
    variables = lenient(module.init)(KEY, jnp.ones((1, *shape), jnp.float32))
    return lenient(module.apply), variables


def of_nnx(module):
    graphdef, variables = nnx.split(module)
    return lenient(lambda v, x: nnx.merge(graphdef, v)(x)), variables


def of_equinox(module):
    variables, static = eqx.partition(module, eqx.is_inexact_array)
    return lenient(lambda v, x: jax.vmap(eqx.combine(v, static))(x)), variables


class Vgg(nn.Module):
    """Convolutions with bias, BatchNorm, max pooling, flatten, dense layers."""

    @nn.compact
    def __call__(self, x):
        for width in (4, 6):
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(width, (3, 3))(x)))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(3)(nn.relu(nn.Dense(5)(x.reshape(x.shape[0], -1))))


class DenseNet(nn.Module):
    """Every layer reads all that come before it, side by side; average pooling."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        for _ in range(3):
            y = nn.Conv(3, (3, 3), use_bias=False)(nn.relu(nn.BatchNorm(use_running_average=True)(x)))
            x = jnp.concatenate([x, y], axis=-1)
        return nn.Dense(3)(nn.avg_pool(x, (2, 2), (2, 2)).mean((1, 2)))


class GroupNormed(nn.Module):
    """Statistics over channels, and a squeeze-and-excite gate."""

    @nn.compact
    def __call__(self, x):
        x = nn.silu(nn.GroupNorm(2)(nn.Conv(8, (3, 3))(x)))
        gate = nn.sigmoid(nn.Dense(8)(nn.relu(nn.Dense(3)(x.mean((1, 2))))))
        return nn.Dense(3)(nn.gelu(nn.LayerNorm()(nn.Conv(6, (3, 3), strides=2)(x * gate[:, None, None]))).mean((1, 2)))


class Attention(nn.Module):
    """A block of self-attention over the rows of an image."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x.reshape(x.shape[0], x.shape[1], -1))
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return nn.Dense(3)((x + nn.Dense(8)(nn.relu(nn.Dense(12)(nn.LayerNorm()(x))))).mean(1))


class Separable(nnx.Module):
    """Depthwise 3x3, two outputs a channel, then pointwise; and a grouped convolution."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(2, 6, (1, 1), rngs=rngs)
        self.depthwise = nnx.Conv(6, 12, (3, 3), feature_group_count=6, rngs=rngs)
        self.norm = nnx.BatchNorm(12, use_running_average=True, rngs=rngs)
        self.pointwise = nnx.Conv(12, 8, (1, 1), rngs=rngs)
        self.grouped = nnx.Conv(8, 4, (3, 3), feature_group_count=2, rngs=rngs)
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.depthwise(nnx.relu(self.stem(x)))))
        return self.dense(nnx.relu(self.grouped(nnx.relu(self.pointwise(x)))).mean((1, 2)))


class Channelwise(eqx.Module):
    """Channels first, one image at a time, as Equinox has it."""

    convolutions: list
    norm: eqx.nn.GroupNorm
    mlp: eqx.nn.MLP

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.convolutions = [eqx.nn.Conv2d(2, 4, 3, key=keys[0]), eqx.nn.Conv2d(4, 6, 3, key=keys[1])]
        self.norm = eqx.nn.GroupNorm(2, 4)
        self.mlp = eqx.nn.MLP(24, 3, 7, 2, key=keys[2])

    def __call__(self, x):
        x = jnp.moveaxis(x, -1, 0)
        x = jax.nn.relu(self.norm(self.convolutions[0](x)))
        return self.mlp(jax.nn.relu(self.convolutions[1](x)).ravel())


def plain_mlp():
    rng = np.random.default_rng(0)
    sizes = [32, 9, 7, 3]
    pairs = itertools.pairwise(sizes)
    variables = [(jnp.asarray(rng.normal(size=s)), jnp.asarray(rng.normal(size=s[1]))) for s in pairs]

    def fn(variables, x):
        x = x.reshape(x.shape[0], -1)
        for i, (w, b) in enumerate(variables):
            x = (jnp.tanh(x) if i else x) @ w + b[None]
        return jax.nn.softmax(x)

    return fn, jax.tree.map(lambda a: a.astype(jnp.float32), variables)


def plain_convolutions():
    """Channels first, dilation, a transposed convolution's stride, padding by channels as a shortcut of option A."""
    rng = np.random.default_rng(1)
    shapes = {"a": (4, 2, 3, 3), "b": (6, 4, 3, 3), "c": (3, 6, 2, 2)}
    variables = {k: jnp.asarray(rng.normal(size=s) / 3, jnp.float32) for k, s in shapes.items()}
    convolve = functools.partial(lax.conv_general_dilated, dimension_numbers=("NCHW", "OIHW", "NCHW"))

    def fn(variables, x):
        x = x.transpose(0, 3, 1, 2)
        x = jnp.tanh(convolve(x, variables["a"], (1, 1), "SAME", rhs_dilation=(2, 2)))
        y = convolve(x, variables["b"], (2, 2), "SAME")
        halved = jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, 1, 2, 2))  # by indices it was a gather in older versions
        y = jax.nn.relu(y + jnp.pad(halved, ((0, 0), (1, 1), (0, 0), (0, 0))))
        y = convolve(y, variables["c"], (1, 1), ((1, 0), (0, 1)), lhs_dilation=(2, 2))
        return jnp.max(y, (2, 3))

    return fn, variables


def ensemble():
    members = [plain_mlp(), of_library(models.preact_resnet(KEY, depth=8, width=2, channels=2))]
    return lambda v, x: jnp.mean(jnp.stack([fn(u, x)[:, :3] for (fn, _), u in zip(members, v, strict=True)]), 0), [
        v for _, v in members
    ]


SHAPE = (4, 4, 2)
LARGE = (16, 16, 2)
NETWORKS = {
    "lenet5": (lambda: of_library(models.lenet5(KEY, image_shape=LARGE)), LARGE),
    "lenet_300_100": (lambda: of_library(models.lenet_300_100(KEY, image_shape=SHAPE)), SHAPE),
    "preact_resnet": (lambda: of_library(models.preact_resnet(KEY, depth=8, width=4, channels=2)), SHAPE),
    "resnet18": (lambda: of_library(models.resnet18(KEY, width=4, channels=2)), SHAPE),
    "linen_vgg": (lambda: of_linen(Vgg(), SHAPE), SHAPE),
    "linen_densenet": (lambda: of_linen(DenseNet(), SHAPE), SHAPE),
    "linen_groupnorm": (lambda: of_linen(GroupNormed(), SHAPE), SHAPE),
    "linen_attention": (lambda: of_linen(Attention(), SHAPE), SHAPE),
    "nnx_separable": (lambda: of_nnx(Separable(nnx.Rngs(0))), SHAPE),
    "equinox": (lambda: of_equinox(Channelwise(KEY)), (6, 6, 2)),
    "mlp": (plain_mlp, SHAPE),
    "convolutions": (plain_convolutions, SHAPE),
    "ensemble": (ensemble, SHAPE),
}


def pruned(variables, rng, share=0.9, dtype=np.float64):
    """Random variables: of each leaf, slices along some axes zeroed at random; small leaves are jittered first."""

    def prune(leaf):
        leaf = np.array(leaf, dtype)
        if leaf.ndim == 1:
            leaf = np.abs(leaf + 0.3 * rng.normal(size=leaf.shape)) + 0.01
        for axis in rng.permutation(leaf.ndim)[: rng.integers(0, 3)]:
            keep = rng.random(leaf.shape[axis]) >= share * rng.random()
            leaf = leaf * keep.reshape([-1 if a == axis else 1 for a in range(leaf.ndim)])
        return jnp.asarray(leaf)

    return jax.tree.map(prune, variables)
