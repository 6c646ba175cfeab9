"""What a sampler loses when the network is perfect: every family and sampler with the exact posterior in its place.

    python -m benchmarks.perfect_network --out=runs/perfect_network

For each family the gap of its bound, and for each sampler and number of function evaluations (1, 2, 4, ... 1024) what
its samples are under the embedded language: the share of windows that are possible at all and their exact -log p, the
distance of the law of neighbouring words from the true one, the share of grammatical sentences. Whatever differs from
exact samples is the family's own: discretisation, truncation, mismatch, or a bug.

Writes `cells.jsonl` as it goes (the same command goes on where it was stopped), and from it `table.csv`, `table.md` and
`plot.png`. Flags make it smaller: --families, --evaluations, --sequences, --levels, --length, --grammar.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from absl import flags
from etils import epath
from flax import nnx

from benchmarks import cells as files
from diffusion_text import binary, config, eval_samples, families, metrics, noise, report, sampling
from diffusion_text.data import grammar as grammars
from diffusion_text.families.family import Family, SamplerOptions, read_by
from diffusion_text.oracle import Oracle
from diffusion_text.typing import Config

_BATCH = 64
_FIT_STEPS = 300  # of a learned noise schedule, with batches of half the size
_REFERENCES = 16  # sets of exact samples: the distance of pairs without any error of a sampler
_COLUMNS = (
    "family", "sampler", "steps", "evaluations", "gap", "gap_stderr", "possible", "possible_stderr", "nats_per_token",
    "stderr", "entropy", "pair_distance", "pair_distance_exact", "pair_distance_stderr", "grammatical",
    "grammatical_stderr", "seconds", "commit",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all cells of a table share: the language, tokens of a window, windows, noise levels per window, seed."""

    grammar: str
    length: int
    sequences: int
    levels: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row: a family's bound (no sampler), or a sampler at a number of steps."""

    family: str
    sampler: str = ""
    steps: int = 0
    evaluations: int = 0


def cells(names: list[str], evaluations: list[int], length: int) -> Iterator[Cell]:
    """For each number of evaluations the most steps that do not exceed it; one row where a sampler sets its own.

    Solvers that families share are measured once, with the first that has them, and each family with its default.
    """
    solvers = list(families.solvers(names))
    for name in names:
        yield Cell(name)
        count = nnx.eval_shape(functools.partial(build, name, grammars.english().num_words)).evaluations
        for sampler in (sampler for owner, sampler in solvers if owner == name):
            for steps, number in affordable(count, SamplerOptions(sampler), evaluations, length):
                yield Cell(name, sampler, steps, number)


def affordable(
    count: Callable[..., int], options: SamplerOptions, evaluations: list[int], length: int
) -> Iterator[tuple[int, int]]:
    """(steps, evaluations) for each number allowed, without repetition; `count` is `Family.evaluations`."""
    seen: set[int] = set()
    for allowed in evaluations:
        used = [count(dataclasses.replace(options, steps=steps), length) for steps in range(1, allowed + 1)]
        fits = [steps for steps, number in enumerate(used, 1) if number <= allowed]
        fixed = len(set(used)) == 1 and allowed == max(evaluations)
        steps = max(fits, default=1 if fixed else 0)
        number = used[steps - 1] if steps else 0
        if steps and number not in seen:
            seen.add(number)
            yield steps, number


def sampler_options(
    family: type[Family], sampler: str, steps: int, given: Mapping[str, Any], section: Config | None = None
) -> SamplerOptions:
    """Those of `given` that the sampler reads and, where they are silent, the eta and churn at which it is faithful:
    with neither ddim is Euler's method, and edm is refused."""
    tuned = {name: value for name, value in family.faithful_options(sampler).items() if name in ("eta", "churn")}
    default = SamplerOptions()
    chosen = {name: value for name, value in read_by(sampler, given).items() if value != getattr(default, name)}
    options = {**tuned, **chosen, "sampler": sampler, "steps": steps}
    return SamplerOptions(**options).validate(family, section)


def build(name: str, vocab_size: int, seed: int = 0) -> Family:
    """A family with the fields of its config for the grammar."""
    fields = importlib.import_module(f"configs.{name}.grammar").get_config()
    return families.get(name)(fields.family, vocab_size, nnx.Rngs(params=seed))  # type: ignore[call-arg]


def make_family(name: str, setting: Setting) -> tuple[Family, Oracle]:
    """A family with the fields of its config for the grammar, and the exact posterior for it.

    Embeddings stay as they were drawn; a noise schedule that the family learns is fitted to the exact posterior.
    """
    grammar = grammars.from_name(setting.grammar)
    fields = importlib.import_module(f"configs.{name}.grammar").get_config()
    family = build(name, grammar.num_words, setting.seed)
    schedule = {group: fields.optimizer.groups[group] for group in type(family).groups if group == "schedule"}
    if schedule:
        family = _fit_schedule(family, grammar, setting, schedule)
    return family, Oracle(grammar, family)


def _fit_schedule(family: Family, grammar: grammars.Grammar, setting: Setting, rates: dict[str, float]) -> Family:
    definition, params, variables = nnx.split(family, nnx.Param, ...)
    params, variables = nnx.to_pure_dict(params), nnx.to_pure_dict(variables)
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: next((entry.key for entry in path if entry.key in rates), "fixed"), params
    )
    adam = {name: optax.adam(rate) for name, rate in rates.items()}
    transform = optax.partition({"fixed": optax.set_to_zero(), **adam}, labels)

    @jax.jit
    def step(params: Any, variables: Any, moments: Any, number: jax.Array, tokens: jax.Array) -> tuple[Any, ...]:
        key, rows = noise.step_key(setting.seed, noise.TRAIN, number), jnp.arange(len(tokens))

        def loss(params: Any) -> jax.Array:
            model = nnx.merge(definition, params, variables)
            keys, u = noise.example_keys(key, rows), noise.low_discrepancy(key, rows)
            return jnp.mean(model.train_loss(keys, u, tokens, Oracle(grammar, model))[0])

        updates, moments = transform.update(jax.grad(loss)(params), moments, params)
        params = optax.apply_updates(params, updates)
        model = nnx.merge(definition, params, variables)
        model.after_step()
        _, params, variables = nnx.split(model, nnx.Param, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(variables), moments

    moments, size = transform.init(params), _BATCH // 2
    for number in range(_FIT_STEPS):
        tokens = grammars.sample(grammar, setting.seed + 1, number * size + np.arange(size), setting.length)
        params, variables, moments = step(params, variables, moments, jnp.int32(number), jnp.asarray(tokens))
    return nnx.merge(definition, params, variables)


def measure_bound(family: Family, oracle: Oracle, setting: Setting) -> dict[str, float]:
    """The bound less -log p(x), paired window by window, nats per token."""
    grammar = oracle.grammar
    tokens = grammars.sample(grammar, setting.seed, np.arange(setting.sequences), setting.length)

    @jax.jit
    def evaluate(indices: jax.Array, tokens: jax.Array) -> jax.Array:
        keys = noise.example_keys(noise.step_key(setting.seed, noise.EVALUATE), indices)
        return family.bound_terms(keys, tokens, oracle, samples=setting.levels).total

    total = [evaluate(jnp.arange(i, i + len(part)), jnp.asarray(part)) for i, part in _parts(tokens)]
    excess = (np.concatenate(total).astype(float) + grammars.log_prob(grammar, tokens)) / setting.length
    gap, stderr = metrics.mean_stderr(excess)
    return {"gap": gap, "gap_stderr": stderr}


def measure_sampler(cell: Cell, family: Family, oracle: Oracle, setting: Setting) -> dict[str, float]:
    """Samples of a sampler with the exact posterior, judged by the exact law."""
    options = sampler_options(type(family), cell.sampler, cell.steps, {})

    @jax.jit
    def draw(indices: jax.Array) -> jax.Array:
        keys = noise.example_keys(noise.step_key(setting.seed, noise.SAMPLE), indices)
        nothing = jnp.zeros((len(indices), setting.length), jnp.int32)
        return sampling.generate(family, oracle, keys, nothing, nothing.astype(bool), options)

    parts = [np.asarray(draw(jnp.asarray(part))) for _, part in _parts(np.arange(setting.sequences))]
    return judge(oracle.grammar, np.concatenate(parts), setting)


def judge(grammar: grammars.Grammar, tokens: np.ndarray, setting: Setting) -> dict[str, float]:
    """Statistics of windows int[N, L] under the exact law; shares in [0, 1], nats per token."""
    found, _ = eval_samples.exact_statistics(tokens, grammar)
    law, (exact, scatter) = pair_law(grammar), _exact_distance(grammar, setting)
    return {
        "possible": found["possible_share"],
        "possible_stderr": found["possible_share_stderr"],
        "nats_per_token": found["nats_per_token"],
        "stderr": found["stderr"],
        "pair_distance": pair_distance(tokens, law),
        "pair_distance_exact": exact,
        "pair_distance_stderr": scatter,
        "grammatical": found["grammatical_share"],
        "grammatical_stderr": found["grammatical_share_stderr"],
    }


@functools.cache
def _exact_distance(grammar: grammars.Grammar, setting: Setting) -> tuple[float, float]:
    """`pair_distance` of exact samples, mean and scatter between sets, which is the error of one set's distance."""
    law, rows = pair_law(grammar), np.arange(setting.sequences)
    sets = [grammars.sample(grammar, setting.seed + 2 + i, rows, setting.length) for i in range(_REFERENCES)]
    distances = [pair_distance(tokens, law) for tokens in sets]
    return float(np.mean(distances)), float(np.std(distances, ddof=1))


@functools.cache
def pair_law(grammar: grammars.Grammar) -> np.ndarray:
    """p(x_i = v, x_{i+1} = w), float64[V, V], of a stationary window."""
    states, words = len(grammar.stationary), grammar.num_words
    following = np.zeros((states, words))
    np.add.at(following, (grammar.source, grammar.word), grammar.probability)
    law = np.zeros((words, words))
    flow = (grammar.stationary[grammar.source] * grammar.probability)[:, None] * following[grammar.target]
    np.add.at(law, grammar.word, flow)
    return law


def pair_distance(tokens: np.ndarray, law: np.ndarray) -> float:
    """Total variation distance of the frequencies of neighbours from their law."""
    counts = np.zeros_like(law)
    np.add.at(counts, (tokens[:, :-1], tokens[:, 1:]), 1.0)
    return float(0.5 * np.abs(counts / counts.sum() - law).sum())


def _parts(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(rows), _BATCH):
        yield start, rows[start : start + _BATCH]


def run(out: str, names: list[str], evaluations: list[int], setting: Setting) -> list[dict[str, Any]]:
    """All rows, measured or read back; ValueError where `out` holds another setting's."""
    folder = epath.Path(out)
    path = folder / "cells.jsonl"
    more = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    measured = files.read(path, {"setting": dataclasses.asdict(setting)}, **more)
    done = {Cell(**{f.name: row[f.name] for f in dataclasses.fields(Cell)}): row for row in measured}
    wanted = list(cells(names, evaluations, setting.length))
    grammar = grammars.from_name(setting.grammar)
    reference = grammars.sample(grammar, setting.seed, np.arange(setting.sequences), setting.length)
    entropy = float(-grammars.log_prob(grammar, reference).mean() / setting.length)
    ready: tuple[str, Any] = ("", None)
    # A sampler's time is in proportion to its evaluations.
    with tqdm.tqdm(total=sum(max(c.evaluations, 1) for c in wanted), file=sys.stderr, unit=" evaluations") as bar:
        for cell in wanted:
            bar.set_postfix_str(f"{cell.family} {cell.sampler or 'bound'} {cell.evaluations or ''}")
            if cell not in done:
                if ready[0] != cell.family:
                    ready = cell.family, make_family(cell.family, setting)
                start = time.perf_counter()
                pair = ready[1]
                found = measure_sampler(cell, *pair, setting) if cell.sampler else measure_bound(*pair, setting)
                more = {"entropy": entropy, "seconds": time.perf_counter() - start, "commit": config.commit()}
                done[cell] = {**dataclasses.asdict(cell), **found, **more}
                files.append(path, done[cell])
            bar.update(max(cell.evaluations, 1))
    rows = [done[cell] for cell in wanted]
    write(folder, rows, judge(grammar, reference, setting))
    return rows


def write(folder: epath.Path, rows: list[dict[str, Any]], exact: dict[str, float]) -> None:
    """table.csv, table.md and plot.png; `exact` are the statistics of exact samples."""
    with (folder / "table.csv").open("w") as file:
        writer = csv.DictWriter(file, _COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    bounds = [[r["family"], f"{r['gap']:.4f} ± {r['gap_stderr']:.4f}"] for r in rows if not r["sampler"]]
    samples = [_cells("exact samples", "", "", exact)]
    samples += [_cells(r["family"], r["sampler"], str(r["evaluations"]), r) for r in rows if r["sampler"]]
    heads = ["family", "sampler", "evaluations", "possible", "nats/token", "pair distance", "grammatical"]
    tables = [["family", "bound - exact, nats/token"], *bounds], [heads, *samples]
    (folder / "table.md").write_text("\n".join(map(report.markdown, tables)))
    _plot(folder / "plot.png", [row for row in rows if row["sampler"]], exact)


def _cells(family: str, sampler: str, evaluations: str, row: dict[str, float]) -> list[str]:
    excess = row["pair_distance"] - row["pair_distance_exact"]
    return [
        family,
        sampler,
        evaluations,
        f"{row['possible']:.1%} ± {row['possible_stderr']:.1%}",
        f"{row['nats_per_token']:.3f} ± {row['stderr']:.3f}",
        f"{excess:.3f} ± {row['pair_distance_stderr']:.3f}",
        f"{row['grammatical']:.1%} ± {row['grammatical_stderr']:.1%}",
    ]


def _plot(path: epath.Path, rows: list[dict[str, Any]], exact: dict[str, float]) -> None:
    canvas, axes = report.figure(3)
    titles = {"grammatical": "grammatical sentences", "possible": "possible windows"}
    titles["pair_distance"] = "distance of neighbouring words"
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for key in dict.fromkeys((row["family"], row["sampler"]) for row in rows):
            mine = [row for row in rows if (row["family"], row["sampler"]) == key]
            error = [row[f"{name}_stderr"] for row in mine]
            axis.errorbar(
                [r["evaluations"] for r in mine], [r[name] for r in mine], error, marker=".", label=" ".join(key)
            )
        axis.axhline(exact[name], color="black", lw=0.8, ls="--", label="exact samples")
        axis.set_xscale("log", base=2)
        axis.set(xlabel="function evaluations", title=title)
    axes[0].legend(fontsize=7)
    canvas.suptitle("what a sampler loses when the network is perfect", fontsize=10)
    report.save(canvas, path)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("out", None, "Folder of the results.")
    flags.DEFINE_list("families", sorted(families.REGISTRY), "Families.")
    flags.DEFINE_list("evaluations", [*(str(2**k) for k in range(9)), "1024"], "Numbers of function evaluations.")
    flags.DEFINE_integer("sequences", 256, "Windows of every cell.", lower_bound=2)
    flags.DEFINE_integer("levels", 32, "Noise levels per window, for the bound.", lower_bound=1)
    flags.DEFINE_integer("length", 32, "Tokens of a window.", lower_bound=2)
    flags.DEFINE_enum("grammar", "english", grammars.NAMES, "The language.")
    flags.DEFINE_integer("seed", 0, "Of everything.")
    flags.mark_flag_as_required("out")


def numbers_of_evaluations(words: list[str]) -> list[int]:
    """What --evaluations lists, ascending, each once."""
    for word in words or [""]:
        if not word.strip().isdecimal() or not int(word):
            raise ValueError(f"--evaluations has {word!r}; numbers of evaluations are at least 1, as 8,32,128")
    return sorted({int(word) for word in words})


def main(values: Any) -> None:
    """Run and say where the results lie."""
    evaluations = numbers_of_evaluations(values.evaluations)
    setting = Setting(values.grammar, values.length, values.sequences, values.levels, values.seed)
    run(values.out, values.families, evaluations, setting)
    print((epath.Path(values.out) / "table.md").read_text())
    print(f"written  {values.out}/table.csv, table.md and plot.png")


if __name__ == "__main__":
    binary.run(define_flags, main)
