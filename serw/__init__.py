"""Senile reinforced random walks on Z^d: the law, its exact statistics, and vectorised simulation."""

from serw import exact
from serw.laws import (
    Escape,
    Law,
    constant_escape,
    exponential,
    exponential_growth,
    half_normal,
    no_escape,
    pareto,
    polynomial_growth,
    random_escape,
    super_heavy,
    uniform,
)
from serw.plan import State, log_times
from serw.simulation import Result, simulate
from serw.walk import Reinforcement, Walk, constant, linear, power

__all__ = [
    "Escape",
    "Law",
    "Reinforcement",
    "Result",
    "State",
    "Walk",
    "constant",
    "constant_escape",
    "exact",
    "exponential",
    "exponential_growth",
    "half_normal",
    "linear",
    "log_times",
    "no_escape",
    "pareto",
    "polynomial_growth",
    "power",
    "random_escape",
    "simulate",
    "super_heavy",
    "uniform",
]
