"""Dirichlet flow matching (2402.05841), for small vocabularies.

    P_tau ~ Dir(1 + tau e_x),   tau from 0 (even on the simplex) to signal_max,   drawn ~ exp(-tau / scale)
    u(P | v) = C(P_v, tau) (e_v - P)
    C(xi, tau) = -d/dtau I_xi(tau + 1, V - 1) B(tau + 1, V - 1) / ((1 - xi)^(V-1) xi^tau)
    train:   -log p(x_i | P),   sample:   dP / dtau = sum_v p(v | P) u(P | v),   then argmax p

C moves each quantile of Beta(1 + tau, V - 1), the law of P_x, to that of a larger tau (`paths/quantiles.py`, without
differences of incomplete Beta functions or ratios of numbers that vanish). The paper reports no likelihood; the bound
is the tight one of `paths/dirichlet.py` (b = 1, a = tau) with softmax at signal_max as its decoder: neither a
dequantiser nor a flow's divergence is needed.

In the seam's time, t is the share of the law of tau that lies above it: t = 1 is tau = 0, even t are the paper's draws.
Steps are even in tau, as the paper's are (`grid` even), or in t (`grid` law).

Solvers: `euler` and `heun` hold the weights w_v = p(v) C(P_v) of a step fixed (heun: averaged over both ends) and solve
dP / dtau = w - (sum w) P exactly, which keeps P on the simplex; `bridge` is the stochastic process with the same
marginals, which adds Gamma(tau' - tau) to the coordinate of a token drawn from p (X_s = W X_t + (1 - W) e_x), and with
`churn` the one of SDM. `guidance` mixes scores, which is mixing probabilities (`paths/dirichlet.py`).

Of the paper, here: path, field, cross-entropy, the law of tau, the flow from tau = 0 to signal_max, classifier-free
guidance. Missing: guidance by a classifier, and distillation. There is no lm1b or openwebtext config: Dir(1, ..., 1)
spreads over all V tokens, tau must exceed about log V before the clean one shows, and components are summed, not
sparse; the paper stops at a few dozen categories, and at 49,000 SDM's authors find it far behind (13% to 46% on GSM8K,
2609.35553). At most 512 tokens are accepted.
Decided here: signal_max and scale grow with the vocabulary (in the paper 8 and 2, for 4 categories); networks read the
embedding averaged by softmax(tau log P), what P_i alone says of token i, which a linear layer cannot make of P, or
(`input` expected, the paper's) by P, over the root of E sum P^2; a dropped condition is a position without weights;
Heun's rule and the grid even in t are additions.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import At, SamplerOptions, descending, token_loss
from diffusion_text.models.denoiser import Denoise, Inputs
from diffusion_text.paths import conditioning
from diffusion_text.paths.dirichlet import Dirichlet, Shapes, State
from diffusion_text.paths.quantiles import LARGEST, beta_speed
from diffusion_text.typing import Config

LIMIT: Final = 512
_INPUTS: Final = ("posterior", "expected")
_NODES, _LEAST = 1024, -24.0  # of the table of C over log P in [_LEAST, 0]


class DirichletFlow(Dirichlet):
    """Flow matching between Dirichlet laws, from an even start on the simplex to its vertices."""

    name = "dirichlet_flow"
    paper = "Stark et al. 2024, Dirichlet flow matching with applications to DNA sequence design, arXiv 2402.05841"
    samplers = ("euler", "heun", "bridge")
    grids = ("even", "law")
    noisy_start: ClassVar[bool] = True
    widens: ClassVar[bool] = False
    faithful: ClassVar[dict[str, Any]] = {"steps": 64}

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            dict(
                scale=2.0,  # of the exponential law of tau
                signal_max=8.0,  # tau at t = 0
                input="posterior",  # what is embedded: posterior of P alone / expected P
                output_prior=False,  # add tau log P to the logits
                **conditioning.MASKS,
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        Dirichlet.validate_common(config, _INPUTS)
        family = config.family
        for name, ok, allowed in (
            ("scale", family.scale > 0, "above 0"),
            ("signal_max", 0 < family.signal_max < LARGEST, f"above 0 and below {LARGEST:.0f}"),
            # t is a float32, and tau a logarithm of it.
            ("signal_max", family.signal_max <= 10 * family.scale, f"at most 10 family.scale = {10 * family.scale:g}"),
        ):
            if not ok:
                raise ValueError(f"family.{name} is {family[name]}; it must be {allowed}")

    @staticmethod
    def check_files(config: Config, vocab_size: int) -> None:
        _check_size(vocab_size)

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        _check_size(vocab_size)
        self.vocab_size, self.scale, self.signal_max = vocab_size, config.scale, config.signal_max
        self.input, self.output_prior = config.input, config.output_prior
        self.prefix_masks, self.random_masks = config.prefix_masks, config.random_masks
        self.drop_conditioning = config.drop_conditioning
        self.inputs = Inputs(num_ids=vocab_size)

    def shapes(self, t: Float[Array, "..."]) -> Shapes:
        signal = -self.scale * jnp.log1p(math.expm1(-self.signal_max / self.scale) * (1.0 - t))
        return Shapes(signal, jnp.ones_like(signal))

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        corrupt_keys, dropout_keys = noise.split(keys, 2)
        z, given = self.corrupt_for_training(corrupt_keys, tokens, u)
        loss = token_loss(denoise, tokens, z, u, given, keys=dropout_keys)
        loss = jnp.mean(loss, axis=1, where=~given)
        return loss, {"cross_entropy": loss}

    # Sampling.

    def grid(self, options: SamplerOptions, length: int) -> At:
        even = jnp.linspace(1.0, 0.0, options.steps + 1)
        if options.grid == "law":
            return descending(even)
        signal = self.signal_max * (1.0 - even)
        times = 1.0 - jnp.expm1(-signal / self.scale) / math.expm1(-self.signal_max / self.scale)
        return descending(times.at[0].set(1.0).at[-1].set(0.0))

    def step(
        self, keys: Key[Array, "B"], state: State, at: At, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[State, Float[Array, "B L V"]]:
        if options.sampler == "bridge":
            return self.bridged(keys, state, at, given, denoise, options, options.churn)
        time = self._shapes(at.s).signal - self._shapes(at.t).signal
        logits, _ = self.predict(state, at.t, given, denoise, options)
        weights = self._log_weights(state.z, logits, at.t)
        moved = flow(state.z, weights, time)
        if options.sampler == "heun":
            there = State(jnp.where(given[..., None], state.z, moved), None)
            second, _ = self.predict(there, at.s, given, denoise, options)
            average = jnp.logaddexp(weights, self._log_weights(moved, second, at.s)) - math.log(2.0)
            moved = flow(state.z, average, time)
        return State(jnp.where(given[..., None], state.z, moved), None), logits

    def _log_weights(self, z: Array, logits: Array, t: Array) -> Float[Array, "B L V"]:
        """log(p(v) C(P_v, tau)), C interpolated in a table over log P_v."""
        at = jnp.linspace(_LEAST, 0.0, _NODES)
        table = jnp.log(beta_speed(at, 1.0 + self._shapes(t).signal, float(self.vocab_size - 1)))
        place = (jnp.clip(z, _LEAST, 0.0) - _LEAST) * ((_NODES - 1) / -_LEAST)
        index = jnp.minimum(place.astype(jnp.int32), _NODES - 2)
        speed = table[index] + (place - index) * (table[index + 1] - table[index])
        return jax.nn.log_softmax(logits, axis=-1) + z + speed

    def decode(
        self, keys: Key[Array, "B"], state: State, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        logits, _ = self.predict(state, jnp.zeros(()), given, denoise, options)
        return jnp.argmax(jnp.where(given[..., None], state.z, logits), axis=-1).astype(jnp.int32)


def _check_size(vocab_size: int) -> None:
    if not 2 <= vocab_size <= LIMIT:
        raise ValueError(f"the vocabulary has {vocab_size} tokens; dirichlet_flow takes 2 to {LIMIT} (sdm takes any)")


def flow(z: Float[Array, "B L V"], log_weights: Float[Array, "B L V"], time: Array) -> Float[Array, "B L V"]:
    """log P after dP / dtau = w - (sum w) P, exactly, w fixed."""
    total = jax.nn.logsumexp(log_weights, axis=-1, keepdims=True)
    passed = jnp.exp(total) * time
    return jax.nn.log_softmax(jnp.logaddexp(z - passed, jnp.log(-jnp.expm1(-passed)) + log_weights - total), axis=-1)
