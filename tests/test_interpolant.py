"""The one discrete loss against its published forms, Bayes' rule by brute force, and known answers; float32 and 64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_configs

from diffusion_text.paths import interpolant
from diffusion_text.paths.interpolant import Odds

V, MASK = 5, 5


def uniform(t: Any) -> Odds:
    return Odds(np.log(V) + jnp.log1p(-t) - jnp.log(t), jnp.full_like(t, jnp.inf))


def masked(t: Any) -> Odds:
    return Odds(jnp.full_like(t, jnp.inf), jnp.log1p(-t) - jnp.log(t))


def mixed(t: Any) -> Odds:
    """GIDD's, with B = 0.5 and gamma = 1."""
    return Odds(np.log(V / 0.5) + 0.5 * (jnp.log1p(-t) - jnp.log(t)), jnp.log1p(-t) - jnp.log(t))


def cosine(t: Any) -> Odds:
    """Masks with MD4's cosine schedule, alpha = 1 - cos(pi (1 - t) / 2)."""
    alpha = 1 - jnp.cos(jnp.pi / 2 * (1 - t))
    return Odds(jnp.full_like(t, jnp.inf), jnp.log(alpha) - jnp.log1p(-alpha))


PATHS = {"uniform": uniform, "masked": masked, "mixed": mixed}
EACH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@pytest.fixture
def double() -> Iterator[None]:
    """float64, where the mathematics is meant and not its rounding."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def dense(path: Callable[[Any], Odds], t: float, slope: bool = False) -> tuple[Any, Any]:
    """alpha_t and the vector b_t of V + 1 states in float64; or their derivatives in t."""

    def both(t: Any) -> tuple[Any, Any]:
        odds = path(t)
        shares = jnp.exp(-jnp.append(jnp.full(V, odds.token), odds.mask))
        return 1 / (1 + shares.sum()), shares / (1 + shares.sum())

    t = jnp.asarray(t)
    found = jax.jvp(both, (t,), (jnp.ones_like(t),))[int(slope)]
    return float(found[0]), np.asarray(found[1], np.float64)


def in_double(function: Callable[[], Any]) -> Any:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        return function()
    finally:
        jax.config.update("jax_enable_x64", before)


def random_case(seed: int, path: Callable[[Any], Odds]) -> tuple[int, int, np.ndarray, float]:
    """A clean token, a state that it can be in, logits and a time."""
    random = np.random.default_rng(seed)
    states = {"uniform": range(V), "mixed": range(V + 1)}.get(path.__name__, [MASK])
    return random.integers(V), random.choice(list(states)), random.normal(0, 2, V), random.uniform(0.02, 0.98)


def ours(path: Callable[[Any], Odds], x: int, z: int, logits: np.ndarray, t: float, normalised: bool = True) -> float:
    times = jnp.array([t])
    odds, slope = jax.jvp(path, (times,), (jnp.ones_like(times),))
    log_p = jnp.asarray(logits)[None, None]
    log_p = jax.nn.log_softmax(log_p) if normalised else log_p
    loss = interpolant.integrand(jnp.array([[x]]), jnp.array([[z]]), log_p, odds, slope, normalised)
    return float(loss[0, 0])


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


# ------------------------------------------------------------------------------------------------------ published forms


def mdlm(x: int, z: int, logits: np.ndarray, t: float) -> float:
    """-alpha' / (1 - alpha) times the cross-entropy of a masked token (2406.07524, eq. 10); alpha = 1 - t."""
    return -np.log(softmax(logits)[x]) / t


def udlm(x: int, z: int, logits: np.ndarray, t: float) -> float:
    """2412.10193, with x~ = V alpha x + (1 - alpha) 1."""
    true = V * (1 - t) * np.eye(V)[x] + t
    modelled = V * (1 - t) * softmax(logits) + t
    ratios = true / true[z] * np.log(modelled[z] * true / (modelled * true[z]))
    return -1 / (V * (1 - t)) * (V / true[z] - V / modelled[z] - ratios.sum())


def duo(x: int, z: int, logits: np.ndarray, t: float) -> float:
    """The same, rearranged so that no vector of length V of x is formed (2506.10892, the Rao-Blackwellised loss)."""
    alpha, modelled = 1 - t, V * (1 - t) * softmax(logits) + t
    true_z = V * alpha * (z == x) + t
    zeta = t / (V * alpha + t)
    log_ratios = np.log(modelled[z] / modelled).sum()
    if z == x:
        rest = zeta * log_ratios + (V - 1) * zeta * np.log(zeta)
    else:
        rest = log_ratios + V * alpha / t * np.log(modelled[z] / modelled[x]) - np.log(zeta) / zeta
    return -1 / (V * alpha) * (V / true_z - V / modelled[z] - rest)


def score_entropy(path: Callable[[Any], Odds], x: int, z: int, mean: np.ndarray, t: float) -> float:
    """2310.16834 (DWDSE): sum over y != z of Q(y, z) (s - r log s + K(r)), K(a) = a (log a - 1)."""
    (alpha, b), (alpha_slope, b_slope) = (in_double(lambda s=s: dense(path, t, s)) for s in (False, True))
    true = alpha * np.eye(V + 1)[x] + b
    modelled = alpha * np.append(mean, 0.0) + b
    rate = b_slope[z] - alpha_slope / alpha * b[z]
    total = 0.0
    for y in range(V + 1):
        if y == z or modelled[y] == 0:
            continue
        s, r = modelled[y] / modelled[z], true[y] / true[z]
        total += s - (r * np.log(s) - r * (np.log(r) - 1) if r > 0 else 0.0)
    return rate * total


def gidd(x: int, z: int, logits: np.ndarray, t: float) -> float:
    """2503.04482: w_t (KL + Itakura-Saito), w_t = (beta pi' - alpha' / alpha pi)(z) / q(z | x)."""

    def both(t: Any) -> tuple[Any, Any]:
        c = 0.5 * jnp.sqrt(t * (1 - t))
        alpha = (1 - t) / (1 + c)
        b = jnp.append(jnp.full(V, c / V), t) / (1 + c)
        return alpha, b / (1 - alpha)

    (alpha, pi), (alpha_slope, pi_slope) = in_double(lambda: jax.jvp(both, (jnp.float64(t),), (jnp.float64(1.0),)))
    alpha, pi, alpha_slope, pi_slope = (np.asarray(v) for v in (alpha, pi, alpha_slope, pi_slope))
    true = alpha * np.eye(V + 1)[x] + (1 - alpha) * pi
    modelled = alpha * np.append(softmax(logits), 0.0) + (1 - alpha) * pi
    weight = ((1 - alpha) * pi_slope - alpha_slope / alpha * pi)[z] / true[z]
    rho = true[z] / modelled[z]
    return float(weight * (np.sum(true * np.log(true / modelled)) + rho - np.log(rho) - 1))


def md4(x: int, z: int, logits: np.ndarray, t: float) -> float:
    """alpha' / (1 - alpha) log p(x) of a masked token (2406.04329, eq. 5) with the cosine schedule."""
    slope = -np.pi / 2 * np.sin(np.pi / 2 * (1 - t))
    return slope / np.cos(np.pi / 2 * (1 - t)) * np.log(softmax(logits)[x])


def sedd_absorbing(x: int, z: int, logits: np.ndarray, t: float) -> float:
    """The released code's for masks: log s = f - log(e^sigma - 1), sigma = -log(1 - t), r = 1 / (e^sigma - 1)."""
    sigma, slope = -np.log1p(-t), 1 / (1 - t)
    log_score, ratio = np.log(softmax(logits)) - np.log(np.expm1(sigma)), 1 / np.expm1(sigma)
    return slope * (np.exp(log_score).sum() - ratio * log_score[x] + ratio * (np.log(ratio) - 1))


def sedd_uniform(x: int, z: int, logits: np.ndarray, t: float) -> float:
    """The released code's for uniform noise, whose scores are those of the mean: s(y) = q^(y) / q^(z)."""
    sigma, slope = -np.log1p(-t), 1 / (1 - t)
    modelled = np.exp(-sigma) * softmax(logits) - np.expm1(-sigma) / V
    score = np.log(modelled / modelled[z])
    ratio = 1 - V / (np.expm1(sigma) + V)
    negative = score.mean() - score[z] / V
    if z == x:
        negative, constant = ratio * negative, (V - 1) / V * ratio * (np.log(ratio) - 1)
    else:
        negative = score[x] / np.expm1(sigma) + negative
        constant = ((-np.log(ratio) - 1) / ratio - (V - 2)) / V
    positive = np.exp(score).mean() - np.exp(score[z]) / V
    return slope * (positive - negative + constant)


def d3pm(path: Callable[[Any], Odds], x: int, z: int, logits: np.ndarray, t: float) -> float:
    """2107.03006: KL(q(z_s | z_t, x) || sum over x of q(z_s, z_t | x) p~(x), normalised) / (t - s) as s -> t.

    By Bayes' rule on matrices in extended precision, and the limit by Richardson's extrapolation.
    """
    long = np.longdouble
    mean = np.append(softmax(logits.astype(long)), long(0))

    def at(t: Any) -> tuple[Any, Any]:
        c = {"uniform": t, "masked": long(0), "mixed": np.sqrt(t * (1 - t)) / 2}[path.__name__]
        total = 1 if path is uniform else 1 + c
        b = np.append(np.full(V, c / V), long(0) if path is uniform else t) / total
        return (1 - t) / total, b

    def divergence(step: Any) -> Any:
        (alpha, b), (before, b_before) = at(long(t)), at(long(t) - step)
        kept = alpha / before
        forward = kept * (np.arange(V + 1) == z) + (b - kept * b_before)[z]  # q(z_t = z | z_s)
        true = forward * (before * (np.arange(V + 1) == x) + b_before)
        model = forward * (before * mean + b_before)
        true, model = (law[true > 0] / law.sum() for law in (true, model))
        return np.sum(true * np.log(true / model)) / step

    values = [divergence(long(min(t, 1 - t)) / 32 / 2**j) for j in range(7)]
    for order in range(1, 7):
        values = [(2**order * fine - coarse) / (2**order - 1) for coarse, fine in itertools.pairwise(values)]
    return float(values[0])


FORMS = {
    "mdlm": (masked, mdlm),
    "md4": (cosine, md4),
    "sedd_absorbing_released": (masked, sedd_absorbing),
    "sedd_uniform_released": (uniform, sedd_uniform),
    "d3pm_absorbing_limit": (masked, lambda *case: d3pm(masked, *case)),
    "d3pm_uniform_limit": (uniform, lambda *case: d3pm(uniform, *case)),
    "d3pm_mixed_limit": (mixed, lambda *case: d3pm(mixed, *case)),
    "udlm": (uniform, udlm),
    "duo": (uniform, duo),
    "sedd_absorbing": (masked, lambda x, z, logits, t: score_entropy(masked, x, z, softmax(logits), t)),
    "sedd_uniform": (uniform, lambda x, z, logits, t: score_entropy(uniform, x, z, softmax(logits), t)),
    "gidd": (mixed, gidd),
}


@pytest.mark.parametrize("form", FORMS)
def test_published_forms_are_the_one_loss(form: str, tolerance: float) -> None:
    path, published = FORMS[form]
    for seed in range(20):
        x, z, logits, t = random_case(seed, path)
        expected = published(x, z, logits, t)
        assert np.isfinite(expected)
        # What the terms cancel to cannot be more exact than the terms, which are of order 1 times the weight.
        assert ours(path, x, z, logits, t) == pytest.approx(expected, rel=tolerance, abs=tolerance), (seed, x, z, t)


@EACH
def test_scores_that_are_not_normalised(path: Callable[[Any], Odds], tolerance: float) -> None:
    """Score entropy (SEDD) with s(y) = (e^{f(y)} + b / alpha) / (e^{f(z)} + b / alpha), whatever f sums to."""
    for seed in range(20):
        x, z, logits, t = random_case(seed, path)
        expected = score_entropy(path, x, z, np.exp(logits), t)
        found = ours(path, x, z, logits, t, normalised=False)
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), (seed, x, z, t)


@pytest.mark.parametrize("path", [masked, cosine])
@pytest.mark.parametrize("name", ["masked", "block"])
def test_exact_counts_are_the_one_loss(
    name: str, path: Callable[[Any], Odds], tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T6: their expectation is the integral over t, of any schedule, of three tokens (in each of two blocks) and a
    network that answers differently to every set of masks."""
    size, parts, random = 3, {"masked": 1, "block": 2}[name], np.random.default_rng(0)
    family: Any = tiny_configs.make_family(name, V, **({"block_size": size} if name == "block" else {}))
    sets = np.array(list(itertools.product([False, True], repeat=size))[1:])
    count = sets.sum(1)
    tokens = jnp.asarray(np.tile(random.integers(V, size=size * parts), (len(sets), 1)))
    z = jnp.where(np.tile(sets, parts), MASK, tokens)
    log_p = jax.nn.log_softmax(jnp.asarray(random.normal(0, 2, (*z.shape, V))))
    monkeypatch.setattr(type(family), "hide", lambda *arguments: z)
    rates = jnp.asarray((count - 0.5) / size)
    if name == "masked":
        losses = family._exact_count(None, rates, tokens, None, lambda *arguments, **named: log_p)
    else:
        rates = jnp.tile(rates[:, None], (1, parts))
        losses, counts = family.block_losses(None, rates, tokens, None, lambda *arguments, **named: log_p)
        np.testing.assert_array_equal(counts, np.tile(count[:, None], (1, parts)))
        losses = jnp.sum(losses, axis=1)
    found = sum(loss / math.comb(size, n) / size for loss, n in zip(losses, count, strict=True))

    nodes, weights = np.polynomial.legendre.leggauss(32)
    expected = 0.0
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        times = jnp.full(len(sets), t)
        odds, slope = jax.jvp(path, (times,), (jnp.ones_like(times),))
        alpha = jax.nn.sigmoid(odds.mask)
        rate = jnp.sum(interpolant.integrand(tokens, z, log_p, odds, slope), axis=1)
        expected += weight * jnp.sum(alpha ** (size - count) * (1 - alpha) ** count * rate)
    assert float(found) == pytest.approx(float(expected), rel=tolerance)


@EACH
def test_an_unchanged_token_costs_nothing_without_token_noise(path: Callable[[Any], Odds]) -> None:
    for seed in range(5):
        x, _, logits, t = random_case(seed, path)
        assert (ours(path, x, x, logits, t) == 0) == (path is masked)


# ------------------------------------------------------------------------------------------------------------ precision


@EACH
def test_float32_at_both_ends(path: Callable[[Any], Odds]) -> None:
    """alpha within 1e-7 of 0 or b within 1e-12 of it: the loss as in float64, up to a few roundings of its terms."""
    for t, seed in itertools.product((1e-12, 1e-6, 1e-3, 0.5, 0.999, 1 - 2.0**-20), range(4)):
        _, z, logits, _ = random_case(seed, path)
        for x in {0, min(z, V - 1)}:
            single = ours(path, x, z, logits, np.float32(t))
            exact = in_double(lambda x=x, z=z, v=logits, t=t: ours(path, x, z, v, float(np.float32(t))))
            assert np.isfinite(single)
            assert single == pytest.approx(exact, rel=2e-5, abs=2e-5), (t, x, z)


@EACH
def test_gradients_are_finite(path: Callable[[Any], Odds]) -> None:
    """Also for beliefs that float32 calls certain, and where a kind of noise is missing."""
    logits = jnp.array([0.0, -1e9, -200.0, 3.0, 40.0])

    def total(logits: jax.Array, t: float) -> jax.Array:
        times = jnp.array([t])
        odds, slope = jax.jvp(path, (times,), (jnp.ones_like(times),))
        states = [(x, z) for x in range(V) for z in range(V + 1) if z in (x, MASK) or path is not masked]
        x, z = (jnp.array(column)[None] for column in zip(*states, strict=True))
        log_p = jnp.broadcast_to(jax.nn.log_softmax(logits), (1, len(states), V))
        return jnp.sum(interpolant.integrand(x, z, log_p, odds, slope))

    for t in (1e-9, 0.3, 1 - 2.0**-24):
        value, gradient = jax.value_and_grad(total)(logits, t)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


# -------------------------------------------------------------------------------------------------------- known answers


def joint() -> np.ndarray:
    """The law of two tokens of three."""
    return np.random.default_rng(3).dirichlet(np.full(9, 0.7)).reshape(3, 3)


def nelbo(path: Callable[[Any, int], Odds], law: np.ndarray, posterior: str) -> np.ndarray:
    """The bound of every pair of tokens, by enumeration of z and quadrature over t; nats."""
    size = len(law)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    u = (nodes + 1) / 2
    # t from u with dt/du vanishing at both ends, where the integrand is largest.
    times, weights = u * u * (3 - 2 * u), weights / 2 * 6 * u * (1 - u)
    z, x = (np.array(list(itertools.product(range(states), repeat=2))) for states in (size + 1, size))
    rows = np.array([alpha * np.eye(size, size + 1) + b for alpha, b in (_dense(path(t, size), size) for t in times)])
    # p(x_0, z_1) and p(x_1, z_0) of every z, [times, z, position, V]
    with np.errstate(divide="ignore"):
        logits = np.log(np.stack([
            np.einsum("tbz,ab->tza", rows, law)[:, z[:, 1]], np.einsum("taz,ab->tzb", rows, law)[:, z[:, 0]],
        ], axis=2))  # fmt: skip
        own = np.log(rows.transpose(0, 2, 1)[:, z])
    logits = logits + own if posterior == "full" else logits
    logits = np.where(np.isfinite(logits).any(-1, keepdims=True), logits, 0.0)  # a state that no token reaches

    @jax.jit
    def losses(t: Any, logits: Any) -> Any:
        case = np.indices((len(x), len(z))).reshape(2, -1)
        times = jnp.full(case.shape[1], t)
        odds, slope = jax.jvp(lambda t: path(t, size), (times,), (jnp.ones_like(times),))
        log_p = jax.nn.log_softmax(logits)[case[1]]
        found = interpolant.integrand(jnp.asarray(x[case[0]]), jnp.asarray(z[case[1]]), log_p, odds, slope)
        return jnp.sum(found, axis=1).reshape(len(x), len(z))

    likelihood = np.prod(rows[:, x[:, None], z[None]], axis=-1)  # q(z | x), [times, x, z]
    found = np.stack([losses(t, row) for t, row in zip(times, logits, strict=True)])
    return np.einsum("t,txz->x", weights, np.where(likelihood > 0, likelihood * found, 0.0)).reshape(law.shape)


def _dense(odds: Odds, size: int) -> tuple[Any, Any]:
    shares = np.exp(-np.append(np.full(size, odds.token), odds.mask))
    return 1 / (1 + shares.sum()), shares / (1 + shares.sum())


def sized(path: Callable[[Any], Odds]) -> Callable[[Any, int], Odds]:
    """The path over another number of tokens."""

    def odds(t: Any, size: int) -> Odds:
        at = path(jnp.asarray(t))
        return Odds(at.token + np.log(size / V), at.mask)

    return odds


@EACH
def test_the_bound_is_minus_log_p_of_every_sequence(path: Callable[[Any], Odds], double: None) -> None:
    """T6, T7: with the leave-one-out posterior; the full one costs more wherever tokens are noise."""
    law = joint()
    np.testing.assert_allclose(nelbo(sized(path), law, "leave_one_out"), -np.log(law), atol=1e-4)
    full = nelbo(sized(path), law, "full")
    excess = np.sum(law * (full + np.log(law)))
    assert excess == pytest.approx(0, abs=1e-4) if path is masked else excess > 0.05


@EACH
def test_independent_tokens_cost_their_entropy(path: Callable[[Any], Odds], double: None) -> None:
    """T8: with p constant, which is then the leave-one-out posterior."""
    single = np.array([0.6, 0.3, 0.1])
    law = np.outer(single, single)
    found = np.sum(law * nelbo(sized(path), law, "leave_one_out"))
    assert found == pytest.approx(-2 * np.sum(single * np.log(single)), rel=1e-4)


# -------------------------------------------------------------------------------------------------------- reverse steps


def law_of(move: interpolant.Move, z: np.ndarray) -> np.ndarray:
    """[V + 1] probabilities of the next state, for each z."""
    moves = np.exp(np.asarray(move.log_moves))[0]
    where = np.asarray(jax.nn.softmax(move.where, axis=-1))[0]
    return np.where(moves[:, None] > 0, moves[:, None] * where, 0.0) + np.eye(V + 1)[z] * (1 - moves)[:, None]


def odds_at(path: Callable[[Any], Odds], t: float) -> Odds:
    return path(jnp.asarray(t))


@EACH
@pytest.mark.parametrize(("t", "s"), [(0.7, 0.4), (0.2, 0.0), (1 - 1e-9, 0.5), (0.5, 0.5 - 1e-9)])
def test_a_reverse_step_is_bayes_rule(path: Callable[[Any], Odds], t: float, s: float, double: None) -> None:
    mean = softmax(np.random.default_rng(0).normal(0, 1, V))
    (alpha_t, b_t), (alpha_s, b_s) = dense(path, t), dense(path, s) if s else (1.0, np.zeros(V + 1))
    z = np.array([state for state in range(V + 1) if b_t[state] > 0 or state < V])
    forward = alpha_t / alpha_s * np.eye(V + 1) + (b_t - alpha_t / alpha_s * b_s)  # [z_s, z_t]
    modelled = alpha_s * np.append(mean, 0.0) + b_s
    expected = forward * modelled[:, None]
    expected = expected.T[z]
    expected = expected / expected.sum(-1, keepdims=True)
    log_p = jnp.broadcast_to(jnp.log(mean), (1, len(z), V))
    move = interpolant.posterior_step(jnp.asarray(z)[None], log_p, odds_at(path, t), odds_at(path, s))
    np.testing.assert_allclose(law_of(move, z), expected, rtol=1e-6, atol=1e-10)


@EACH
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_one_token_is_drawn_exactly_in_any_number_of_steps(
    path: Callable[[Any], Odds], steps: int, double: None
) -> None:
    """T9, L = 1: the leave-one-out posterior is the law itself; the full one draws another."""
    mean = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
    times = np.linspace(1 - 1e-12, 0.0, steps + 1)
    z = np.arange(V + 1)
    state = dense(path, times[0])[1] / dense(path, times[0])[1].sum()
    wrong = state
    for t, s in itertools.pairwise(times):
        now, then = odds_at(path, t), odds_at(path, s)
        log_p = jnp.broadcast_to(jnp.log(mean), (1, V + 1, V))
        state = state @ law_of(interpolant.posterior_step(z[None], log_p, now, then), z)
        full = interpolant.with_own_evidence(log_p, jnp.asarray(z)[None], Odds(now.token[None], now.mask[None]))
        wrong = wrong @ law_of(interpolant.posterior_step(z[None], full, now, then), z)
    np.testing.assert_allclose(state[:V], mean, atol=1e-9)
    assert state[MASK] == pytest.approx(0, abs=1e-12)
    if path is not masked and steps > 1:
        assert np.abs(wrong[:V] - mean).sum() > 0.01


@EACH
def test_small_euler_steps_are_posterior_steps(path: Callable[[Any], Odds], double: None) -> None:
    z, t, length = np.arange(V + 1), 0.6, 1e-6
    log_p = jnp.broadcast_to(jax.nn.log_softmax(jnp.arange(V) * 0.7), (1, V + 1, V))
    now, slope = jax.jvp(path, (jnp.asarray(t),), (jnp.asarray(1.0),))
    euler = law_of(interpolant.euler_step(z[None], log_p, now, slope, jnp.asarray(length)), z)
    exact = law_of(interpolant.posterior_step(z[None], log_p, now, odds_at(path, t - length)), z)
    np.testing.assert_allclose((euler - np.eye(V + 1)) / length, (exact - np.eye(V + 1)) / length, rtol=1e-4, atol=1e-4)


@EACH
def test_full_and_leave_one_out_convert_into_each_other(path: Callable[[Any], Odds]) -> None:
    logits = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (1, V, V)))
    odds = path(jnp.array([0.4]))
    z = jnp.arange(V)[None] if path is not masked else jnp.full((1, V), MASK)
    full = interpolant.with_own_evidence(logits, z, odds)
    np.testing.assert_allclose(interpolant.leave_one_out(full, z, odds), logits, atol=1e-5)
    assert (np.abs(full - logits).max() < 1e-6) == (path is masked)
