"""Batch normalisation that keeps the dtype of what it normalises."""

import jax
import jax.numpy as jnp
from flax import nnx


class BatchNorm(nnx.Module):
    """y = scale (x - mean) / sqrt(var + epsilon) + bias, mean and var over all axes of x but the last.

    In training they are the batch's own, and the running ones move towards them (towards the unbiased variance):
    running <- momentum running + (1 - momentum) batch. In evaluation they are the running ones. Statistics are kept
    and computed in float32 at least; y has the dtype of x. Under ``jit`` with images sharded over devices the
    statistics are those of the global batch. ``module.train()`` and ``module.eval()`` choose.

    Args:
      features: size of the last axis.
      momentum: weight of the past in the running statistics.
      epsilon: keeps the square root away from zero.
    """

    def __init__(self, features: int, *, momentum: float = 0.9, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.momentum = momentum
        self.epsilon = epsilon
        self.use_running_average = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises (..., features)."""
        dtype = x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32
        z = x.astype(dtype)
        mean, var = self._running(dtype) if self.use_running_average else self._batch(z)
        factor = self.scale[...].astype(dtype) * jax.lax.rsqrt(var + self.epsilon)
        shape = (1,) * (x.ndim - 1) + (-1,)
        y = (z - mean.reshape(shape)) * factor.reshape(shape) + self.bias[...].astype(dtype).reshape(shape)
        return y.astype(x.dtype)

    def _running(self, dtype: jax.typing.DTypeLike) -> tuple[jax.Array, jax.Array]:
        return self.mean[...].astype(dtype), self.var[...].astype(dtype)

    def _batch(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The batch's mean and variance; moves the running ones."""
        axes, count = tuple(range(z.ndim - 1)), z.size // z.shape[-1]
        mean, var = z.mean(axes), z.var(axes)
        self._move(self.mean, mean)
        self._move(self.var, var * (count / max(count - 1, 1)))
        return mean, var

    def _move(self, running: nnx.Variable[jax.Array], value: jax.Array) -> None:
        old = running[...]
        value = jax.lax.stop_gradient(value).astype(old.dtype)
        running[...] = self.momentum * old + (1 - self.momentum) * value
