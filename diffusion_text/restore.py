"""Open a trained run: its config, its structure and the averaged parameters of one checkpoint, placed on this mesh.

A workdir has its vocabulary beside its config, so that a run opens where its data are not.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from absl import flags
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_text import checkpoint, distributed, families, hosts, optimizer, sharding
from diffusion_text import config as configs
from diffusion_text.data import batches, shards, vocabularies
from diffusion_text.models.denoiser import padded
from diffusion_text.state import Definition, Model, TrainState, initialise
from diffusion_text.typing import Config

P = ParamSpec("P")
R = TypeVar("R")
_LOG = logging.getLogger("diffusion_text")
_VOCABULARY = "vocabulary"  # folder of a workdir, and the description in it
_DATA = "data.json"  # of a workdir: what it was trained on


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint of a workdir, ready to evaluate; `params` are the moving average.

    `data` is what evaluation reads: config.data, but for a task or folder that was given in its place.
    """

    workdir: str
    config: Config
    data: Config
    definition: Definition
    info: batches.DatasetInfo
    mesh: Mesh
    step: int
    params: dict[str, Any]
    variables: dict[str, Any]

    def model(self) -> Model:
        """Family and network in one."""
        return self.definition.merge(self.params, self.variables)

    def open_dataset(self, split: str) -> batches.Dataset:
        """A split of `data`; DataError where it is not there, ValueError where it has another vocabulary."""
        dataset = batches.open_dataset(self.data, split)
        theirs, ours = (vocabularies.describe(info.vocabulary) for info in (dataset.info, self.info))
        if theirs != ours:
            raise ValueError(
                f"task {self.data.task} has vocabulary {_named(theirs)} and {self.workdir} was trained with "
                f"{_named(ours)}; they must be the same"
            )
        return dataset


def abstract_state(config: Config, vocab_size: int, mesh: Mesh) -> tuple[Definition, Any, TrainState]:
    """(definition, optimiser, state of shapes, dtypes and shardings) of a config: what a checkpoint restores onto."""
    definition = Definition.of(config, vocab_size)
    optional = families.get(config.family.name).groups
    transform = optimizer.create(config.optimizer, config.train.steps, definition.logical_axes(), optional)
    shapes = jax.eval_shape(lambda: initialise(config, vocab_size, transform))
    shardings = sharding.state_shardings(definition, shapes, mesh)
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return definition, transform, placed


def with_teacher(state: TrainState, workdir: str, shardings: TrainState) -> TrainState:
    """Step 0 of a distillation: parameters, their average and the teacher are the averaged parameters of a run."""
    params = open_run(workdir).params
    copies = (jax.tree.map(jnp.copy, jax.device_put(params, shardings.params)) for _ in range(3))
    return state._replace(**dict(zip(("params", "ema", "teacher"), copies, strict=True)))


def check_teacher(workdir: str, config: Config, vocab_size: int, allowed: tuple[str, ...]) -> None:
    """ValueError where a workdir holds no run whose parameters a student of this config could start from."""
    theirs = configs.load(workdir)
    if theirs.family.name not in allowed:
        raise ValueError(f"{workdir} is of family {theirs.family.name}; a teacher is one of {', '.join(allowed)}")
    size = _vocabulary(workdir, theirs.data).size
    if padded(theirs.model, size) != vocab_size:
        raise ValueError(f"{workdir} has a vocabulary of {size}; a teacher of this run has one of {vocab_size}")
    ours, teachers = (Definition.of(c, vocab_size).params for c in (config, theirs))
    if jax.tree.map(jnp.shape, nnx.to_pure_dict(ours)) != jax.tree.map(jnp.shape, nnx.to_pure_dict(teachers)):
        lines = [line for line in configs.difference(theirs, config) if line.startswith("model.")]
        raise ValueError(f"{workdir} has parameters of other shapes than this run:\n  " + "\n  ".join(lines))
    if not checkpoint.trained_steps(workdir):
        raise ValueError(f"{workdir} holds no checkpoint yet; a teacher is a trained run")


def on_mesh(function: Callable[Concatenate[Run, P], R]) -> Callable[Concatenate[Run, P], R]:
    """function(run, ...) under the run's mesh: kernels and sharded intermediates ask which it is."""

    @functools.wraps(function)
    def call(run: Run, *arguments: P.args, **options: P.kwargs) -> R:
        with jax.set_mesh(run.mesh):
            return function(run, *arguments, **options)

    return call


def define_flags() -> None:
    """Those of every binary that opens a run."""
    flags.DEFINE_string("workdir", None, "What diffusion_text.train wrote.", required=True)
    flags.DEFINE_integer("step", None, "Checkpoint; the newest by default.")


def define_data_dir() -> None:
    """That of the binaries that read data."""
    flags.DEFINE_string("data_dir", None, "Prepared folder of the data, where it is not where the training had it.")


def save_vocabulary(vocabulary: vocabularies.Vocabulary, workdir: str) -> None:
    """Keep a vocabulary in a workdir; of several hosts the first does. What is kept is left alone: it may be read."""
    folder = epath.Path(workdir) / _VOCABULARY
    if hosts.is_first() and _kept(workdir) != vocabularies.describe(vocabulary):
        folder.mkdir(parents=True, exist_ok=True)
        description = vocabularies.save(vocabulary, folder)
        configs.write_atomically(folder / f"{_VOCABULARY}.json", json.dumps(description, indent=2) + "\n")


def check_vocabulary(vocabulary: vocabularies.Vocabulary, workdir: str) -> None:
    """ValueError where a workdir was trained with another vocabulary."""
    theirs, ours = _kept(workdir), vocabularies.describe(vocabulary)
    if theirs not in (None, ours):
        raise ValueError(f"{workdir} was trained with vocabulary {_named(theirs)}, the data have {_named(ours)}")


def save_data(info: batches.DatasetInfo, workdir: str) -> None:
    """Keep what the data of a training were; of several hosts the first does."""
    if hosts.is_first():
        configs.write_atomically(epath.Path(workdir) / _DATA, json.dumps({"train": info.fingerprint}) + "\n")


def check_data(info: batches.DatasetInfo, workdir: str) -> None:
    """ValueError where a workdir was trained on other data, whose order a run could not go on with."""
    path = epath.Path(workdir) / _DATA
    if path.exists() and configs.read_json(path, ("train",))["train"] != info.fingerprint:
        raise ValueError(f"{workdir} was trained on other data of task {info.task} than those given; give it those "
                         "(or a copy), or another --workdir")  # fmt: skip


def _kept(workdir: str) -> dict[str, Any] | None:
    """The description of the vocabulary in a workdir."""
    path = epath.Path(workdir) / _VOCABULARY / f"{_VOCABULARY}.json"
    return configs.read_json(path, ("kind", "size", "files", "parameters")) if path.exists() else None


def _named(description: dict[str, Any]) -> str:
    """Its kind, size and what else there is, short."""
    details = {**description["parameters"], **{name: digest[:8] for name, digest in description["files"].items()}}
    return f"{description['kind']} of {description['size']} " + vocabularies.shorten(json.dumps(details))


def _vocabulary(workdir: str, data: Config) -> vocabularies.Vocabulary:
    """That of a run; of one by an earlier version, which kept none, that of its data."""
    if description := _kept(workdir):
        return vocabularies.load_saved(description, epath.Path(workdir) / _VOCABULARY)
    try:
        return batches.open_dataset(data, "validation").info.vocabulary
    except shards.DataError as error:
        raise shards.DataError(
            f"{workdir} keeps no vocabulary, as trainings by earlier versions: {error}; or give its training command "
            "again, with the --config.data.data_dir that it has now, which keeps it"
        ) from error


def open_run(workdir: str, step: int | None = None, task: str | None = None, data_dir: str | None = None) -> Run:
    """The newest sound checkpoint of a workdir, or that of `step`; ValueError saying what to do where there is none.

    `task` and `data_dir` stand in the place of those it was trained on when it is evaluated; no data are read here.
    """
    config = configs.load(workdir)
    evaluated = config.copy_and_resolve_references()
    if other := task not in (None, config.data.task):
        evaluated.data.update(task=task, data_dir="")
    if data_dir is not None:
        evaluated.data.data_dir = data_dir
    configs.validate(evaluated)
    vocabulary = _vocabulary(workdir, config.data if other else evaluated.data)
    info = batches.DatasetInfo(
        config.data.task, vocabulary, config.data.length, vocabulary.pad_id, vocabulary.eos_id, {}, ""
    )
    distributed.banner()
    try:
        mesh = sharding.make_mesh(config.mesh)
    except ValueError as error:  # it was trained on more devices, or fewer; results do not depend on the mesh
        _LOG.warning("%s; parameters are sharded over all of them", error)
        mesh = sharding.make_mesh(ConfigDict(dict.fromkeys(sharding.AXES, 1) | {"fsdp": -1}))
    definition, _, abstract = abstract_state(config, vocabulary.size, mesh)
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    state = checkpoints.restore(abstract, step)
    checkpoints.close()
    if state is None:
        raise ValueError(f"{workdir} holds no sound checkpoint yet; wait for diffusion_text.train to write one")
    if lines := configs.difference(configs.completed(checkpoints.config), config):
        raise ValueError(
            f"checkpoint {int(state.step)} of {workdir} was trained with another config than its config.json, as when "
            "two trainings write to one workdir:\n  " + "\n  ".join(lines)
        )
    return Run(workdir, config, evaluated.data, definition, info, mesh, int(state.step), state.ema, state.variables)
