"""A trained network without what is zero, and what it is worth."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import rvsm_jax
from experiments.sparse import Arrays
from rvsm_jax import models, shrinking, train


class Shrunk(NamedTuple):
    """A network after `rvsm_jax.shrink`, in evaluation mode.

    Attributes:
      fn: ``(variables, images) -> logits``.
      variables: the small ``{"params": ..., "state": ...}``.
      report: what went.
    """

    fn: Callable[[Any, jax.Array], jax.Array]
    variables: Any
    report: shrinking.Report

    def accuracy(self, test: Arrays) -> float:
        """In percent, on images and labels."""

        def forward(variables, state, x, key, train):
            return self.fn(variables, x), state

        return 100 * train.evaluate(forward, self.variables, {}, *test)["accuracy"]


def shrunk(network: models.Network, params: Any, state: Any, shape: tuple[int, ...]) -> Shrunk:
    """The network with these parameters and this state, shrunk.

    Args:
      network: its forward function.
      params: with zeros.
      state: as it was left by training.
      shape: of images, (N, H, W, C).

    Returns:
      What is left.

    >>> network = models.lenet_300_100(jax.random.key(0))
    >>> params = jax.tree.map(jnp.zeros_like, network.params)
    >>> shrunk(network, params, network.state, (1, 28, 28, 1)).report.multiply_adds.after
    0
    """
    variables = {"params": params, "state": state}
    return Shrunk(*rvsm_jax.shrink(evaluated(network), variables, example(shape), constants="fold"))


def evaluated(network: models.Network) -> Callable[[Any, jax.Array], jax.Array]:
    """The network in evaluation mode, ``(variables, images) -> logits``."""
    return lambda v, x: network.forward(v["params"], v["state"], x, None, False)[0]


def example(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """One image of (N, H, W, C)."""
    return jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32)
