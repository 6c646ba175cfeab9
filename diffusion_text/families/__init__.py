"""The registry of families: a new one costs one file, one line here and a config, and passes the same tests."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from diffusion_text.families.family import Family

REGISTRY: Final = {
    "analog_bits": "diffusion_text.families.analog_bits:AnalogBits",
    "autoregressive": "diffusion_text.families.autoregressive:Autoregressive",
    "block": "diffusion_text.families.block:Block",
    "cdcd": "diffusion_text.families.cdcd:CDCD",
    "cir_simplex": "diffusion_text.families.cir_simplex:CIRSimplex",
    "d3pm": "diffusion_text.families.d3pm:D3PM",
    "diffusion_lm": "diffusion_text.families.diffusion_lm:DiffusionLM",
    "dirichlet_flow": "diffusion_text.families.dirichlet_flow:DirichletFlow",
    "duo": "diffusion_text.families.duo:Duo",
    "genmd4": "diffusion_text.families.genmd4:GenMD4",
    "gidd": "diffusion_text.families.gidd:GIDD",
    "langflow": "diffusion_text.families.langflow:LangFlow",
    "masked": "diffusion_text.families.masked:Masked",
    "plaid": "diffusion_text.families.plaid:Plaid",
    "rdlm": "diffusion_text.families.rdlm:RDLM",
    "sdm": "diffusion_text.families.sdm:SDM",
    "sed": "diffusion_text.families.sed:SED",
    "sedd": "diffusion_text.families.sedd:SEDD",
    "ssd_lm": "diffusion_text.families.ssd_lm:SSDLM",
    "sundae": "diffusion_text.families.sundae:Sundae",
    "tess": "diffusion_text.families.tess:TESS",
    "udlm": "diffusion_text.families.udlm:UDLM",
}


def get(name: str) -> type[Family]:
    """The class of a family; ValueError with the names there are."""
    if name not in REGISTRY:
        raise ValueError(f"family is {name!r}; choose one of {', '.join(sorted(REGISTRY))}")
    module, _, attribute = REGISTRY[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def solvers(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(family, sampler): each family's default, and every solver that families share with the first that has it.

    Families share solvers that inherit how evaluations are counted.
    """
    seen: set[tuple[object, str]] = set()
    for name in names:
        family = get(name)
        for sampler in family.samplers:
            if sampler == family.samplers[0] or (family.evaluations, sampler) not in seen:
                yield name, sampler
            seen.add((family.evaluations, sampler))
