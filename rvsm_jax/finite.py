"""When training stops being finite: noticing it at no cost a step, and finding out where it began.

The loss and the norm of the gradient are among the metrics of every step and fetched with them. When one of them, or a
weight in the end, is not finite, the steps are made again one at a time from the last good state, looking at each leaf.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.step import PyTree, TrainState, leaf_name


class NonFiniteLoss(FloatingPointError):
    """A loss, a gradient or a weight became infinite or NaN, and training stopped.

    Attributes:
      step: the step at which it happened, counted from 0.
      leaf: path of the first leaf concerned; ``""`` if the loss alone was.
      state: the last good state, from which this step was made.
      history: the records of the epochs completed.
    """

    def __init__(self, message: str, step: int, leaf: str, state: TrainState, history: Sequence[Any]):
        super().__init__(message)
        self.step, self.leaf, self.state, self.history = step, leaf, state, list(history)


def all_finite(metrics: Mapping[str, np.ndarray], state: TrainState) -> bool:
    """Whether the metrics of all steps, and the weights and the model's state after them, are finite."""
    return all(np.isfinite(m).all() for m in metrics.values()) and not nonfinite((state.params, state.model_state))


def explain(
    gradient: Callable[..., Any],
    step: Callable[..., Any],
    batch: Callable[[TrainState], Any],
    good: TrainState,
    count: int,
) -> tuple[str, int, str, TrainState]:
    """Repeats up to ``count`` steps from ``good`` and says which of them went wrong, and in which leaf first.

    Args:
      gradient: ``(state, images, labels) -> (gradients, model_state, metrics)`` of the step.
      step: ``(state, images, labels) -> (state, metrics)``.
      batch: ``state -> (images, labels)``, pure.
      good: a state that is finite.
      count: how many steps were made from it.

    Returns:
      The message, the step, the leaf and the state before that step, for `NonFiniteLoss`.
    """
    gradient, step, batch, state = jax.jit(gradient), jax.jit(step), jax.jit(batch), good
    for at in range(int(good.step), int(good.step) + count):
        images, labels = batch(state)
        (grads, _, metrics), (new, _) = gradient(state, images, labels), step(state, images, labels)
        loss = float(metrics["loss"])
        places = {"gradient": grads, "weight": new.params, "model state": new.model_state}
        bad = [(kind, name) for kind, tree in places.items() for name in nonfinite(tree)]
        if bad or not np.isfinite(loss):
            kind, leaf = bad[0] if bad else ("", "")
            where = f"; first non-finite {kind}: {leaf!r}, and {len(bad) - 1} other arrays" if bad else ""
            return f"training stopped being finite at step {at}, where the loss was {loss:g}{where}", at, leaf, state
        state = new
    at = int(good.step)
    return (
        f"training stopped being finite within {count} steps from {at}, but not when they were repeated",
        at,
        "",
        good,
    )


def nonfinite(tree: PyTree) -> list[str]:
    """Paths of the leaves that hold an infinity or a NaN, in the order of the tree."""
    flags = jax.device_get(_flags(tree))
    return [leaf_name(path) for path, flag in jax.tree.leaves_with_path(flags) if flag]


@jax.jit
def _flags(tree: PyTree) -> PyTree:
    def flag(leaf):
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return ~jnp.isfinite(leaf).all() if inexact else jnp.zeros((), bool)

    return jax.tree.map(flag, tree)
