"""Senile reinforced random walks on Z^d: the law, its exact statistics, and vectorised simulation."""

from serw import exact
from serw.escapes import Escape, constant_escape, no_escape, random_escape
from serw.laws import (
    Law,
    exponential,
    exponential_growth,
    half_normal,
    pareto,
    polynomial_growth,
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
