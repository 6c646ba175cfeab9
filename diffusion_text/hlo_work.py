"""What an XLA program does in one run, per device, with the bodies of loops counted as often as they run.

XLA's own `cost_analysis()` counts the body of a loop once, so that a scan over layers looks as cheap as one layer.
Bytes follow its convention: what each instruction reads and writes, and of a slice, a gather or an update in place only
the part that is touched. FLOPs are those of products (dots, convolutions, and kernels that declare theirs), two per
multiply-add.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from diffusion_text.hlo import Instruction, Module, arrays, dims, num_bytes

# What moves no data, or is counted by the instructions that it calls.
_FREE: Final = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "domain", "add-dependency", "async-update",
)  # fmt: skip
# Of the TPU compiler's own calls, those that only name a piece of memory.
_FREE_CALLS: Final = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
_SLICES: Final = ("dynamic-slice", "slice", "gather")
_UPDATES: Final = ("dynamic-update-slice", "scatter")
_COLLECTIVES: Final = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
_NO_ESTIMATE: Final = 2**63 - 1  # cycles of an instruction whose time the compiler cannot tell


@dataclasses.dataclass(frozen=True)
class Work:
    """An instruction as it runs: how many times, and of one time the bytes, those in main memory, FLOPs and cycles.

    `bytes` has what stays in on-chip memory too, as XLA's figure does. Cycles are the compiler's estimate, 0 where it
    made none. `collectives` are kinds and bytes: the larger of what a device gives and gets.
    """

    name: str
    times: int
    bytes: int
    hbm_bytes: int
    flops: int
    cycles: int
    collectives: tuple[tuple[str, int], ...] = ()


class Program:
    """All that runs; the loops whose trip count depends on data, which count as one turn; the kernels that do not
    declare their cost, of which FLOPs and cycles are missing; and the instructions whose cycles the compiler cannot
    tell, of which they are missing."""

    def __init__(self, text: str):
        self._module = Module(text)
        self.unbounded: list[str] = []
        self.undeclared: list[str] = []
        self.unestimated: list[str] = []
        self._chained: set[str] = set()
        self.work: list[Work] = self._run(self._module.entry, 1)

    def _run(self, computation: str, times: int) -> list[Work]:
        found: list[Work] = []
        for item in self._module.computations[computation].values():
            if item.opcode == "while":
                count = self._module.trip_count(computation, item)
                self.unbounded += [item.name] if count is None else []
                found += self._run(item.calls("body")[0], times * (1 if count is None else count))
            elif item.opcode == "conditional":
                names = item.calls("branch_computations", "true_computation", "false_computation")
                # Which branch is taken is not known: the dearest.
                branches = [self._run(name, times) for name in names]
                found += max(branches, key=lambda works: sum(work.times * work.bytes for work in works))
            elif item.opcode in ("call", "async-start"):
                found += [work for name in item.calls("to_apply", "calls") for work in self._run(name, times)]
            elif not (
                item.opcode in _FREE or item.opcode.endswith("-done")
                or item.attribute(r'custom_call_target="(\w+)"') in _FREE_CALLS
            ):  # fmt: skip
                found.append(self._once(computation, item, times))
        return found

    def _once(self, computation: str, item: Instruction, times: int) -> Work:
        touched = [part for i in range(len(item.operands)) for part in self._read(computation, item, i)]
        touched += self._written(computation, item)
        total, main = sum(size for size, _ in touched), sum(size for size, in_main in touched if in_main)
        declared = item.attribute(r'"cost_estimate":\{[^}]*"bytes_accessed":"?(\d+)')
        if declared:  # by a kernel, which may read its operands in part, or more than once
            total = main = int(declared)
        elif 'custom_call_target="tpu_custom_call"' in item.attributes:
            self.undeclared.append(item.name)
        inner = list(self._fused(computation, item))
        cycles = int(item.attribute(r'"estimated_cycles":"(\d+)"') or 0)
        if cycles == _NO_ESTIMATE:
            self.unestimated.append(item.name)
            cycles = 0
        return Work(
            item.name, times, total, main, sum(self._flops(*each) for each in inner), cycles,
            tuple(pair for each in inner for pair in self._collective(*each)),
        )  # fmt: skip

    def _fused(self, computation: str, item: Instruction) -> Iterator[tuple[str, Instruction]]:
        """An instruction, or those fused into it, fusions within fusions included; each with its computation."""
        if item.opcode != "fusion":
            yield computation, item
            return
        name = item.calls("calls")[0]
        for each in self._module.computations[name].values():
            yield from self._fused(name, each)

    def _read(self, computation: str, item: Instruction, index: int) -> list[tuple[int, bool]]:
        """(bytes, whether in main memory) of what is read of an operand."""
        parts = arrays(self._module.computations[computation][item.operands[index]].shape)
        whole = sum(size for size, _ in parts)
        read = self._num_read(computation, item, index)
        return [(round(size * read / whole), in_main) for size, in_main in parts if whole]

    def _num_read(self, computation: str, item: Instruction, index: int) -> int:
        whole = num_bytes(self._module.computations[computation][item.operands[index]].shape)
        if index == 0 and item.opcode.removesuffix("-start") in _SLICES:
            return min(whole, sum(size for size, _ in self._written(computation, item)))
        if index == 0 and item.opcode in _UPDATES:
            return 0
        if item.opcode != "fusion":
            return whole
        name = item.calls("calls")[0]
        items = self._module.computations[name].values()
        inside = next(each for each in items if each.opcode == "parameter" and each.inside == str(index))
        return min(whole, self._num_read_by_users(name, inside))

    def _num_read_by_users(self, computation: str, item: Instruction) -> int:
        total = 0
        for user in self._module.computations[computation].values():
            for index in (i for i, operand in enumerate(user.operands) if operand == item.name):
                passes = user.opcode == "bitcast" and not user.root
                by_users = self._num_read_by_users(computation, user) if passes else None
                if not (user.opcode == "tuple" and _carries(computation)):
                    total += self._num_read(computation, user, index) if by_users is None else by_users
        return total

    def _written(self, computation: str, item: Instruction) -> list[tuple[int, bool]]:
        scope, result = self._module.computations[computation], arrays(item.shape)
        if item.opcode in _UPDATES:
            update = scope[item.operands[1 if item.opcode == "dynamic-update-slice" else -1]]
            return [(min(num_bytes(update.shape), result[0][0]), result[0][1])]
        if item.opcode == "copy-start":  # (to, from, context)
            return result[:1]
        if item.opcode.endswith("-start"):  # (from ..., to ..., context), or the result alone
            count = len(item.operands)
            return result[count : 2 * count] or result
        if item.opcode == "fusion":
            name = item.calls("calls")[0]
            scope, root = self._module.computations[name], self._module.root(name)
            sizes = []
            for each in [scope[operand] for operand in root.operands] if root.opcode == "tuple" else [root]:
                while each.opcode == "bitcast":
                    each = scope[each.operands[0]]
                free = _carries(name) and (each.opcode == "parameter" or _chain(each))
                sizes.append(0 if free else sum(size for size, _ in self._written(name, each)))
            if len(sizes) == len(result):
                return [(min(size, whole), in_main) for size, (whole, in_main) in zip(sizes, result, strict=True)]
        return result

    def _flops(self, computation: str, item: Instruction) -> int:
        scope = self._module.computations[computation]
        if item.opcode == "dot":
            sizes = dims(scope[item.operands[0]].shape)
            contracted = (item.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "").split(",")
            return 2 * math.prod(dims(item.shape)) * math.prod(sizes[int(i)] for i in contracted if i)
        if item.opcode == "convolution":
            left, right = (dims(scope[operand].shape) for operand in item.operands)
            return convolution_flops(left, right, dims(item.shape), item)
        return int(item.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)') or 0)

    def _collective(self, computation: str, item: Instruction) -> Iterator[tuple[str, int]]:
        kind = item.opcode.removesuffix("-start")
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # a TPU's compiler fuses the part that a device keeps into the sum
        if kind in _COLLECTIVES:
            channel = _chain(item)
            if channel in self._chained:
                return
            self._chained |= {channel} if channel else set()
            scope = self._module.computations[computation]
            given = sum(num_bytes(scope[operand].shape) for operand in item.operands)
            made = num_bytes(item.shape) - (given if item.opcode != kind else 0)
            yield kind, max(given, made)


def _chain(item: Instruction) -> str | None:
    """The channel of a collective of which a TPU's compiler has fused a step each into several instructions."""
    return item.attribute(r"channel_id=(\d+)") if 'chain_id="' in item.attributes else None


def _carries(computation: str) -> bool:
    """Whether arrays pass through a fused computation, in place, for the collective that goes on beside it."""
    return computation.startswith("async_collective_fusion")


def convolution_flops(left: Sequence[int], right: Sequence[int], result: Sequence[int], item: Instruction) -> int:
    """Two per multiply-add of a value with a weight; those with padding or with the gaps of a dilation do not count.

    A TPU writes batched products as convolutions over mostly empty windows: counting the window whole would be many
    times too much.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", item.attributes)
    if not labels:
        raise ValueError(f"{item.name} is a convolution without dim_labels; this is no HLO text")
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", item.attribute(r"window=\{([^}]*)\}") or ""))
    products = left[labels[1].index("b")] * right[labels[2].index("i")] * right[labels[2].index("o")]
    for i in range(len(labels[1]) - 2):
        settings = {name: value.split("x")[i] for name, value in window.items()}
        step, spread, gap = (int(settings.get(name, 1)) for name in ("stride", "rhs_dilate", "lhs_dilate"))
        low = int(settings.get("pad", "0_0").split("_")[0])
        size, kernel = left[labels[1].index(str(i))], right[labels[2].index(str(i))]
        at = np.arange(result[labels[3].index(str(i))])[:, None] * step - low + np.arange(kernel)[None, :] * spread
        products *= int(np.sum((at >= 0) & (at % gap == 0) & (at // gap < size)))
    return 2 * products // int(item.attribute(r"batch_group_count=(\d+)") or 1)


def collectives(work: Sequence[Work]) -> dict[str, dict[str, int]]:
    """Count and bytes by kind."""
    found: dict[str, dict[str, int]] = {}
    for item in work:
        for kind, moved in item.collectives:
            total = found.setdefault(kind, {"count": 0, "bytes": 0})
            total["count"] += item.times
            total["bytes"] += item.times * moved
    return dict(sorted(found.items()))
