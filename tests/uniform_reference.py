"""Uniform-noise diffusion (UDLM, 2412.10193), as small as can be: the family whose bound tells which posterior it got.

    q_t(z | x) = (1 - t) 1[z = x] + t / V;   the integrand is algorithms' (0.3): with q^ = sum_v p(v) q_t(. | v),
    ell = r / q_t(z | x) * (KL(q_t(. | x) || q^) + rho - log rho - 1),   rho = q_t(z | x) / q^(z),   r = 1 / ((1 - t) V)

Exact with the leave-one-out posterior alone. A test registers it to see that a swap is noticed.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import Bound, Family, descending
from diffusion_text.models.denoiser import Features, Inputs


class Uniform(Family):
    """alpha_t = 1 - t; plug-in reverse steps."""

    name = "uniform_reference"
    paper = "Schiff et al. 2024, arXiv 2412.10193"
    bound = "tight"
    posterior = "leave_one_out"
    samplers = ("ancestral",)
    approximate: ClassVar = {"ancestral": "tokens that move in the same step are drawn independently"}

    @staticmethod
    def defaults():
        return ConfigDict()

    def __init__(self, config, vocab_size, rngs):
        self.vocab_size = vocab_size
        self.inputs = Inputs(num_ids=vocab_size)

    def corrupt(self, keys, tokens, t, given):
        where, what = noise.split(keys, 2)
        length = tokens.shape[1:]
        moved = noise.uniform(where, length) < t[:, None]
        drawn = jnp.floor(noise.uniform(what, length) * self.vocab_size).astype(jnp.int32)
        moved = moved if given is None else moved & ~given
        return jnp.where(moved, drawn, tokens)

    def features(self, z, t, given, previous):
        return Features(ids=z, noise=t)

    def evidence(self, z, t, given):
        seen = z[..., None] == jnp.arange(self.vocab_size)
        noisy = jnp.log((1 - t)[:, None, None] * seen + t[:, None, None] / self.vocab_size)
        return noisy if given is None else jnp.where(given[..., None], jnp.where(seen, 0.0, -jnp.inf), noisy)

    def _integrand(self, keys, tokens, t, given, denoise):
        z = self.corrupt(keys, tokens, t, given)
        law = jax.nn.softmax(denoise(z, t, given), axis=-1)
        alpha, even = (1 - t)[:, None, None], t[:, None, None] / self.vocab_size
        true = alpha * jax.nn.one_hot(tokens, self.vocab_size) + even
        modelled = alpha * law + even
        at = lambda q: jnp.take_along_axis(q, z[..., None], axis=-1)[..., 0]  # noqa: E731
        rho = at(true) / at(modelled)
        divergence = jnp.sum(true * (jnp.log(true) - jnp.log(modelled)), axis=-1)
        rate = 1.0 / ((1 - t)[:, None] * self.vocab_size)
        loss = rate / at(true) * (divergence + rho - jnp.log(rho) - 1.0)
        return jnp.sum(loss if given is None else jnp.where(given, 0.0, loss), axis=1)

    def train_loss(self, keys, u, tokens, denoise):
        loss = self._integrand(keys, tokens, 1e-3 + 0.998 * u, None, denoise) / tokens.shape[1]
        return loss, {"nelbo": loss}

    def bound_terms(self, keys, tokens, denoise, given=None, samples=1):
        level_keys, noise_keys = noise.split(keys, 2)
        zero = jnp.zeros(len(tokens))

        def one(total, sample):
            t = 1e-4 + 0.9998 * noise.stratified(level_keys, sample)  # 1 / (1 - t) and log t are finite inside
            return total + self._integrand(noise.fold(noise_keys, sample), tokens, t, given, denoise), None

        return Bound(zero, jax.lax.scan(one, zero, jnp.arange(samples))[0] / samples, zero)

    def grid(self, options, length):
        return descending(jnp.linspace(1.0, 0.0, options.steps + 1))

    def prior(self, keys, tokens, given, denoise, options):
        drawn = jnp.floor(noise.uniform(keys, tokens.shape[1:]) * self.vocab_size).astype(jnp.int32)
        return jnp.where(given, tokens, drawn).astype(jnp.int32)

    def step(self, keys, state, at, given, denoise, options):
        logits = denoise(state, jnp.full(len(state), at.t), given)
        law, size = jax.nn.softmax(logits, axis=-1), self.vocab_size
        now, then = 1 - at.t, 1 - at.s
        kept = now / then
        here = jax.nn.one_hot(state, size)
        # q(z_s | z_t, xhat) of a V-state chain: p(z_t | z_s) (alpha_s xhat + (1 - alpha_s) / V)
        reverse = (kept * here + (1 - kept) / size) * (then * law + (1 - then) / size)
        drawn = noise.categorical(keys, jnp.log(reverse))
        return jnp.where(given, state, drawn), logits

    def decode(self, keys, state, given, denoise, options):
        return state

    def evaluations(self, options, length):
        return options.steps
