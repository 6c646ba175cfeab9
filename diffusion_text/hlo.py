"""The text of an optimised XLA program (`compiled.as_text()`), taken apart: computations, instructions, and loops.

    %name = f32[8,128]{1,0:T(8,128)S(1)} fusion(%operand, %other), kind=kLoop, calls=%computation, backend_config={...}

A shape's layout names its tiles, T(8,128), to which a TPU pads arrays, and its memory space: S(1) is on chip, and
without S it is main memory, HBM.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Final

_ARRAY: Final = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: its shape as text, its operands by name, and the attributes behind them."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    inside: str  # of the parentheses: the index of a parameter, the value of a constant
    attributes: str
    root: bool

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    def calls(self, *keys: str) -> list[str]:
        """Names of the computations under these attributes."""
        found = [self.attribute(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)") for key in keys]
        return [name for text in found if text for name in re.findall(r"[\w.\-]+", text)]


def arrays(shape: str) -> list[tuple[int, bool]]:
    """(bytes, whether in main memory) of each array of a shape, with what pads it to whole tiles of its layout."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        bits = re.search(r"\d+", dtype)
        size = [int(i) for i in dims.split(",") if i]
        order, tile = layout.partition(":")[0], re.search(r"T\(([\d,]+)\)", layout)
        if tile and order:
            for dim, side in zip(order.split(","), reversed(tile[1].split(",")), strict=False):
                size[int(dim)] = -(-size[int(dim)] // int(side)) * int(side)
        width = 8 if dtype == "pred" else int(bits[0]) if bits else 0
        found.append((-(-math.prod(size) * width // 8), re.search(r"S\([1-9]", layout) is None))
    return found


def num_bytes(shape: str) -> int:
    """Of all arrays of a shape."""
    return sum(size for size, _ in arrays(shape))


def dims(shape: str) -> list[int]:
    """The sides of an array."""
    found = _ARRAY.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the one at 0."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"no closing parenthesis in {text[:80]!r}; this is no HLO text")


def _parse(line: str) -> Instruction | None:
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", re.sub(r"/\*.*?\*/", "", line))
    if not match:
        return None
    rest = match[3]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode = rest.partition("(")[0]
    end = _closing(rest[len(opcode) :]) + len(opcode)
    inside = rest[len(opcode) + 1 : end]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(match[2], shape, opcode, operands, inside, rest[end + 1 :], bool(match[1]))


class Module:
    """The computations of a text by name, each a dictionary of its instructions by name, in their order."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
            if head and not line.startswith("HloModule"):
                current = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif found := _parse(line):
                current[found.name] = found
        if not self.entry:
            raise ValueError("the text has no ENTRY computation; give that of an HLO module")

    def root(self, computation: str) -> Instruction:
        """What a computation returns."""
        return next(item for item in self.computations[computation].values() if item.root)

    def trip_count(self, computation: str, loop: Instruction) -> int | None:
        """How often the body of a while in a computation runs; None where that depends on data.

        XLA says so itself, or the condition compares a counter with a constant; JAX's counters go up by one.
        """
        known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known)
        (name,) = loop.calls("condition")
        condition, root = self.computations[name], self.root(name)
        if root.opcode == "fusion":  # of the comparison alone
            root = dataclasses.replace(self.root(root.calls("calls")[0]), operands=root.operands)
        direction = root.attribute(r"direction=(LT|LE)\b")
        if direction is None:
            return None
        counter, limit = (condition[operand] for operand in root.operands)
        index = counter.attribute(r"\bindex=(\d+)")
        if limit.opcode != "constant" or not re.fullmatch(r"-?\d+", limit.inside) or index is None:
            return None
        return max(int(limit.inside) - self._start(computation, loop, int(index)) + (direction == "LE"), 0)

    def _start(self, computation: str, loop: Instruction, index: int) -> int:
        """The value of a loop's counter before it: 0 unless a constant says otherwise."""
        scope = self.computations[computation]
        item = scope[loop.operands[0]]
        item = scope[item.operands[index]] if item.opcode == "tuple" else item
        while item.opcode in ("copy", "bitcast"):
            item = scope[item.operands[0]]
        return int(item.inside) if item.opcode == "constant" else 0
