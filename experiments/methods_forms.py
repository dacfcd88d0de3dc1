"""The ways to run a compressed LeNet-5: as it is, shrunk, or with the factors of its layers as thin layers."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rvsm_jax
from experiments.sparse import DENSE
from rvsm_jax import factors, models
from rvsm_jax.factors import Factors

IMAGE = (28, 28, 1)
Way = tuple[Callable[[Any, jax.Array], jax.Array], Any]  # a function and its variables


def lenet(seed: int) -> models.Network:
    """LeNet-5 with ReLUs behind its poolings."""
    return models.lenet5(jax.random.key(seed), activation=jax.nn.relu)


def ways(params: Any) -> dict[str, Way]:
    """(function, variables) by name: ``dense``, and ``shrunk`` or ``factors`` where there is such a form.

    Args:
      params: LeNet-5's, some kernels perhaps as ``Factors``.

    Returns:
      The ways; all give the same logits.
    """
    merged, dense = factors.merge(params), evaluated(lenet(0).forward, {})
    found: dict[str, Way] = {DENSE: (dense, merged)}
    if len(jax.tree.leaves(params)) > len(jax.tree.leaves(merged)):
        return found | {"factors": (thin_layers, params)}
    small_fn, small, report = rvsm_jax.shrink(dense, merged, example(1), constants="fold")
    return found | ({"shrunk": (small_fn, small)} if report.multiply_adds.share < 1 else {})


def thin_layers(params: Any, x: jax.Array) -> jax.Array:
    """LeNet's logits, with every layer that has factors run as two thin ones.

    Args:
      params: by layer in their order, some kernels as ``Factors``.
      x: images (B, H, W, C).

    Returns:
      Logits (B, classes).
    """
    for name in sorted(params):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        if not name.startswith("conv"):
            x = x.reshape(len(x), -1)
            x = factors.apply(kernel, x) if isinstance(kernel, Factors) else x @ kernel
        elif isinstance(kernel, Factors):
            x = models.pooling.max_pool(factors.apply(kernel, x, padding="VALID"))
        else:
            x = models.blocks.convolve_max_pool(x, kernel)
        x = x + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        x = x if name == max(params) else jax.nn.relu(x)
    return x


def compiled(way: Way, batch: int) -> Callable[[], jax.Array]:
    """A call of it on a batch of noise, compiled."""
    fn, variables = way
    x = jax.random.uniform(jax.random.key(0), (batch, *IMAGE))
    return functools.partial(jax.jit(fn).lower(variables, x).compile(), variables, x)


def check(name: str, calls: Mapping[str, Callable[[], Any]], dense: Callable[[], Any]) -> None:
    """Raises unless every way gives the logits of the dense one.

    Args:
      name: of the network, for the error.
      calls: by the way's name.
      dense: the call to agree with.

    Raises:
      AssertionError: if one is off by 1e-4 of the largest logit.
    """
    expected = np.asarray(dense())
    for way, call in calls.items():
        off = np.abs(np.asarray(call()) - expected).max() / np.abs(expected).max()
        if not off < 1e-4:
            raise AssertionError(f"{name}: {way!r} must give the logits of the dense form, off by {off:.1e}")


def evaluated(forward: Callable[..., Any], state: Any) -> Callable[[Any, jax.Array], jax.Array]:
    """fn(params, x) -> logits in evaluation mode."""
    return lambda params, x: forward(params, state, x, None, False)[0]


def example(batch: int) -> jax.ShapeDtypeStruct:
    """The shape of a batch."""
    return jax.ShapeDtypeStruct((batch, *IMAGE), jnp.float32)


def revived(tree: Any) -> Any:
    """The tree that was written to a file, its factors no dictionaries."""
    if not isinstance(tree, dict):
        return jnp.asarray(tree)
    parts = {name: revived(part) for name, part in tree.items()}
    return Factors(**parts) if set(parts) == set(Factors._fields) else parts
