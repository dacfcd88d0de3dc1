"""Walking step by step: traverse the edge again with probability stay(n), else turn to one of the 2 d - 1 others.

One loop over time, all walkers side by side, in 32 bits; clocks and run lengths are carried on in 64 bits every 2^29
steps. A uniform of 62 bits decides, kept as a float32 that is finest near 0, where 1 - stay(n) is small. Shapes: B
walkers, d axes, K times.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from serw import events, generator, lattice, loops
from serw.generator import Words, select
from serw.statistics import Records
from serw.walk import Walk

STRETCH = 1 << 29  # steps between two returns to 64 bits


class Walkers(NamedTuple):
    """B walkers.

    Attributes:
      words: the generators' states, four [B] uint32.
      position: d times [B] int64.
      edge: [B] int32, direction of the last step (of the first one to be, at time 0): +e_i is 2 i, -e_i is 2 i + 1.
      run: [B] int64, how often the current edge has been traversed in a row.
      time: [B] int64, steps made, the same for all.
    """

    words: Words
    position: tuple[jax.Array, ...]
    edge: jax.Array
    run: jax.Array
    time: jax.Array


def start(walk: Walk, key: jax.Array, numbers: jax.Array) -> Walkers:
    """Walkers at the origin; see `serw.events.start`."""
    walkers = events.start(walk, key, numbers)
    return Walkers(walkers.words, walkers.position, walkers.edge, jnp.zeros_like(walkers.start), walkers.start)


def advance(walk: Walk, _: None, walkers: Walkers, times: jax.Array, counted: jax.Array) -> tuple[Walkers, Records]:
    """Walks to each of the times in turn.

    Args:
      walk: the law.
      _: where `serw.events.advance` takes its table.
      walkers: their state.
      times: [K] int64, non-decreasing, none before the walkers' own.
      counted: [B] bool; if none is set, nobody walks.

    Returns:
      Their state, and where they were at each time.
    """
    walkers = select(walkers.time > 0, walkers, _first_step(walkers))

    times = jnp.where(jnp.any(counted), times, 0)

    def until(walkers: Walkers, time: jax.Array) -> tuple[Walkers, Records]:
        walkers = jax.lax.while_loop(lambda w: w.time[0] < time, lambda w: _stretch(walk, w, time), walkers)
        return walkers, Records(jnp.stack(walkers.position), walkers.run)

    return jax.lax.scan(until, walkers, times)


class _Stride(NamedTuple):
    words: Words
    moved: tuple[jax.Array, ...]
    edge: jax.Array
    run: jax.Array
    before: jax.Array


def _first_step(w: Walkers) -> Walkers:
    position = lattice.moved(w.position, w.edge)
    return Walkers(w.words, position, w.edge, jnp.ones_like(w.run), jnp.ones_like(w.run))


def _stretch(walk: Walk, w: Walkers, time: jax.Array) -> Walkers:
    steps = jnp.minimum(time - w.time[0], STRETCH).astype(jnp.int32)
    run = jnp.minimum(w.run, 1 << 30).astype(jnp.int32)
    moved = tuple(jnp.zeros_like(run) for _ in w.position)
    carry = _Stride(w.words, moved, w.edge, run, (w.run - run.astype(jnp.int64)).astype(jnp.float32))

    carry = loops.repeated(functools.partial(_step, walk), steps, carry)
    position = tuple(x + dx.astype(jnp.int64) for x, dx in zip(w.position, carry.moved, strict=True))
    wide = steps.astype(jnp.int64)
    kept = carry.run == run + steps  # never turned: the run goes on in 64 bits
    length = jnp.where(kept, w.run + wide, carry.run.astype(jnp.int64))
    return Walkers(carry.words, position, carry.edge, length, w.time + wide)


def _step(walk: Walk, s: _Stride) -> _Stride:
    word, words = generator.step(s.words)
    turn, words = generator.step(words) if walk.dim > 1 else (word, words)
    turns = _uniform(word, s.words[1]) < _leave(walk, s)
    edge = jnp.where(turns, _other(walk.dim, s.edge, turn), s.edge ^ 1)
    return _Stride(
        words,
        lattice.moved(s.moved, edge),
        edge,
        jnp.where(turns, 1, s.run + 1),
        jnp.where(turns, jnp.float32(0), s.before),
    )


def _leave(walk: Walk, s: _Stride) -> jax.Array:
    if walk.escape.quenched:
        return walk.leave(s.run.astype(jnp.int64) + s.before.astype(jnp.int64)).astype(jnp.float32)
    return walk.leave(s.run.astype(jnp.float32) + s.before).astype(jnp.float32)


def _uniform(word: jax.Array, more: jax.Array) -> jax.Array:
    """Word 2^-32 with 31 more bits behind it, which matter only where the word is small."""

    def real(w: jax.Array) -> jax.Array:
        return (w >> jnp.uint32(1)).astype(jnp.int32).astype(jnp.float32)

    return real(word) * 2.0**-31 + real(more) * 2.0**-62


def _other(dim: int, edge: jax.Array, word: jax.Array) -> jax.Array:
    """One of the 2 d - 1 directions that do not lead back, each to within 2^-32."""
    if dim == 1:
        return edge
    return lattice.next_edge(dim, edge, jnp.ones_like(edge), word)[0]
