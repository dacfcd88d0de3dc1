"""The loop under both methods: one update of all walkers, over and over."""

from collections.abc import Callable
from typing import TypeVar

import jax

State = TypeVar("State")
FUSED = 8


def repeated(update: Callable[[State], State], times: jax.Array, state: State) -> State:
    """update(update(... update(state))), several of them in a pass over the walkers where that is faster.

    On an accelerator 8 updates are one kernel, which keeps a walker in registers. On a CPU each is a pass of its own:
    there XLA computes the earlier updates of a pass again for every array that the pass writes, and four excursions in
    one take twice as long as four passes.

    Args:
      update: the next state from the last, of the same shapes.
      times: how often, an integer scalar.
      state: to begin with.

    Returns:
      The last state.

    >>> int(repeated(lambda x: 2 * x, jax.numpy.int32(10), jax.numpy.int32(1)))
    1024
    """
    fused = 1 if jax.default_backend() == "cpu" else FUSED

    def several(_: jax.Array, state: State) -> State:
        for _i in range(fused):
            state = update(state)
        return state

    state = jax.lax.fori_loop(0, times // fused, several, state)
    return state if fused == 1 else jax.lax.fori_loop(0, times % fused, lambda _, state: update(state), state)
