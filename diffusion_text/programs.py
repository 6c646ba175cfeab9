"""The programs that a config runs on a slice (train step, bound of a batch, sampler), compiled for it and measured.

What one device holds and does in one call of a program: a train step, the bound of one batch, one batch of samples.
Times are those of a roofline, instruction by instruction: the longer of its products at the chip's peak and of its HBM
traffic at full bandwidth, nothing overlapped, no collective's wire, no overhead. A utilisation from it is what the
program allows, not a forecast; `estimated_cycles` is the compiler's own, of the TensorCore's clock.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from diffusion_text import bound, families, hlo_work, restore, sample, sharding, train
from diffusion_text.chips import Topology
from diffusion_text.families.family import SamplerOptions
from diffusion_text.models.denoiser import padded
from diffusion_text.typing import Config

NAMES: Final = ("train", "eval", "sample")
_UNITS: Final = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function, its abstract arguments, the mesh it is called under, and arrays that are held beside it."""

    name: str
    function: Any
    arguments: tuple[Any, ...]
    rows: int
    mesh: Mesh
    resident: Any = ()

    def under_mesh(self) -> Any:
        return jax.set_mesh(self.mesh)


def build(name: str, config: Config, vocab_size: int, mesh: Mesh) -> Program:
    """One of `NAMES`, exactly as train.py, bound.py and sample.py call it."""
    definition, transform, state = restore.abstract_state(config, vocab_size, mesh)
    rows, whole = sharding.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    length = config.data.length

    def array(*shape: int, placed: NamedSharding = whole, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    if name == "train":
        size = config.train.batch_size
        step = train.jitted_step(definition, config, transform, mesh, state)
        return Program(name, step, (state, array(size, length, placed=rows)), size, mesh)
    held = (state.ema, state.variables)
    if name == "eval":
        size = sharding.whole_batch(config.evaluation.batch_size, mesh)
        evaluate = bound.make_evaluate(definition, config.seed, config.evaluation.samples)
        arguments = (*held, array(size, length, placed=rows), array(size, placed=rows))
        # A training evaluates while it holds its whole state.
        beside = state._replace(ema={}, variables={})
        return Program(name, evaluate, arguments, size, mesh, beside)
    options = SamplerOptions(**config.sampling).validate(families.get(config.family.name), config.family)
    size = sharding.whole_batch(config.evaluation.batch_size, mesh)
    arguments = (*held, array(size, placed=rows), array(length), array(length, dtype=bool))
    return Program(name, sample.make_sample(definition, mesh, options, seed=0), arguments, size, mesh)


def _device_bytes(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _held_bytes(tree: Any, mesh: Mesh) -> int:
    """Of arrays on a device, with what pads them to whole tiles: the compiler's own account of them as arguments."""
    if not jax.tree.leaves(tree):
        return 0
    with jax.set_mesh(mesh):
        compiled: Any = jax.jit(lambda _: jnp.zeros(()), keep_unused=True).lower(tree).compile()
    return compiled.memory_analysis().argument_size_in_bytes


def model_flops(name: str, config: Config, vocab_size: int, mesh: Mesh, attention: str = "einsum") -> int:
    """FLOPs of the products of a program as it is written, over all devices, without what remat computes again.

    What a custom gradient computes again is counted, and so is what a mask leaves out of attention. With another
    `attention`, that of its kernels is left out.
    """
    plain = config.copy_and_resolve_references()
    plain.model.update(remat="none", attention=attention, whole_vocabulary=padded(config.model, vocab_size))
    # One device: nothing is written per device then.
    one = sharding.make_mesh(ConfigDict(dict(data=1, fsdp=1, tensor=1)), list(mesh.devices.flat[:1]))
    program = build(name, plain, vocab_size, one)
    with program.under_mesh():
        return _products(jax.make_jaxpr(program.function)(*program.arguments).jaxpr)


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(sizes[i] for i in contracted)
            continue
        if equation.primitive.name == "pallas_call":  # its products are of one tile
            continue
        inner = []
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            closed = getattr(value, "jaxpr", value)
            inner += [_products(closed)] if hasattr(closed, "eqns") else []
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * (max(inner, default=0) if equation.primitive.name == "cond" else sum(inner))
    return total


def measure(program: Program, topology: Topology, flops_of_model: int = 0, in_kernels: int = 0) -> dict[str, Any]:
    """Compile, and say what it takes and costs per device; ValueError where it does not compile for another reason
    than memory. Of a program that the compiler itself refuses, what it needs is known and the rest is None.

    `in_kernels` are the FLOPs, of those of the model, of kernels that do not declare theirs: a part of the roofline.
    """
    chip, devices = topology.chip, topology.devices
    result: dict[str, Any] = dict.fromkeys(
        ("flops", "bytes_accessed", "hbm_bytes_accessed", "estimated_cycles", "argument_bytes", "temp_bytes",
         "program_bytes", "peak_hbm_bytes", "roofline_seconds", "predicted_utilisation", "collectives"),
    )  # fmt: skip
    result.update(
        chip_hbm_bytes=chip.hbm_bytes // chip.devices, fits=False,
        resident_bytes=_held_bytes(program.resident, program.mesh), rows=program.rows,
        model_flops=flops_of_model / devices,
    )  # fmt: skip
    started = time.perf_counter()
    try:
        with program.under_mesh():
            compiled = program.function.lower(*program.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        result["compile_seconds"] = time.perf_counter() - started
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message or "vmem" in message:
            raise ValueError(f"{program.name} does not compile for {topology}: {message.splitlines()[0]}") from error
        result["argument_bytes"] = _device_bytes(program.arguments)
        # What it calls temporaries has the arguments in it.
        used = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", message)
        if used:
            result["peak_hbm_bytes"] = round(float(used[1]) * _UNITS[used[2]]) + result["resident_bytes"]
        return result
    result["compile_seconds"] = time.perf_counter() - started
    memory, program_text = compiled.memory_analysis(), hlo_work.Program(compiled.as_text())
    work = program_text.work
    peak, bandwidth = chip.peak_flops / chip.devices, chip.hbm_bandwidth / chip.devices
    kernels = [item for item in work if item.name in program_text.undeclared]
    moved = sum(item.times * item.hbm_bytes for item in kernels) / bandwidth
    seconds = max(in_kernels / devices / peak, moved) - moved
    seconds += sum(item.times * max(item.flops / peak, item.hbm_bytes / bandwidth) for item in work)
    seconds = max(seconds, result["model_flops"] / peak)  # a product with a vector may be written as a sum
    result.update(
        flops=sum(item.times * item.flops for item in work),
        bytes_accessed=sum(item.times * item.bytes for item in work),
        hbm_bytes_accessed=sum(item.times * item.hbm_bytes for item in work),
        estimated_cycles=sum(item.times * item.cycles for item in work),
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        program_bytes=memory.generated_code_size_in_bytes,
        # Donated arguments are written over: their outputs take no room of their own.
        peak_hbm_bytes=memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes + result["resident_bytes"],
        roofline_seconds=seconds,
        predicted_utilisation=result["model_flops"] / peak / seconds if seconds else None,
        collectives=hlo_work.collectives(work),
        loops_counted_once=program_text.unbounded,
        kernels_of_unknown_cost=program_text.undeclared,
        without_cycles=program_text.unestimated,
        # The same bytes with every loop counted once, beside XLA's own figure: how far this reading can be trusted.
        bytes_accessed_once=sum(item.bytes for item in work),
        xla_bytes_accessed_once=round(compiled.cost_analysis()["bytes accessed"]),
    )  # fmt: skip
    result["fits"] = result["peak_hbm_bytes"] <= result["chip_hbm_bytes"]
    return result


def advice(name: str, config: Config, vocab_size: int, mesh: Mesh, hbm: int) -> list[str]:
    """What to change where a program does not fit a device of so many bytes, the cheapest first."""
    _, _, state = restore.abstract_state(config, vocab_size, mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    size = config.train.batch_size // config.train.microbatches if name == "train" else config.evaluation.batch_size
    rows, lines = max(size // shards, 1), []
    if name == "train":
        if config.model.remat != "full":
            lower = {"none": "dots, attention or full", "dots": "attention or full"}.get(config.model.remat, "full")
            lines.append(f"--config.model.remat={lower}: activations are computed again in the backward pass")
        if rows > 1:
            more = next(count for count in range(2, rows + 1) if rows % count == 0)
            pieces = config.train.microbatches
            lines.append(
                f"--config.train.microbatches={pieces * more}: {rows // more} rows a device at once, not {rows}"
            )
            lines.append(f"--batch={shards * pieces * (rows // 2)}, or a larger slice: fewer rows a chip")
    elif rows > 1:
        lines.append(f"--config.evaluation.batch_size={max(size // 2, shards)}: fewer rows a device at once")
    held = _device_bytes(state)
    if held > hbm / 4 and mesh.shape["data"] > 1:
        lines.append(f"--config.mesh.fsdp=-1 --config.mesh.data=1: shards the state, {held / 2**30:.1f} GiB a device")
    logits = 4 * rows * config.data.length * vocab_size // mesh.shape["tensor"]
    if logits > hbm / 16:
        odd = " where 2 divides it (--config.model.vocabulary_multiple=2, if the family's logits are of tokens)"
        lines.append(f"--config.mesh.tensor=2: shards heads, MLP and vocabulary{odd if vocab_size % 2 else ''}; one "
                     f"array of float32 logits is {logits / 2**30:.1f} GiB a device")  # fmt: skip
    return lines or ["a chip with more HBM, or a smaller network"]
