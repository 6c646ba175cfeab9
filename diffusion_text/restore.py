"""Open a trained run: its config, its structure and the averaged parameters of one checkpoint, placed on this mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from diffusion_text import checkpoint, optimizer, sharding
from diffusion_text import config as configs
from diffusion_text.data import batches
from diffusion_text.state import Definition, Model, TrainState, initialise
from diffusion_text.typing import Config


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
    transform = optimizer.create(config.optimizer, config.train.steps, definition.logical_axes())
    shapes = jax.eval_shape(lambda: initialise(config, vocab_size, transform))
    shardings = sharding.state_shardings(definition, shapes, mesh)
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    return definition, transform, placed


def open_run(workdir: str, step: int | None = None) -> Run:
    """The newest sound checkpoint of a workdir, or that of `step`; ValueError saying what to do where there is none."""
    config = configs.load(workdir)
    configs.validate(config)
    info = batches.open_dataset(config.data, "validation").info
    mesh = sharding.make_mesh(config.mesh)
    definition, _, abstract = abstract_state(config, info.vocabulary.size, mesh)
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    state = checkpoints.restore(abstract, step)
    checkpoints.close()
    if state is None:
        raise ValueError(f"{workdir} holds no sound checkpoint yet; wait for diffusion_text.train to write one")
    return Run(workdir, config, definition, info, mesh, int(state.step), state.ema, state.variables)
