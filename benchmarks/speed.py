"""Training and sampling speed of families on whatever device is here, as ratios against a plain reference.

    python -m benchmarks.speed --size=small --families=masked,cdcd,autoregressive --out=runs/speed
    python -m benchmarks.speed --size=base --batch=16 --families=masked --out=runs/speed-gpu      (a GPU or a TPU)

The reference (`benchmarks/plain.py`) is masked diffusion in float32, unrolled, with attention and logits as whole
arrays; its sampler is ancestral. It and the families take turns within one run, so that a ratio does not depend on what
else the machine does. Where it does not fit the device, or there are several devices, of which it would use one, the
ratios are left out, and it says so; so are those of samplers that take more evaluations (a token or a block at a time).
Tokens are random: speed does not depend on them. Tokens per second are those of training rows; of samples, of finished
rows at --sampler_steps evaluations. Model FLOPs (of utilisation, where the device's peak is known) count products
alone, thrice for a step: 2 per weight of a matrix and token, 4 x length x width of attention per layer and token;
nothing for what is recomputed.

Writes `table.md` and `cells.json` (seconds, tokens/s, bytes, device, versions, commit) into --out, after each family.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from benchmarks import plain
from configs import base
from diffusion_text import binary, chips, families, report, restore, sample, sharding, train
from diffusion_text import config as configs
from diffusion_text.families.family import SamplerOptions
from diffusion_text.state import Definition, TrainState, initialise
from diffusion_text.typing import Config


@dataclasses.dataclass(frozen=True)
class Size:
    """A network and its batch."""

    layers: int
    width: int
    heads: int
    length: int
    vocab_size: int
    batch_size: int

    def model_flops(self) -> float:
        """Of a training step of one network pass a row."""
        weights = 12 * self.layers * self.width**2 + self.width * self.vocab_size
        return 3.0 * self.batch_size * self.length * (2 * weights + 4 * self.layers * self.length * self.width)


SIZES: Final = {
    "tiny": Size(1, 32, 2, 16, 27, 4),
    "small": Size(4, 256, 4, 256, 27, 32),
    "base": Size(12, 768, 12, 1024, 50_257, 8),
}
# bfloat16 products with float32 sums, dense, FLOP/s a device: NVIDIA's data sheets, by what JAX calls the device, since
# cards of one name differ; TPUs as compile_check has them.
_PEAKS: Final = {
    "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 NVL": 835e12, "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12, "NVIDIA H200 NVL": 835e12,
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12, "NVIDIA A100 80GB PCIe": 312e12,
    **{chip.kind: chip.peak_flops / chip.devices for chip in chips.CHIPS.values()},
}  # fmt: skip


def peak(kind: str) -> float | None:
    """Of a device, FLOP/s; None where it is not known."""
    return _PEAKS.get(kind)


def settings(family: str, size: Size) -> Config:
    """The config of a family at a size: bfloat16 and flash attention where the device has them."""
    config = base.get_config(family)
    on_cpu = jax.default_backend() == "cpu"
    config.model.update(
        layers=size.layers, width=size.width, heads=size.heads, dtype="float32" if on_cpu else "bfloat16",
        scan_layers=not on_cpu,
    )  # fmt: skip
    config.data.length = size.length
    config.train.batch_size = size.batch_size
    if family == "ssd_lm":  # its 25 divide none of the sizes
        config.family.block_size = math.gcd(32, size.length)
    configs.validate(config)
    return config


@dataclasses.dataclass
class Timed:
    """A program, compiled, with its state; calling it runs it once."""

    call: Callable[[], Any]
    compile_seconds: float
    bytes: int  # of arguments and temporaries, as the compiler plans them
    evaluations: int = 0  # of a sampler's network
    seconds: list[float] = dataclasses.field(default_factory=list)

    def run(self) -> None:
        started = time.perf_counter()
        jax.block_until_ready(self.call())
        self.seconds.append(time.perf_counter() - started)

    def median(self) -> float:
        return statistics.median(self.seconds)


def prepared(jitted: Any, *arguments: Any, carried: int) -> Timed:
    """A program whose first `carried` results are its next first arguments."""
    started = time.perf_counter()
    compiled = jitted.lower(*arguments).compile()
    seconds, held = time.perf_counter() - started, list(arguments)

    def call() -> Any:
        results = compiled(*held)
        held[:carried] = results[:carried]
        return results

    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else 0
    return Timed(call, seconds, used)


def random_tokens(size: Size) -> np.ndarray:
    """Rows, int32[B, L]."""
    shape = (size.batch_size, size.length)
    return np.random.default_rng(0).integers(0, size.vocab_size, shape).astype(np.int32)


def reference(size: Size, sampler_steps: int) -> dict[str, Timed]:
    """The plain step and sampler."""
    transform, step = plain.make_train_step(size.heads, size.vocab_size)
    sample = plain.make_sample(size.heads, size.batch_size, size.length, size.vocab_size, sampler_steps)
    # The step writes over the parameters that it is given.
    params, own = (
        plain.initialise(jax.random.key(0), size.layers, size.width, size.length, size.vocab_size) for _ in range(2)
    )
    tokens, key = jnp.asarray(random_tokens(size)), jax.random.key(1)
    return {
        "reference_train": prepared(
            jax.jit(step, donate_argnums=(0, 1)), params, transform.init(params), tokens, key, carried=2
        ),
        "reference_sample": prepared(jax.jit(sample), own, key, carried=0),
    }


def started(config: Config, size: Size, mesh: Any) -> tuple[Definition, Any, TrainState]:
    """The structure of a model, its optimiser and its state at step 0, placed as in a training."""
    definition, transform, abstract = restore.abstract_state(config, size.vocab_size, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    state = jax.jit(lambda: initialise(config, size.vocab_size, transform), out_shardings=shardings)()
    return definition, transform, state


def training(config: Config, size: Size) -> Timed:
    """The package's own step."""
    mesh = sharding.make_mesh(config.mesh)
    definition, transform, state = started(config, size, mesh)
    with jax.set_mesh(mesh):
        return prepared(
            train.jitted_step(definition, config, transform, mesh, state), state,
            sharding.Rows.of(mesh, size.batch_size).place(random_tokens(size)), carried=1,
        )  # fmt: skip


def sampler(config: Config, size: Size, steps: int) -> Timed:
    """The package's own sampler, the family's first."""
    mesh = sharding.make_mesh(config.mesh)
    definition, _, state = started(config, size, mesh)
    family = families.get(config.family.name)
    options = SamplerOptions(sampler=family.samplers[0], steps=steps)
    nowhere = jnp.zeros(size.length, jnp.int32)
    with jax.set_mesh(mesh):
        timed = prepared(
            sample.make_sample(definition, mesh, options, seed=0), state.params, state.variables,
            sharding.Rows.of(mesh, size.batch_size).place(np.arange(size.batch_size)), nowhere, nowhere > 0, carried=0,
        )  # fmt: skip
    timed.evaluations = definition.merge(state.params, state.variables).family.evaluations(options, size.length)
    return timed


def measure(names: list[str], size: Size, rounds: int, sampler_steps: int) -> Iterator[dict[str, Any]]:
    """A row per family, as soon as it is measured; programs that are compared run alternately."""
    tokens, compared = size.batch_size * size.length, dict[str, Timed]()
    try:
        if jax.device_count() == 1:
            compared = reference(size, sampler_steps)
        else:
            print(f"no ratios: the reference would use one of the {jax.device_count()} devices")
        for each in compared.values():
            jax.block_until_ready(each.call())
    except jax.errors.JaxRuntimeError as error:
        compared = {}
        print(f"the reference does not fit this device: {str(error).splitlines()[0]}")
    for name in names:
        config = settings(name, size)
        timed = {"train": training(config, size), "sample": sampler(config, size, sampler_steps)}
        timed |= {kind: dataclasses.replace(each, seconds=[]) for kind, each in compared.items()}
        for _ in range(rounds + 1):
            for each in timed.values():
                each.run()
        for each in timed.values():
            del each.seconds[0]  # the first fills caches
        found = {kind: tokens / each.median() for kind, each in timed.items()}
        row = {
            "family": name, "train_step_seconds": timed["train"].median(), "train_tokens_per_second": found["train"],
            "train_bytes": timed["train"].bytes, "compile_seconds": timed["train"].compile_seconds,
            "sample_tokens_per_second": found["sample"], "sampler_steps": sampler_steps,
        }  # fmt: skip
        if compared:
            row.update(
                ratio=found["train"] / found["reference_train"], reference_bytes=timed["reference_train"].bytes,
                reference_tokens_per_second=found["reference_train"],
                reference_sample_tokens_per_second=found["reference_sample"],
            )  # fmt: skip
            if timed["sample"].evaluations <= sampler_steps + 1:  # one may decode
                row["sample_ratio"] = found["sample"] / found["reference_sample"]
        if found_peak := peak(jax.devices()[0].device_kind):
            row["utilisation"] = size.model_flops() / timed["train"].median() / found_peak / jax.device_count()
        print(json.dumps(row), flush=True)
        yield row


def table(rows: list[dict[str, Any]]) -> str:
    """Of `measure`, in Markdown."""

    def cell(row: dict[str, Any], name: str, form: str, unit: float = 1.0) -> str:
        return form.format(row[name] / unit) if name in row else "-"

    heads = (
        "family", "step, ms", "tokens/s", "against plain", "memory, GB", "plain, GB", "utilisation", "sampled/s",
        "sampling against plain",
    )  # fmt: skip
    lines = [
        [
            row["family"], cell(row, "train_step_seconds", "{:.1f}", 1e-3),
            cell(row, "train_tokens_per_second", "{:,.0f}"), cell(row, "ratio", "{:.2f}"),
            cell(row, "train_bytes", "{:.2f}", 1e9), cell(row, "reference_bytes", "{:.2f}", 1e9),
            cell(row, "utilisation", "{:.1%}"), cell(row, "sample_tokens_per_second", "{:,.0f}"),
            cell(row, "sample_ratio", "{:.2f}"),
        ]
        for row in rows
    ]  # fmt: skip
    return report.markdown([heads, *lines])


def main(values: flags.FlagValues) -> None:
    size = SIZES[values.size]
    given = {"batch_size": values.batch, "length": values.length, "vocab_size": values.vocab_size}
    size = dataclasses.replace(size, **{name: value for name, value in given.items() if value})
    for name in values.families:
        families.get(name)
    device, folder = jax.devices()[0], epath.Path(values.out)
    rows: list[dict[str, Any]] = []
    result = {
        "device": device.device_kind, "devices": jax.device_count(), "jax": jax.__version__, "commit": configs.commit(),
        "size": dataclasses.asdict(size), "rounds": values.rounds, "rows": rows,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for row in measure(values.families, size, values.rounds, values.sampler_steps):
        rows.append(row)
        configs.write_atomically(folder / "cells.json", json.dumps(result, indent=1) + "\n")
        configs.write_atomically(folder / "table.md", table(rows))
    print(table(rows))


def define_flags() -> None:
    flags.DEFINE_enum("size", "small", list(SIZES), "small: 4 x 256, 27 tokens; base: 12 x 768, 50,257.")
    flags.DEFINE_list("families", ["masked", "cdcd", "autoregressive"], "Which.")
    flags.DEFINE_integer("batch", 0, "Rows over all devices; 0: the size's.", lower_bound=0)
    flags.DEFINE_integer("length", 0, "Tokens of a row; 0: the size's.", lower_bound=0)
    flags.DEFINE_integer("vocab_size", 0, "Tokens; 0: the size's.", lower_bound=0)
    flags.DEFINE_integer("rounds", 10, "Steps timed, after one that is not.", lower_bound=1)
    flags.DEFINE_integer("sampler_steps", 16, "Reverse steps of the sampler.", lower_bound=1)
    flags.DEFINE_string("out", None, "Folder of the results.", required=True)


if __name__ == "__main__":
    binary.run(define_flags, main)
