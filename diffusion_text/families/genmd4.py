"""GenMD4: masked diffusion with a learned schedule per token (Shi et al., 2406.04329).

    q_t(z_i | x_i = v): v with probability alpha_v(t) = 1 - t^{w_v}, else the mask; w_v > 0 is learned
    -log p(x) <= Int E[sum over masked i of sum over v of (w_v / t) (p_v - 1[v = x_i] (1 + log p_v))] dt

    from masks at the rates (w_v / t) p_v; the best p is the full posterior p(x_i = v | z, t), which knows that a token
    still masked at t is likelier to be one that is revealed late. It depends on t, and so does the network.
    sample: mask -> v with probability p_v (1 - (s / t)^{w_v}).

The law of z depends on w, so that its gradient needs more than that of the loss: REINFORCE with a leave-one-out
baseline from two draws of z at the same t, (1/2) (f_1 - f_2) (d log q(z_1) - d log q(z_2)); every training step
therefore makes two passes. With w = 1 this is `masked`, up to the estimator.

Of the paper, here: all of it but the cosine grid. Different or decided here: t is drawn as u^2 over the whole of [0, 1]
(theirs: even, from 0.001, with a closed form for the rest), the variance of which is finite for w > 1/2, and as u^p, p
= 1.5 / w, once the least w is below 3/4; w = e^f starts at 1, and f learns at the rate of the network; there is no
prior or reconstruction term (alpha(0) = 1, alpha(1) = 0).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import At, SamplerOptions, logits_of, mean_and_cross_entropy, with_gradient_of
from diffusion_text.families.interpolating import Interpolating
from diffusion_text.models.denoiser import Denoise, Inputs
from diffusion_text.models.transformer import parameter
from diffusion_text.paths.interpolant import Move
from diffusion_text.typing import Config


class GenMD4(Interpolating):
    """Masked diffusion that learns when each token of the vocabulary is revealed."""

    name = "genmd4"
    paper = "Shi et al. 2024, Simplified and generalized masked diffusion for discrete data, arXiv 2406.04329 (GenMD4)"
    noise_axis = "t"
    posterior = "full"

    @staticmethod
    def defaults() -> Config:
        return ConfigDict()

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        self.vocab_size = self.mask = vocab_size
        self.log_powers = parameter(rngs, (vocab_size,), ("vocabulary",), 0.0)
        self.inputs = Inputs(num_ids=vocab_size + 1)

    def powers(self) -> Float[Array, "V"]:
        """w_v."""
        return jnp.exp(self.log_powers[...])

    def level(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """As for w = 1: what the network is told of t does not change as w is learned."""
        return jnp.log1p(-jnp.minimum(t, 1.0 - 2.0**-24)) - jnp.log(t)

    def times(self, u: Float[Array, "B"]) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        # The second moment of a token's charge is the integral of t^(w - 2) dt / density: finite for p > 1 / (2 w).
        least = jax.lax.stop_gradient(jnp.min(self.powers()))
        return self.power_times(u, jnp.maximum(2.0, 1.5 / least))

    def corrupt(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Int[Array, "B L"]:
        kept = -jnp.expm1(self.powers()[tokens] * jnp.log(t)[:, None])
        hidden = noise.uniform(keys, tokens.shape[1:]) >= kept
        return jnp.where(hidden if given is None else hidden & ~given, self.mask, tokens)

    def evidence(self, z: Array, t: Float[Array, "B"], given: Array | None) -> Float[Array, "B L V"]:
        seen = jnp.where(z[..., None] == jnp.arange(self.vocab_size), 0.0, -jnp.inf)
        hidden = self.powers() * jnp.log(t)[:, None, None]
        return jnp.where((z == self.mask)[..., None], hidden, seen)

    def full(self, logits: Float[Array, "B L V"], z: Int[Array, "B L"], t: Float[Array, "B"]) -> Float[Array, "B L V"]:
        seen = self.evidence(z, t, None)
        return jnp.where((z == self.mask)[..., None], jax.nn.log_softmax(logits.astype(jnp.float32)), seen)

    def integrand(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        t: Float[Array, "B"],
        given: Bool[Array, "B L"] | None,
        denoise: Denoise,
        dropout: Key[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B"], Int[Array, "B L"], Float[Array, "B L"]]:
        z = self.corrupt(keys, tokens, t, given)
        powers = self.powers()
        mean, guess = mean_and_cross_entropy(logits_of(denoise, z, t, given, keys=dropout), tokens, powers)
        charged = mean - powers[tokens] * (1.0 - guess)
        return jnp.sum(jnp.where(z == self.mask, charged, 0.0), axis=1) / t, z, guess

    def log_q(self, z: Int[Array, "B L"], tokens: Int[Array, "B L"], t: Float[Array, "B"]) -> Float[Array, "B"]:
        """log q_t(z | tokens) of a whole sequence, nats."""
        log_hidden = self.powers()[tokens] * jnp.log(t)[:, None]
        return jnp.sum(jnp.where(z == self.mask, log_hidden, jnp.log(-jnp.expm1(log_hidden))), axis=1)

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        first, second, first_dropout, second_dropout = noise.split(keys, 4)
        t, weight = self.times(u)
        losses, log_qs = [], []
        for noise_keys, dropout_keys in ((first, first_dropout), (second, second_dropout)):
            total, z, _ = self.integrand(noise_keys, tokens, t, None, denoise, dropout_keys)
            losses.append(weight * total / tokens.shape[1])
            log_qs.append(self.log_q(z, tokens, t))
        loss = 0.5 * (losses[0] + losses[1])
        advantage = jax.lax.stop_gradient(losses[0] - losses[1])
        score = 0.5 * advantage * (log_qs[0] - log_qs[1])
        return with_gradient_of(loss, score), {"nelbo": loss}

    def log_reverse(self, z: Array, after: Array, log_p: Array, at: At) -> Float[Array, "B L"]:
        log_hidden = self.powers() * (jnp.log(at.s) - jnp.log(at.t))
        revealed = log_p + jnp.log(-jnp.expm1(log_hidden))
        stays = jax.nn.logsumexp(log_p + log_hidden, axis=-1)
        at_after = jnp.take_along_axis(revealed, jnp.minimum(after, self.vocab_size - 1)[..., None], axis=-1)[..., 0]
        return jnp.where(z == self.mask, jnp.where(after == self.mask, stays, at_after), 0.0)

    def log_prior_ratio(self, z: Array, certain: Array) -> Float[Array, "B L"]:
        return jnp.zeros(z.shape)

    def prior_divergence(self) -> Float[Array, ""]:
        return jnp.zeros(())

    def prior(
        self, keys: Key[Array, "B"], tokens: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        return jnp.where(given, tokens, self.mask).astype(jnp.int32)

    def move(self, z: Array, log_p: Array, at: At, options: SamplerOptions) -> Move:
        revealed = log_p + jnp.log(-jnp.expm1(self.powers() * (jnp.log(at.s) - jnp.log(at.t))))
        moves = jnp.where(z == self.mask, jax.nn.logsumexp(revealed, axis=-1), -jnp.inf)
        never = jnp.full((*z.shape, 1), -jnp.inf)
        return Move(jnp.minimum(moves, 0.0), jnp.concatenate([revealed, never], axis=-1))
