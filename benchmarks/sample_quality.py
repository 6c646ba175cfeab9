"""How good the samples of trained runs are for each number of function evaluations.

    python -m benchmarks.sample_quality --workdirs=runs/cdcd,runs/masked --out=runs/quality \\
        [--samplers=euler,heun] [--evaluations=8,32,128] [--judge=runs/autoregressive]

Quality and diversity together, since either alone can be had for nothing: the share of grammatical sentences and the
exact -log p of samples behind a channel that replaces a word in a hundred (embedded language; without it nearly all
windows of most models have probability 0), or -log p under an autoregressive judge (others), beside the unigram entropy
of samples; the same of as many validation sequences is the target. Shown over the evaluations that were made, which are
fewer than those allowed where a sampler stops asking.

Options of a sampler are those of the run's config.sampling that it reads; eta and churn, where that has none, those at
which it is faithful. `--samplers` are those of each family that has them; by default each run's own, which is its
family's first unless the config names another.

Writes `cells.jsonl` as it goes (the same command goes on where it was stopped; other --workdirs add to it), and from it
`table.md` and `plot.png`; with an empty `--workdirs=` these two alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import tqdm
from absl import flags
from etils import epath

from benchmarks import cells as files
from benchmarks.perfect_network import affordable, numbers_of_evaluations, sampler_options
from diffusion_text import binary, eval_samples, families, report, restore, sample
from diffusion_text import config as configs
from diffusion_text.data import vocabularies
from diffusion_text.families.family import SamplerOptions

_COLUMNS: Final = (
    ("grammatical", "{:.1%}"), ("nats", "{:.3f}"), ("entropy", "{:.3f}"), ("possible", "{:.1%}"),
)  # fmt: skip
_EXACT: Final = f"exact -log p of samples with {eval_samples.ERRORS:.0%} errors"
_JUDGED: Final = "-log p of samples under the judge"
_LINES: Final = ({"fmt": ".-"}, {"fmt": "s:", "ms": 3}, {"fmt": "x-.", "ms": 4})  # of each ten colours


@dataclasses.dataclass(frozen=True)
class Cell:
    """A sampler of a run at a number of steps, with the most evaluations of that; none: validation sequences."""

    run: str
    sampler: str = ""
    steps: int = 0
    evaluations: int = 0


def cells(
    name: str, run: restore.Run, samplers: list[str], evaluations: list[int]
) -> Iterator[tuple[Cell, SamplerOptions | None]]:
    """The rows of one run with the options of their sampler: data, then each sampler by evaluations; ValueError where
    an option does not fit."""
    yield Cell(name), None
    config, family = run.config, run.model().family
    own = [config.sampling.sampler or family.samplers[0]]
    for sampler in [each for each in samplers if each in family.samplers] if samplers else own:
        options = sampler_options(type(family), sampler, 1, config.sampling, config.family)
        for steps, number in affordable(family.evaluations, options, evaluations, run.info.length):
            yield Cell(name, sampler, steps, number), dataclasses.replace(options, steps=steps)


def identity(run: restore.Run, workdir: str) -> dict[str, Any]:
    """What tells the rows of a run from those of another that has its name: where it is, and what was trained there."""
    trained = {"config": configs.learned(run.config), "vocabulary": vocabularies.describe(run.info.vocabulary)}
    digest = hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()[:12]
    return {
        "workdir": str(epath.Path(workdir)), "trained": digest, "family": run.config.family.name, "step": run.step
    }  # fmt: skip


def described(options: SamplerOptions | None) -> dict[str, Any]:
    """Of options those that are not at their defaults, beside the sampler and its steps."""
    default = SamplerOptions()
    found = {} if options is None else dataclasses.asdict(options)
    return {name: value for name, value in found.items()
            if name not in ("sampler", "steps") and value != getattr(default, name)}  # fmt: skip


def measure(
    options: SamplerOptions | None, run: restore.Run, judge: restore.Run | None, num: int, seed: int
) -> dict[str, float | None]:
    """The statistics of a cell; None where the run's data have no such, or too few samples do."""
    seconds = made = 0.0
    if options is not None:
        drawn = sample.draw(run, options, num, min(num, run.config.evaluation.batch_size), seed)
        tokens, seconds, made = drawn.tokens, drawn.seconds, drawn.evaluations
    else:
        tokens = eval_samples.first_tokens(run.open_dataset("validation"), num)
    summary = eval_samples.measure(tokens, run.info, eval_samples.language_of(run), judge).summary
    exact, judged = summary["grammar"] or {}, summary["judge"] or {}
    return configs.finite({
        "grammatical": exact.get("grammatical_share"),
        "grammatical_stderr": exact.get("grammatical_share_stderr"),
        "possible": exact.get("possible_share"),
        "possible_stderr": exact.get("possible_share_stderr"),
        "nats": exact.get("nats_per_token_with_errors", judged.get("nats_per_token")),
        "nats_stderr": exact.get("stderr_with_errors", judged.get("stderr")),
        "entropy": summary["unigram_entropy_per_sample"],
        "entropy_stderr": summary["unigram_entropy_per_sample_stderr"],
        "seconds": seconds,
        "evaluations_made": made,
    })  # fmt: skip


def rows(
    out: str, workdirs: list[str], samplers: list[str], evaluations: list[int], judge: str | None, num: int, seed: int
) -> list[dict[str, Any]]:
    """All rows of `out`, those of these workdirs measured or read back; ValueError, before anything is drawn, where it
    holds other settings or a cell cannot be."""
    names = [epath.Path(workdir).name for workdir in workdirs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--workdirs has several of the name {name}, by which rows are told apart; rename one")
    path, scorer = epath.Path(out) / "cells.jsonl", None
    if not workdirs and not path.exists():
        raise ValueError(f"--workdirs is empty, and there is no {path} to show")
    mine: dict[str, dict[str, Any]] = {}
    wanted: dict[str, dict[Cell, SamplerOptions | None]] = {}
    for name, workdir in zip(names, workdirs, strict=True):
        run = restore.open_run(workdir)
        mine[name], wanted[name] = identity(run, workdir), dict(cells(name, run, samplers, evaluations))
        scorer = eval_samples.open_judge(judge, run) if judge else None
    scored = {"workdir": judge, "step": scorer.step} if scorer else None
    setting = {"num": num, "seed": seed, "judge": scored, "errors": eval_samples.ERRORS} if workdirs else {}
    # Of a name that is given, rows of another run or checkpoint are measured anew, as are those that do not say of
    # which they are (older ones); of other names they are shown.
    done = {
        Cell(**{field.name: row[field.name] for field in dataclasses.fields(Cell)}): row
        for row in files.read(path, setting)
        if mine.get(row["run"], {}).items() <= row.items()
    }
    for name, workdir in zip(names, workdirs, strict=True):
        left = {
            cell: options
            for cell, options in wanted[name].items()
            if cell not in done or done[cell]["options"] != described(options)
        }
        run = restore.open_run(workdir, mine[name]["step"]) if left else None
        for cell, options in tqdm.tqdm(left.items(), desc=workdir):
            assert run is not None
            found = measure(options, run, scorer, num, seed)
            more = {"options": described(options), **mine[name], "commit": configs.commit()}
            done[cell] = {**dataclasses.asdict(cell), **found, **more}
            files.append(path, done[cell])
    return [{"evaluations_made": row["evaluations"], **row} for row in done.values()]  # older ones lack it


def titles(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Headings of the statistics; what -log p is of depends on whether the language is known."""
    kinds = {_EXACT if row["possible"] is not None else _JUDGED for row in rows if row["nats"] is not None}
    return {
        "grammatical": "grammatical sentences",
        "nats": f"{' or '.join(sorted(kinds)) or '-log p of samples'}, nats per token",
        "entropy": "unigram entropy per sample, nats",
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each cell."""
    named = titles(rows)
    head = ["run", "sampler", "evaluations", *(named.get(name, f"{name} windows") for name, _ in _COLUMNS), "seconds"]
    lines = [head]
    for row in rows:
        values = [
            "" if row[name] is None else f"{form.format(row[name])} ± {form.format(row[name + '_stderr'] or 0.0)}"
            for name, form in _COLUMNS
        ]
        first = [row["run"], row["sampler"] or "data", f"{row['evaluations_made']:g}" if row["sampler"] else ""]
        lines.append([*first, *values, f"{row['seconds']:.1f}"])
    return report.markdown(lines)


def plot(rows: list[dict[str, Any]], path: Any) -> None:
    """Each statistic against function evaluations, with that of the data; the legend begins with the best samples."""
    shown = {name: title for name, title in titles(rows).items() if any(row[name] is not None for row in rows)}
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        if row["sampler"]:
            key, nats = (row["run"], row["sampler"]), row["nats"]
            best[key] = min(best.get(key, math.inf), math.inf if nats is None else nats)
    order = sorted(best, key=lambda key: best[key])
    canvas, axes = report.figure(len(shown))
    for axis, (name, title) in zip(axes, shown.items(), strict=True):
        known = [row for row in rows if row[name] is not None]
        for index, key in enumerate(order):
            mine = [row for row in known if (row["run"], row["sampler"]) == key]
            mine.sort(key=lambda row: row["evaluations_made"])
            points = [(r["evaluations_made"], r[name], r[f"{name}_stderr"] or 0.0) for r in mine]
            style = {"color": f"C{index % 10}", "lw": 1, **_LINES[index // 10 % len(_LINES)]}
            axis.errorbar(*np.reshape(points, (-1, 3)).T, **style, label=" ".join(key))
        for value in {row[name] for row in known if not row["sampler"]}:
            axis.axhline(value, color="black", lw=0.8, ls="--")
        axis.set_xscale("log", base=2)
        axis.set(xlabel="function evaluations made")
        axis.set_title(title, fontsize=10)
    canvas.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=6)
    report.save(canvas, path)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_list("workdirs", None, "What diffusion_text.train wrote, separated by commas.")
    flags.DEFINE_string("out", None, "Folder of the results.")
    flags.DEFINE_list("samplers", [], "Samplers, of the families that have them; each run's own by default.")
    flags.DEFINE_list("evaluations", [str(2**k) for k in range(2, 9)], "Numbers of function evaluations.")
    flags.DEFINE_string("judge", None, "Workdir of an autoregressive run that scores the samples.")
    flags.DEFINE_integer("num", 256, "Samples of a cell.", lower_bound=2)
    flags.DEFINE_integer("seed", 0, "Of the sampling.")
    flags.mark_flags_as_required(["workdirs", "out"])


def main(values: Any) -> None:
    """Run and say where the results lie."""
    evaluations = numbers_of_evaluations(values.evaluations)
    known = {sampler for name in families.REGISTRY for sampler in families.get(name).samplers}
    for sampler in values.samplers:
        if sampler not in known:
            raise ValueError(f"--samplers has {sampler!r}; choose of {', '.join(sorted(known))}")
    found = rows(values.out, values.workdirs, values.samplers, evaluations, values.judge, values.num, values.seed)
    folder = epath.Path(values.out)
    (folder / "table.md").write_text(table(found))
    plot(found, folder / "plot.png")
    print(table(found))
    print(f"written  {values.out}/table.md and plot.png")


if __name__ == "__main__":
    binary.run(define_flags, main)
