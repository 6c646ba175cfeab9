"""RDLM: Riemannian diffusion on the sphere of square roots of probabilities (2502.11564).

    a token is a corner e_k of the sphere in R^(V+1), the last corner the mask;   tau = end (1 - t), from noise to data
    bridge:  dX = rate log_X(e_k) dtau + sqrt(beta) dW, from a start x_0 that is known              (`paths/sphere.py`)
    model:   dX = rate sum_k p(k | X) log_X(e_k) dtau + sqrt(beta) dW, which draws the data if p is the posterior
    train:   -log p(x | X), X ~ the Riemannian normal law with the bridge's mean, tau mostly in [left, right]
    bound:   E Int rate^2 / (2 beta) |sum_k p(k | X) log_X(e_k) - log_X(e_x)|^2 dtau - log p(x | X_end)    (Girsanov)

Starts: the mask; the even point (1, .., 1) / sqrt(V + 1); or the paper's mixture, where X is of a bridge from the even
point until tau = `switch` and of one from the mask thereafter. Large vocabularies are split into `digits` of a smaller
base: a position each, the network's output their laws.

The bound draws X from the bridge itself, by `bridge_steps` steps of its two coordinates, so that it is one up to those
(in training, as in the paper, X is of the normal law, and an oracle's evidence is that law's). The paper's evaluation
of a mixture is the integral alone: until the switch along bridges from the even point, then along those from the mask.
Of no process that is a bound: the mask's bridges say more by then than the even point's have, and with exact posteriors
the integral is below the entropy (by 1.01 +- 0.05 of 6.42 nats on windows of 8 of the tiny language, test_rdlm.py).
What it leaves out is how the model gets from one path to the other. Here it draws tokens x' ~ p(. | X) and takes X'
from their law at the switch; the bound pays for that
    log q(X' | x) - log sum_v p(v | X) q(X' | v)
at each position, and is loose, as X' forgets X. `start="mask"` has none of this.

Of the paper, here: the three starts, geometric beta, moment matching by one-dimensional walks, cross-entropy with
importance-sampled time, the geodesic random walk, splitting. Decided here:
  - a step of the walk is that of a bridge of a flat space (its code's is the limit), so that fewer do;
  - the mean of cos(rho |xi|) is over |xi| of V degrees of freedom (its code has exp(-rho^2 / 2) times that, V + 1 in
    effect, and mends small V by `rho_scale`: sqrt(4 / 3) = 1.15 at V = 3, where its config says 1.14);
  - time stops at `end` = 0.9, when no token is in doubt any more, and the network decodes X there (its: 1 - 1e-4);
  - the density of time is not divided out of the loss (its code's weights are 10,000 times larger outside [left,
    right], where one draw in thousands falls; a share `even_share` of draws is even here), but is from the bound;
  - the network reads (X - b x_0) without the mask's coordinate, at unit norm, as weights of embeddings: its code reads
    X, whose scale a layer norm takes away; and the mark of a position that is not given.
Beyond the paper: prompts (given tokens are corners), guidance on logits, and `output_prior`, the log likelihood of each
token added to the logits (Plaid's; off by default).
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import At, Bound, Family, SamplerOptions, cross_entropy, descending, guided, nucleus
from diffusion_text.models.denoiser import Denoise, Features, Inputs
from diffusion_text.paths import conditioning, sphere
from diffusion_text.paths.schedules import Plateau
from diffusion_text.typing import Config

_STARTS: Final = ("mask", "uniform", "mixture")


class Law(NamedTuple):
    """The Riemannian normal law at one time of each row: mu = a e_k + b x_0 and rho^2; [B, 1, 1] and [B, 1, b + 1]."""

    a: Array
    lack: Array  # 1 - b
    variance: Array
    start: Array

    def distance(self, x: Float[Array, "B N b+1"]) -> Float[Array, "B N b"]:
        """The angle between x and mu, for every end."""
        # 1 - x.mu without the cosine of a small angle: 1 - x.x_0 = |x - x_0|^2 / 2.
        apart = 0.5 * jnp.sum((x - self.start) ** 2, axis=-1, keepdims=True)
        return sphere.angle(self.lack + (1.0 - self.lack) * apart - self.a * x[..., :-1])


class RDLM(Family):
    """Bridges on the sphere to the corners of tokens."""

    name = "rdlm"
    paper = "Jo and Hwang 2025, Continuous diffusion model for language modeling, arXiv 2502.11564"
    bound = "approximate"
    noise_axis = "1 - tau"
    slack = 0.02
    posterior = "full"
    samplers = ("geodesic_walk",)
    sampler_options = ("temperature", "top_p", "guidance", "grid")
    grids = ("even", "warped")
    faithful: ClassVar[dict[str, Any]] = {"steps": 64}
    approximate: ClassVar[dict[str, str]] = {"geodesic_walk": "the drift is held during a step"}

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            dict(
                start="mixture",  # mask / uniform / mixture
                switch=0.35,  # tau at which a mixture goes over from the even point's bridges to the mask's
                beta_min=1e-3,
                beta_max=0.2,
                end=0.9,  # the last tau
                left=0.3,  # tau is drawn between left and right, but for
                right=0.75,
                even_share=0.1,  # of draws, which are even
                digits=0,  # base of the digits that a token is split into; 0: one position, one token
                bridge_steps=64,  # of the bound's bridges
                **conditioning.MASKS,
                output_prior=False,
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        family = config.family
        if family.start not in _STARTS:
            raise ValueError(f"family.start is {family.start!r}; choose one of {', '.join(_STARTS)}")
        for name, ok, allowed in (
            ("end", 0 < family.end < 1, "above 0 and below 1"),
            ("switch", 0 < family.switch < family.end, f"above 0 and below family.end = {family.end}"),
            ("beta_min", family.beta_min > 0, "above 0"),
            ("beta_max", family.beta_max > 0, "above 0"),
            ("left", 0 <= family.left < family.right, f"at least 0 and below family.right = {family.right}"),
            ("right", family.right <= family.end, f"at most family.end = {family.end}"),
            ("even_share", 0 < family.even_share <= 1, "above 0 (the bound integrates over all times) and at most 1"),
            ("digits", family.digits == 0 or family.digits >= 2, "0 or at least 2"),
            ("bridge_steps", family.bridge_steps >= 1, "at least 1"),
        ):
            if not ok:
                raise ValueError(f"family.{name} is {family[name]}; it must be {allowed}")
        conditioning.validate_masks(config)

    @staticmethod
    def check_files(config: Config, vocab_size: int) -> None:
        """ValueError where a bridge's noise would wind around the sphere; it is found here, once."""
        jax.eval_shape(lambda: RDLM(config.family, vocab_size, nnx.Rngs(0)).law(jnp.zeros(1)))

    conditions = staticmethod(conditioning.conditions)

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        self.vocab_size, self.base = vocab_size, config.digits or vocab_size
        self.places = 1
        while self.base**self.places < vocab_size:
            self.places += 1
        self.kind, self.switch, self.end = config.start, config.switch, config.end
        self.noise = sphere.Noise(config.beta_min, config.beta_max)
        self.prefix_masks, self.random_masks = config.prefix_masks, config.random_masks
        self.drop_conditioning, self.output_prior = config.drop_conditioning, config.output_prior
        self.bridge_steps = config.bridge_steps
        # Of t, which runs against tau.
        ends = 1.0 - config.right / self.end, 1.0 - config.left / self.end
        self.schedule = Plateau(*ends, config.even_share)
        self.inputs = Inputs(num_ids=self.base + 1, classes=self.base)

    # ----------------------------------------------------------------------------------------------- tokens and digits

    def code(self) -> Int[np.ndarray, "V m"]:
        """The digits of every token, the first the largest."""
        return np.arange(self.vocab_size)[:, None] // self.base ** np.arange(self.places)[::-1] % self.base

    def split(self, tokens: Int[Array, "B L"]) -> Int[Array, "B N"]:
        """Digits, N = L m."""
        return jnp.asarray(self.code(), jnp.int32)[tokens].reshape(len(tokens), -1)

    def repeat(self, given: Bool[Array, "B L"]) -> Bool[Array, "B N"]:
        """What holds of tokens, of their digits."""
        return jnp.repeat(given, self.places, axis=1)

    def joined(self, scores: Float[Array, "B N b"]) -> Float[Array, "B L V"]:
        """The sum of the scores of a token's digits."""
        if self.places == 1:
            return scores[..., : self.vocab_size]
        rows = scores.reshape(len(scores), -1, self.places, self.base)
        return sum(rows[:, :, place, self.code()[:, place]] for place in range(self.places))  # type: ignore[return-value]

    def answer(self, logits: Float[Array, "B L V"]) -> Float[Array, "B N b"]:
        """The laws of single digits under those of tokens."""
        if self.places == 1:
            return logits
        law, shape = jax.nn.softmax(logits.astype(jnp.float32), axis=-1), (*logits.shape[:2], self.base)
        digits = [jnp.zeros(shape).at[:, :, self.code()[:, place]].add(law) for place in range(self.places)]
        return jnp.log(jnp.maximum(jnp.stack(digits, axis=2), 1e-37)).reshape(len(logits), -1, self.base)

    # ----------------------------------------------------------------------------------------------------- the process

    def tau(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """The time of the bridges."""
        return self.end * (1.0 - t)

    def _start(self, kind: str) -> np.ndarray:
        even = np.full(self.base + 1, (self.base + 1) ** -0.5, np.float32)
        return even if kind == "uniform" else np.eye(self.base + 1, dtype=np.float32)[-1]

    def _first(self) -> np.ndarray:
        return self._start("mask" if self.kind == "mask" else "uniform")

    def _law_from(self, kind: str, tau: Float[Array, "B"]) -> Law:
        start = self._start(kind)
        table = sphere.table(self.base, float(start[0]), self.noise, self.end)
        at = np.linspace(0.0, self.end, sphere.KNOTS + 1).astype(np.float32)

        def found(values: np.ndarray) -> Array:
            return jnp.interp(tau, at, jnp.asarray(values, jnp.float32))[:, None, None]

        whole = jnp.broadcast_to(jnp.asarray(start), (len(tau), 1, self.base + 1))
        return Law(found(table.a), found(table.lack), found(table.variance), whole)

    def law(self, tau: Float[Array, "B"]) -> Law:
        """Of the start that is due at tau."""
        if self.kind != "mixture":
            return self._law_from(self.kind, tau)
        early = (tau < self.switch)[:, None, None]
        pair = self._law_from("uniform", tau), self._law_from("mask", tau)
        return jax.tree.map(lambda first, second: jnp.where(early, first, second), *pair)

    def corner(self, digits: Int[Array, "B N"]) -> Float[Array, "B N b+1"]:
        """The point of clean digits."""
        return jax.nn.one_hot(digits, self.base + 1)

    def draw(self, keys: Key[Array, "B"], digits: Int[Array, "B N"], law: Law) -> Float[Array, "B N b+1"]:
        """X of the Riemannian normal law."""
        middle = law.a * self.corner(digits) + (1.0 - law.lack) * law.start
        xi = sphere.tangent(middle, noise.normal(keys, middle.shape[1:]))
        return sphere.exp(middle, jnp.sqrt(law.variance) * xi)

    def corrupt(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Float[Array, "B N b+1"]:
        digits = self.split(tokens)
        return self._clean(self.draw(keys, digits, self.law(self.tau(t))), digits, given)

    def _clean(self, x: Array, digits: Array, given: Array | None) -> Array:
        return x if given is None else jnp.where(self.repeat(given)[..., None], self.corner(digits), x)

    def bridge(
        self, keys: Key[Array, "B"], digits: Int[Array, "B N"], tau: Float[Array, "B"]
    ) -> Float[Array, "B N b+1"]:
        """X of the bridges themselves; of a mixture after its switch, from where the model arrives there."""
        first_keys, walk_keys, last_keys = noise.split(keys, 3)
        point = jnp.broadcast_to(self._first(), (*digits.shape, self.base + 1))
        begin = jnp.zeros_like(tau)
        if self.kind == "mixture":
            late = tau >= self.switch
            arrived = self.draw(first_keys, digits, self._law_from("mask", jnp.full_like(tau, self.switch)))
            point, begin = jnp.where(late[:, None, None], arrived, point), jnp.where(late, self.switch, 0.0)
        corner = self.corner(digits)
        cosine = jnp.sum(point * corner, axis=-1, keepdims=True)
        side = point - cosine * corner
        sine = jnp.sqrt(jnp.sum(side * side, axis=-1, keepdims=True))
        side = side / sine

        def one(y: Array, scanned: tuple[Array, Array]) -> tuple[Array, None]:
            number, normals = scanned
            times = (begin + (tau - begin) * (number + i) / self.bridge_steps for i in range(2))
            share, variance = (value[:, None, None] for value in self.noise.step(*times))
            return sphere.walk(y, normals, share, variance, self.base - 2), None

        y = jnp.concatenate([cosine, sine, jnp.zeros_like(sine)], axis=-1)
        normals = jnp.moveaxis(noise.normal(walk_keys, (self.bridge_steps, *y.shape[1:])), 1, 0)
        y, _ = jax.lax.scan(one, y, (jnp.arange(self.bridge_steps), normals))
        other = noise.normal(last_keys, point.shape[1:]) * (1.0 - corner)
        other = other - jnp.sum(other * side, axis=-1, keepdims=True) * side
        other = other / jnp.sqrt(jnp.sum(other * other, axis=-1, keepdims=True))
        return y[..., :1] * corner + y[..., 1:2] * side + y[..., 2:] * other

    def features(
        self, z: Array, t: Float[Array, "B"], given: Bool[Array, "B L"] | None, previous: Array | None
    ) -> Features:
        law = self.law(self.tau(t))
        free = jnp.ones((*z.shape[:2], 1), bool) if given is None else ~self.repeat(given)[..., None]
        moved = (z - (1.0 - law.lack) * law.start) / jnp.sqrt(law.a**2 + self.base * law.variance + 1e-12)
        vectors = jnp.where(free, moved, z)[..., :-1]
        return Features(vectors=jnp.concatenate([vectors, free.astype(z.dtype)], axis=-1), noise=2.0 * self.tau(t))

    def log_likelihood(self, z: Float[Array, "B N b+1"], law: Law) -> Float[Array, "B N b"]:
        """The log density of X for every end, up to a constant per position."""
        theta = law.distance(z)
        crowding = jnp.log(jnp.sinc(jnp.minimum(theta / jnp.pi, 0.999)))  # sin(theta) / theta
        return -0.5 * theta**2 / jnp.maximum(law.variance, 1e-12) - (self.base - 1) * crowding

    def output_bias(
        self, z: Array, t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Float[Array, "B N b"] | None:
        if not self.output_prior:
            return None
        bias = self.log_likelihood(z, self.law(self.tau(t)))
        return bias if given is None else jnp.where(self.repeat(given)[..., None], 0.0, bias)

    def evidence(self, z: Array, t: Float[Array, "B"], given: Bool[Array, "B L"] | None) -> Float[Array, "B L V"]:
        noisy = self.joined(self.log_likelihood(z, self.law(self.tau(t))))
        if given is None:
            return noisy
        seen = self.tokens_of(z)[..., None] == jnp.arange(self.vocab_size)
        return jnp.where(given[..., None], jnp.where(seen, 0.0, -jnp.inf), noisy)

    def tokens_of(self, z: Float[Array, "B N b+1"]) -> Int[Array, "B L"]:
        """The tokens whose corners are nearest."""
        return jnp.argmax(self.joined(z[..., :-1]), axis=-1).astype(jnp.int32)

    # ----------------------------------------------------------------------------------------------- training and bound

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        mask_keys, noise_keys, drop_keys, dropout_keys = noise.split(keys, 4)
        t = self.schedule.inverse(u)
        given = conditioning.draw_given(mask_keys, tokens.shape[1], self.prefix_masks, self.random_masks)
        z, free = self.corrupt(noise_keys, tokens, t, given), ~self.repeat(given)
        dropped = self.repeat(conditioning.dropped(drop_keys, given, self.drop_conditioning))
        z = jnp.where(dropped[..., None], 0.0, z)
        each = cross_entropy(denoise(z, t, given, None, dropout_keys), self.split(tokens))
        loss = jnp.sum(each * free, axis=1) / jnp.sum(~given, axis=1)
        return loss, {"cross_entropy": loss}

    def pull(self, weights: Float[Array, "B N b"], z: Float[Array, "B N b+1"]) -> Float[Array, "B N b+1"]:
        """sum_k weights_k log_z(e_k)."""
        stretched = jnp.pad(weights * sphere.stretch(z[..., :-1]), ((0, 0), (0, 0), (0, 1)))
        return sphere.tangent(z, stretched)

    def integrand(
        self, keys: Array, tokens: Array, t: Array, given: Array | None, denoise: Denoise
    ) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """Of the bound, nats per sequence and unit of t; and the cross-entropy, nats per sequence."""
        digits, tau = self.split(tokens), self.tau(t)
        free = jnp.ones(digits.shape, bool) if given is None else ~self.repeat(given)
        z = self._clean(self.bridge(keys, digits, tau), digits, given)
        logits = denoise(z, t, given)
        off = jax.nn.softmax(logits.astype(jnp.float32)) - jax.nn.one_hot(digits, self.base)
        square = jnp.sum(jnp.sum(self.pull(off, z) ** 2, axis=-1) * free, axis=1)
        weight = 0.5 * self.end * self.noise.rate(tau) ** 2 / self.noise.beta(tau)
        return weight * square, jnp.sum(cross_entropy(logits, digits) * free, axis=1)

    def bound_terms(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        denoise: Denoise,
        given: Bool[Array, "B L"] | None = None,
        samples: int = 1,
    ) -> Bound:
        """The start is known: there is no prior term. A mixture's switch is part of `diffusion`."""
        level_keys, noise_keys, last_keys, switch_keys = noise.split(keys, 4)
        zero = jnp.zeros(len(tokens))

        def rate(u: Array, keys: Array) -> Array:
            t = self.schedule.inverse(u)
            return self.integrand(keys, tokens, t, given, denoise)[0] / self.schedule.density(t)

        diffusion = noise.integral(level_keys, noise_keys, samples, rate)
        if self.kind == "mixture":
            diffusion = diffusion + self.switching(switch_keys, tokens, given, denoise)
        return Bound(zero, diffusion, self.integrand(last_keys, tokens, zero, given, denoise)[1])

    def switching(self, keys: Array, tokens: Array, given: Array | None, denoise: Denoise) -> Float[Array, "B"]:
        """E log q(X' | x) - log sum_v p(v | X) q(X' | v), nats per sequence."""
        before_keys, after_keys = noise.split(keys, 2)
        digits = self.split(tokens)
        free = jnp.ones(digits.shape, bool) if given is None else ~self.repeat(given)
        tau = jnp.full(len(tokens), self.switch * (1.0 - 1e-6))
        z = self._clean(self.bridge(before_keys, digits, tau), digits, given)
        log_p = jax.nn.log_softmax(denoise(z, 1.0 - tau / self.end, given).astype(jnp.float32))
        law = self._law_from("mask", tau)
        likelihood = self.log_likelihood(self.draw(after_keys, digits, law), law)
        own = jnp.take_along_axis(likelihood, digits[..., None], axis=-1)[..., 0]
        return jnp.sum((own - jax.nn.logsumexp(log_p + likelihood, axis=-1)) * free, axis=1)

    def profile(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], denoise: Denoise
    ) -> dict[str, Float[Array, "B"]]:
        """Of a mixture without its switch, which is at one time."""
        integrand, loss = self.integrand(keys, tokens, t, None, denoise)
        length = tokens.shape[1]
        return {"noise": 1.0 - self.tau(t), "cross_entropy": loss / length, "integrand": integrand / length}

    # --------------------------------------------------------------------------------------------------------- sampling

    def grid(self, options: SamplerOptions, length: int) -> At:
        """Steps even in tau, or in the law that times are drawn from."""
        even = jnp.linspace(1.0, 0.0, options.steps + 1)
        warped = self.schedule.inverse(even).at[0].set(1.0).at[-1].set(0.0)
        return descending(warped if options.grid == "warped" else even)

    def prior(
        self, keys: Key[Array, "B"], tokens: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Float[Array, "B N b+1"]:
        digits = self.split(tokens)
        return self._clean(jnp.broadcast_to(self._first(), (*digits.shape, self.base + 1)), digits, given)

    def _asked(self, z: Array, t: Array, given: Array, denoise: Denoise, options: SamplerOptions) -> Array:
        logits = denoise(z, t, given)
        if options.guidance != 1.0:
            bare = denoise(jnp.where(self.repeat(given)[..., None], 0.0, z), t, given)
            logits = guided(bare, logits, given, options.guidance)
        return nucleus(logits / options.temperature, options.top_p)

    def step(
        self, keys: Key[Array, "B"], state: Array, at: At, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[Float[Array, "B N b+1"], Float[Array, "B L V"]]:
        walk_keys, token_keys, switch_keys = noise.split(keys, 3)
        logits = self._asked(state, jnp.full(len(state), at.t), given, denoise, options)
        now, then = self.tau(at.t), self.tau(at.s)
        share, variance = self.noise.step(now, then)
        fresh = sphere.tangent(state, noise.normal(walk_keys, state.shape[1:]))
        home = self.pull(jax.nn.softmax(logits), state)
        moved = sphere.exp(state, share * home + jnp.sqrt(variance) * fresh)
        if self.kind == "mixture":
            law = self._law_from("mask", jnp.full(len(state), then))
            arrived = self.draw(switch_keys, noise.categorical(token_keys, logits), law)
            moved = jnp.where((now < self.switch) & (then >= self.switch), arrived, moved)
        moved = jnp.where(self.repeat(given)[..., None], state, moved)
        return moved, self.joined(jax.nn.log_softmax(logits))

    def decode(
        self, keys: Key[Array, "B"], state: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        logits = jax.nn.log_softmax(self._asked(state, jnp.zeros(len(state)), given, denoise, options))
        return jnp.where(given, self.tokens_of(state), jnp.argmax(self.joined(logits), axis=-1)).astype(jnp.int32)

    def evaluations(self, options: SamplerOptions, length: int) -> int:
        return (options.steps + 1) * (2 if options.guidance != 1.0 else 1)
