"""Pooling over windows that do not overlap."""

import jax


def max_pool(x: jax.Array, window: int = 2) -> jax.Array:
    """y[b, i, j, c] = max over p, q < window of x[b, window i + p, window j + q, c].

    Rows and columns that do not fill a window are left out. Where several entries of a window attain the maximum the
    gradient is shared equally among them, which is a subgradient of the maximum.

    Args:
      x: (B, H, W, C).
      window: side of the square window.

    Returns:
      (B, H // window, W // window, C).

    >>> import jax.numpy as jnp
    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    return x.reshape(batch, rows, window, columns, window, channels).max((2, 4))
