"""Eight fake CPU devices for every test; the count is asserted, never assumed."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Small factorisations on two workers: threads of the BLAS cost fifty times what they save.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def _eight_devices():
    assert jax.device_count() == 8


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
