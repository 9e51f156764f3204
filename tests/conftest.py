"""Settings for the whole suite: eight fake devices, strict promotion, warnings as errors."""

import os

# Before JAX starts. One flag for all tests: those that want one device take the first.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")

import pytest


@pytest.fixture
def x64():
    """Float64 for one test. Flax's batch norm mixes dtypes then, so promotion is the usual one."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield
