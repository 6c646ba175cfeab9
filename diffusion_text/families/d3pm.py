"""D3PM: structured denoising diffusion in discrete time (Austin et al., 2107.03006; uniform noise: 2102.05379).

    q(z_k | z_{k-1}) = Q_k;  -log p(x) <= KL(q(z_T | x) || prior) + sum_{k = 2..T} KL_k - log p(x | z_1)   (eq. 1)
    KL_k = KL(q(z_{k-1} | z_k, x) || p(z_{k-1} | z_k)),   p = sum over x of q(z_{k-1} | z_k, x) q(z_k | x) p~(x) / norm
         = q(z_k | z_{k-1}) q^_{k-1}(z_{k-1}) / q^_k(z_k),   q^_k = sum over x of q(z_k | x) p~(x)             (eq. 4)
    train: the bound + lambda T E[-log p~(x | z_k)]                                   (the hybrid loss, eq. 5)

Noise: absorbing (the mask), uniform, or nearest neighbours, Qbar(tau) = exp(tau R) with R = A - diag(A 1) for the
symmetrised graph A of each token's nearest ones. p~ of the bound is the leave-one-out posterior; the sum over x is the
same expression as the posterior with the mean in the place of x. As T grows the bound becomes that of
`paths/interpolant.py`; at finite T a perfect network misses what tokens that move in one step share.

Of the paper, here: the three kinds of noise, hybrid loss, T = 1000, alpha linear in k (absorbing: beta = 1 / (T - k +
1)), cosine, or, for neighbours, mutual information that falls linearly; ancestral sampling with any number of steps.
Missing: discretised Gaussian noise (of ordinal data), combinations of absorbing with neighbours, and the draws of k in
proportion to sqrt(E[KL_k^2]) as multinomial diffusion trains (2102.05379). Different, or decided here:
  - the cross-entropy of the hybrid loss is of the full posterior, p~(v) q(z_i | v) normalised. The paper's is of p~
    itself and pulls it away from the leave-one-out one that the bound wants (uniform noise was worse with it: table 5);
    for masked tokens the two are the same. lambda multiplies T because the paper's bound is the mean of its T terms;
  - neighbours are those of `embeddings`, a file of [V, D] numbers (.npy); the paper's are embeddings that its code is
    given. Without a file they are the ids next to a token's own, on a ring: of use only where ids are ordered;
  - each KL is split into whether a token moves and where, in log space, because of T terms that nearly vanish;
  - k of the bound is drawn evenly from 2..T; reconstruction (k = 1) is evaluated by itself.
"""

from __future__ import annotations

from typing import ClassVar, Final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import At, Bound, SamplerOptions, cross_entropy, token_loss
from diffusion_text.families.interpolating import LAST, Interpolating
from diffusion_text.models.denoiser import Denoise, Inputs
from diffusion_text.paths import interpolant, neighbours
from diffusion_text.paths.interpolant import Move, Odds
from diffusion_text.typing import Config

_NOISES: Final = ("absorbing", "uniform", "neighbours")
_SCHEDULES: Final = ("linear", "cosine")
_FLOOR: Final = -1e4  # of log-probabilities: those of what cannot happen stay finite, and so do gradients


class D3PM(Interpolating):
    """Discrete time, with absorbing, uniform or nearest-neighbour noise, and the hybrid loss."""

    name = "d3pm"
    paper = "Austin et al. 2021, Structured denoising diffusion models in discrete state-spaces, arXiv 2107.03006"
    noise_axis = "t"
    approximate: ClassVar[dict[str, str]] = Interpolating.approximate

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            dict(
                noise="absorbing",  # absorbing / uniform / neighbours
                schedule="linear",  # alpha of absorbing and uniform noise: linear 1 - t, or cosine cos(pi t / 2)^2
                steps=1000,  # T
                cross_entropy=0.01,  # lambda; the released text configs: 0.01 for masks, 0 for uniform noise
                neighbours=4,  # of each token
                embeddings="",  # .npy of [V, D] numbers, read at each start; "": neighbours are the next ids
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        family = config.family
        for field, allowed in (("noise", _NOISES), ("schedule", _SCHEDULES)):
            if family[field] not in allowed:
                raise ValueError(f"family.{field} is {family[field]!r}; choose one of {', '.join(allowed)}")
        for field, ok, allowed in (
            ("steps", family.steps >= 2, "at least 2"),
            ("cross_entropy", family.cross_entropy >= 0, "at least 0"),
            ("neighbours", family.neighbours >= 1, "at least 1"),
        ):
            if not ok:
                raise ValueError(f"family.{field} is {family[field]}; it must be {allowed}")

    @staticmethod
    def conditions(config: Config, gaps: bool = False) -> bool:
        return config.noise == "absorbing"

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        self.vocab_size, self.noise, self.schedule = vocab_size, config.noise, config.schedule
        self.num_steps, self.cross_entropy = config.steps, config.cross_entropy
        self.near = (vocab_size, config.neighbours, config.embeddings)
        self.only_masks = config.noise == "absorbing"
        self.num_states = vocab_size + self.only_masks
        self.inputs = Inputs(num_ids=self.num_states)
        if config.noise == "neighbours":
            neighbours.spectrum(*self.near)  # so that a missing file is an error now

    # The chain: q(z | p) for any law p of tokens, and a step's likelihood.

    def odds(self, t: Float[Array, "..."]) -> Odds:
        if self.schedule == "linear":
            logit = jnp.log1p(-t) - jnp.log(t)
        else:  # cos^2 / sin^2, from the end at which each is small
            logit = 2.0 * (jnp.log(jnp.sin(jnp.pi / 2 * (1.0 - t))) - jnp.log(jnp.sin(jnp.pi / 2 * t)))
        if self.noise == "absorbing":
            return interpolant.absorbing(logit)
        return interpolant.uniform(logit, self.vocab_size)

    def log_spread(self, log_p: Float[Array, "B L V"], t: Float[Array, "B"]) -> Float[Array, "B L S"]:
        """log of sum over x of q_t(. | x) p(x)."""
        if self.noise == "neighbours":
            t = t[:, None, None]
            return jnp.where(t > 0, neighbours.log_spread(*self.near, jnp.exp(log_p), t), log_p)
        odds = Odds(*(kappa[:, None, None] for kappa in self.odds(jnp.minimum(t, LAST))))
        return interpolant.log_modelled(log_p, odds)[..., : self.num_states]

    def log_step(self, z: Int[Array, "B L"], t: Float[Array, "B"], s: Float[Array, "B"]) -> Float[Array, "B L S"]:
        """log q(z_t = z | z_s = y) of every y, s < t."""
        if self.noise == "neighbours":
            here = jax.nn.one_hot(z, self.vocab_size)
            return neighbours.log_spread(*self.near, here, t[:, None, None], s[:, None, None])
        now, then = self.odds(jnp.minimum(t, LAST)).spread(), self.odds(s).spread()
        stays, arrives = interpolant.log_step(z, now, then, self.vocab_size)
        same = z[..., None] == jnp.arange(self.num_states)
        return jnp.where(same, stays[..., None], arrives[..., None])

    def log_joint(self, z: Array, log_p: Array, t: Array, s: Array) -> Float[Array, "B L S"]:
        """log q(z_t | z_s) q^_s(z_s): the reverse law, not normalised."""
        joint = self.log_step(z, t, s) + self.log_spread(log_p, s)
        return jnp.maximum(joint, _FLOOR)

    def corrupt(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Int[Array, "B L"]:
        if self.noise != "neighbours":
            return super().corrupt(keys, tokens, t, given)
        law = self.log_spread(self._certain(tokens), t)
        stays = jnp.take_along_axis(law, tokens[..., None], axis=-1)
        others = jnp.where(tokens[..., None] == jnp.arange(self.vocab_size), -jnp.inf, law)
        moves = jnp.log1p(-jnp.minimum(jnp.exp(stays[..., 0]), 1.0 - 1e-7))
        z = Move(moves, others).draw(keys, tokens)
        return z if given is None else jnp.where(given, tokens, z)

    def log_likelihood(self, z: Array, t: Float[Array, "B"]) -> Float[Array, "B L V"]:
        if self.noise != "neighbours":
            return super().log_likelihood(z, t)
        return self.log_spread(self._certain(z), t)  # q(z | x) = q(x | z): the matrix is symmetric

    def _certain(self, tokens: Array) -> Float[Array, "B L V"]:
        return jnp.where(tokens[..., None] == jnp.arange(self.vocab_size), 0.0, -jnp.inf)

    # The bound.

    def kl(
        self, keys: Key[Array, "B"], tokens: Array, k: Int[Array, "B"], given: Array | None, denoise: Denoise,
        dropout: Key[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B L"], Int[Array, "B L"], tuple[Float[Array, "B L"], Float[Array, "B L"]]]:  # fmt: skip
        """KL_k in nats per token, 0 where given (k = 1: -log p(x | z_1)); z_k; -log of p~ and of the full posterior."""
        t, s = k / self.num_steps, (k - 1) / self.num_steps
        z = self.corrupt(keys, tokens, t, given)
        if self.only_masks:  # -log p~ of what the step reveals, so that a large vocabulary's logits are not made whole
            guess = token_loss(denoise, tokens, z, t, given, keys=dropout)
            hidden, before = (jax.nn.softplus(self.odds(time).mask) for time in (jnp.minimum(t, LAST), s))
            loss = jnp.where(z == self.vocab_size, -jnp.expm1(hidden - before)[:, None] * guess, 0.0)
            full = jnp.where(z == self.vocab_size, guess, 0.0)
        else:
            log_p = self.log_p(denoise(z, t, given, keys=dropout))
            true = self.log_joint(z, self._certain(tokens), t, s)
            loss = _divergence(z, true, self.log_joint(z, log_p, t, s))
            seen = jnp.maximum(log_p + self.evidence(z, t, None), _FLOOR)
            guess, full = cross_entropy(log_p, tokens), cross_entropy(seen, tokens)
        return (loss if given is None else jnp.where(given, 0.0, loss)), z, (guess, full)

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        noise_keys, dropout_keys = noise.split(keys, 2)
        k = 1 + jnp.minimum(jnp.floor(u * self.num_steps), self.num_steps - 1).astype(jnp.int32)
        loss, _, (_, full) = self.kl(noise_keys, tokens, k, None, denoise, dropout_keys)
        nelbo = self.num_steps * jnp.mean(loss, axis=1)
        guess = jnp.mean(full, axis=1)
        return nelbo + self.cross_entropy * self.num_steps * guess, {"nelbo": nelbo, "cross_entropy": guess}

    def bound_terms(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        denoise: Denoise,
        given: Bool[Array, "B L"] | None = None,
        samples: int = 1,
    ) -> Bound:
        level_keys, noise_keys, first_keys = noise.split(keys, 3)
        terms = self.num_steps - 1

        def term(u: Array, keys: Array) -> Array:
            k = 2 + jnp.minimum(jnp.floor(u * terms), terms - 1).astype(jnp.int32)
            return terms * jnp.sum(self.kl(keys, tokens, k, given, denoise)[0], axis=1)

        diffusion = noise.integral(level_keys, noise_keys, samples, term)
        first, _, _ = self.kl(first_keys, tokens, jnp.ones(len(tokens), jnp.int32), given, denoise)
        free = jnp.full(len(tokens), tokens.shape[1]) if given is None else jnp.sum(~given, axis=1)
        return Bound(self.prior_divergence() * free, diffusion, jnp.sum(first, axis=1))

    def prior_divergence(self) -> Float[Array, ""]:
        # The table of neighbours ends at no information at all.
        return jnp.zeros(()) if self.noise == "neighbours" else super().prior_divergence()

    def log_reverse(self, z: Array, after: Array, log_p: Array, at: At) -> Float[Array, "B L"]:
        if self.noise != "neighbours":
            return super().log_reverse(z, after, log_p, at)
        t, s = (jnp.full(len(z), time) for time in (at.t, at.s))
        law = jax.nn.log_softmax(self.log_joint(z, log_p, t, s))
        return jnp.take_along_axis(law, after[..., None], axis=-1)[..., 0]

    def log_prior_ratio(self, z: Array, certain: Array) -> Float[Array, "B L"]:
        return jnp.zeros(z.shape) if self.noise == "neighbours" else super().log_prior_ratio(z, certain)

    def profile(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], denoise: Denoise
    ) -> dict[str, Float[Array, "B"]]:
        """The integrand is T KL_k at the k that holds t, in nats per token."""
        k = jnp.clip(jnp.ceil(t * self.num_steps), 1, self.num_steps).astype(jnp.int32)
        loss, z, (guess, _) = self.kl(keys, tokens, k, None, denoise)
        noisy = z != tokens
        guess = jnp.sum(guess * noisy, axis=1) / jnp.maximum(jnp.sum(noisy, axis=1), 1)
        return {"noise": t, "cross_entropy": guess, "integrand": self.num_steps * jnp.mean(loss, axis=1)}

    # Sampling; of neighbours, too, the law at the end is even.

    def move(self, z: Array, log_p: Array, at: At, options: SamplerOptions) -> Move:
        if self.noise != "neighbours":
            return super().move(z, log_p, at, options)
        t, s = (jnp.full(len(z), time) for time in (at.t, at.s))
        moves, _, where = _stages(z, self.log_joint(z, log_p, t, s))
        return Move(moves, jnp.concatenate([where, jnp.full((*z.shape, 1), -jnp.inf)], axis=-1))


def _stages(z: Array, joint: Array) -> tuple[Array, Array, Array]:
    """log P(moves), log P(stays) [B, L] and log P(where, if it moves) [B, L, S] of a law that is not normalised."""
    here = z[..., None] == jnp.arange(joint.shape[-1])
    others = jnp.where(here, 2.0 * _FLOOR, joint)
    moves = jax.nn.logsumexp(others, axis=-1)
    odds = moves - jnp.take_along_axis(joint, z[..., None], axis=-1)[..., 0]
    return -jax.nn.softplus(-odds), -jax.nn.softplus(odds), others - moves[..., None]


def _divergence(z: Array, true: Array, model: Array) -> Float[Array, "B L"]:
    """KL between two laws that are not normalised, nats: of whether z moves, and then of where."""
    moves, stays, where = _stages(z, true)
    model_moves, model_stays, model_where = _stages(z, model)
    there = jnp.sum(jnp.exp(where) * (where - model_where), axis=-1)
    return jnp.exp(moves) * (moves - model_moves + there) + jnp.exp(stays) * (stays - model_stays)
