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

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rvsm_jax.models.convolution import conv_general_dilated
from rvsm_jax.models.network import Forward, Network, Tree, functional
from rvsm_jax.models.noise import Noise, Over
from rvsm_jax.models.resnet import Convolve, PreactBlock, build, preact_blocks


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

    def member(key: jax.Array) -> Network:
        rngs = nnx.Rngs(params=key, noise=key)
        after = Noise(noise, noise_over, rngs) if noise else None
        blocks = preact_blocks(depth)
        return functional(build(PreactBlock, blocks, num_classes, width, channels, conv_general_dilated, rngs, after))

    names = [f"member{i}" for i in range(members)]
    networks = dict(zip(names, map(member, jax.random.split(key, members)), strict=True))
    if vmapped is None:
        vmapped = members > 1 and (mesh is not None or jax.default_backend() != "cpu")
    params, state = ({name: network[i] for name, network in networks.items()} for i in (1, 2))
    return Network(_mean(networks["member0"].forward, noise > 0, vmapped, mesh), params, state)


def _mean(forward: Forward, noisy: bool, vmapped: bool, mesh: Mesh | None) -> Forward:
    """The forward pass of the ensemble, from that of a member."""

    def ensemble(
        params: Tree, state: Tree, images: jax.Array, key: jax.Array | None, train: bool
    ) -> tuple[jax.Array, Tree]:
        if noisy and key is None:
            raise ValueError("key is None, but this network is noisy, in evaluation too: it wants a random key")
        names = sorted(params, key=_number)
        keys = None if key is None or not noisy else jax.random.split(key, len(names))
        if not vmapped:
            found = [
                forward(params[name], state[name], images, None if keys is None else keys[i], train)
                for i, name in enumerate(names)
            ]
            return sum(logits for logits, _ in found) / len(names), {n: s for n, (_, s) in zip(names, found, strict=True)}
        stacked = (_stack([tree[name] for name in names]) for tree in (params, state))
        stacked, images = _spread(mesh, (*stacked, keys), images)
        axes = (0, 0, None if keys is None else 0)
        logits, new = jax.vmap(lambda p, s, k: forward(p, s, images, k, train), axes)(*stacked)
        return logits.mean(0), {name: jax.tree.map(lambda x, i=i: x[i], new) for i, name in enumerate(names)}

    return ensemble


def _number(name: str) -> int:
    return int(name.removeprefix("member"))


def _stack(trees: list[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _spread(mesh, stacked, images):
    """Stacked arrays split over the mesh's axis "members", images over its axis "data"."""
    if mesh is None:
        return stacked, images
    data = P("data") if "data" in mesh.axis_names else P()
    stacked = jax.lax.with_sharding_constraint(stacked, NamedSharding(mesh, P("members")))
    return stacked, jax.lax.with_sharding_constraint(images, NamedSharding(mesh, data))


def _check(members, noise, noise_over, mesh) -> None:
    if isinstance(members, bool) or not isinstance(members, int) or members < 1:
        raise ValueError(f"members must be a positive number of networks, got {members!r}")
    if not noise >= 0:
        raise ValueError(f"noise must be >= 0, got {noise}")
    if noise_over not in ("image", "batch"):
        raise ValueError(f"noise_over must be 'image' or 'batch', got {noise_over!r}")
    if mesh is not None and ("members" not in mesh.axis_names or members % mesh.shape["members"]):
        raise ValueError(f"mesh must have an axis 'members' whose size divides {members}, got {dict(mesh.shape)}")
