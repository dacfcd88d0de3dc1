"""Excursion lengths, directions and random words against the laws they stand for.

Chi-square tests have fixed keys and reject at p < 1e-6 each; with the twelve here a correct program fails one of them
with probability 1.2e-5 over a random choice of keys.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import serw
from serw import Walk, constant_escape, events, exact, generator, lattice, linear, power, random_escape, table

REJECT = 1e-6


def p_value(counts, probabilities):
    expected = probabilities / probabilities.sum() * counts.sum()
    assert expected.min() > 5
    return stats.chisquare(counts, expected).pvalue


@functools.partial(jax.jit, static_argnums=(0, 3))
def head_counts(rounds, lengths, words, size):
    """Counts of 0 (the tail), 1, .., 4095 among rounds x size draws, and the generators afterwards."""

    def body(_, carry):
        counts, words = carry
        word, words = generator.step(words)
        drawn = table.draw(lengths, word)
        more, words = generator.step_where(drawn.tie, words)
        length = jnp.where(drawn.tie, table.break_tie(lengths, word, more), drawn.length)
        return counts.at[length].add(1), words

    return jax.lax.fori_loop(0, rounds, body, (jnp.zeros(size, jnp.int64), words))


@functools.partial(jax.jit, static_argnums=0)
def tails(walk, words):
    """T given T >= 4096."""
    zero = jnp.zeros(words[0].shape, jnp.int64)
    start = events.Walkers(words, (zero,), zero.astype(jnp.int32), zero, zero, zero + table.CELLS, words[0])

    def unknown(w):
        return (w.length == 0) & (w.reached < 1 << 40)

    walkers = jax.lax.while_loop(lambda w: jnp.any(unknown(w)), lambda w: events.lengthen(walk, w, unknown(w)), start)
    return jnp.where(walkers.length == 0, 1 << 40, walkers.length)


def seeded(seed, size):
    return jax.jit(generator.seed)(jax.random.key(seed), jnp.arange(size, dtype=jnp.uint32))


def test_excursions_of_1e8_draws():
    """T of the walk on the line, f(n) = n, in cells down to P(T >= 2e7) = 1e-7, against P(T >= n) = 2 / (n + 1)."""
    walk, size, rounds = Walk(1, linear(1.0)), 100_000, 1000
    with jax.enable_x64(True):
        counts, _ = head_counts(rounds, events.prepare(walk), seeded(1, size), table.CELLS)
        counts = np.asarray(counts)
        beyond = np.asarray(tails(walk, seeded(2, int(counts[0]))))
    assert counts.sum() == 10**8
    assert beyond.min() >= table.CELLS
    edges = np.unique(np.geomspace(table.CELLS, 2e7, 20).astype(np.int64))  # the last cell is T >= 2e7
    tail_counts = np.histogram(beyond, np.append(edges, 1 << 62))[0]
    observed = np.concatenate([counts[1:], tail_counts])
    n = np.arange(1, table.CELLS)
    alive = 2 / (edges + 1.0)
    expected = np.concatenate([2 / ((n + 1.0) * (n + 2)), alive - np.append(alive[1:], 0)])
    assert expected[-1] == pytest.approx(1e-7, rel=1e-3)
    assert observed[-1] > 0
    assert p_value(observed, expected) > REJECT
    parity = np.array([(beyond % 2 == 0).sum(), (beyond % 2 == 1).sum()])
    assert p_value(parity, np.ones(2)) > REJECT


@pytest.mark.parametrize(
    "walk",
    [
        Walk(1, linear(1.0), constant_escape(1e-4)),
        Walk(2, linear(3.0), constant_escape(1e-5)),
        Walk(1, power(1.2)),
        Walk(1, linear(2.5), random_escape(1e-4, serw.polynomial_growth(0.2))),
        Walk(1, linear(1.0), random_escape(1e-4, serw.half_normal(), quenched=True, seed=5)),
    ],
    ids=lambda walk: f"{walk.dim}-{walk.reinforcement.rule.__name__}-{walk.escape.law.name if walk.escape.law else ''}",
)
def test_lengths_beyond_the_table(walk):
    size = 800 if walk.escape.quenched else 20_000  # still two dozen draws a cell
    with jax.enable_x64(True):
        beyond = np.asarray(tails(walk, seeded(3, size)))
    alive = exact.survival(walk, 1 << 20)
    alive = alive / alive[table.CELLS - 1]
    inner = np.searchsorted(-alive, -np.linspace(0.99, 0.01, 30)) + 1
    edges = np.unique(np.concatenate([[table.CELLS], inner[inner <= 1 << 20]]))
    assert len(edges) > 5
    kept = alive[edges - 1]
    expected = kept - np.append(kept[1:], 0)
    observed = np.histogram(beyond, np.append(edges, 1 << 62))[0]
    wide = expected * size > 5
    assert (
        p_value(
            np.append(observed[wide], size - observed[wide].sum() + 6),
            np.append(expected[wide], 1 - expected[wide].sum() + 6 / size),
        )
        > REJECT
    )


def test_excursions_nearly_always_shorter_than_a_rare_tail_have_the_right_one():
    """P(T >= 4096) = 1e-9 must not be rounded away: the table holds it to 1e-10 of itself."""
    weight = np.zeros(table.CELLS)
    weight[[0, 1]] = 1e-9, 1 - 1e-9
    assert cell_weights(table.build(weight))[0] == pytest.approx(1e-9, rel=1e-9)


def cell_weights(built):
    """The probability of each length, from the table's 64 bits."""
    packed, low = built.packed.astype(np.uint64), built.low.astype(np.uint64)
    share = ((packed >> np.uint64(table.CELL_BITS)).astype(float) + low / 2.0**32) / 2.0**table.THRESHOLD_BITS
    weights = np.zeros(table.CELLS)
    np.add.at(weights, np.arange(table.CELLS), share)
    np.add.at(weights, (packed & np.uint64(table.CELLS - 1)).astype(int), 1 - share)
    return weights / table.CELLS


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    dim=st.integers(1, 6),
    values=st.lists(st.floats(-1.0, 1e6), min_size=1, max_size=30),
    delta=st.one_of(st.just(0.0), st.floats(0.0, 1.0)),
    law=st.sampled_from([None, serw.uniform(), serw.super_heavy(), serw.exponential_growth(1.01), serw.pareto(1.0)]),
    quenched=st.booleans(),
)
def test_table_of_any_law_holds_its_excursions(dim, values, delta, law, quenched):
    listed = np.array(values)
    escape = constant_escape(delta) if law is None else random_escape(delta, law, quenched=quenched)
    walk = Walk(dim, lambda n: listed[(n.astype(np.int64) - 1) % len(listed)], escape)
    alive = exact.survival(walk, table.CELLS)
    expected = np.append(alive[-1], alive[:-1] - alive[1:])
    np.testing.assert_allclose(cell_weights(events.prepare(walk)), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dim", [2, 3])
def test_turns_are_uniform_over_the_other_edges(dim):
    with jax.enable_x64(True):
        word, _ = generator.step(seeded(5, 600_000))
        edge = jnp.arange(600_000, dtype=jnp.int32) % (2 * dim)
        length = jnp.where(word & jnp.uint32(1) == 1, 1, 2).astype(jnp.int32)
        chosen, again = jax.jit(functools.partial(lattice.next_edge, dim))(edge, length, word)
    assert not np.asarray(again).any()  # 600,000 words, each rejected with probability below 1e-8
    old = np.asarray(edge ^ (length & 1))
    assert (np.asarray(chosen) != old).all()
    turn = (np.asarray(chosen) - old) % (2 * dim)
    counts = np.bincount(turn, minlength=2 * dim)
    assert p_value(counts[1:], np.ones(2 * dim - 1)) > REJECT


def test_words_are_xoshiro():
    """Against the recurrence in Python integers."""
    mask = 2**32 - 1
    state, words = [1, 2, 3, 4], tuple(jnp.full(3, k, jnp.uint32) for k in (1, 2, 3, 4))
    for _ in range(50):
        total = (state[0] + state[3]) & mask
        expected = ((total << 7 | total >> 25) + state[0]) & mask
        shifted = (state[1] << 9) & mask
        state[2] ^= state[0]
        state[3] ^= state[1]
        state[1] ^= state[2]
        state[0] ^= state[3]
        state[2] ^= shifted
        state[3] = (state[3] << 11 | state[3] >> 21) & mask
        word, words = generator.step(words)
        assert np.asarray(word).tolist() == [expected] * 3


def test_quenched_sequence_is_the_same_in_numpy_and_jax():
    n = np.array([1, 2, 3, 10**6, 10**12])
    with jax.enable_x64(True):
        ours = jax.jit(lambda n: generator.sequence_uniform(11, n))(jnp.asarray(n))
        np.testing.assert_array_equal(np.asarray(ours), generator.sequence_uniform(11, n))
    u = generator.sequence_uniform(3, np.arange(1, 10**6 + 1))
    assert stats.kstest(u, "uniform").pvalue > REJECT
    pairs = np.histogram2d(u[:-1], u[1:], bins=16, range=[[0, 1], [0, 1]])[0].ravel()
    assert p_value(pairs, np.ones(256)) > REJECT
