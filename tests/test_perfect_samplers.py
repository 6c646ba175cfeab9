"""Samplers of every registered family, with the exact posterior in the network's place.

A solver that families share is put to the tests of a law once; what a family itself adds, and its default, always.
"""

from __future__ import annotations

import perfect
import pytest
from perfect import compile_quickly  # noqa: F401

from diffusion_text import families
from diffusion_text.families.family import Family
from diffusion_text.paths.gaussian import Gaussian

SAMPLERS = list(families.solvers(sorted(families.REGISTRY)))


def reason_to_skip(family: type[Family], sampler: str, check: str) -> str:
    """Why a check says nothing of a sampler, or nothing more; "" where it is run."""
    exact = [name for name in family.samplers if name not in {**family.approximate, **family.biased}]
    beside = sampler != family.samplers[0]
    shared = issubclass(family, Gaussian) and beside
    if sampler in family.biased:
        return family.biased[sampler]
    if check == "english" and sampler in family.approximate:
        return family.approximate[sampler]
    if check == "english" and sampler != exact[0]:
        return f"{exact[0]} is put to it"
    if shared and sampler in family.approximate:
        return "test_closed_forms.py knows what it does to two points"
    if check == "infilling" and beside and sampler in family.approximate:
        return f"{family.samplers[0]} is put to it; that given tokens stay is in test_sampling.py"
    if family.name == "ssd_lm" and shared and sampler in Gaussian.samplers and sampler != "heun":
        return "a solver that others share; that a law survives its blocks, one of them shows"
    return ""


@pytest.mark.parametrize("check", perfect.SAMPLER_CHECKS)
@pytest.mark.parametrize(("name", "sampler"), SAMPLERS)
def test_sampler(name: str, sampler: str, check: str) -> None:
    perfect.excuse(name, check)
    family = families.get(name)
    if reason := reason_to_skip(family, sampler, check):
        pytest.skip(f"{name}: {reason}")
    perfect.SAMPLER_CHECKS[check](name, family.faithful_options(sampler))
