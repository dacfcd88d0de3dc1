"""Comparing running times on a machine whose clock swings: calls take turns, and only ratios within a round count."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2) -> dict[str, np.ndarray]:
    """Seconds of every call in every round; within a round the calls take turns, in an order that rotates.

    Args:
      calls: functions without arguments; what they return is waited for.
      rounds: how often each is timed.
      warm_up: how often each is called before, untimed.

    Returns:
      For each name an array of ``rounds`` seconds.

    Example:
      >>> sorted(interleaved({"a": lambda: 1, "b": lambda: 2}, rounds=3))
      ['a', 'b']
    """
    for call in list(calls.values()) * warm_up:
        jax.block_until_ready(call())
    names, seconds = list(calls), {name: np.zeros(rounds) for name in calls}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            jax.block_until_ready(calls[name]())
            seconds[name][i] = time.perf_counter() - start
    return seconds


def ratio(seconds: Mapping[str, np.ndarray], name: str, reference: str) -> dict[str, float]:
    """The median over rounds of one call's time over another's, with its quartiles.

    Args:
      seconds: from ``interleaved``.
      name: whose time.
      reference: over whose time.

    Returns:
      ``{"median": ..., "low": ..., "high": ...}``.

    Example:
      >>> ratio({"a": np.array([2.0, 4.0]), "b": np.array([1.0, 2.0])}, "a", "b")
      {'median': 2.0, 'low': 2.0, 'high': 2.0}
    """
    low, median, high = np.quantile(seconds[name] / seconds[reference], [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}
