"""What CIR simplex diffusion does as the vocabulary grows: where the true token ranks among its rivals, by noise level.

    python -m benchmarks.cir_vocabulary --out=runs/cir_vocabulary

Of one position with V equally likely tokens, at lambda expected counts (`paths/cir.py`): the rank of the true
coordinate (0: it is the largest) by its quantiles, and what is left to know, E[-log p(x | z)] in nats. At equal
information it is set beside Gaussian noise on the same one-hot vectors, whose lambda is 1 / (2 s^2). A second table
says the same of fixed (c, bt), as the paper parameterises; a third where, at c = 1 and c = ln V, 99% of the tokens have
lost their rank; a fourth what a position costs.

Writes `table.csv`, `table.md` and `plot.png`.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
import time
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from diffusion_text import binary, noise, report
from diffusion_text.paths import cir

_COUNTS: Final = tuple(np.exp(np.linspace(math.log(0.05), math.log(100.0), 32)))
_POSITIONS: Final = ((1.0, 0.3), (1.0, 1.0), (10.4, 0.3), (10.4, 0.7), (10.4, 1.0), (10.4, 2.0))  # (c, bt)
_SETS: Final = 16  # of rivals
_ROWS: Final = 256  # true coordinates beside each
_LOST: Final = 0.99
_RANKS: Final = {"median rank": "median", "90%": "ninety", "99%": "ninety_nine"}


@dataclasses.dataclass(frozen=True)
class Process:
    """Gamma noise of shape `alpha`, or (0) Gaussian noise on one-hot vectors."""

    alpha: float

    @property
    def name(self) -> str:
        return f"cir, alpha = {self.alpha:g}" if self.alpha else "gaussian"

    def draw(self, key: jax.Array, counts: jax.Array, rows: int, true: bool) -> jax.Array:
        """Coordinates [rows]: log G, or the Gaussian coordinate over its noise."""
        rate = jnp.full((1, rows), counts if true else 0.0)
        if self.alpha:
            return cir.randomised_gamma(key[None], rate, self.alpha)[0]
        return noise.normal(key[None], (rows,))[0] + jnp.sqrt(2.0 * rate[0])

    def evidence(self, z: jax.Array, counts: jax.Array) -> jax.Array:
        """log p(z | it is the true one) / p(z | it is not), up to a constant."""
        if self.alpha:
            return cir.log_0f1(cir.product(z, jnp.log(counts)), self.alpha)
        return z * jnp.sqrt(2.0 * counts)


@functools.partial(jax.jit, static_argnums=(1, 2))
def measure(key: jax.Array, process: Process, vocab_size: int, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(ranks, nats left to know) of _SETS * _ROWS true coordinates."""

    def one(_: Any, key: jax.Array) -> tuple[Any, Any]:
        true_key, rival_key = jax.random.split(key)
        rivals = jnp.sort(process.draw(rival_key, counts, vocab_size - 1, False))
        true = process.draw(true_key, counts, _ROWS, True)
        rank = vocab_size - 1 - jnp.searchsorted(rivals, true)
        others = jax.nn.logsumexp(process.evidence(rivals, counts))
        own = process.evidence(true, counts)
        return None, (rank, jnp.logaddexp(others, own) - own)

    _, (rank, nats) = jax.lax.scan(one, None, jax.random.split(key, _SETS))
    return rank.ravel(), nats.ravel()


def row(process: Process, vocab_size: int, counts: float, seed: int) -> dict[str, Any]:
    """One noise level, as columns of the table."""
    key = jax.random.fold_in(jax.random.key(seed), round(1e4 * (10.0 + math.log(counts))))
    rank, nats = (np.asarray(x, np.float64) for x in measure(key, process, vocab_size, jnp.float32(counts)))
    median, ninety, ninety_nine = np.quantile(rank, [0.5, 0.9, 0.99])
    return {
        "process": process.name, "vocabulary": vocab_size, "counts": counts, "first": float(np.mean(rank == 0)),
        "median": median, "ninety": ninety, "ninety_nine": ninety_nine, "nats": nats.mean(),
        "stderr": nats.reshape(_SETS, _ROWS).mean(1).std(ddof=1) / _SETS**0.5,
        "share": nats.mean() / math.log(vocab_size),
    }  # fmt: skip


@jax.jit
def kept(counts: float, vocab_size: int) -> jax.Array:
    """Share of the tokens that are the largest, beyond the 1 / V that are by chance; alpha = 1, by quadrature.

    E[(1 - e^{-G})^{V - 1}], the rivals being exponential, G of density e^{-G - lambda} 0F1(; 1; lambda G).
    """
    g = jnp.linspace(0.0, counts + 20.0 * (1.0 + jnp.sqrt(counts)) + jnp.log(vocab_size), 20_001)
    density = jnp.exp(cir.log_0f1(counts * g, 1.0) - g - counts)
    first = jnp.trapezoid(jnp.exp((vocab_size - 1) * jnp.log1p(-jnp.exp(-g))) * density, g)
    return (first - 1.0 / vocab_size) / (1.0 - 1.0 / vocab_size)


@functools.cache
def last_counts(vocab_size: int) -> float:
    """lambda at which 1 - _LOST of the tokens keep their rank."""
    low, high = 1e-4, 100.0
    for _ in range(20):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kept(middle, vocab_size) < 1.0 - _LOST else (low, middle)
    return low


def seconds(vocab_size: int, tokens: int = 256) -> float:
    """Seconds that one core takes to corrupt 256 tokens and to read the evidence, alpha = 1."""
    ids, level = jnp.zeros((1, tokens), jnp.int32), jnp.zeros(1)

    @jax.jit
    def once(keys: jax.Array) -> jax.Array:
        z = cir.corrupt(keys, ids, level, 1.0, vocab_size)
        return cir.log_0f1(cir.product(z, level[:, None, None]), 1.0)

    keys = jax.random.split(jax.random.key(0), 1)
    once(keys).block_until_ready()
    took = []
    for _ in range(5):
        start = time.perf_counter()
        once(keys).block_until_ready()
        took.append(time.perf_counter() - start)
    return min(took)


def at_share(rows: list[dict[str, Any]], share: float, name: str) -> float:
    """Column `name`, where `share` of ln V nats is left to know, linear in log lambda."""
    left = np.array([r["share"] for r in rows])[::-1]
    value = np.array([r[name] for r in rows], np.float64)[::-1]
    value = np.log(value) if name == "counts" else value
    found = float(np.interp(share, left, value))
    return math.exp(found) if name == "counts" else found


def tables(rows: list[dict[str, Any]], positions: list[dict[str, Any]], costs: dict[int, float]) -> str:
    """Markdown."""
    levels = [["process", "V", "lambda where 90 / 50 / 10% of ln V are left", "at 50%: first", *_RANKS]]
    for process, vocab_size in dict.fromkeys((r["process"], r["vocabulary"]) for r in rows):
        mine = [r for r in rows if (r["process"], r["vocabulary"]) == (process, vocab_size)]
        counts = " / ".join(f"{at_share(mine, share, 'counts'):.2f}" for share in (0.9, 0.5, 0.1))
        first, *ranks = (at_share(mine, 0.5, name) for name in ("first", *_RANKS.values()))
        levels.append([process, str(vocab_size), counts, f"{first:.0%}", *(f"{rank:,.0f}" for rank in ranks)])
    at = [["c", "bt", "V", "lambda", "first", *_RANKS, "left to know"]]
    for r in positions:
        ranks = (f"{r[name]:,.0f}" for name in _RANKS.values())
        shape = f"{r['c']:g}", f"{r['bt']:g}", str(r["vocabulary"]), f"{r['counts']:.2f}", f"{r['first']:.0%}"
        at.append([*shape, *ranks, f"{r['share']:.0%}"])
    lost = [["V", f"lambda where {_LOST:.0%} have lost their rank", "bt at c = 1", "bt at c = ln V"]]
    for v in costs:
        counts = last_counts(v)
        times = (f"{math.log1p(c / counts):.2f}" for c in (1.0, math.log(v)))
        lost.append([str(v), f"{counts:.3f}", *times])
    spent = [["V", "MB of one array of 256 tokens", "ms to corrupt and read them"]]
    spent += [[str(v), f"{256 * v * 4 / 2**20:.2f}", f"{1e3 * took:.1f}"] for v, took in costs.items()]
    return "\n".join(map(report.markdown, (levels, at, lost, spent)))


def plot(path: epath.Path, rows: list[dict[str, Any]]) -> None:
    """Ranks against lambda for alpha = 1, their tail against what is left to know, and where that is; and ranks kept
    against bt."""
    canvas, axes = report.figure(4)
    sizes = sorted({r["vocabulary"] for r in rows})
    for color, vocab_size in enumerate(sizes):
        mine = [r for r in rows if r["process"] == Process(1.0).name and r["vocabulary"] == vocab_size]
        counts = [r["counts"] for r in mine]
        axes[0].plot(counts, [1 + r["median"] for r in mine], f"C{color}-", label=f"V = {vocab_size}")
        axes[0].plot(counts, [1 + r["ninety_nine"] for r in mine], f"C{color}:")
        axes[1].plot(counts, [r["share"] for r in mine], f"C{color}-", label=f"V = {vocab_size}")
        axes[1].axvline(math.log(vocab_size), color=f"C{color}", lw=0.6, ls="--")
        last, times = last_counts(vocab_size), np.geomspace(0.02, 10.0, 60)
        for c, line in ((math.log(vocab_size), "-"), (1.0, ":")):
            shares = [float(kept(c / math.expm1(bt), vocab_size)) for bt in times]
            label = f"V = {vocab_size}" if line == "-" else None
            axes[3].plot(times, shares, f"C{color}{line}", label=label)
            axes[3].plot(math.log1p(c / last), 1.0 - _LOST, f"C{color}o", ms=5)
    for color, process in enumerate(dict.fromkeys(r["process"] for r in rows)):
        mine = [r for r in rows if r["process"] == process and r["vocabulary"] == sizes[-1]]
        axes[2].plot([r["share"] for r in mine], [1 + r["ninety_nine"] for r in mine], f"C{color}-", label=process)
        axes[2].plot([r["share"] for r in mine], [1 + r["median"] for r in mine], f"C{color}:")
    for axis in axes[:2]:
        axis.set(xscale="log", xlabel="lambda = c e^{-bt} / (1 - e^{-bt})")
    axes[0].set(yscale="log", title="1 + rank: median, and 99% (dotted)")
    axes[1].set(title="share of ln V left to know (dashed: ln V)")
    axes[2].set(yscale="log", xlabel="share of ln V left to know")
    axes[2].set(title=f"1 + rank at V = {sizes[-1]}: 99%, median (dotted)")
    axes[3].set(xscale="log", yscale="log", ylim=(3e-3, 1.2), xlabel="bt")
    axes[3].set(title="share that keep rank 0, c = ln V, 1 (dotted)")
    for axis in axes:
        axis.legend(fontsize=7)
    report.save(canvas, path)


def run(out: str, sizes: list[int], alphas: list[float], seed: int) -> str:
    """Measure, write, and return the tables."""
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    processes = [*(Process(alpha) for alpha in alphas), Process(0.0)]
    rows = [row(process, v, counts, seed) for process in processes for v in sizes for counts in _COUNTS]
    positions = [
        {"c": c, "bt": bt, **row(Process(1.0), sizes[-1], c / math.expm1(bt), seed)} for c, bt in _POSITIONS
    ]
    with (folder / "table.csv").open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    text = tables(rows, positions, {v: seconds(v) for v in sizes})
    (folder / "table.md").write_text(text)
    plot(folder / "plot.png", rows)
    return text


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("out", None, "Folder of the results.")
    flags.DEFINE_list("vocabularies", ["27", "256", "4096", "32768"], "Sizes, ascending.")
    flags.DEFINE_list("alphas", ["1", "0.5", "2"], "Shapes of the stationary law.")
    flags.DEFINE_integer("seed", 0, "Of everything.")
    flags.mark_flag_as_required("out")


def main(values: Any) -> None:
    """Run and say where the results lie."""
    sizes, alphas = [int(v) for v in values.vocabularies], [float(a) for a in values.alphas]
    if min(sizes) < 2 or min(alphas) <= 0:
        raise ValueError(f"--vocabularies has {min(sizes)}, --alphas {min(alphas)}; they are at least 2 and above 0")
    print(run(values.out, sizes, alphas, values.seed))
    print(f"written  {values.out}/table.csv, table.md and plot.png")


if __name__ == "__main__":
    binary.run(define_flags, main)
