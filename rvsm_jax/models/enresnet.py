"""EnResNet-n: the mean of n pre-activation ResNets with noise after every residual block, trained jointly.

A ResNet is a step-by-step solution of a transport equation; with diffusion added its solution is, by the Feynman-Kac
formula, a mean over noisy paths, and no longer changes fast with the image:

    x_{k+1} = x_k + F_k(x_k) + c std(x_k + F_k(x_k)) z_k,  z_k ~ N(0, I),     logits = 1/n sum_m f_m(x_m).

The noise stays on at test time. Parameters and state are {"member0": ..., "member1": ...}, each one network's, so that
every group, mask and report takes a leaf for the layer that it is. The forward pass goes through all members in one
compiled program: stacked and vmapped on an accelerator, one after the other on the CPU backend, where a vmapped
convolution is several times slower. Shapes: B images, n members.

References:
  Wang, Yuan, Shi, Osher, "ResNets ensemble via the Feynman-Kac formalism", arXiv 1811.10745.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rvsm_jax.models.convolution import conv_general_dilated
from rvsm_jax.models.network import Forward, Network, Tree, functional
from rvsm_jax.models.noise import Noise, Over
from rvsm_jax.models.resnet import Convolve, PreactBlock, build, preact_blocks

OverMembers = Callable[..., tuple[Any, Sequence[Tree]]]  # trees of all members, images, words, train -> mean, states


def enresnet(
    key: jax.Array,
    *,
    members: int = 2,
    depth: int = 20,
    noise: float = 0.1,
    noise_over: Over = "image",
    num_classes: int = 10,
    width: int = 16,
    channels: int = 3,
    conv_general_dilated: Convolve = conv_general_dilated,
    vmapped: bool | None = None,
    mesh: Mesh | None = None,
) -> Network:
    """logits = 1/n sum_m f_m(images), f_m a `preact_resnet` with y <- y + c std(y) z after each block.

    Args:
      key: a random key for the initial weights.
      members: n.
      depth: of each member: 8, 20, 32, 38, 44 or 56.
      noise: c; 0 for none, and then no key is needed.
      noise_over: what the standard deviation is of: each "image", so that logits do not depend on an image's
        neighbours, or the whole "batch", as published.
      num_classes: number of logits.
      width: channels of the first stage of each member.
      channels: C of the images.
      conv_general_dilated: the convolution; ``jax.lax.conv_general_dilated`` for XLA's own.
      vmapped: whether the members are stacked and vmapped; default: as the backend and the mesh have it.
      mesh: splits the members over its axis "members", and the images over "data" if it has that axis too. It must
        have the devices that the arrays are on, in their order.

    Returns:
      The network. Its forward pass needs a key in training and evaluation alike, unless noise is 0.

    Raises:
      ValueError: if members or width is not positive, noise negative, noise_over another word, the depth another, or
        the mesh has no axis "members" that divides n; from ``forward``, if there is noise and the key is None.

    >>> network = enresnet(jax.random.key(0), members=2, depth=8, width=4)
    >>> logits, _ = network.forward(network.params, network.state, jnp.ones((3, 8, 8, 3)), jax.random.key(1), False)
    >>> sorted(network.params), logits.shape
    (['member0', 'member1'], (3, 10))
    """
    _check(members, noise, noise_over, mesh)

    blocks = preact_blocks(depth)
    after = Noise(noise, noise_over) if noise else None

    def member(key: jax.Array) -> Network:
        rngs = nnx.Rngs(key)
        return functional(build(PreactBlock, blocks, num_classes, width, channels, conv_general_dilated, rngs, after))

    networks = [member(k) for k in jax.random.split(key, members)]
    names = [f"member{i}" for i in range(members)]
    params, state = (dict(zip(names, trees, strict=True)) for trees in list(zip(*networks, strict=True))[1:])
    if vmapped is None:
        vmapped = members > 1 and (mesh is not None or jax.default_backend() != "cpu")
    over_members = _stacked(networks[0].forward, mesh) if vmapped else _one_by_one(networks[0].forward)
    return Network(_ensemble(over_members, names, (members, sum(blocks), 2) if noise else None), params, state)


def draw_noise(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """The random words that an ensemble's noise is made from; in the place of a key they are taken as they are.

    With them drawn beforehand the forward pass is a deterministic function, which `shrink` wants.

    Args:
      key: random key.
      shape: (members, blocks of a member, 2).

    Returns:
      Uint32 of that shape.

    >>> network, x = enresnet(jax.random.key(0), members=1, depth=8, width=4), jnp.ones((1, 8, 8, 3))
    >>> words = draw_noise(jax.random.key(1), (1, 3, 2))
    >>> given, drawn = (network.forward(*network[1:], x, k, False)[0] for k in (words, jax.random.key(1)))
    >>> bool((given == drawn).all())
    True
    """
    return jax.random.bits(key, shape)


def _ensemble(over_members: OverMembers, names: list[str], words: tuple[int, int, int] | None) -> Forward:
    """The forward pass: noise from the key, all members, the mean of their logits."""

    def forward(
        params: Tree, state: Tree, images: jax.Array, key: jax.Array | None, train: bool
    ) -> tuple[jax.Array, Tree]:
        noise = None
        if words is not None:
            if key is None:
                raise ValueError("key is None, but this network is noisy, in evaluation too: it wants a random key")
            noise = key if key.shape == words else draw_noise(key, words)
        logits, states = over_members([params[n] for n in names], [state[n] for n in names], images, noise, train)
        return logits, dict(zip(names, states, strict=True))

    return forward


def _one_by_one(forward: Forward) -> OverMembers:
    def over_members(params, state, images, noise, train):
        found = [
            forward(p, s, images if noise is None else (images, noise[i]), None, train)
            for i, (p, s) in enumerate(zip(params, state, strict=True))
        ]
        logits, states = zip(*found, strict=True)
        return sum(logits) / len(found), states

    return over_members


def _stacked(forward: Forward, mesh: Mesh | None) -> OverMembers:
    """Stacked and vmapped: over the mesh's axis "members", if there is one, and the images over its axis "data"."""

    def over_members(params, state, images, noise, train):
        def run(trees, images):
            return jax.vmap(lambda p, s, z: forward(p, s, images if z is None else (images, z), None, train))(*trees)

        stacked = *(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (params, state)), noise
        if mesh is not None:
            data = P("data") if "data" in mesh.axis_names else P()
            images = jax.lax.with_sharding_constraint(images, NamedSharding(mesh, data))
            run = jax.shard_map(
                run, mesh=mesh, in_specs=(P("members"), P()), out_specs=P("members"), axis_names={"members"},
                check_vma=False,
            )  # fmt: skip
        logits, states = run(stacked, images)
        return logits.mean(0), [jax.tree.map(lambda x, i=i: x[i], states) for i in range(len(params))]

    return over_members


def _check(members, noise, noise_over, mesh) -> None:
    if isinstance(members, bool) or not isinstance(members, int) or members < 1:
        raise ValueError(f"members must be a positive number of networks, got {members!r}")
    if not noise >= 0:
        raise ValueError(f"noise must be >= 0, got {noise}")
    if noise_over not in ("image", "batch"):
        raise ValueError(f"noise_over must be 'image' or 'batch', got {noise_over!r}")
    if mesh is not None and ("members" not in mesh.axis_names or members % mesh.shape["members"]):
        raise ValueError(f"mesh must have an axis 'members' whose size divides {members}, got {dict(mesh.shape)}")
