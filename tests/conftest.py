"""What every test runs under: eight virtual CPU devices, strict ranks and dtypes, and real data when it is there."""

import os
import pathlib

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling takes most of the time

import jax
import matplotlib
import pytest

if jax.__version_info__ < (0, 11):  # XLA's older code generator compiles twice as fast; later ones may not have it
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
matplotlib.use("Agg")


@pytest.fixture(scope="session")
def real_data_dir() -> pathlib.Path:
    """The folder of prepared data sets, or a skip that says why."""
    places = [os.environ.get("RVSM_DATA_DIR", ""), pathlib.Path(__file__).parents[2] / "shared" / "tfds"]
    for place in filter(None, map(str, places)):
        if pathlib.Path(place, "mnist").is_dir():
            return pathlib.Path(place)
    pytest.skip(f"no prepared data sets (mnist, ...) in any of {[str(p) for p in places if str(p)]}")
