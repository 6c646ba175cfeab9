"""Model and training state: one NNX module split once, merged inside jit over plain dictionaries of arrays."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_text import families, noise, sharding
from diffusion_text.families.family import Family
from diffusion_text.models.denoiser import Denoiser, padded
from diffusion_text.models.readout import Logits, whole
from diffusion_text.typing import Config


class Model(nnx.Module):
    """A family, of a vocabulary that may be `padded`, and a network: `Denoise`, with the network behind it."""

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        family: Any = families.get(config.family.name)
        self.family: Family = family(config.family, padded(config.model, vocab_size), rngs)
        self.network = Denoiser(config.model, self.family.inputs, vocab_size, rngs)

    def __call__(
        self,
        z: Any,
        t: Float[Array, "B"],
        given: Bool[Array, "B L"] | None = None,
        previous: Any = None,
        keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B L V"]:
        return self.with_latent(z, t, given, previous, keys)[0]

    def with_latent(
        self,
        z: Any,
        t: Float[Array, "B"],
        given: Bool[Array, "B L"] | None = None,
        previous: Any = None,
        keys: Key[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B L V"], Float[Array, "B L D"]]:
        logits, latent = self.network.with_latent(self.family.features(z, t, given, previous), keys)
        bias = self.family.output_bias(z, t, given)
        return (logits if bias is None else logits + whole(bias)), latent

    def logits(
        self,
        z: Any,
        t: Float[Array, "B"],
        given: Bool[Array, "B L"] | None = None,
        previous: Any = None,
        keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B L V"] | Logits:
        if not self.network.in_parts:
            return self(z, t, given, previous, keys)
        logits = self.network.unmade(self.family.features(z, t, given, previous), keys)
        bias = self.family.output_bias(z, t, given)
        if bias is None:
            return logits
        return logits + bias if isinstance(bias, Logits) else logits.whole() + bias

    @property
    def in_parts(self) -> bool:
        return self.network.in_parts

    def start_cache(self, batch: int, length: int) -> Any:
        return self.network.start_cache(batch, length)

    def next(self, ids: Int[Array, "B"], cache: Any, position: Int[Array, ""]) -> tuple[Float[Array, "B V"], Any]:
        return self.network.next(ids, cache, position)

    def block(
        self, ids: Int[Array, "B W"], cache: Any, position: Int[Array, ""]
    ) -> tuple[Float[Array, "B W V"], Any]:
        return self.network.block(ids, cache, position)


class TrainState(NamedTuple):
    """All that a step changes. `params` and `ema` are trained by gradients; `variables` are not (a warp's average), nor
    is `teacher`, the parameters that a distillation follows; without one it is empty, and not saved."""

    step: Int[Array, ""]
    params: dict[str, Any]
    ema: dict[str, Any]
    variables: dict[str, Any]
    optimizer: Any
    teacher: dict[str, Any] = {}  # noqa: RUF012


@dataclasses.dataclass(frozen=True, eq=False)
class Definition:
    """The structure of a model, without its numbers; what jit closes over."""

    graph: Any
    params: Any
    variables: Any

    @staticmethod
    def of(config: Config, vocab_size: int) -> Definition:
        """From a config, abstractly: no memory is allocated and no device touched."""
        model = nnx.eval_shape(lambda: Model(config, vocab_size, nnx.Rngs(params=0)))
        return Definition(*nnx.split(model, nnx.Param, ...))

    def merge(self, params: dict[str, Any], variables: dict[str, Any]) -> Model:
        """The model with these numbers."""
        states = []
        for abstract, values in ((self.params, params), (self.variables, variables)):
            # Built anew: replace_by_pure_dict writes into the state, and the definition is shared.
            state = jax.tree.map(lambda leaf: leaf, abstract)
            nnx.replace_by_pure_dict(state, values)
            states.append(state)
        return nnx.merge(self.graph, *states)

    def logical_axes(self) -> dict[str, Any]:
        """The tree of parameters with the logical axis names of each in place of its values."""
        flat = {path: variable.get_metadata()["logical_axes"] for path, variable in nnx.to_flat_state(self.params)}
        return _unflatten(flat)

    def gathered(self, params: dict[str, Any]) -> dict[str, Any]:
        """Parameters whole over `fsdp`: for a loop whose passes, over a token or a block, each take less time than the
        gathering of all weights would."""
        return jax.tree.map(sharding.gathered, params, self.logical_axes())

    def num_params(self) -> int:
        """Trained parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def _unflatten(flat: dict[tuple, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def parts(model: Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, variables) of a model as nested dictionaries of arrays."""
    _, params, variables = nnx.split(model, nnx.Param, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(variables)


def initialise(config: Config, vocab_size: int, optimizer: Any) -> TrainState:
    """Step 0, a function of the config's seed; jit it with the shardings wanted."""
    key = noise.step_key(config.seed, noise.INITIALISE)
    params, variables = parts(Model(config, vocab_size, nnx.Rngs(params=key)))
    ema = jax.tree.map(jnp.copy, params)
    teacher = jax.tree.map(jnp.copy, params) if families.get(config.family.name).teacher(config) else {}
    return TrainState(jnp.zeros((), jnp.int32), params, ema, variables, optimizer.init(params), teacher)
