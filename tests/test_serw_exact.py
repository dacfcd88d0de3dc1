"""serw.exact against brute force over all paths, against independent closed forms, and against itself at finite n."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import serw
from serw import Walk, constant_escape, exact, linear, no_escape, power, random_escape, tails

LAWS = [
    serw.uniform(),
    serw.exponential(2.0),
    serw.half_normal(),
    serw.pareto(0.5),
    serw.pareto(1.0),
    serw.pareto(1.7),
    serw.super_heavy(),
    serw.exponential_growth(1.5),
    serw.polynomial_growth(2.0),
]


def enumerate_paths(walk, steps):
    """E|S_n|^2 for n = 1..steps: every one of the (2 d)^n paths with its probability."""
    moves = [s * e for e in np.eye(walk.dim, dtype=int) for s in (1, -1)]
    stay = walk.stay(np.arange(1, steps + 1))
    found = np.zeros(steps)
    for path in itertools.product(range(2 * walk.dim), repeat=steps):
        weight, run, here = 1 / (2 * walk.dim), 1, moves[path[0]].copy()
        for k in range(1, steps):
            back = path[k] == path[k - 1] ^ 1
            weight *= stay[run - 1] if back else (1 - stay[run - 1]) / (2 * walk.dim - 1)
            run = run + 1 if back else 1
            here = here + moves[path[k]]
        found[steps - 1] += weight * (here @ here)
    return found[steps - 1]


@pytest.mark.parametrize("dim, steps", [(1, 1), (1, 2), (1, 7), (1, 11), (2, 3), (2, 6)])
@pytest.mark.parametrize(
    "f, escape",
    [
        (linear(1.0), no_escape()),
        (linear(2.5), constant_escape(0.1)),
        (power(1.7), random_escape(0.3, serw.exponential_growth(1.5))),
        (lambda n: n % 3 - 1, random_escape(0.5, serw.exponential(), quenched=True, seed=5)),
    ],
)
def test_recursion_is_the_sum_over_all_paths(dim, steps, f, escape):
    walk = Walk(dim, f, escape)
    assert exact.msd(walk, steps)[-1] == pytest.approx(enumerate_paths(walk, steps), rel=1e-12)


@pytest.mark.parametrize("delta", [0.99, 0.5, 0.1, 1e-3, 1e-8, 1e-16, 1e-100, 1e-300])
def test_identity_reinforcement_in_one_dimension(delta):
    found, q = exact.excursion(Walk(1, linear(1.0), constant_escape(delta))), 1 - delta
    assert found.mean == pytest.approx(2 * (-math.log(delta) - q) / q**2, rel=1e-10)
    assert found.odd == pytest.approx(2 * (q - math.log1p(q)) / q**2, rel=1e-10)


@pytest.mark.parametrize("dim", [2, 3, 4, 7])
def test_identity_reinforcement_without_escape(dim):
    walk = Walk(dim, linear(1.0))
    n = np.arange(1, 30)
    closed = [math.factorial(2 * dim) * math.factorial(k) / math.factorial(k + 2 * dim - 1) for k in n]
    np.testing.assert_allclose(exact.survival(walk, 29), closed, rtol=1e-13)
    assert exact.excursion(walk).mean == pytest.approx(dim / (dim - 1), rel=1e-10)


def test_published_constant():
    delta = 1e-300
    v = exact.diffusivity(Walk(1, linear(1.0), constant_escape(delta)))
    limit = (1 - math.log(2)) / (2 * math.log(2) - 1)  # 0.7943
    assert v * (abs(math.log(delta)) - 1) == pytest.approx(limit, rel=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("slope", [0.01, 0.3, 1.0, 2.0, 7.5])
@pytest.mark.parametrize("delta", [1e-2, 1e-7, 1e-40])
def test_two_independent_closings_of_the_tail_agree(dim, slope, delta):
    walk = Walk(dim, linear(slope), constant_escape(delta))
    found = exact.excursion(walk)
    mean, _ = exact._mean(walk)
    odd, even, _ = exact._parity(walk)
    np.testing.assert_allclose([mean, odd, even], [found.mean, found.odd, found.even], rtol=1e-10)


def test_stretched_exponential_tail_by_a_long_direct_sum():
    walk = Walk(1, power(0.6))
    alive = exact.survival(walk, 1 << 23)
    assert alive[-1] < 1e-300 or alive[-1] * len(alive) < 1e-14
    assert exact.excursion(walk).mean == pytest.approx(alive.sum(), rel=1e-10)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("delta", [0.5, 1e-3, 1e-9])
def test_clipped_mean_is_the_mean_over_quantiles(law, delta):
    n = np.array([3])
    walk = Walk(1, linear(1.0), random_escape(delta, law))
    theta = delta * float(law.scale(n.astype(float))[0])
    edges = np.concatenate([[0.0], 1 - np.logspace(0, -15, 4000)[1:], [1.0]])
    x, w = np.polynomial.legendre.leggauss(8)
    middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
    u = np.clip(middle[:, None] + half[:, None] * x, 1e-17, 1 - 2.0**-53)
    values = np.minimum(theta * law.quantile(u, *law.parameters), 1.0)
    assert walk.escape.probability(n)[0] == pytest.approx((half[:, None] * w * values).sum(), rel=2e-5)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("delta", [1e-12, 1e-100, 1e-290])
def test_every_law_has_a_diffusivity_between_the_published_rates(law, delta):
    v = exact.diffusivity(Walk(1, linear(1.0), random_escape(delta, law)))
    slow, fast = 1 / abs(math.log(delta)), 1 / math.log(abs(math.log(delta)))
    assert 0.5 * slow < v < 2 * fast


def test_quenched_and_annealed_agree_on_average():
    def v(**reading):
        return exact.diffusivity(Walk(1, linear(1.0), random_escape(0.02, serw.exponential(), **reading)))

    quenched = [v(quenched=True, seed=s) for s in range(12)]
    spread = np.std(quenched, ddof=1)
    assert spread > 0
    # E[T] is convex in the sequence, so the mean may differ from the annealed value, at second order only
    assert abs(np.mean(quenched) - v()) < 3 * spread / math.sqrt(12) + spread**2 / v() * 5


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    dim=st.integers(1, 5),
    exponent=st.floats(-1.0, 0.8),
    delta=st.one_of(st.just(0.0), st.floats(1e-9, 1.0)),
)
def test_slope_of_the_recursion_tends_to_the_diffusivity(dim, exponent, delta):
    walk = Walk(dim, power(exponent), constant_escape(delta))
    found = exact.diffusivity(walk)
    mean = exact.excursion(walk).mean
    if mean > 30 or found > 200:  # a walk that turns every few hundred steps has a longer way to its limit
        return
    msd = exact.msd(walk, 3000)
    assert (msd[-1] - msd[1999]) / 1000 == pytest.approx(found, rel=2e-2)


@pytest.mark.parametrize(
    "walk, word",
    [
        (Walk(1, linear(1.0)), "sub-diffusive"),
        (Walk(1, linear(0.5)), "diffusive"),
        (Walk(2, linear(3.0)), "sub-diffusive"),
        (Walk(2, linear(2.9)), "diffusive"),
        (Walk(3, power(0.99)), "diffusive"),
        (Walk(2, power(1.0)), "diffusive"),
        (Walk(1, power(1.0)), "sub-diffusive"),
        (Walk(4, power(1.01)), "stuck"),
        (Walk(4, power(1.01), constant_escape(1e-9)), "diffusive"),
        (Walk(1, serw.constant(-1.0)), "ballistic"),
        (Walk(1, linear(1.0), constant_escape(1.0)), "ballistic"),
        (Walk(2, serw.constant(-1.0)), "diffusive"),
        (Walk(1, serw.Reinforcement(lambda n: n**1.5, smooth=True)), "stuck"),
        (Walk(1, serw.Reinforcement(lambda n: 2 * n, smooth=True)), "sub-diffusive"),
        (Walk(2, serw.Reinforcement(lambda n: 0.5 * n + 1, smooth=True)), "diffusive"),
        (Walk(1, serw.Reinforcement(lambda n: n * np.log(n + 1), smooth=True)), "undecided"),
    ],
)
def test_regimes(walk, word):
    assert exact.regime(walk).split(":")[0] == word


def test_a_tail_that_cannot_be_closed_is_refused():
    with pytest.raises(ValueError, match="not declared smooth"):
        exact.excursion(Walk(2, lambda n: 2.5 * n))


def test_running_integral_is_exact_on_polynomials():
    powers = tails.NODES[:, None] ** np.arange(20)
    grown = np.append(tails.NODES, 1.0)[:, None] ** np.arange(1, 21)
    np.testing.assert_allclose(
        tails._running() @ powers, (grown - (-1.0) ** np.arange(1, 21)) / np.arange(1, 21), atol=1e-13
    )
