"""A network as three things that JAX can hold: a pure forward function, its parameters and its state.

A Flax NNX module keeps its arrays inside; here they are taken out once, as plain nested dictionaries, and every call
puts the given ones back for the length of its trace:

    network = functional(module)
    logits, state = network.forward(network.params, network.state, images, key, True)

Under ``jax.jit`` the module costs tracing time only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

Tree = dict[str, Any]
Forward = Callable[[Tree, Tree, Any, jax.Array | None, bool], tuple[jax.Array, Tree]]


class Network(NamedTuple):
    """A forward function with the arrays it starts from.

    Attributes:
      forward: ``(params, state, images, key, train) -> (logits, new_state)``; pure. images (B, H, W, C), logits
        (B, classes); key may be None where nothing is random; train is a Python bool. In training the new state
        holds the updated statistics, otherwise it equals the state given.
      params: what is trained: nested dictionaries of arrays, ``params["conv1"]["kernel"]``.
      state: what a forward pass updates, such as BatchNorm's running statistics; ``{}`` if nothing.
    """

    forward: Forward
    params: Tree
    state: Tree


def functional(module: nnx.Module) -> Network:
    """Takes an NNX module apart: forward(params, state, x, key, train) = module(x) with those arrays inside it.

    ``train`` sets ``deterministic`` and ``use_running_average`` of every part, as ``module.train()`` and
    ``module.eval()`` do. Each random stream of the module (dropout, noise) is seeded anew from ``key`` in every call.

    Args:
      module: any NNX module that maps a batch of images to logits. If ``forward`` is given a tuple in the place of the
        images, they are the module's arguments.

    Returns:
      The network; its arrays are the module's own, not copies.

    Raises:
      ValueError: from ``forward``, when it trains a module that draws random numbers without a key.

    >>> import jax.numpy as jnp
    >>> network = functional(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    >>> logits, state = network.forward(network.params, network.state, jnp.ones((4, 3)), None, True)
    >>> logits.shape, state, sorted(network.params)
    ((4, 2), {}, ['bias', 'kernel'])
    """
    graphdef, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    initial, streams, initial_state = map(nnx.to_pure_dict, states)

    def forward(params: Tree, state: Tree, images: Any, key: jax.Array | None, train: bool) -> tuple[jax.Array, Tree]:
        if train and streams and key is None:
            raise ValueError(f"key is None, but in training this network draws from the streams {sorted(streams)}")
        seeded = streams if key is None else _reseed(streams, key)
        merged = nnx.merge(graphdef, params, seeded, state)
        merged.train() if train else merged.eval()
        logits = merged(*images) if isinstance(images, tuple) else merged(images)
        _, *states = nnx.split(merged, nnx.Param, nnx.RngState, ...)
        return logits, nnx.to_pure_dict(states[-1])

    return Network(forward, initial, initial_state)


def _reseed(streams: Tree, key: jax.Array) -> Tree:
    """Gives every random stream its own key, and starts its counter at zero."""
    leaves, treedef = jax.tree.flatten(streams)
    keys = jax.random.split(key, max(1, len(leaves)))
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    fresh = [keys[i] if is_key[i] else jnp.zeros_like(leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, fresh)
