"""Walking by excursions: draw T, move by (T odd) e, turn to one of the 2 d - 1 other edges.

Most excursions are drawn by `rush`: one word, one look-up, no branch. A walker leaves the rush when its draw needs
care: the excursion reaches the next time asked for, it is longer than the table, or a word was not enough to tell. Then
it waits, and `settle` looks after it in 64-bit arithmetic before the next rush. Lengths beyond the table are drawn by
thinning: with h(n) <= H on n_0 <= n < 2 n_0, candidates come at geometric gaps of rate H and are kept with probability
h(n) / H, which is exact however long the tail. A walker uses up random words in the order of its own excursions only,
so that its path does not depend on when the others, or the times asked for, make it wait.

Shapes: B walkers, d axes, K times.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from serw import generator, lattice, loops, table
from serw.generator import Words, select
from serw.statistics import Records
from serw.table import CELLS, Table
from serw.walk import Walk

RUSH = 256  # excursions between two settlements, at most
FAR = 1 << 30


class Walkers(NamedTuple):
    """B walkers, each on an edge.

    Attributes:
      words: the generators' states, four [B] uint32.
      position: d times [B] int64, the site where the current excursion started.
      edge: [B] int32, direction of the excursion's first step: +e_i is 2 i, -e_i is 2 i + 1.
      start: [B] int64, steps made when it started.
      length: [B] int64, T if it is known, else 0.
      reached: [B] int64, n such that T >= n is known although T is not, else 0.
      turn: [B] uint32, the word that will choose the next edge.
    """

    words: Words
    position: tuple[jax.Array, ...]
    edge: jax.Array
    start: jax.Array
    length: jax.Array
    reached: jax.Array
    turn: jax.Array


def prepare(walk: Walk) -> Table:
    """The table of the walk's excursions, on the host."""
    return table.build(table.probabilities(walk))


def start(walk: Walk, key: jax.Array, numbers: jax.Array) -> Walkers:
    """Walkers at the origin, each facing one of the 2 d edges.

    Args:
      walk: the law.
      key: a JAX key.
      numbers: [B] uint32, who they are.

    Returns:
      Their state at time 0.
    """
    words, zero = generator.seed(key, numbers), jnp.zeros(numbers.shape, jnp.int64)
    everyone = jnp.ones(numbers.shape, bool)
    word, words = generator.step_where(everyone, words)
    edge, again = lattice.below(2 * walk.dim, word)
    other, words = generator.step_where(again, words)
    edge = jnp.where(again, lattice.below(2 * walk.dim, other)[0], edge)
    return Walkers(words, (zero,) * walk.dim, edge, zero, zero, zero, jnp.zeros_like(numbers))


def advance(
    walk: Walk, lengths: Table, walkers: Walkers, times: jax.Array, counted: jax.Array
) -> tuple[Walkers, Records]:
    """Walks on until every walker has been seen at every time.

    Args:
      walk: the law.
      lengths: of `prepare`.
      walkers: their state.
      times: [K] int64, increasing, beyond every time they have been seen at.
      counted: [B] bool; the others stay where they are.

    Returns:
      Their state, and where they were at each time: S_t = start + (t - start of the excursion odd) e.
    """
    seen = jnp.where(counted, 0, times.shape[0]).astype(jnp.int32)
    shape = (times.shape[0], *seen.shape)
    records = Records(
        jnp.zeros((shape[0], walk.dim, *seen.shape), jnp.int64),
        jnp.zeros(shape, jnp.int64),
    )
    nobody = jnp.zeros(seen.shape, bool)

    def body(carry: tuple[Walkers, jax.Array, jax.Array, Records]) -> tuple[Walkers, jax.Array, jax.Array, Records]:
        walkers, waiting, seen, records = carry
        walkers, seen, records = settle(walk, lengths, walkers, waiting, times, seen, records)
        walkers, waiting = rush(walk, lengths, walkers, _target(times, seen), seen < times.shape[0])
        return walkers, waiting, seen, records

    carry = jax.lax.while_loop(lambda carry: jnp.any(carry[2] < times.shape[0]), body, (walkers, nobody, seen, records))
    return carry[0], carry[3]


def rush(
    walk: Walk, lengths: Table, walkers: Walkers, target: jax.Array, wanted: jax.Array
) -> tuple[Walkers, jax.Array]:
    """Up to 256 excursions of each walker, all in 32 bits and without a branch.

    Args:
      walk: the law.
      lengths: its table.
      walkers: their state; only those between two excursions take part.
      target: [B] int64; an excursion that reaches it is left to `settle`.
      wanted: [B] bool, who has still to walk.

    Returns:
      Their state, and who waits, [B] bool, in front of the words that they could not deal with.
    """
    active = wanted & (walkers.length == 0) & (walkers.reached == 0)
    left = jnp.minimum(target - walkers.start, FAR).astype(jnp.int32)
    moved = tuple(jnp.zeros_like(left) for _ in walkers.position)
    carry = _Rush(walkers.words, moved, walkers.edge, left, active)

    far = jnp.max(jnp.where(active, left, 0)).astype(jnp.float64)
    share = active.sum(dtype=jnp.float64) / jnp.maximum(wanted.sum(dtype=jnp.float64), 1.0)
    busy = share * RUSH  # where most are beyond the table, settle more often
    rounds = jnp.clip(far / (4 * lengths.mean), 1.0, jnp.maximum(busy, 1.0)).astype(jnp.int32)
    after = loops.repeated(functools.partial(_excursion, walk.dim, lengths), rounds, carry)
    position = tuple(x + dx.astype(jnp.int64) for x, dx in zip(walkers.position, after.moved, strict=True))
    walkers = walkers._replace(
        words=after.words,
        position=position,
        edge=after.edge,
        start=walkers.start + (left - after.left).astype(jnp.int64),
    )
    return walkers, active & ~after.active


def settle(
    walk: Walk,
    lengths: Table,
    walkers: Walkers,
    waiting: jax.Array,
    times: jax.Array,
    seen: jax.Array,
    records: Records,
) -> tuple[Walkers, jax.Array, Records]:
    """Deals with the walkers that left the rush: decides, lengthens, records, turns.

    Args:
      walk: the law.
      lengths: its table.
      walkers: their state.
      waiting: of `rush`.
      times: [K] int64.
      seen: [B] int32, how many of the times each walker has been seen at.
      records: what has been seen.

    Returns:
      The new walkers, seen and records.
    """
    walkers = _decide(walk.dim, lengths, walkers, waiting)

    unseen = (seen < times.shape[0]) & (walkers.start + walkers.reached < _target(times, seen))
    walkers = lengthen(walk, walkers, unseen)
    seen, records = _record(walkers, times, seen, records)
    return _turn_round(walk.dim, walkers, seen < times.shape[0]), seen, records


def lengthen(walk: Walk, walkers: Walkers, wanted: jax.Array) -> Walkers:
    """One candidate for T of each walker that is beyond the table.

    Args:
      walk: the law.
      walkers: their state.
      wanted: [B] bool, for whom it matters.

    Returns:
      Their state: T >= n is now known for a larger n, or T itself.
    """
    open_ended = wanted & (walkers.length == 0) & (walkers.reached > 0)
    reached = jnp.maximum(walkers.reached, 1)
    first = jnp.int64(1) << (jnp.int64(63) - jax.lax.clz(reached))  # of the block 2^i <= n < 2^(i + 1)
    bound = walk.leave_bound(first)
    u, words = generator.uniform_where(open_ended, walkers.words)
    chance, words = generator.uniform_where(open_ended, words)
    room = 2 * first - reached
    gap = jnp.minimum(jnp.floor(jnp.log(u) / jnp.log1p(-bound)), room.astype(jnp.float64)).astype(jnp.int64)
    candidate, beyond = reached + gap, gap >= room
    kept = ~beyond & (chance * bound < walk.leave(candidate))
    reached = jnp.where(beyond | kept, candidate, candidate + 1)
    return walkers._replace(
        words=words,
        length=jnp.where(open_ended & kept, candidate, walkers.length),
        reached=jnp.where(open_ended, reached, walkers.reached),
    )


class _Rush(NamedTuple):
    words: Words
    moved: tuple[jax.Array, ...]
    edge: jax.Array
    left: jax.Array
    active: jax.Array


def _excursion(dim: int, lengths: Table, s: _Rush) -> _Rush:
    word, turn, words = _words(dim, s.words)
    length, tie = table.draw(lengths, word)
    edge, again = lattice.next_edge(dim, s.edge, length, turn)
    done = s.active & (length != 0) & ~tie & ~again & (length < s.left)
    return _Rush(
        select(done, words, s.words),
        lattice.moved(s.moved, s.edge, done & (length & 1 == 1)),
        jnp.where(done, edge, s.edge),
        s.left - jnp.where(done, length, 0),
        done,
    )


def _words(dim: int, words: Words) -> tuple[jax.Array, jax.Array, Words]:
    """The word of an excursion's length and that of the turn after it, which on the line needs none of its own."""
    word, words = generator.step(words)
    turn, words = generator.step(words) if dim > 1 else (word, words)
    return word, turn, words


def _decide(dim: int, lengths: Table, walkers: Walkers, waiting: jax.Array) -> Walkers:
    word, turn, words = _words(dim, walkers.words)
    words = select(waiting, words, walkers.words)
    drawn = table.draw(lengths, word)
    more, words = generator.step_where(waiting & drawn.tie, words)
    length = jnp.where(drawn.tie, table.break_tie(lengths, word, more), drawn.length).astype(jnp.int64)
    return walkers._replace(
        words=words,
        length=jnp.where(waiting, length, walkers.length),
        reached=jnp.where(waiting & (length == 0), CELLS, walkers.reached),
        turn=jnp.where(waiting, turn, walkers.turn),
    )


def _record(walkers: Walkers, times: jax.Array, seen: jax.Array, records: Records) -> tuple[jax.Array, Records]:
    end = walkers.start + jnp.maximum(walkers.length, walkers.reached)

    def body(carry: tuple[jax.Array, jax.Array, Records]) -> tuple[jax.Array, jax.Array, Records]:
        k, seen, records = carry
        here, run = (seen == k) & (times[k] <= end), times[k] - walkers.start
        position = jnp.stack(lattice.moved(walkers.position, walkers.edge, run & 1 == 1))
        records = Records(
            records.position.at[k].set(jnp.where(here[None], position, records.position[k])),
            records.run.at[k].set(jnp.where(here, run, records.run[k])),
        )
        return k + 1, seen + here.astype(jnp.int32), records

    def more(carry: tuple[jax.Array, jax.Array, Records]) -> jax.Array:
        k, seen, _ = carry
        return jnp.any((seen >= k) & ready(seen))

    def ready(seen: jax.Array) -> jax.Array:
        return (seen < times.shape[0]) & (_target(times, seen) <= end)

    first = jnp.min(jnp.where(ready(seen), seen, times.shape[0]))
    _, seen, records = jax.lax.while_loop(more, body, (first, seen, records))
    return seen, records


def _turn_round(dim: int, walkers: Walkers, wanted: jax.Array) -> Walkers:
    ready = wanted & (walkers.length > 0)
    edge, again = lattice.next_edge(dim, walkers.edge, (walkers.length & 1).astype(jnp.int32), walkers.turn)
    turn, words = generator.step_where(ready & again, walkers.words)
    done = ready & ~again
    zero = jnp.zeros_like(walkers.start)
    return Walkers(
        words,
        lattice.moved(walkers.position, walkers.edge, done & (walkers.length & 1 == 1)),
        jnp.where(done, edge, walkers.edge),
        walkers.start + jnp.where(done, walkers.length, zero),
        jnp.where(done, zero, walkers.length),
        jnp.where(done, zero, walkers.reached),
        jnp.where(ready & again, turn, walkers.turn),
    )


def _target(times: jax.Array, seen: jax.Array) -> jax.Array:
    return times[jnp.minimum(seen, times.shape[0] - 1)]
