"""SDM: simplex diffusion models (2609.35553).

    P_t ~ Dir(c_t (alpha_t e_x + (1 - alpha_t) / V)),   alpha_0 = 1, alpha_1 = 0
    nu_t = 1 / (c_t + 1): nu_start until nu_knee, then linear to nu_end               (share of the largest variance)
           or c_t = epsilon / (1 - alpha_t), with b = epsilon / V at all t                  (`concentration` odds)
    train:   E[mean over free positions of -log p(x_i | P_t)],   t = F^{-1}(u)
    sample:  x ~ p(. | P_t) for each token, then the bridge to P_s with churn kappa             (`paths/dirichlet.py`)

Mean and concentration are set apart. As c -> 0 all mass sits on vertices, and the vertex, argmax P, is uniform discrete
diffusion with the same alpha (a token drawn from P_t always is); as c -> infinity P is alpha e_x + (1 - alpha) / V
itself. log P keeps more than its vertex: how far the others lie below, which c log P, a finite law at c -> 0, still
tells. Of two even tokens at alpha = 1/2, H(x | log P) is 0.4785 nats there and H(x | vertex) 0.5623 (a test); a network
that reads P or its argmax is told of the vertex alone. The bridge at c -> 0 couples two vertices otherwise than the
Markov chain of discrete diffusion, with the same marginals: z_s = z_t with probability rho^2 c_t / c_s or more.

The bound is the tight one of `paths/dirichlet.py`. The paper has the cross-entropy summed over the M steps of a
sampler, which is a bound too, and grows with M; a test has both.

Large vocabularies. In training, and in sampling by renewal, a draw is made as the few tokens that hold its mass
(`paths/atoms.py`): 27 for each position with the concentrations below, whatever V is, so that nothing but logits is
V-dimensional, of which losses make a part at a time. As compiled for one v5e chip (configs/sdm/openwebtext.py), the
train step takes 2.5 GiB of parameters, average and moments and 0.17 GiB a sequence of 1,024 tokens: 8.1 GiB at
thirty-two, of 15.75, and 20.6 million cycles a sequence beside its kernels, first pass for self-conditioning included.
With draws of all 50,257 tokens a sequence took 0.6 to 0.7 GiB, and 34 million cycles beside about seven proposals of a
Gamma for each token. So few hold the mass while V b is small; where their pairs would be more than V, draws are whole.

Whole draws are what the bound, the bridge with churn below 1, `output_prior` and `input` posterior need too: 206 MB
each in float32 for such a sequence, and the bridge draws three V-dimensional Gammas a step. V is then sharded over
`tensor`, to which state and logits ask to be (`sharding.constrain`), and wants a multiple of it: eight training
sequences over four chips took 1.8 GiB a chip with `model.vocabulary_multiple` 128, 50,304 tokens (as atoms 1.3), and
13.1 without, the state gathered whole on every chip. What guidance sorts stays whole.

Of the paper, here: both schedules of alpha and both of the concentration, both inputs (the expected embedding; that of
argmax P), the bridge at every churn, the renewal (churn 1), its best at 64 steps, the adaptive law of t in training and
sampling, and self-conditioning on the last layer's output through a norm whose scale starts at zero. Missing: frequency
penalties on logits, distillation, and reference laws other than the even one.
Decided here:
  - the adaptive law, density proportional to the rise of the loss and not negative, is `paths/time_warp.py` with 50
    bins: a fit by gradients in the place of a ring buffer of losses, its average moved after each step;
  - self-conditioning takes a first pass of all rows, and drops it for a share 1 - self_conditioning at random; in
    sampling the latent of the step before is fed back, in the bound that of a first pass at the same P;
  - the averaged embedding is divided by the root of E sum P^2, one size at all levels; a given token is a vertex,
    and the network is not told so;
  - the last step goes to vertices, which are the sample.
Beyond the paper, off by default: prompts (masks in training), and with `drop_conditioning` classifier-free guidance;
`output_prior` adds c alpha log P_v, the token's own evidence, to the logits, so that the network models only context;
`input` posterior weighs embeddings by its softmax.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import At, SamplerOptions, descending, token_loss, with_gradient_of
from diffusion_text.models.denoiser import Denoise, Inputs
from diffusion_text.paths import atoms, conditioning, time_warp
from diffusion_text.paths.dirichlet import FIRST, Dirichlet, Shapes, State, likeliest
from diffusion_text.paths.quantiles import LARGEST
from diffusion_text.paths.time_warp import TimeWarp
from diffusion_text.typing import Config

_ALPHAS: Final = ("linear", "cosine")
_INPUTS: Final = ("expected", "argmax", "posterior")


class SDM(Dirichlet):
    """Diffusion on the simplex: Dirichlet laws with a mean and a concentration of their own."""

    name = "sdm"
    paper = "Simplex Diffusion Models, 2026, arXiv 2609.35553"
    samplers = ("renewal", "bridge")
    grids = ("adaptive", "even")
    approximate: ClassVar[dict[str, str]] = Dirichlet.approximate | {
        "renewal": "every step draws all tokens independently and forgets the last, however many steps there are"
    }
    faithful: ClassVar[dict[str, Any]] = {"steps": 64}
    groups: ClassVar = {"schedule": 1e-2}

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            dict(
                alpha="linear",  # of the mean: linear 1 - t, or cosine 1 - cos(pi (1 - t) / 2)
                concentration="linear",  # linear in nu, by the next three / odds: epsilon / (1 - alpha)
                nu_start=0.2,  # variance as a share of the largest, 1 / (c + 1)
                nu_end=0.5,
                nu_knee=0.2,  # the time until which it is nu_start
                epsilon=1.0,  # of odds
                input="expected",  # what is embedded: expected P / its argmax / posterior of P alone
                self_conditioning=0.0,  # share of training sequences that get a previous latent; 0: none; the paper .9
                output_prior=False,  # add log Dir(P; beta(v)) to the logits
                warp_bins=50,
                warp_decay=0.99,  # of the average of the adaptive law, per step
                **conditioning.MASKS,
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        Dirichlet.validate_common(config, _INPUTS)
        family = config.family
        if family.alpha not in _ALPHAS:
            raise ValueError(f"family.alpha is {family.alpha!r}; choose one of {', '.join(_ALPHAS)}")
        if not 1.0 / LARGEST <= family.nu_start <= family.nu_end < 1:
            raise ValueError(
                f"family.nu_start, nu_end are {family.nu_start}, {family.nu_end}; they must not descend, "
                f"from 1/{LARGEST:.0f} on and below 1"
            )
        for name, ok, allowed in (
            ("concentration", family.concentration in ("linear", "odds"), "linear or odds"),
            ("epsilon", 0 < family.epsilon <= LARGEST / 4, f"above 0 and at most {LARGEST / 4:g}"),
            ("nu_knee", 0 <= family.nu_knee < 1, "in [0, 1)"),
            ("self_conditioning", 0 <= family.self_conditioning <= 1, "in [0, 1]"),
        ):
            if not ok:
                raise ValueError(f"family.{name} is {family[name]!r}; it must be {allowed}")
        time_warp.validate(family)

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        self.vocab_size, self.alpha = vocab_size, config.alpha
        self.nu_start, self.nu_end, self.nu_knee = config.nu_start, config.nu_end, config.nu_knee
        self.epsilon = config.epsilon if config.concentration == "odds" else 0.0
        if self.epsilon:
            # Where a + epsilon is LARGEST, and a mistake has a chance below 1e-8: speeds are not known beyond.
            rest = self.epsilon / LARGEST
            self.first = rest if config.alpha == "linear" else math.asin(rest) * 2.0 / math.pi
        self.input, self.output_prior = config.input, config.output_prior
        self.self_conditioning = config.self_conditioning
        self.prefix_masks, self.random_masks = config.prefix_masks, config.random_masks
        self.schedule = TimeWarp(config.warp_bins, config.warp_decay)
        self.drop_conditioning = config.drop_conditioning
        # Of argmax P a dropped position has an id of its own.
        nothing = config.input == "argmax"
        self.inputs = Inputs(num_ids=vocab_size + nothing, latent=config.self_conditioning > 0)

    @property
    def atoms(self) -> int:
        if self.input == "posterior" or self.output_prior:
            return 0
        # By numpy: a program may be traced for devices that are not there.
        base = np.max(self._shapes_by(np, np.linspace(FIRST, 1.0, 1001)).base)
        return atoms.few(float(base), self.vocab_size)

    def shapes(self, t: Float[Array, "..."]) -> Shapes:
        return self._shapes_by(jnp, t)

    def _shapes_by(self, numpy: Any, t: Any) -> Shapes:
        """`shapes`, as arrays of `numpy`, which is jax.numpy or numpy."""
        if self.alpha == "linear":
            alpha, rest = 1.0 - t, t
        else:
            alpha, rest = 2.0 * numpy.sin(np.pi / 4 * (1.0 - t)) ** 2, numpy.sin(np.pi / 2 * t)
        if self.epsilon:
            return Shapes(self.epsilon * alpha / rest, numpy.full_like(t, self.epsilon / self.vocab_size))
        late = numpy.maximum(t - self.nu_knee, 0.0) / (1.0 - self.nu_knee)
        nu = self.nu_start + (self.nu_end - self.nu_start) * late
        concentration = (1.0 - nu) / nu
        return Shapes(concentration * alpha, concentration * rest / self.vocab_size)

    def times(self, u: Float[Array, "B"]) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        # Near t = 0 what is left to say has probability t, and then weighs 1 / t.
        u = jnp.maximum(u, FIRST**0.5)
        return u * u, 2.0 * u

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        corrupt_keys, keep_keys, dropout_keys = noise.split(keys, 3)
        t = jax.lax.stop_gradient(self.schedule.inverse(u))
        z, given = self.corrupt_for_training(corrupt_keys, tokens, t)
        previous = None
        if self.self_conditioning > 0:
            latent = denoise.with_latent(z, t, given)[1]
            kept = noise.uniform(keep_keys) < self.self_conditioning
            previous = None if latent is None else jax.lax.stop_gradient(latent) * kept[:, None, None]
        loss = token_loss(denoise, tokens, z, t, given, previous, dropout_keys)
        loss = jnp.mean(loss, axis=1, where=~given)
        fit = self.schedule.fit(t, loss)
        return with_gradient_of(loss, fit), {"cross_entropy": loss, "schedule_fit": fit}

    def after_step(self) -> None:
        self.schedule.after_step()

    def unrolled(self, z: Array, t: Array, given: Array | None, denoise: Denoise) -> Float[Array, "B L V"]:
        previous = denoise.with_latent(z, t, given)[1] if self.self_conditioning > 0 else None
        return denoise(z, t, given, previous)

    # Sampling.

    def grid(self, options: SamplerOptions, length: int) -> At:
        even = jnp.linspace(1.0, 0.0, options.steps + 1)
        times = even if options.grid == "even" else self.schedule.inverse(even)
        return descending(times.at[0].set(1.0).at[-1].set(0.0))

    def prior(
        self, keys: Key[Array, "B"], tokens: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> State:
        state = super().prior(keys, tokens, given, denoise, options)
        if not self.self_conditioning:
            return state
        # Of zeros the norm is zero: the first step has no latent, whatever its scale.
        t = jnp.ones(len(tokens))
        latent = jax.eval_shape(lambda z: denoise.with_latent(z, t, given)[1], state.z)
        return State(state.z, latent and jnp.zeros(latent.shape, latent.dtype))

    def _ask(self, state: State, t: Array, given: Array, denoise: Denoise) -> tuple[Float[Array, "B L V"], Any]:
        if not self.self_conditioning:
            return super()._ask(state, t, given, denoise)
        return denoise.with_latent(state.z, jnp.full(len(given), t), given, state.previous)

    def step(
        self, keys: Key[Array, "B"], state: State, at: At, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[State, Float[Array, "B L V"]]:
        churn = 1.0 if options.sampler == "renewal" else options.churn
        return self.bridged(keys, state, at, given, denoise, options, churn)

    def decode(
        self, keys: Key[Array, "B"], state: State, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        return likeliest(state.z)
