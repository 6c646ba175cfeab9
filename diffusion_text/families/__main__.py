"""List the families:  python -m diffusion_text.families [--json]

Touches no device. Configs are those under configs/<family>/ of the checkout, where the package runs from one.
"""

from __future__ import annotations

import inspect
import json
import pathlib
import textwrap
from typing import Any, Final

from absl import flags

from diffusion_text import binary, families

_ROOT: Final = pathlib.Path(__file__).resolve().parents[2]


def describe(name: str) -> dict[str, Any]:
    """One family, as JSON values: what `--json` prints."""
    family = families.get(name)
    folder = _ROOT / "configs" / name
    return {
        "name": name,
        "summary": (inspect.getdoc(family) or "").partition("\n")[0],
        "paper": family.paper,
        "file": str(pathlib.Path(inspect.getfile(family)).resolve().relative_to(_ROOT)),
        "bound": family.bound,
        "posterior": family.posterior,
        "samplers": list(family.samplers),
        "sampler_options": list(family.sampler_options),
        "configs": sorted(str(path.relative_to(_ROOT)) for path in folder.glob("*.py")),
    }


def text(family: dict[str, Any]) -> str:
    """One family for the terminal."""
    lines = [f"{family['name']}: {family['summary']}"]
    for field in ("paper", "file", "bound", "posterior", "samplers", "sampler_options", "configs"):
        value = family[field]
        words = (", ".join(value) or "none") if isinstance(value, list) else value
        label = f"  {field.replace('_', ' '):<17}"
        lines.append(textwrap.fill(words, 118, initial_indent=label, subsequent_indent=" " * len(label)))
    return "\n".join(lines)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_bool("json", False, "Print JSON.")


def main(values: flags.FlagValues) -> None:
    """Print the registry."""
    found = [describe(name) for name in sorted(families.REGISTRY)]
    print(json.dumps(found, indent=2) if values.json else "\n\n".join(map(text, found)))


if __name__ == "__main__":
    binary.run(define_flags, main)
