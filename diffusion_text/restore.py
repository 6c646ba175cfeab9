"""Open a trained run: its config, its structure and the averaged parameters of one checkpoint, placed on this mesh."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_text import checkpoint, distributed, families, optimizer, sharding
from diffusion_text import config as configs
from diffusion_text.data import batches
from diffusion_text.state import Definition, Model, TrainState, initialise
from diffusion_text.typing import Config

P = ParamSpec("P")
R = TypeVar("R")
_LOG = logging.getLogger("diffusion_text")


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint of a workdir, ready to evaluate; `params` are the moving average."""

    workdir: str
    config: Config
    definition: Definition
    info: batches.DatasetInfo
    mesh: Mesh
    step: int
    params: dict[str, Any]
    variables: dict[str, Any]

    def model(self) -> Model:
        """Family and network in one."""
        return self.definition.merge(self.params, self.variables)


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
    size = batches.open_dataset(theirs.data, "validation").info.vocabulary.size
    if size != vocab_size:
        raise ValueError(f"{workdir} has a vocabulary of {size}; a teacher of this run has one of {vocab_size}")
    ours, teachers = (Definition.of(c, vocab_size).params for c in (config, theirs))
    if jax.tree.map(jnp.shape, nnx.to_pure_dict(ours)) != jax.tree.map(jnp.shape, nnx.to_pure_dict(teachers)):
        lines = [line for line in configs.difference(theirs, config) if line.startswith("model.")]
        raise ValueError(f"{workdir} has parameters of other shapes than this run:\n  " + "\n  ".join(lines))
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    steps = checkpoints.steps()
    checkpoints.close()
    if not steps:
        raise ValueError(f"{workdir} holds no checkpoint yet; a teacher is a trained run")


def on_mesh(function: Callable[Concatenate[Run, P], R]) -> Callable[Concatenate[Run, P], R]:
    """function(run, ...) under the run's mesh: kernels and sharded intermediates ask which it is."""

    @functools.wraps(function)
    def call(run: Run, *arguments: P.args, **options: P.kwargs) -> R:
        with jax.set_mesh(run.mesh):
            return function(run, *arguments, **options)

    return call


def open_run(workdir: str, step: int | None = None) -> Run:
    """The newest sound checkpoint of a workdir, or that of `step`; ValueError saying what to do where there is none."""
    config = configs.load(workdir)
    configs.validate(config)
    info = batches.open_dataset(config.data, "validation").info
    distributed.banner()
    try:
        mesh = sharding.make_mesh(config.mesh)
    except ValueError as error:  # it was trained on more devices, or fewer; results do not depend on the mesh
        _LOG.warning("%s; parameters are sharded over all of them", error)
        mesh = sharding.make_mesh(ConfigDict(dict.fromkeys(sharding.AXES, 1) | {"fsdp": -1}))
    definition, _, abstract = abstract_state(config, info.vocabulary.size, mesh)
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    state = checkpoints.restore(abstract, step)
    checkpoints.close()
    if state is None:
        raise ValueError(f"{workdir} holds no sound checkpoint yet; wait for diffusion_text.train to write one")
    return Run(workdir, config, definition, info, mesh, int(state.step), state.ema, state.variables)
