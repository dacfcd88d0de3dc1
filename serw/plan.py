"""What a run is: its arguments, checked before anything is compiled."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from serw.statistics import GROUP
from serw.walk import Walk

LATEST = 1 << 61


class Plan(NamedTuple):
    """All that decides a run, but its key and its times."""

    walk: Walk
    method: str
    walkers: int
    trajectories: int
    mesh: Mesh


class State(NamedTuple):
    """Where a simulation stands: give it back to `simulate` to go on.

    Attributes:
      walk: the law.
      method: "events" or "steps".
      walkers: how many.
      time: the last time they were all seen at.
      inner: the walkers themselves, `serw.events.Walkers` or `serw.steps.Walkers`.
    """

    walk: Walk
    method: str
    walkers: int
    time: int
    inner: Any


def checked(walk: Walk, walkers: int, method: str, trajectories: int, state: State | None, mesh: Mesh | None) -> Plan:
    """The plan of a run.

    Args:
      walk: the law.
      walkers: >= 1.
      method: "events" or "steps".
      trajectories: from 0 to 1,024.
      state: to go on from, or None.
      mesh: with one axis, or None for all devices.

    Returns:
      The plan.

    Raises:
      ValueError: if an argument is out of range.
      TypeError: if one is of the wrong kind.
    """
    if not isinstance(walk, Walk):
        raise TypeError(f"walk must be a serw.Walk, got {walk!r}")
    if method not in ("events", "steps"):
        raise ValueError(f'method must be "events" or "steps", got {method!r}')
    walkers = _integer("walkers", walkers, 1, 1 << 32)
    trajectories = _integer("trajectories", trajectories, 0, min(walkers, GROUP))
    if mesh is None:
        mesh = Mesh(np.array(jax.devices()), ("walkers",))
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis, got {mesh.axis_names}")
    if state is not None and (state.walk, state.walkers, state.method) != (walk, walkers, method):
        raise ValueError(f"state belongs to {state.walkers} walkers of {state.walk} by {state.method}")
    return Plan(walk, method, walkers, trajectories, Mesh(mesh.devices, mesh.axis_names))


def log_times(last: int, count: int = 24) -> np.ndarray:
    """At most `count` distinct times from 1 to `last`, evenly spaced in their logarithm.

    >>> log_times(100, 5).tolist()
    [1, 3, 10, 32, 100]
    """
    return np.unique(np.round(np.geomspace(1, last, count)).astype(np.int64))


def checked_times(times: int | Sequence[int] | np.ndarray, now: int) -> np.ndarray:
    """The times of a run that has come to `now`.

    Args:
      times: increasing whole numbers, or one, for log-spaced times up to it.
      now: the time before the run.

    Returns:
      [K] int64.

    Raises:
      ValueError: if they do not increase, or leave (now, 2^61].
      TypeError: if they are not whole numbers.
    """
    listed = np.asarray(times)
    if listed.size == 0 or listed.ndim > 1 or not np.issubdtype(listed.dtype, np.integer):
        raise TypeError(f"times must be an integer or a list of integers, got {times!r}")
    if listed.min() <= now or listed.max() > LATEST:
        wrong = listed.min() if listed.min() <= now else listed.max()
        raise ValueError(f"times must lie above {now} and be at most 2^61, got {wrong}")
    if listed.ndim == 0:
        return now + log_times(int(listed) - now)
    if (np.diff(listed) <= 0).any():
        raise ValueError(
            f"times must increase, got {listed[:-1][np.diff(listed) <= 0][0]} before a smaller or equal one"
        )
    return listed.astype(np.int64)


def _integer(name: str, value: int, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer, got {value!r}") from error
    if not low <= number <= high:
        raise ValueError(f"{name} must lie between {low} and {high}, got {number}")
    return number


def is_key(key: Any) -> bool:
    """Whether this is a JAX key, typed or raw."""
    return isinstance(key, jax.Array) and (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape == (2,))
