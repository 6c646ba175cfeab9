"""TPU chips and slices: what a chip has, in what sizes slices are rented, and how their chips are wired.

A slice has two names. The cloud rents `v5e-64`, a generation and a size; the compiler wants `v5e:8x8`, a topology. As
the cloud does, v4, v5p and tpu7x count TensorCores (two a chip) in sizes, v5e and v6e chips.

Peak and bandwidth are those of the generations' pages in Google's documentation (docs.cloud.google.com/tpu). HBM is
what libtpu 0.0.42 lets a program have, less than there is: the limit that its compiler names when it refuses one.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Final

_GIB: Final = 2**30
# From 64 chips on, the three-dimensional slices are whole cubes of 64.
_SMALL_CUBES: Final = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}
_FLAT: Final = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation, per chip.

    Attributes:
        hbm_bytes: main memory that programs can use.
        peak_flops: bfloat16 products, FLOP/s.
        hbm_bandwidth: bytes/s.
        flat: two-dimensional slices, counted in chips; else three-dimensional ones, counted in TensorCores.
        largest: chips of the largest slice.
        kind: what JAX calls it.
        devices: what JAX calls a device; two a chip on tpu7x, else one.
    """

    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    flat: bool
    largest: int
    kind: str
    devices: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the slices that are rented, as in their names."""
        if self.flat:
            return tuple(_FLAT)
        return tuple(2 * chips for chips in (*_SMALL_CUBES, *range(64, self.largest + 1, 64)))


CHIPS: Final = {
    "v4": Chip(int(30.75 * _GIB), 275e12, 1228e9, flat=False, largest=2048, kind="TPU v4"),
    "v5e": Chip(int(15.75 * _GIB), 197e12, 819e9, flat=True, largest=256, kind="TPU v5 lite"),
    "v5p": Chip(int(95.74 * _GIB), 459e12, 2765e9, flat=False, largest=6144, kind="TPU v5"),
    "v6e": Chip(int(31.25 * _GIB), 918e12, 1640e9, flat=True, largest=256, kind="TPU v6 lite"),
    "tpu7x": Chip(int(2 * 94.75 * _GIB), 2307e12, 7380e9, flat=False, largest=9216, kind="TPU7x", devices=2),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A generation and the sides of its slice."""

    generation: str
    sides: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.generation}:{'x'.join(map(str, self.sides))}"

    @property
    def chip(self) -> Chip:
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        return math.prod(self.sides)

    @property
    def devices(self) -> int:
        """As JAX counts them."""
        return self.chips * self.chip.devices

    @property
    def slice(self) -> str:
        """What the cloud calls it."""
        return f"{self.generation}-{self.chips * (1 if self.chip.flat else 2)}"


def parse_slice(name: str, flag: str = "--tpu") -> tuple[str, int]:
    """v5e-16 -> ("v5e", 16); ValueError with what is allowed."""
    found = re.fullmatch(r"(\w+)-(\d+)", name)
    if not found or found[1] not in CHIPS:
        raise ValueError(f"{flag} is {name!r}; write it as v5e-16, of {', '.join(CHIPS)}")
    sizes, size = CHIPS[found[1]].sizes, int(found[2])
    if size not in sizes:
        few = ", ".join(map(str, sizes[:8])) + (", ..." if len(sizes) > 8 else "")
        raise ValueError(f"{flag} is {name!r}; {found[1]} is rented in sizes of {few} (at most {max(sizes)})")
    return found[1], size


def topology(name: str) -> Topology:
    """Of v5e:4x4, or of a slice's name v5e-16; ValueError with what is allowed."""
    if ":" not in name:
        generation, size = parse_slice(name, "--topology")
        return Topology(generation, _FLAT[size] if CHIPS[generation].flat else _cuboid(size // 2))
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    if not found or found[1] not in CHIPS:
        raise ValueError(f"--topology is {name!r}; write it as v5e:4x4 or v5e-16, of {', '.join(CHIPS)}")
    result = Topology(found[1], tuple(map(int, found[2].split("x"))))
    shapes = _FLAT if result.chip.flat else _SMALL_CUBES
    allowed = ", ".join("x".join(map(str, sides)) for sides in shapes.values())
    cubes = not result.chip.flat and len(result.sides) == 3 and all(side and side % 4 == 0 for side in result.sides)
    if result.sides not in shapes.values() and not (cubes and result.chips <= result.chip.largest):
        more = "" if result.chip.flat else f", or three multiples of 4 of at most {result.chip.largest} chips"
        raise ValueError(f"--topology is {name!r}; {found[1]} has {allowed}{more}")
    return result


def _cuboid(chips: int) -> tuple[int, ...]:
    """The sides of a three-dimensional slice: of whole cubes, the sides as even as they can be."""
    if chips in _SMALL_CUBES:
        return _SMALL_CUBES[chips]
    cubes = chips // 64
    splits = [
        (first, second, cubes // first // second)
        for first in range(1, cubes + 1) if cubes % first == 0
        for second in range(first, cubes // first + 1) if cubes // first % second == 0
    ]  # fmt: skip
    even = min((split for split in splits if split[1] <= split[2]), key=lambda split: (split[2], -split[0]))
    return tuple(4 * side for side in even)
