"""What shrinking buys on this machine: the compiler's operation count, and time, before and after."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rvsm_jax.shrinking.inputs import random_like
from rvsm_jax.shrinking.report import Change, Cost, Report


def measure(
    report: Report,
    fn: Callable,
    variables: Any,
    small_fn: Callable,
    small_variables: Any,
    *,
    batches: Sequence[int] = (1, 64),
    rounds: int = 11,
) -> Report:
    """The report with, for each batch size, floating-point operations by the compiler and median seconds of a call.

    The two functions take turns, so that a machine whose clock swings is equally fast for both.

    Args:
      report: from `shrink`.
      fn: the function that was shrunk.
      variables: its variables.
      small_fn: the small function.
      small_variables: its variables.
      batches: batch sizes.
      rounds: how often each is timed.

    Returns:
      The report with ``costs``.

    Raises:
      ValueError: if rounds is less than 1.

    >>> from rvsm_jax.shrinking import shrink
    >>> import jax.numpy as jnp
    >>> fn, w, x = lambda v, x: x @ v, jnp.ones((64, 8)).at[8:].set(0), jnp.ones((1, 64))
    >>> small_fn, small, report = shrink(fn, w, x)
    >>> (cost,) = measure(report, fn, w, small_fn, small, batches=[16], rounds=1).costs
    >>> cost.batch, cost.operations
    (16, Change(before=16384, after=2048))
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    pairs = (fn, variables), (small_fn, small_variables)
    return report._replace(costs=tuple(_cost(pairs, report.example, batch, rounds) for batch in batches))


def _cost(pairs: Sequence[tuple[Callable, Any]], example: Any, batch: int, rounds: int) -> Cost:
    x = random_like(example, batch)
    compiled = [jax.jit(f).lower(v, x).compile() for f, v in pairs]
    calls = [(call, v, x) for call, (_, v) in zip(compiled, pairs, strict=True)]
    seconds = np.array([[_seconds(*call) for call in calls] for _ in range(rounds + 1)])[1:]
    before, after = (int(_operations(call)) for call in compiled)
    return Cost(batch, Change(before, after), Change(*map(float, np.median(seconds, axis=0))))


def _seconds(call: Callable, variables: Any, x: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call(variables, x))
    return time.perf_counter() - start


def _operations(compiled: Any) -> float:
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return (analysis or {}).get("flops", 0.0)
