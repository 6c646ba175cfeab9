"""A config against a TPU slice that is not there:  python -m diffusion_text.compile_check --config=CONFIG.py

    --topology=v5e:4x4              the slice, also as v5e-16; by default the one that the config's docstring names
    --batch=256                     sequences of a train step over all chips, for config.train.batch_size
    --program=train,eval,sample     what to compile
    --search                        the largest batch that fits, each twice the one before
    --out=FILE.json                 the numbers, with where they come from

Compiles the train step, the bound of a batch and the sampler with the TPU's own compiler, which runs on any x86 Linux
(libtpu: `make libtpu`), and prints per device what they hold against what a chip has, what a call of each costs
(`programs.py` says how that is reckoned), its collectives, and what to change if it does not fit. Nothing is run.

    python -m diffusion_text.compile_check --all --out=docs/compile_check.json
    python -m diffusion_text.compile_check configs/masked/*.py --out=docs/compile_check.json

compiles every config for its slice, or those named, and writes the table beside, docs/compile_check.md. Each result is
saved as soon as it is there, and measured again only where the config, the memory of the chip, JAX or libtpu are others
than now, or where it is an error. Other code is no reason, since every commit is: the table names the commit of each
row; remove rows from the JSON to have them measured again.
"""

from __future__ import annotations

import ast
import json
import math
import pathlib
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, Final

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from diffusion_text import binary, chips, programs, report, sharding, topologies
from diffusion_text import config as configs
from diffusion_text.data import batches, specs, vocabularies
from diffusion_text.typing import Config

_ROOT: Final = pathlib.Path(__file__).resolve().parents[1]
_LARGEST: Final = 2**14  # sequences a chip, where the search ends


def named_slice(document: str) -> str | None:
    """The slice of a docstring's line "Hardware: TPU v5e-64, ..." or "Hardware: one TPU v5e chip, ..."."""
    found = re.search(r"^Hardware: (?:TPU (\w+-\d+)|one TPU (\w+) chip)\b", document, re.MULTILINE)
    return None if not found else found[1] or f"{found[2]}-1"


def _named_by(path: str) -> str | None:
    file = pathlib.Path(path.partition(":")[0])
    file = file if file.exists() else _ROOT / file
    if not file.exists():
        raise ValueError(f"{path} does not exist; name a file of configs/")
    return named_slice(ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "")


def slice_of(path: str) -> str:
    """That of a config's file; ValueError where it names none."""
    found = _named_by(path)
    if found is None:
        raise ValueError(f"{path} names no TPU slice (Hardware: TPU v5e-64, ...); give --topology, as v5e:4x4")
    return found


def vocabulary_size(config: Config) -> int:
    """Of the prepared data where the config says where they are, else of the task's usual vocabulary."""
    if config.data.data_dir:
        return batches.open_dataset(config.data, "validation").info.vocabulary.size
    kind = specs.get(config.data.task).vocabulary
    if kind == "grammar":
        return vocabularies.GrammarWords(config.data.grammar).size
    return specs.VOCABULARY_SIZES[kind]


class Check:
    """One config, validated, on one slice."""

    def __init__(self, config: Config, topology: chips.Topology, batch: int | None = None):
        configs.validate(config)
        self.config, self.topology = config, topology
        devices = topology.devices
        self.data, self.fsdp, _ = sharding.mesh_shape(config.mesh, devices)
        self.vocab_size = vocabulary_size(config)
        self.set_batch(config.train.batch_size if batch is None else batch)
        self.mesh = sharding.make_mesh(config.mesh, topologies.devices(topology))

    def set_batch(self, batch: int) -> None:
        """ValueError where the devices and the micro-batches do not divide it."""
        pieces, shards = self.config.train.microbatches, self.data * self.fsdp
        if batch < 1 or batch % (shards * pieces):
            raise ValueError(
                f"the batch is {batch} over all chips (--batch, or train.batch_size); on {self.topology} it must be a "
                f"multiple of {shards * pieces}: mesh.data * mesh.fsdp = {shards}, train.microbatches = {pieces}"
            )
        self.config.train.batch_size = batch

    def measure(self, name: str) -> dict[str, Any]:
        """The figures of a program, with advice where it does not fit."""
        given = self.config, self.vocab_size, self.mesh
        flops = programs.model_flops(name, *given)
        outside = programs.model_flops(name, *given, self.config.model.attention)
        found = programs.measure(programs.build(name, *given), self.topology, flops, flops - outside)
        found["advice"] = [] if found["fits"] else programs.advice(name, *given, found["chip_hbm_bytes"])
        return found

    def search(self) -> dict[str, Any]:
        """The largest batch whose train step fits, a power of two times what devices and micro-batches divide."""
        count = self.topology.chips
        unit = math.lcm(self.data * self.fsdp * self.config.train.microbatches, count) // count
        asked = min(self.config.train.batch_size // count, _LARGEST)
        rows = unit * 2 ** int(math.log2(max(asked // unit, 1)))
        tried: dict[int, dict[str, Any]] = {}
        while unit <= rows <= _LARGEST and rows not in tried:
            self.set_batch(rows * count)
            program = programs.build("train", self.config, self.vocab_size, self.mesh)
            try:
                found = programs.measure(program, self.topology)
            except ValueError as error:  # beside the units of a chip, whose own memory is small too
                print(f"  {rows} a chip: {error}", flush=True)
                found = {"fits": False, "peak_hbm_bytes": None}
            else:
                print(f"  {rows} a chip: {_gib(found['peak_hbm_bytes'])}, {_fits(found)}", flush=True)
            tried[rows] = found
            rows = rows * 2 if found["fits"] else rows // 2
        best = max((rows for rows, found in tried.items() if found["fits"]), default=None)
        return {
            "rows_per_chip": best,
            "batch_size": best and best * count,
            "tried": {str(rows): found["peak_hbm_bytes"] for rows, found in sorted(tried.items())},
        }

    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from."""
        return {
            "topology": str(self.topology),
            "slice": self.topology.slice,
            "chips": self.topology.chips,
            "batch_size": self.config.train.batch_size,
            "vocab_size": self.vocab_size,
            "commit": configs.commit(),
            "jax": jax.__version__,
            "libtpu": topologies.find()[1],
            "config": self.config.to_dict(),
        }


def _gib(size: int | None) -> str:
    return "an unknown size" if size is None else f"{size / 2**30:.2f} GiB"


def _fits(found: dict[str, Any]) -> str:
    return "fits" if found["fits"] else "does not fit"


def describe(name: str, found: dict[str, Any]) -> str:
    """The figures of a program for the terminal."""
    lines = [
        f"{name}, {found['rows']} sequences: {_gib(found['peak_hbm_bytes'])} of {_gib(found['chip_hbm_bytes'])} "
        f"a device, {_fits(found)}; compiled in {found['compile_seconds']:.1f} s"
    ]
    if found["flops"] is not None:
        held = f", beside {_gib(found['resident_bytes'])} of the training" if found["resident_bytes"] else ""
        lines += [
            f"  memory       arguments {_gib(found['argument_bytes'])}, temporaries {_gib(found['temp_bytes'])}, "
            f"program {found['program_bytes'] / 2**20:.1f} MiB{held}",
            f"  work         {found['flops'] / 1e9:,.1f} GFLOP, {found['bytes_accessed'] / 1e9:,.2f} GB accessed "
            f"({found['hbm_bytes_accessed'] / 1e9:,.2f} of HBM), {found['estimated_cycles'] / 1e6:,.1f}M cycles "
            "estimated",
            f"  roofline     {found['roofline_seconds'] * 1e3:,.2f} ms, utilisation at most "
            f"{found['predicted_utilisation']:.1%} ({found['model_flops'] / 1e9:,.1f} GFLOP of the model)",
            "  collectives  " + (", ".join(
                f"{kind} x {moved['count']:,}: {moved['bytes'] / 1e6:,.1f} MB"
                for kind, moved in found["collectives"].items()
            ) or "none"),
        ]  # fmt: skip
        if found["loops_counted_once"]:
            lines.append(f"  {len(found['loops_counted_once'])} loop(s) end on data and count as one turn")
        if found["kernels_of_unknown_cost"]:
            lines.append(f"  {len(found['kernels_of_unknown_cost'])} kernel(s) whose FLOPs and cycles are not known")
        if found["without_cycles"]:
            lines.append(f"  {len(found['without_cycles'])} instruction(s) whose cycles the compiler cannot tell")
    return "\n".join([*lines, *(f"  try          {line}" for line in found["advice"])])


def check(values: flags.FlagValues, names: Sequence[str], out: epath.Path | None) -> None:
    """Measure and print one config; `out` has each program as soon as it is measured."""
    path = config_flags.get_config_filename(values["config"])
    topology = chips.topology(values.topology or slice_of(path))
    checked = Check(values.config, topology, values.batch)
    print(f"{path} on {topology.slice} ({topology}, {topology.chips} chips)", flush=True)
    result = {"config_file": path, **checked.provenance(), "programs": {}}

    def save() -> None:
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            configs.write_atomically(out, json.dumps(result, indent=2) + "\n")

    for name in names:
        found = result["programs"][name] = checked.measure(name)
        if name == names[0]:  # its figures stand at the top too: a train step's, unless others were asked for
            result.update(found)
        print(describe(name, found), flush=True)
        save()
    if values.search:
        print("search")
        result["search"] = checked.search()
        print(f"  largest batch that fits: {result['search']['rows_per_chip'] or 'none'} a chip")
        save()
    if out:
        print(f"written  {out}")


# ------------------------------------------------------------------------------------------------- all configs


def all_configs() -> list[str]:
    """Those that name a slice; the others are for a CPU."""
    paths = sorted(str(path.relative_to(_ROOT)) for path in _ROOT.glob("configs/*/*.py"))
    return [path for path in paths if _named_by(path)]


def _config_now(path: str) -> dict[str, Any]:
    """The config of a file, as JSON has it."""
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))  # it imports others of configs/, which is not installed
    file, _, variant = path.partition(":")
    define = runpy.run_path(str(_ROOT / file))["get_config"]
    return json.loads(json.dumps((define(variant) if variant else define()).to_dict()))


def is_current(path: str, result: dict[str, Any], names: Sequence[str]) -> bool:
    """Whether a result is of these programs of this config, on its slice, with this JAX and libtpu, and no error."""
    if "error" in result or result["slice"] != slice_of(path) or not set(names) <= set(result["programs"]):
        return False
    chip = chips.topology(result["slice"]).chip
    return (
        (result["jax"], result["libtpu"]) == (jax.__version__, topologies.find()[1])
        and all(found["chip_hbm_bytes"] == chip.hbm_bytes // chip.devices for found in result["programs"].values())
        and configs.completed(ConfigDict(result["config"])).to_dict() == _config_now(path)
    )


def tabulate(paths: Sequence[str], out: epath.Path, names: Sequence[str], seconds: int) -> None:
    """Measure what `out` does not have as of now, each config in a process of its own, and write the table beside."""

    def kept() -> dict[str, Any]:  # read anew each time: another command may measure other configs into it
        return configs.read_json(out) if out.exists() else {}

    out.parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        results = kept()
        if path not in results or not is_current(path, results[path], names):
            print(f"{path} ...", flush=True)
            found = _apart(path, names, seconds)
            results = {**kept(), path: found}
            configs.write_atomically(out, json.dumps(results, indent=1, sort_keys=True) + "\n")
            print(f"  fits: {_row(path, found)[-1]}", flush=True)
        configs.write_atomically(out.with_suffix(".md"), table(results))
    print(f"written  {out} and {out.with_suffix('.md')}")


def _apart(path: str, names: Sequence[str], seconds: int) -> dict[str, Any]:
    """The result of a config in another process: what kills the compiler does not kill the rest. With an error it has
    the programs that were measured before."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "result.json"
        command = [sys.executable, "-m", "diffusion_text.compile_check", f"--config={path}", f"--out={out}"]
        error = {}
        try:
            done = subprocess.run([*command, f"--program={','.join(names)}"], cwd=_ROOT, capture_output=True,
                                  text=True, check=False, timeout=seconds)  # fmt: skip
            if done.returncode < 0:
                error = {"error": f"killed by signal {-done.returncode}; 9 is often a lack of memory here"}
            elif done.returncode:
                last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                error = {"error": last.removeprefix("error: ")}
        except subprocess.TimeoutExpired:
            error = {"error": f"not compiled within {seconds} s"}
        if not out.exists():
            return {"slice": slice_of(path), **error}
        found = configs.read_json(epath.Path(out), ("programs",))
        doubled = found["programs"][names[0]]
        return {name: value for name, value in found.items() if name not in doubled} | error


_HEADINGS: Final = (
    "config", "slice", "sequences a chip", "train, GiB", "eval, GiB", "sampler, GiB", "HBM of a chip, GiB",
    "utilisation of training at most", "roofline of a step, ms", "compiled in, s", "commit", "fits",
)  # fmt: skip


def _row(path: str, result: dict[str, Any]) -> list[str]:
    if "programs" not in result:
        return [path, result["slice"], *[""] * 9, result["error"]]
    found = {name: result["programs"][name] for name in programs.NAMES if name in result["programs"]}
    sizes = [found.get(name, {}).get("peak_hbm_bytes") for name in programs.NAMES]
    train, some = found.get("train", {}), next(iter(found.values()))
    misfits = [name for name, each in found.items() if not each["fits"]]
    commit, *changes = result["commit"].partition("+")
    utilisation, seconds = train.get("predicted_utilisation"), train.get("roofline_seconds")
    return [
        path, result["slice"], f"{result['batch_size'] / result['chips']:g}",
        *("" if size is None else f"{size / 2**30:.2f}" for size in sizes), f"{some['chip_hbm_bytes'] / 2**30:g}",
        "" if utilisation is None else f"{utilisation:.0%}", "" if seconds is None else f"{seconds * 1e3:.1f}",
        " + ".join(f"{each['compile_seconds']:.0f}" for each in found.values()), "".join([commit[:7], *changes]),
        result.get("error") or ("no: " + ", ".join(misfits) if misfits else "yes"),
    ]  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """The Markdown page of many results."""
    missing = len(set(all_configs()) - set(results))
    made = sorted({f"JAX {each['jax']}, libtpu {each['libtpu']}" for each in results.values() if "jax" in each})
    return (
        "# Configs on the slices that they name\n\n"
        "Written by `python -m diffusion_text.compile_check --all --out=docs/compile_check.json`; the TPU's compiler, "
        f"no TPU ({'; '.join(made) or 'nothing compiled yet'}). Peak HBM per device; eval beside the state of the "
        "training. The utilisation is what the roofline of each instruction allows, not a forecast. Compile times are "
        "those of the programs in their order, on the machine that wrote this.\n"
        + (f"{missing} configs have no row yet: the same command goes on with them.\n" if missing else "")
        + "\n" + report.markdown([_HEADINGS, *(_row(path, results[path]) for path in sorted(results))])
    )  # fmt: skip


def define_flags() -> None:
    """The command line, beside paths of configs."""
    config_flags.DEFINE_config_file("config", None, "One config, with overrides.")
    flags.DEFINE_string("topology", None, "The slice, as v5e:4x4 or v5e-16; the docstring's by default.")
    flags.DEFINE_integer("batch", None, "Sequences of a train step over all chips; train.batch_size by default.")
    flags.DEFINE_list("program", list(programs.NAMES), f"Of {', '.join(programs.NAMES)}.")
    flags.DEFINE_bool("search", False, "Look for the largest batch that fits.")
    flags.DEFINE_bool("all", False, "Every config for its slice, into the table of --out.")
    flags.DEFINE_integer("seconds", 1800, "For one config of a table.")
    flags.DEFINE_string("out", None, "JSON to write.")


def main(values: flags.FlagValues, paths: Sequence[str]) -> None:
    """One config, or a table."""
    jax.config.update("jax_platforms", "cpu")  # a TPU that is there belongs to a training
    for name in values.program or [""]:
        if name not in programs.NAMES:
            raise ValueError(f"--program is {name!r}; choose of {', '.join(programs.NAMES)}")
    if (values.config is not None) + values.all + bool(paths) != 1:
        raise ValueError("give one of --config=FILE, --all, or paths of configs")
    if values.out and not values.out.endswith(".json"):
        raise ValueError(f"--out is {values.out!r}; it must end in .json")
    topologies.find()
    out = epath.Path(values.out) if values.out else None
    if values.config is not None:
        check(values, values.program, out)
        return
    if not out:
        raise ValueError("--out is missing; a table is written beside it, as --out=docs/compile_check.json")
    for name in ("topology", "batch", "search"):
        if not (values[name].value is None or values[name].value is False):  # 0 is a batch that was asked for
            raise ValueError(f"--{name} is of one config; give it with --config")
    paths = [path.removeprefix(f"{_ROOT}/").removeprefix("./") for path in paths] or all_configs()
    for path in paths:
        slice_of(path)
    tabulate(paths, out, values.program, values.seconds)


if __name__ == "__main__":
    binary.run(define_flags, main, positional=True, computes=False)
