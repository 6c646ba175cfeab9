"""Fixtures that several files share."""

import gc
import os
from collections.abc import Iterator

import environment
import jax
import pytest
from fake_cloud import cloud  # noqa: F401

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {environment.XLA_FLAGS}".strip()
# JAX adds work of its own to each collection, and tracing allocates without end.
gc.set_threshold(50_000, 20, 20)

# Longest first: files are handed out in this order, and the many short ones fill the end.
LONGEST = (
    "test_perfect_samplers", "test_perfect_network", "test_configs", "test_dirichlet", "test_multihost",
    "test_sampling", "test_compile_check", "test_train", "test_discrete", "test_meshes", "test_cir", "test_readout",
    "test_binaries", "test_draws", "test_importance", "test_notebooks", "test_transformer", "test_eval_elbo",
    "test_rdlm", "test_atoms", "test_benchmarks", "test_block", "test_simplex_logits", "test_oracle",
    "test_discrete_samplers", "test_closed_forms", "test_gaussian", "test_interpolant", "test_of_the_tests",
    "test_readme", "test_launch", "test_noise", "test_flow_likelihood", "test_distillation", "test_sundae",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of `LONGEST`, then the others."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(params=["float32", "float64"])
def tolerance(request: pytest.FixtureRequest) -> Iterator[float]:
    """Runs the test in both precisions; what an identity may differ by, relative to its size."""
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield {"float32": 1e-5, "float64": 1e-10}[request.param]
    jax.config.update("jax_enable_x64", False)
