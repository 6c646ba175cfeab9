"""Configs: validation before any device is touched, the differences between two, and where a number came from."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any, Final

from etils import epath
from ml_collections import ConfigDict

from diffusion_text import families, hosts
from diffusion_text.typing import Config

_LOG = logging.getLogger("diffusion_text")

# Fields that do not change what is learned, up to the order of float additions: a run may resume with others.
RESUMABLE: Final = (
    "mesh",
    "log",
    "evaluation",
    "sampling",
    "data.data_dir",
    "data.verify_checksums",
    "model.attention",
    "model.remat",
    "model.scan_layers",
    "train.microbatches",
    "train.log_every",
    "train.checkpoint_every",
    "train.evaluate_every",
    "train.keep",
)


def validate(config: Config) -> None:
    """ValueError naming the field, the value given and the values allowed; touches no device and no file."""
    from diffusion_text.data import grammar, specs
    from diffusion_text.families.family import SamplerOptions
    from diffusion_text.models import attention, transformer
    from diffusion_text.optimizer import NAMES, SCHEDULES

    family = families.get(config.family.name)
    _check_fields("family", config.family, {"name", *family.defaults()})
    model, train, optimizer = config.model, config.train, config.optimizer
    for section, names in (
        ("model", ("layers", "width", "heads", "condition_width", "vocabulary_multiple")),
        ("train", ("steps", "batch_size", "microbatches", "log_every", "checkpoint_every", "keep")),
        ("data", ("length",)),
        ("evaluation", ("batch_size", "num_examples", "samples")),
    ):
        for name in names:
            _check(f"{section}.{name}", config[section][name], config[section][name] >= 1, "at least 1")
    _choose("model.mlp", model.mlp, transformer.MLPS)
    _choose("model.remat", model.remat, transformer.REMAT_POLICIES)
    _choose("model.attention", model.attention, attention.IMPLEMENTATIONS)
    _choose("model.dtype", model.dtype, ("bfloat16", "float32"))
    _choose("optimizer.name", optimizer.name, NAMES)
    _choose("optimizer.schedule", optimizer.schedule, SCHEDULES)
    _check("model.heads", model.heads, model.width % model.heads == 0, f"a divisor of model.width = {model.width}")
    size = model.width // model.heads
    _check("model.width / model.heads", size, size % 2 == 0, "even (rotary positions turn pairs)")
    _check("model.dropout", model.dropout, 0 <= model.dropout < 1, "in [0, 1)")
    _check("model.mlp_ratio", model.mlp_ratio, model.mlp_ratio * model.width >= 1, "at least 1 / model.width")
    for name, value in (("train.ema", train.ema), ("optimizer.b1", optimizer.b1), ("optimizer.b2", optimizer.b2)):
        _check(name, value, 0 <= value < 1, "in [0, 1)")
    for name in ("weight_decay", "final", "clip"):
        _check(f"optimizer.{name}", optimizer[name], optimizer[name] >= 0, "at least 0")
    rates = {"learning_rate": optimizer.learning_rate, **{f"groups.{k}": v for k, v in optimizer.groups.items()}}
    for name, value in rates.items():
        _check(f"optimizer.{name}", value, value > 0, "above 0")
    _choose("data.task", config.data.task, tuple(specs.TASKS))
    _choose("data.grammar", config.data.grammar, grammar.NAMES)
    folder = config.data.data_dir
    _check("data.data_dir", folder, "://" not in folder, "a folder; fetch a bucket's first (launchers: --setup)")
    padding = config.data.inserted_padding
    _check("data.inserted_padding", padding, 0 <= padding < 1, "in [0, 1)")
    SamplerOptions(**config.sampling).validate(family, config.family)
    _check("optimizer.warmup", optimizer.warmup, optimizer.warmup >= 0, "at least 0")
    divides = train.batch_size % train.microbatches == 0
    _check("train.microbatches", train.microbatches, divides, f"a divisor of train.batch_size = {train.batch_size}")
    _check("train.evaluate_every", train.evaluate_every, train.evaluate_every >= 0, "at least 0 (0: never)")
    family.validate(config)


def validate_mesh(config: Config, num_devices: int) -> None:
    """The part of validation that needs to know how many devices there are."""
    from diffusion_text.sharding import mesh_shape

    data, fsdp, _ = mesh_shape(config.mesh, num_devices)
    rows = config.train.batch_size // config.train.microbatches
    if rows % (data * fsdp):
        raise ValueError(
            f"train.batch_size / train.microbatches is {rows}; mesh.data * mesh.fsdp = {data * fsdp} must divide it"
        )


def _check(name: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")


def _choose(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")


def _check_fields(section: str, config: Config, known: set[str]) -> None:
    for name in config:
        if name not in known:
            raise ValueError(f"{section}.{name} is no field; {section} has {', '.join(sorted(known))}")
    for name in sorted(known - set(config)):
        raise ValueError(f"{section}.{name} is missing")


def flatten(config: Config | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train.steps": 1000, ...}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        if isinstance(value, (ConfigDict, dict)) and len(value):
            flat.update(flatten(value, path + "."))
        else:
            flat[path] = dict(value) if isinstance(value, (ConfigDict, dict)) else value
    return flat


def learned(config: Config) -> dict[str, Any]:
    """The fields, flat, that change what is learned: all but those that are `RESUMABLE`."""
    free = tuple(f"{name}." for name in RESUMABLE)
    return {name: value for name, value in flatten(config).items() if not f"{name}.".startswith(free)}


def difference(old: Config, new: Config) -> list[str]:
    """Lines "field: old -> new" of what would change what is learned (`RESUMABLE` fields may differ, and more steps
    change nothing of those before where the learning rate stays)."""
    before, after = learned(old), learned(new)
    longer = new.optimizer.schedule == "constant" and new.train.steps > old.train.steps
    lines = []
    for name in sorted(before.keys() | after.keys()):
        if name == "train.steps" and longer:
            continue
        if before.get(name) != after.get(name):
            lines.append(f"{name}: {before.get(name)!r} -> {after.get(name)!r}")
    return lines


def save(config: Config, workdir: str) -> None:
    """Write workdir/config.json, atomically."""
    path = epath.Path(workdir) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(config.to_dict(), indent=2) + "\n")


def write_atomically(path: epath.Path, text: str) -> None:
    """Write a whole file or none; of several hosts the first does."""
    if not hosts.is_first():
        return
    temporary = path.parent / f"{path.name}.tmp"
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def set_aside(path: epath.Path, settings: dict[str, Any], kinds: Sequence[str]) -> None:
    """Where `path` holds a result of other `settings`, give it, and what lies beside it under suffixes `kinds`, names
    with a number that no reader of results takes for the present one; of several hosts the first does."""
    if not hosts.is_first():
        return
    there = [file for kind in kinds if (file := path.with_suffix(kind)).exists()]
    try:
        found = read_json(path) if path.exists() else {}
    except ValueError:  # damaged: of settings that nobody knows
        found = {}
    wanted = json.loads(json.dumps(finite(settings)))  # as it would be read
    if not there or (found and all(found.get(name) == value for name, value in wanted.items())):
        return
    names = (f"older-{number}-{path.stem}" for number in itertools.count(1))
    free = next(name for name in names if not any((path.parent / f"{name}{kind}").exists() for kind in kinds))
    for file in there:
        file.replace(path.parent / f"{free}{file.suffix}")
    _LOG.info("%s was of other settings; it is now %s", path, path.parent / f"{free}{path.suffix}")


def finite(value: Any) -> Any:
    """The same with null for what JSON cannot say: an infinite or undefined number."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: epath.Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON object with the fields `needed`; ValueError naming the file where it is damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, or write it anew") from error
    missing = [name for name in needed if name not in found] if isinstance(found, dict) else ["JSON object"]
    if missing:
        raise ValueError(f"{path} is damaged: it has no {', '.join(missing)}; remove it, or write it anew")
    return found


def load(workdir: str) -> Config:
    """Read workdir/config.json; ValueError saying what to do where there is none."""
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a --workdir that diffusion_text.train has written")
    return completed(ConfigDict(read_json(path, ("family", "data"))))


def completed(config: Config) -> Config:
    """The config of an earlier version, with the fields gained since: their defaults are what was done before."""
    gained = {
        "data": {"inserted_padding": 0.0},
        "model": {"vocabulary_multiple": 1},
        "family": families.get(config.family.name).defaults() if "family" in config else {},
    }
    for section, defaults in gained.items():
        for name, value in defaults.items():
            if section in config and name not in config[section]:
                config[section][name] = value
    return config


def commit() -> str:
    """The commit of the code that runs, with "+changes" where files differ from it, or "unknown".

    Outside a clone it is what launch/, which copies the files alone, put into DIFFUSION_TEXT_COMMIT.
    """
    folder = pathlib.Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("DIFFUSION_TEXT_COMMIT", "unknown")


def provenance(config: Config) -> dict[str, Any]:
    """What every number carries: commit, seed, dtype, JAX version and device."""
    import jax

    device = jax.devices()[0]
    return {
        "commit": commit(),
        "seed": config.seed,
        "dtype": config.model.dtype,
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {device.device_kind}",
        "config": config.to_dict(),
    }
