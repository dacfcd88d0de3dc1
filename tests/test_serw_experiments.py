"""Experiments of the walk: their quick versions run, agree with the exact values and leave a figure and a record."""

import pytest

from experiments import (
    common,
    serw_diffusivity,
    serw_dimensions,
    serw_random_escape,
    serw_regimes,
    serw_subdiffusion,
)

SCRIPTS = [serw_diffusivity, serw_dimensions, serw_random_escape, serw_regimes, serw_subdiffusion]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.NAME)
def test_quick_run_agrees_and_leaves_its_record(script, tmp_path):
    script.main(script.Options(quick=True, out=tmp_path))
    found = common.load(f"{script.NAME}-quick", tmp_path)
    sigmas = found["largest_sigmas"]
    assert 0 < max(sigmas.values() if isinstance(sigmas, dict) else [sigmas]) < 4.5
    assert (tmp_path / f"{script.NAME}-quick.png").stat().st_size > 5_000


def test_law_of_the_users_own_lies_between():
    law = serw_random_escape.between(0.4)
    assert 0.3 < law.clipped_mean(0.5, 0.4) <= 1
    assert law.clipped_mean(1e-9, 0.4) == pytest.approx(float(law.clipped_mean([1e-9], 0.4)[0]))
