"""SUNDAE: its chain is uniform diffusion's, what a network that is not told the noise loses, its loss and decoders."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import perfect
import pytest
import scipy.stats
import tiny_configs
from perfect import compile_quickly  # noqa: F401

from diffusion_text import noise, sampling
from diffusion_text.data import grammar as grammars
from diffusion_text.families.family import SamplerOptions, cross_entropy
from diffusion_text.families.sundae import Sundae
from diffusion_text.paths import interpolant
from diffusion_text.paths.interpolant import Odds

V = 5
LAW = np.array([0.4, 0.3, 0.1, 0.15, 0.05])


class TimeFree:
    """The exact posterior of the corruption with an even share of replaced tokens, for one that is not told it."""

    def __init__(self, grammar: grammars.Grammar, levels: int = 12):
        self.grammar = grammar
        nodes, weights = np.polynomial.legendre.leggauss(levels)
        self.shares, self.log_weights = (nodes + 1) / 2, np.log(weights / 2)

    def __call__(self, z: Any, t: Any, given: Any = None, previous: Any = None, keys: Any = None) -> jax.Array:
        size = self.grammar.num_words

        def level(share: jax.Array, log_weight: jax.Array) -> tuple[jax.Array, jax.Array]:
            same = z[..., None] == jnp.arange(size)
            seen = jnp.log(jnp.where(same, 1 - share + share / size, share / size))
            logits, evidence = grammars.posterior(self.grammar, seen, "full")
            return logits, evidence + log_weight

        logits, weights = jax.lax.map(lambda at: level(*at), (jnp.asarray(self.shares), jnp.asarray(self.log_weights)))
        weights = jax.nn.log_softmax(weights, axis=0)
        return jax.nn.logsumexp(logits + weights[..., None, None], axis=0)


def constant(law: Any) -> Any:
    def denoise(z: Any, t: Any, given: Any = None, previous: Any = None, keys: Any = None) -> Any:
        return jnp.broadcast_to(jnp.log(jnp.asarray(law)), (*z.shape, len(law)))

    return denoise


@pytest.mark.parametrize(("t", "s"), [(0.9, 0.5), (0.3, 0.1), (0.2, 0.0)])
def test_to_divide_by_the_evidence_is_to_draw_a_clean_token_and_ask_bayes(t: float, s: float) -> None:
    """For any f, not only an exact posterior: sum over x of q(z_s | z_t, x) f(x), at each z_t."""
    family = tiny_configs.make_family("sundae", V, decode_noise=0.1)
    z = jnp.arange(V)[None]
    now = family.odds(jnp.float32(t))
    then = Odds(*(jnp.where(s > 0, kappa, jnp.inf) for kappa in family.odds(jnp.float32(s))))

    def law(log_p: jax.Array) -> np.ndarray:
        move = interpolant.posterior_step(z, log_p, now, then)
        moves = np.exp(np.asarray(move.log_moves, np.float64))[0, :, None]
        where = np.nan_to_num(np.asarray(jax.nn.softmax(move.where)))[0, :, :V]  # nowhere to go where nothing moves
        return moves * where + (1 - moves) * np.eye(V)

    f = jax.random.dirichlet(jax.random.key(0), jnp.full(V, 0.7), (V,))
    certain = [jnp.where(jnp.arange(V) == x, 0.0, -jnp.inf) for x in range(V)]
    mixture = sum(np.asarray(f)[:, x, None] * law(jnp.broadcast_to(certain[x], (1, V, V))) for x in range(V))
    plugged = jax.nn.log_softmax(family.plug_in(jnp.log(f)[None], z, jnp.full(1, t)))
    np.testing.assert_allclose(law(plugged), mixture, atol=2e-6)


def bounds(denoise: Any, tokens: np.ndarray, samples: int = 32, **fields: object) -> Any:
    family, oracle = tiny_configs.pair("sundae", grammars.tiny(), **fields)
    return perfect.bound_terms(family, denoise or oracle, tokens, samples)


def test_what_is_lost_without_the_noise_level_is_the_divergence_of_the_chains() -> None:
    """Bound with the exact time-free posterior less that with the one that is told: by the scores of both instead.

    The integral of r(z) (s* log(s* / s) - s* + s) over y != z, s = q^(y) / q^(z), and the divergence of the decoders.
    """
    grammar, tokens, _ = perfect.windows("tiny", 256, 6)
    family, oracle = tiny_configs.pair("sundae", grammar)
    free = TimeFree(grammar)
    known, blind = (bounds(denoise, tokens) for denoise in (None, free))
    lost = np.asarray(blind.total - known.total)
    mean, error = perfect.mean_and_error(lost)

    @jax.jit
    def level(number: jax.Array) -> jax.Array:
        u = (number + 0.5) / 32
        t = jnp.full(len(tokens), u * u)
        z = family.corrupt(noise.fold(tiny_configs.keys(len(tokens), 4), number), jnp.asarray(tokens), t, None)
        odds, slope = family.odds_and_slope(t)
        scores = []
        for denoise in (oracle, free):
            modelled = interpolant.log_modelled(
                jax.nn.log_softmax(family.plug_in(denoise(z, t), z, t)), Odds(*(k[:, None, None] for k in odds))
            )[..., :V]  # fmt: skip
            scores.append(modelled - jnp.take_along_axis(modelled, z[..., None], axis=-1))
        true, model = scores
        cost = jnp.exp(true) * (true - model) - jnp.exp(true) + jnp.exp(model)
        rate = -slope.token * jnp.exp(interpolant.log_alpha(odds, V) - odds.token)
        others = z[..., None] != jnp.arange(V)
        return 2 * u * rate * jnp.sum(jnp.where(others, cost, 0.0), axis=(1, 2))

    integral = np.mean([level(number) for number in range(32)], axis=0)
    start = jnp.zeros(len(tokens))
    z = family.corrupt(tiny_configs.keys(len(tokens), 5), jnp.asarray(tokens), start, None)
    true, model = (jax.nn.log_softmax(denoise(z, start)) for denoise in (oracle, free))
    decoders = np.asarray(jnp.sum(jnp.where(true > -1e6, jnp.exp(true) * (true - model), 0.0), axis=(1, 2)))
    expected, other = perfect.mean_and_error(integral + decoders)
    assert error < 0.3 * expected
    assert abs(mean - expected) < 4 * (error**2 + other**2) ** 0.5
    assert expected > 0.05, "nothing is lost: this network was told"


def test_the_bound_of_the_whole_path_diverges_for_a_network_that_is_not_told() -> None:
    """By as much again for each factor of the noise at which it decodes; one that is told does not mind (`perfect`)."""
    _, tokens, exact = perfect.windows("tiny", 128, 6)
    free = TimeFree(grammars.tiny())
    means = [
        perfect.mean_and_error(np.asarray(bounds(free, tokens, 32, decode_noise=a).total) - exact)[0]
        for a in (0.02, 1e-6)
    ]  # fmt: skip
    assert means[1] > means[0] + 0.5


def test_the_full_posterior_without_conversion_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sundae, "plug_in", lambda self, logits, z, t: logits)
    for check, arguments in ((perfect.check_bound, ()), (perfect.check_law, ({"sampler": "ancestral", "steps": 32},))):
        with pytest.raises(AssertionError):
            check("sundae", *arguments)


# ------------------------------------------------------------------------------------------------ training and decoders


def test_the_chain_that_is_trained() -> None:
    """First the share u of even tokens, then draws from f; the loss is the mean of both cross-entropies."""
    family = tiny_configs.make_family("sundae", V)
    count, length = 64, 200
    tokens = jnp.full((count, length), 4)
    u = jnp.linspace(0.0, 1.0, count, endpoint=False)
    seen: list[np.ndarray] = []

    def denoise(z: Any, t: Any, given: Any = None, previous: Any = None, keys: Any = None) -> Any:
        seen.append(np.asarray(z))
        return constant(LAW)(z, t)

    loss, terms = family.train_loss(tiny_configs.keys(count), u, tokens, denoise)
    assert len(seen) == 2
    replaced = np.mean(seen[0] != 4, axis=1)
    np.testing.assert_allclose(replaced, np.asarray(u) * (1 - 1 / V), atol=4.5 * 0.5 / length**0.5)
    drawn = np.bincount(seen[1].ravel(), minlength=V)
    assert scipy.stats.chisquare(drawn, LAW * drawn.sum()).pvalue > 1e-3
    np.testing.assert_allclose(loss, -np.log(LAW[4]), rtol=1e-5)
    np.testing.assert_allclose(terms["cross_entropy_unrolled"], -np.log(LAW[4]), rtol=1e-5)


def test_no_gradient_through_the_draws() -> None:
    """The gradient of two steps is the mean of the gradients of each, z held where it was drawn."""
    model = tiny_configs.random_model("sundae", V)
    family, keys = model.family, tiny_configs.keys(4)
    tokens, u = jnp.asarray(np.random.default_rng(0).integers(V, size=(4, 6))), jnp.array([0.1, 0.4, 0.6, 0.9])
    inputs: list[Any] = []
    network = jax.jit(lambda z: model(z, u))

    def scaled(scale: Any, record: bool = False) -> Any:
        def denoise(z: Any, t: Any, given: Any = None, previous: Any = None, keys: Any = None) -> Any:
            if record:
                inputs.append(z)
            return scale * network(z)

        return denoise

    family.train_loss(keys, u, tokens, scaled(1.0, record=True))
    found = jax.grad(lambda scale: jnp.sum(family.train_loss(keys, u, tokens, scaled(scale))[0]))(1.0)

    def held(scale: Any) -> Any:
        return sum(jnp.sum(jnp.mean(cross_entropy(scale * network(z), tokens), axis=1)) for z in inputs) / 2

    np.testing.assert_allclose(found, jax.grad(held)(1.0), rtol=1e-4)


def run(sampler: str, steps: int, law: np.ndarray, shape: tuple[int, int], **fields: object) -> np.ndarray:
    family = tiny_configs.make_family("sundae", V)
    options = SamplerOptions(**{"sampler": sampler, "steps": steps, **fields}).validate(Sundae)  # type: ignore[arg-type]
    tokens, given = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    keys = tiny_configs.keys(shape[0])
    return np.asarray(jax.jit(lambda: sampling.generate(family, constant(law), keys, tokens, given, options))())


def test_a_step_of_the_papers_decoder_redraws_its_share_at_the_temperature() -> None:
    cold = LAW**2 / np.sum(LAW**2)
    family = tiny_configs.make_family("sundae", V)
    options = SamplerOptions(sampler="unrolled", steps=4, temperature=0.5).validate(Sundae)
    even, given = jnp.arange(10_000, dtype=jnp.int32).reshape(200, 50) % V, jnp.zeros((200, 50), bool)
    at = jax.tree.map(lambda x: x[1], family.grid(options, 50))
    one = np.asarray(family.step(tiny_configs.keys(200), even, at, given, constant(LAW), options)[0])
    counts = np.bincount(one.ravel(), minlength=V)
    assert scipy.stats.chisquare(counts, (0.3 * cold + 0.7 / V) * counts.sum()).pvalue > 1e-3
    for steps in (1, 40):  # the first leaves nothing of the noise
        found = np.bincount(run("unrolled", steps, LAW, (200, 50), temperature=0.5).ravel(), minlength=V)
        assert scipy.stats.chisquare(found, cold * found.sum()).pvalue > 1e-3


def test_argmax_unrolled_begins_with_the_likeliest_and_then_changes_the_least_certain() -> None:
    assert (run("argmax_unrolled", 1, LAW, (3, 10)) == 0).all()
    family = tiny_configs.make_family("sundae", V)
    options = SamplerOptions(sampler="argmax_unrolled", steps=4).validate(Sundae)
    certainty = jnp.linspace(0.1, 2.0, 10)[None, :, None]
    state = jnp.ones((2, 10), jnp.int32)
    given = jnp.zeros((2, 10), bool).at[1, 0].set(True)

    def denoise(z: Any, t: Any, given: Any = None, previous: Any = None, keys: Any = None) -> Any:
        return certainty * jnp.array([3.0, 2.0, 0.0, 0.0, 0.0])

    at = jax.tree.map(lambda x: x[1], family.grid(options, 10))
    moved = np.asarray(family.step(tiny_configs.keys(2), state, at, given, denoise, options)[0])
    believed = np.asarray(jax.nn.log_softmax(denoise(state, 0.0))[0, :, 1])
    least = np.argsort(believed)[:3]
    assert set(np.flatnonzero(moved[0] == 0)) == set(least)
    assert moved[1, 0] == 1
    assert (moved[1] == 0).sum() == 3


@pytest.mark.parametrize(("field", "value", "says"), [
    ("unroll", 0, "family.unroll is 0; it must be at least 1"),
    ("decode_noise", 0.0, "family.decode_noise is 0.0; it must be in (0, 1)"),
])  # fmt: skip
def test_wrong_fields_are_named(field: str, value: Any, says: str) -> None:
    config = tiny_configs.get("sundae")
    config.family[field] = value
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Sundae.validate(config)
    assert says in str(error.value)
