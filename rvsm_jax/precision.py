"""In which precision sums, roots and updates are computed when tensors come in half precision."""

import jax.numpy as jnp
import numpy as np


def at_least_float32(*dtypes: np.dtype) -> np.dtype:
    """float64 if one of the dtypes is, else float32.

    Args:
      *dtypes: floating dtypes.

    Returns:
      The dtype to compute in.

    Example:
      >>> import jax.numpy as jnp
      >>> from rvsm_jax.precision import at_least_float32
      >>> at_least_float32(jnp.dtype("bfloat16"), jnp.dtype("float16"))
      dtype('float32')
    """
    return jnp.dtype(jnp.float64 if any(d.itemsize > 4 for d in dtypes) else jnp.float32)
