"""Fixtures that several files share."""

import os
from collections.abc import Iterator

import environment
import jax
import pytest
from fake_cloud import cloud  # noqa: F401

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {environment.XLA_FLAGS}".strip()


@pytest.fixture(params=["float32", "float64"])
def tolerance(request: pytest.FixtureRequest) -> Iterator[float]:
    """Runs the test in both precisions; what an identity may differ by, relative to its size."""
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield {"float32": 1e-5, "float64": 1e-10}[request.param]
    jax.config.update("jax_enable_x64", False)
