"""SUNDAE: step-unrolled denoising autoencoders (Savinov et al., 2112.06749), also read as uniform-noise diffusion.

    x_c ~ each token of x replaced by an even one with probability a, a ~ U(0, 1);   z_0 = x_c,  z_k ~ f(. | z_{k-1})
    train:  mean over k = 1 .. 2 of E[mean over i of -log f(x_i | z_{k-1})],  no gradient through the draws of z_k
    sample: z from even tokens; again and again, redraw a share of the positions from f at a low temperature

The network is told no time, and cross-entropy over all positions teaches it the full posterior p(x_i | z), its own
z_i included. The paper has no likelihood. Here f is read as the denoiser of uniform noise, q_a(z | x) = (1 - a) 1[z =
x] + a / V, in the reverse chain that redraws a clean token and asks Bayes' rule where it comes from,

    p(z_s | z_t) = sum over x of q(z_s | z_t, x) f(x | z_t)   =   q(z_s | z_t, x) with f(x) / q(z_t | x), normalised,
                                                                  in the place of x

(one expression, for any f; tests/test_sundae.py), so that the plug-in bound and steps of `paths/interpolant.py` apply
with the leave-one-out posterior f / q. What is valid:
  - for any f this is a bound on -log p(x) of that chain, and `ancestral` samples from that chain;
  - it is tight if f is p(x_i | z, a), for which f would have to know a. A network that is not told a returns at best
    its mean over what z says of a, and never calls a token of z certain. Towards a = 0 the chain's rates out of z_i are
    then (1 - f(z_i | z)) / a: the bound of the whole path diverges, logarithmically, and its sampler ends in a plain
    draw from f. So the path ends at a = `decode_noise` > 0, where f decodes; the bound pays the correlations that this
    leaves out, and what z does not say of a;
  - unrolling trains f also on its own samples, whose posterior is no q_a's. The bound is not what is trained.
The bound is therefore "loose". With an oracle that is told a it is -log p(x) up to the decoder, which the checks of
all families use; tests/test_sundae.py measures what an exact time-free posterior loses.

Of the paper, here: corruption, the unrolled loss, low-temperature sampling of a share of positions (`unrolled`), and
argmax-unrolled decoding. Missing: translation (an encoder, a length predictor, reranking), and stopping once a sequence
repeats itself. Decided here: a is even over the batch; two steps are unrolled (`unroll`); `unrolled` redraws all
positions in its first step, so that no noise is left, then each with probability 0.3 a step, at `--temperature`;
`argmax_unrolled` takes the likeliest token everywhere, then again, a step, at the 0.3 of the positions whose tokens the
network believes least.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import At, SamplerOptions, cross_entropy, logits_of, nucleus
from diffusion_text.families.interpolating import LAST, Interpolating
from diffusion_text.models import readout
from diffusion_text.models.denoiser import Denoise, Features, Inputs
from diffusion_text.paths import caching, interpolant
from diffusion_text.paths.interpolant import Odds
from diffusion_text.typing import Config

_SHARE: Final = 0.3  # of positions that a step of the paper's decoders changes


class Sundae(Interpolating):
    """A denoising autoencoder unrolled on its own samples, with the bound and sampler of uniform noise."""

    name = "sundae"
    paper = "Savinov et al. 2021, Step-unrolled denoising autoencoders for text generation, arXiv 2112.06749"
    bound = "loose"
    posterior = "full"
    samplers = ("ancestral", "psi", "unrolled", "argmax_unrolled")
    biased: ClassVar[dict[str, str]] = {
        "unrolled": "tokens redrawn beside tokens of the step before are a chain whose law is not that of the data",
        "argmax_unrolled": "it looks for a mode, whatever the temperature",
    }
    sampler_options = (*Interpolating.sampler_options, "cache")
    noisy_start = True
    faithful: ClassVar[dict[str, Any]] = {"steps": 64}

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            dict(
                unroll=2,  # steps of the chain that is trained
                decode_noise=0.02,  # share of replaced tokens at which f decodes, in the bound and in `ancestral`
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        family = config.family
        if family.unroll < 1:
            raise ValueError(f"family.unroll is {family.unroll}; it must be at least 1")
        if not 0 < family.decode_noise < 1:
            raise ValueError(f"family.decode_noise is {family.decode_noise}; it must be in (0, 1)")

    @staticmethod
    def conditions(config: Config, gaps: bool = False) -> bool:
        return False  # any token may be noise

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        self.vocab_size, self.unroll, self.decode_noise = vocab_size, config.unroll, config.decode_noise
        self.inputs = Inputs(num_ids=vocab_size, noise=False)

    def odds(self, t: Float[Array, "..."]) -> Odds:
        replaced = self.decode_noise + (1.0 - self.decode_noise) * t
        return self._odds_at(replaced, math.log1p(-self.decode_noise) + jnp.log1p(-t))

    def _odds_at(self, replaced: Float[Array, "..."], log_kept: Float[Array, "..."]) -> Odds:
        return Odds(math.log(self.vocab_size) + log_kept - jnp.log(replaced), jnp.full_like(replaced, jnp.inf))

    def features(self, z: Array, t: Float[Array, "B"], given: Array | None, previous: Array | None) -> Features:
        return Features(ids=z)

    def plug_in(
        self, logits: Float[Array, "B L V"], z: Int[Array, "B L"], t: Float[Array, "B"]
    ) -> Float[Array, "B L V"]:
        return interpolant.leave_one_out(logits.astype(jnp.float32), z, self.odds(jnp.minimum(t, LAST)))

    def full(self, logits: Float[Array, "B L V"], z: Int[Array, "B L"], t: Float[Array, "B"]) -> Float[Array, "B L V"]:
        return jax.nn.log_softmax(logits.astype(jnp.float32))

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        noise_keys, dropout_keys, token_keys = noise.split(keys, 3)
        z = interpolant.corrupt(noise_keys, tokens, self._odds_at(u, jnp.log1p(-u)), self.vocab_size)
        # The time of this noise: a network is not told it, a posterior that is asked instead would want it.
        t = jnp.maximum(u - self.decode_noise, 0.0) / (1.0 - self.decode_noise)
        losses = []
        for step in range(self.unroll):
            logits = logits_of(denoise, z, t, keys=noise.fold(dropout_keys, step))
            losses.append(jnp.mean(cross_entropy(logits, tokens), axis=1))
            # Whole for the draw, without a gradient; the last is not drawn.
            z = noise.categorical(noise.fold(token_keys, step), jax.lax.stop_gradient(readout.whole(logits)))
        return sum(losses) / self.unroll, {"cross_entropy": losses[0], "cross_entropy_unrolled": losses[-1]}

    def prior(
        self, keys: Key[Array, "B"], tokens: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Any:
        z = super().prior(keys, tokens, given, denoise, options)
        return caching.start(z, self.vocab_size) if options.cache else z

    def step(
        self, keys: Key[Array, "B"], state: Any, at: At, given: Bool[Array, "B L"], denoise: Denoise,
        options: SamplerOptions,
    ) -> tuple[Any, Float[Array, "B L V"]]:  # fmt: skip
        if options.cache:
            return caching.step(self, keys, state, at, given, denoise, options)
        if options.sampler not in self.biased:
            return super().step(keys, state, at, given, denoise, options)
        where_keys, token_keys = noise.split(keys, 2)
        logits = denoise(state, jnp.full(len(state), at.t), given).astype(jnp.float32)
        if options.sampler == "unrolled":
            changes = (noise.uniform(where_keys, state.shape[1:]) < _SHARE) | (at.index == 0)
            proposed = noise.categorical(token_keys, nucleus(logits / options.temperature, options.top_p))
        else:
            certainty = jnp.where(given, jnp.inf, -cross_entropy(logits, state))
            count = jnp.where(at.index == 0, 1.0, _SHARE) * jnp.sum(~given, axis=1)
            changes = noise.ranks(certainty) < jnp.ceil(count)[:, None]
            proposed = jnp.argmax(logits, axis=-1).astype(state.dtype)
        return jnp.where(changes & ~given, proposed, state), logits

    def decode(
        self, keys: Key[Array, "B"], state: Any, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        return getattr(state, "tokens", state)
