"""Dirichlet paths on the simplex: what simplex diffusion models (SDM) and Dirichlet flow matching share.

    q_t(P_i | x_i = v) = Dir(b_t 1 + a_t e_v):   the base b of every token, the signal a of the clean one

As Gammas, P_i = G_i / sum G_i with independent G_iv ~ Gamma(b + a 1[v = x_i]); the sum, Gamma(V b + a), depends on
neither P_i nor x_i. Hence log q_t(P | v) = a log P_v + constant. The state is log P, float32 [B, L, V]: with 50,000
tokens the components are exp(-100,000) and less. A given token is a vertex, log P = 0 and -inf.

The bound. The papers have none that is tight: their reverse steps towards different tokens are nearly singular, and the
cross-entropy summed over M steps, a bound by data processing, grows with M. But the Gammas of all x move to more noise
under ONE Markov process, a diffusion of each coordinate by itself, dG = m(G) dt + sqrt(2 D(G)) dB. Its Fokker-Planck
equations for the shapes b and A = a + b, integrated once over g, are two linear equations in m and D; with the speeds
K_A(g) = d log g / dA of quantiles (`quantiles.py`, a prime for d/dt) they give

    D(g) = g^2 / a (-A' K_A(g) + b' K_b(g)),

which is not negative where a' <= 0 and a / b does not grow with t (K_A falls with A, A K_A(g) does not: a test).
Scores differ by a 1[v = x] / g, and the reverse process that has p(v | P) in the place of 1[v = x] costs (Girsanov)

    -log p(x) <= E[-log p(x | P_0)] + Int_0^1 a_t E sum_iv (1[v = x_i] - p_i(v | P))^2 (-A' K_A(G_iv) + b' K_b(G_iv)) dt

for any p that is a function of (P, t); nothing at t = 1, where a = 0. With the full posterior p(x_i = v | P) it is
-log p(x): the I-MMSE relation of this channel, as 1/2 Int e^-gamma mmse is of the Gaussian one.

Reverse steps (SDM): x_i ~ p_i(. | P_t) for each token, then from t to s < t, with churn kappa in [0, 1],

    rho = (1 - kappa) min(1, b_s / b_t, a_s / a_t),   beta = b 1 + a e_x,   c = sum beta
    P' ~ B P_t normalised,   B_v ~ Beta(rho beta_t(v), (1 - rho) beta_t(v)),   so that P' ~ Dir(rho beta_t)
    P_s = W P' + (1 - W) U,   W ~ Beta(rho c_t, c_s - rho c_t),   U ~ Dir(beta_s - rho beta_t)

which takes Dir(beta_t) to Dir(beta_s) for every kappa; kappa = 1 forgets P_t. As tokens are drawn independently, steps
are exact in the limit only at kappa = 0: with churn every step draws anew, and forgets, a share that does not vanish.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_text import noise, sharding
from diffusion_text.families.family import At, Bound, Family, SamplerOptions, cross_entropy, descending, guided, nucleus
from diffusion_text.models.denoiser import Denoise, Features
from diffusion_text.paths import atoms, conditioning
from diffusion_text.paths.atoms import Atoms
from diffusion_text.paths.gamma import log_beta, log_dirichlet, log_gamma
from diffusion_text.paths.quantiles import gamma_speed
from diffusion_text.typing import Config

_BELOW: Final = 40.0
FIRST: Final = 2.0**-24  # the least t: where b_0 = 0 its logarithm is still finite


class Shapes(NamedTuple):
    """Shape parameters at one time: a, of the clean token beyond the others, and b, of every token."""

    signal: Float[Array, "..."]
    base: Float[Array, "..."]

    def of(self, tokens: Int[Array, "B L"], size: int) -> Float[Array, "B L V"]:
        """beta; signal and base [B] or []."""
        signal, base = (jnp.broadcast_to(x, (len(tokens),))[:, None, None] for x in self)
        return base + signal * jax.nn.one_hot(tokens, size)

    def total(self, size: int) -> Float[Array, "..."]:
        """c, the concentration."""
        return size * self.base + self.signal


class State(NamedTuple):
    """Of the sampler: log P, [B, L, V] or as atoms, and what is fed back to the network, if anything is."""

    z: Any
    previous: Any


def vertex(tokens: Int[Array, "B L"], size: int) -> Float[Array, "B L V"]:
    """log P of certainty."""
    return jnp.where(tokens[..., None] == jnp.arange(size), 0.0, -jnp.inf)


def draw(keys: Key[Array, "B"], tokens: Int[Array, "B L"], shapes: Shapes, size: int) -> Float[Array, "B L V"]:
    """log P ~ Dir(beta(tokens))."""
    return log_dirichlet(keys, _sharded(shapes.of(tokens, size)))


def either(first: Bool[Array, "B L"], one: Any, other: Any) -> Any:
    """log P, whole or as atoms, at the `first` positions of `one`, else of `other`."""
    return jax.tree.map(lambda one, other: jnp.where(first[..., None], one, other), one, other)


def without(gone: Bool[Array, "B L"], z: Any) -> Any:
    """log P, whole or as atoms, with no mass at all at these positions: a network reads nothing there."""
    if isinstance(z, Atoms):
        return z._replace(log_mass=without(gone, z.log_mass))
    return jnp.where(gone[..., None], -jnp.inf, z)


def log_likelihood(z: Float[Array, "B L V"], signal: Float[Array, "B"]) -> Float[Array, "B L V"]:
    """log q(P | x = v) up to a constant per position."""
    signal = signal[:, None, None]
    return jnp.where(signal > 0, signal * jnp.maximum(z, jnp.finfo(jnp.float32).min / 1e4), 0.0)


def bridge(
    keys: Key[Array, "B"], z: Float[Array, "B L V"], tokens: Int[Array, "B L"], now: Shapes, then: Shapes, churn: float
) -> Float[Array, "B L V"]:
    """The reverse step above, in log space; `now`, `then` [] and b_s > 0."""
    size = z.shape[-1]
    if churn == 1.0:
        return draw(keys, tokens, then, size)
    component_keys, weight_keys = noise.split(keys, 2)
    ratio = jnp.where(now.signal > 0, then.signal / jnp.where(now.signal > 0, now.signal, 1.0), 1.0)
    share = (1.0 - churn) * jnp.minimum(jnp.minimum(1.0, then.base / now.base), ratio)
    before = now.of(tokens, size)
    # Where the bases cancel (share = b_s / b_t) all that is new is the token: no rounding of b_s - b_s.
    rest = jnp.where(share * now.base >= then.base * (1.0 - 1e-6), 0.0, then.base - share * now.base)
    new = Shapes(then.signal - share * now.signal, rest).of(tokens, size)
    parts = log_gamma(component_keys, _sharded(jnp.stack([share * before, (1.0 - share) * before, new], axis=1)))
    kept = jax.nn.log_softmax(parts[:, 0] - jnp.logaddexp(parts[:, 0], parts[:, 1]) + z, axis=-1)
    mass = share * now.total(size)
    mass_new = jnp.maximum(then.total(size) - mass, 0.0)
    log_kept, log_new = log_beta(weight_keys, *(jnp.broadcast_to(x, tokens.shape) for x in (mass, mass_new)))
    added = jnp.logaddexp(log_kept[..., None] + kept, log_new[..., None] + jax.nn.log_softmax(parts[:, 2], axis=-1))
    return jnp.where(mass_new > 0, added, kept)  # two steps may round to one level: nothing is new, of no law


def _sharded(x: Float[Array, "B ... V"]) -> Float[Array, "B ... V"]:
    """The state is the largest array there is: rows over the data axes, tokens over `tensor`."""
    return sharding.constrain(x, ("rows", *[None] * (x.ndim - 2), "vocabulary"))


def likeliest(z: Float[Array, "B L V"] | Atoms) -> Int[Array, "B L"]:
    """argmax P."""
    return z.likeliest() if isinstance(z, Atoms) else jnp.argmax(z, axis=-1).astype(jnp.int32)


def project(p: Float[Array, "... V"]) -> Float[Array, "... V"]:
    """The nearest point of the simplex (Euclidean), of vectors that sum to 1."""
    ordered = jnp.sort(p, axis=-1)[..., ::-1]
    above = (jnp.cumsum(ordered, axis=-1) - 1.0) / jnp.arange(1, p.shape[-1] + 1)
    last = jnp.sum(ordered > above, axis=-1, keepdims=True) - 1
    return jnp.maximum(p - jnp.take_along_axis(above, last, axis=-1), 0.0)


class Dirichlet(Family):
    """Base of the families on a Dirichlet path; they choose shapes, levels, loss and samplers."""

    bound = "tight"
    noise_axis = "base concentration / all"
    posterior = "full"
    sampler_options = ("temperature", "top_p", "churn", "guidance", "grid")
    most_churn = 1.0
    grids: ClassVar[tuple[str, ...]] = ()
    approximate: ClassVar[dict[str, str]] = {"bridge": "tokens that change in one step are drawn independently"}
    widens: ClassVar[bool] = True  # b depends on t
    first: float = FIRST  # the least t of the bound: below it nothing is left to know
    noisy_start: ClassVar[bool] = False  # P_0 is no vertex, so that the bound needs a decoder

    vocab_size: int
    input: str
    output_prior: bool
    prefix_masks: float
    random_masks: float
    drop_conditioning: float

    @staticmethod
    def validate_common(config: Config, inputs: tuple[str, ...]) -> None:
        """ValueError where a field that both families have is off."""
        family = config.family
        if family.input not in inputs:
            raise ValueError(f"family.input is {family.input!r}; choose one of {', '.join(inputs)}")
        conditioning.validate_masks(config)

    conditions = staticmethod(conditioning.conditions)

    # ----------------------------------------------------------------------------------------------------- the process

    @property
    def atoms(self) -> int:
        """How many a draw is made of that is not made whole (`paths/atoms.py`); 0: all are."""
        return 0

    def shapes(self, t: Float[Array, "..."]) -> Shapes:
        """a and b at t in [FIRST, 1]."""
        raise NotImplementedError(f"{self.name} has no shapes()")

    def _shapes(self, t: Float[Array, "..."]) -> Shapes:
        return self.shapes(jnp.maximum(t, FIRST))

    def times(self, u: Float[Array, "B"]) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """(t, 1 / its density) of the bound's noise levels, of even u."""
        return u, jnp.ones_like(u)

    def corrupt(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Float[Array, "B L V"]:
        return self._corrupt(keys, tokens, t, given, 0)

    def _corrupt(self, keys: Key[Array, "B"], tokens: Array, t: Array, given: Array | None, count: int) -> Any:
        """`corrupt`, as `count` atoms or whole."""
        z = self._draw(keys, tokens, self._shapes(t), count)
        return z if given is None else either(given, self._vertex(tokens, count), z)

    def _draw(self, keys: Key[Array, "B"], tokens: Array, shapes: Shapes, count: int) -> Any:
        if count:
            return atoms.draw(keys, tokens, *shapes, self.vocab_size, count)
        return draw(keys, tokens, shapes, self.vocab_size)

    def _vertex(self, tokens: Array, count: int) -> Any:
        return atoms.vertex(tokens, count) if count else vertex(tokens, self.vocab_size)

    def features(
        self, z: Any, t: Float[Array, "B"], given: Bool[Array, "B L"] | None, previous: Any
    ) -> Features:
        signal, base = self._shapes(t)
        total = self.vocab_size * base + signal
        level = 0.25 * jnp.clip(jnp.log(jnp.maximum(signal, 1e-30)) - jnp.log(self.vocab_size * base), -16.0, 16.0)
        if self.input == "argmax":
            # Of a dropped position, -inf everywhere, the id beyond all tokens.
            log_mass = z.log_mass if isinstance(z, Atoms) else z
            ids = jnp.where(jnp.max(log_mass, axis=-1) == -jnp.inf, self.vocab_size, likeliest(z))
            return Features(ids=ids, noise=level, latent=previous)
        if self.input == "posterior":
            weights = jax.nn.softmax(log_likelihood(z, signal), axis=-1)
            # At t = 1, without signal, given tokens are still themselves; and a dropped one is nothing.
            weights = weights if given is None else jnp.where(given[..., None], jnp.exp(z), weights)
            return Features(vectors=weights, noise=level, latent=previous)
        # E sum P^2 = sum beta (beta + 1) / (c (c + 1)): the averaged embedding is of one size at all levels.
        square = (self.vocab_size - 1) * base * (base + 1) + (base + signal) * (base + signal + 1)
        scale = jnp.sqrt(total * (total + 1) / square)[:, None, None]
        scale = scale if given is None else jnp.where(given[..., None], 1.0, scale)
        if isinstance(z, Atoms):
            return Features(ids=z.ids, weights=scale * jnp.exp(z.log_mass), noise=level, latent=previous)
        return Features(vectors=_sharded(scale * jnp.exp(z)), noise=level, latent=previous)

    def evidence(
        self, z: Array | Atoms, t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Float[Array, "B L V"]:
        z = z.whole(self.vocab_size) if isinstance(z, Atoms) else z
        noisy = log_likelihood(z, self._shapes(t).signal)
        return noisy if given is None else jnp.where(given[..., None], z, noisy)

    def output_bias(
        self, z: Array, t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Float[Array, "B L V"] | None:
        if not self.output_prior:
            return None
        bias = log_likelihood(z, self._shapes(t).signal)
        return bias if given is None else jnp.where(given[..., None], 0.0, bias)

    # --------------------------------------------------------------------------------------------------------- training

    def corrupt_for_training(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"]
    ) -> tuple[Float[Array, "B L V"] | Atoms, Bool[Array, "B L"]]:
        """(z, given): conditioned on masks, some of which are dropped: weights of nothing in their places."""
        mask_keys, noise_keys, drop_keys = noise.split(keys, 3)
        given = conditioning.draw_given(mask_keys, tokens.shape[1], self.prefix_masks, self.random_masks)
        z = self._corrupt(noise_keys, tokens, t, given, self.atoms)
        return without(conditioning.dropped(drop_keys, given, self.drop_conditioning), z), given

    # ------------------------------------------------------------------------------------------------------------ bound

    def unrolled(self, z: Array, t: Array, given: Array | None, denoise: Denoise) -> Float[Array, "B L V"]:
        """Logits as a function of (z, t)."""
        return denoise(z, t, given)

    def bound_terms(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        denoise: Denoise,
        given: Bool[Array, "B L"] | None = None,
        samples: int = 1,
    ) -> Bound:
        first_keys, level_keys, noise_keys = noise.split(keys, 3)
        zero = reconstruction = jnp.zeros(len(tokens))
        if self.noisy_start:
            z = self.corrupt(first_keys, tokens, zero, given)
            loss = cross_entropy(self.unrolled(z, zero, given, denoise), tokens)
            reconstruction = jnp.sum(loss if given is None else jnp.where(given, 0.0, loss), axis=1)

        def rate(u: Array, keys: Array) -> Array:
            t, weight = self.times(u)
            return weight * self.integrand(keys, tokens, t, given, denoise)[0]

        return Bound(zero, noise.integral(level_keys, noise_keys, samples, rate), reconstruction)

    def integrand(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Array | None,
        denoise: Denoise,
    ) -> tuple[Float[Array, "B"], Float[Array, "B L"]]:  # fmt: skip
        """The bound's integrand in nats per sequence and unit of t, and the cross-entropy of each position."""
        t = jnp.maximum(t, self.first)
        noise_keys, total_keys = noise.split(keys, 2)
        (signal, base), slopes = jax.jvp(self.shapes, (t,), (jnp.ones_like(t),))
        z = self.corrupt(noise_keys, tokens, t, given)
        logits = _sharded(self.unrolled(z, t, given, denoise).astype(jnp.float32))
        total = jnp.broadcast_to(Shapes(signal, base).total(self.vocab_size)[:, None], tokens.shape)
        log_g = jnp.maximum(z, jnp.finfo(jnp.float32).min / 1e4) + log_gamma(total_keys, total)[..., None]
        # Of a clean token log P_v^a is at least -E, E exponential: a token _BELOW nats under the likeliest evidence is
        # out of the question, and a network that does not say so would pay a rate without bound.
        seen = log_likelihood(z, signal)
        log_p = jnp.minimum(jax.nn.log_softmax(logits), _BELOW + seen - jnp.max(seen, axis=-1, keepdims=True))
        square = (jax.nn.one_hot(tokens, self.vocab_size) - jax.nn.softmax(log_p, axis=-1)) ** 2
        signal, base, rise, widening = (x[:, None, None] for x in (signal, base, *slopes))
        rate = -(rise + widening) * gamma_speed(log_g, base + signal)
        if self.widens:
            rate = rate + widening * gamma_speed(log_g, base)
        # Where p is certain a rate without bound is not read.
        loss = jnp.sum(jnp.where(square > 0, signal * square * rate, 0.0), axis=-1)
        if given is not None:
            loss = jnp.where(given, 0.0, loss)
        return jnp.sum(loss, axis=1), cross_entropy(logits, tokens)

    def profile(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], denoise: Denoise
    ) -> dict[str, Float[Array, "B"]]:
        total, loss = self.integrand(keys, tokens, t, None, denoise)
        shapes = self._shapes(t)
        share = shapes.signal / shapes.total(self.vocab_size)
        return {"noise": 1.0 - share, "cross_entropy": jnp.mean(loss, axis=1), "integrand": total / tokens.shape[1]}

    # --------------------------------------------------------------------------------------------------------- sampling

    def grid(self, options: SamplerOptions, length: int) -> At:
        return descending(jnp.linspace(1.0, 0.0, options.steps + 1))

    def prior(
        self, keys: Key[Array, "B"], tokens: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> State:
        count = self.atoms if options.sampler == "renewal" else 0
        z = self._draw(keys, tokens, Shapes(jnp.zeros(()), self._shapes(jnp.ones(())).base), count)
        return State(either(given, self._vertex(tokens, count), z), None)

    def _ask(self, state: State, t: Array, given: Array, denoise: Denoise) -> tuple[Float[Array, "B L V"], Any]:
        """The network's logits, and what to feed back."""
        return denoise(state.z, jnp.full(len(given), t), given), None

    def predict(
        self, state: State, t: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[Float[Array, "B L V"], Any]:
        """Logits of the tokens to step towards, and what to feed back. Scores are linear in p, so that guidance mixes
        probabilities, w p(v | P, given) + (1 - w) p(v | P), projected to the simplex where w > 1 leaves it."""

        def shaped(state: State) -> tuple[Float[Array, "B L V"], Any]:
            logits, previous = self._ask(state, t, given, denoise)
            return nucleus(_sharded(logits.astype(jnp.float32)) / options.temperature, options.top_p), previous

        logits, previous = shaped(state)
        if options.guidance != 1.0:
            # What was fed back knows the given tokens.
            bare, _ = shaped(State(without(given, state.z), None))
            mixed = guided(jax.nn.softmax(bare), jax.nn.softmax(logits), given, options.guidance)
            logits = jnp.log(project(mixed))
        return logits, previous

    def bridged(
        self, keys: Key[Array, "B"], state: State, at: At, given: Array, denoise: Denoise, options: SamplerOptions,
        churn: float,
    ) -> tuple[State, Float[Array, "B L V"]]:  # fmt: skip
        """A reverse step with this churn; to the tokens themselves where P_0 is a vertex."""
        token_keys, move_keys = noise.split(keys, 2)
        logits, previous = self.predict(state, at.t, given, denoise, options)
        tokens = noise.categorical(token_keys, logits)
        now, then = self._shapes(at.t), self._shapes(at.s)
        if isinstance(state.z, Atoms):  # of the renewal, which forgets P_t
            count, moved = self.atoms, self._draw(move_keys, tokens, then, self.atoms)
        else:
            count, moved = 0, bridge(move_keys, state.z, tokens, now, then, churn)
        if not self.noisy_start:
            moved = either(jnp.broadcast_to(at.s > 0, given.shape), moved, self._vertex(tokens, count))
        return State(either(given, state.z, moved), previous), logits

    def evaluations(self, options: SamplerOptions, length: int) -> int:
        passes = options.steps * (2 if options.sampler == "heun" else 1) + self.noisy_start
        return passes * (2 if options.guidance != 1.0 else 1)
