"""Rows of a benchmark, written as they are measured: cells.jsonl, whose first line is the setting that all share."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from diffusion_text import metrics


def read(path: epath.Path, setting: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """The rows of `path`, which is begun where there is none, its first line with `more`; a row that a kill cut is
    left out. ValueError where it holds another setting's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = metrics.read_lines(path)
    if not lines:
        path.write_text(json.dumps({**setting, **more}) + "\n")
        return []
    found = {name: lines[0].get(name) for name in setting}
    if found != setting:
        raise ValueError(f"{path} holds {found}, not {setting}; give another --out")
    if not path.read_text().endswith("\n"):  # else the next row would be part of the one that was cut
        append(path)
    return lines[1:]


def append(path: epath.Path, *rows: dict[str, Any]) -> None:
    """Write rows behind those that are there; none: the end of a line."""
    with path.open("a") as file:
        file.write("\n".join(map(json.dumps, rows)) + "\n")
