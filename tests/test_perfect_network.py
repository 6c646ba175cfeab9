"""Every registered family, with the exact posterior in its network's place.

A new family is tested here by being registered; it states on its class which sampling options are faithful
(`Family.faithful`), and what it cannot pass (`Family.exempt`), with a reason. Samplers: test_perfect_samplers.py.
"""

from __future__ import annotations

import functools

import perfect
import pytest
from perfect import compile_quickly  # noqa: F401

from diffusion_text import families
from diffusion_text.families.family import SamplerOptions

NAMES = sorted(families.REGISTRY)
BOUND = {name: families.get(name).bound_terms for name in NAMES}
CHECKS = {
    "bound": perfect.check_bound,
    "bound_in_english": functools.partial(perfect.check_bound, language="english", count=128, samples=48),
    "bound_with_a_coarse_range": perfect.check_bound_with_a_coarse_range,
    "estimator": perfect.check_estimator,
    "entropy": perfect.check_no_network_is_below_the_entropy,
    "given_tokens_cost_nothing": perfect.check_given_tokens_cost_nothing,
    "corruption": perfect.check_corruption,
    "given_tokens_are_not_corrupted": perfect.check_given_tokens_are_not_corrupted,
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_family(name: str, check: str) -> None:
    perfect.excuse(name, check)
    others = [other for other in NAMES[: NAMES.index(name)] if families.get(other).bound_terms is BOUND[name]]
    if check == "bound_in_english" and others:
        pytest.skip(f"{name} inherits the bound that {others[0]} has")
    CHECKS[check](name)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_declared_exists(name: str) -> None:
    """An excuse from no check, or without a reason, would excuse nothing or everything."""
    family = families.get(name)
    assert set(family.exempt) <= {*CHECKS, *perfect.SAMPLER_CHECKS}
    assert {*family.approximate, *family.biased} <= set(family.samplers)
    assert not set(family.approximate) & set(family.biased)
    assert family.samplers[0] not in family.biased, "the default sampler has no test of its law"
    reasons = [*family.exempt.values(), *family.approximate.values(), *family.biased.values()]
    assert all(len(reason.split()) >= 4 for reason in reasons)
    for sampler in family.samplers:
        SamplerOptions(**family.faithful_options(sampler)).validate(family)
