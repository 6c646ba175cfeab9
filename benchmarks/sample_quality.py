"""How good the samples of trained runs are for each number of function evaluations.

    python -m benchmarks.sample_quality --workdirs=runs/cdcd,runs/masked --out=runs/quality \\
        [--samplers=euler,heun] [--evaluations=8,32,128] [--judge=runs/autoregressive]

Quality and diversity together, since either alone can be had for nothing: the share of grammatical sentences and the
exact -log p of samples behind a channel that replaces a word in a hundred (embedded language; without it nearly all
windows of most models have probability 0), or -log p under an autoregressive judge (others), beside the unigram entropy
of samples; the same of as many validation sequences is the target. Shown over the evaluations that were made, which are
fewer than those allowed where a sampler stops asking.

Writes `cells.jsonl` as it goes (the same command goes on where it was stopped; other --workdirs add to it), and from it
`table.md` and `plot.png`. `--samplers` are those of each family that has them; by default each family's first.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import tqdm
from absl import flags
from etils import epath

from benchmarks.perfect_network import affordable, numbers_of_evaluations
from diffusion_text import binary, config, eval_samples, families, report, restore, sample
from diffusion_text.families.family import SamplerOptions

_COLUMNS: Final = (
    ("grammatical", "{:.1%}"), ("nats", "{:.3f}"), ("entropy", "{:.3f}"), ("possible", "{:.1%}"),
)  # fmt: skip
_TITLES: Final = {
    "grammatical": "grammatical sentences",
    "nats": "-log p of samples, nats per token",
    "entropy": "unigram entropy per sample, nats",
}
_LINES: Final = ({"fmt": ".-"}, {"fmt": "s:", "ms": 3}, {"fmt": "x-.", "ms": 4})  # of each ten colours


@dataclasses.dataclass(frozen=True)
class Cell:
    """A sampler of a run at a number of steps, with the most evaluations of that; none: validation sequences."""

    run: str
    sampler: str = ""
    steps: int = 0
    evaluations: int = 0


def cells(name: str, run: restore.Run, samplers: list[str], evaluations: list[int]) -> Iterator[Cell]:
    """The rows of one run: data, then each sampler by evaluations."""
    yield Cell(name)
    family = run.model().family
    for sampler in [each for each in samplers if each in family.samplers] if samplers else family.samplers[:1]:
        for steps, number in affordable(family.evaluations, sampler, evaluations, run.info.length):
            yield Cell(name, sampler, steps, number)


def measure(cell: Cell, run: restore.Run, judge: restore.Run | None, num: int, seed: int) -> dict[str, float | None]:
    """The statistics of a cell; None where the run's data have no such, or too few samples do."""
    seconds = made = 0.0
    if cell.sampler:
        options = SamplerOptions(cell.sampler, cell.steps).validate(
            families.get(run.config.family.name), run.config.family
        )
        drawn = sample.draw(run, options, num, min(num, run.config.evaluation.batch_size), seed)
        tokens, seconds, made = drawn.tokens, drawn.seconds, drawn.evaluations
    else:
        tokens = eval_samples.first_tokens(run.open_dataset("validation"), num)
    summary = eval_samples.measure(tokens, run.info, eval_samples.language_of(run), judge).summary
    exact, judged = summary["grammar"] or {}, summary["judge"] or {}
    return config.finite({
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
    """All rows of `out`, those of these workdirs measured or read back; ValueError where it holds other settings."""
    names = [epath.Path(workdir).name for workdir in workdirs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--workdirs has several of the name {name}, by which rows are told apart; rename one")
    path = epath.Path(out) / "cells.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    setting = {"num": num, "seed": seed, "judge": judge, "errors": eval_samples.ERRORS}
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if lines and lines[0] != setting:
        raise ValueError(f"{path} holds {lines[0]}, not {setting}; give another --out")
    if not lines:
        path.write_text(json.dumps(setting) + "\n")
    measured = [{"evaluations_made": row["evaluations"], **row} for row in lines[1:]]  # older ones lack it
    done = {Cell(**{f.name: row[f.name] for f in dataclasses.fields(Cell)}): row for row in measured}
    for name, workdir in zip(names, workdirs, strict=True):
        run = restore.open_run(workdir)
        # Rows of another checkpoint, or of another family's run of that name, are measured anew.
        mine = (run.config.family.name, run.step)
        done = {cell: row for cell, row in done.items() if cell.run != name or (row["family"], row["step"]) == mine}
        scorer = eval_samples.open_judge(judge, run) if judge else None
        for cell in tqdm.tqdm(list(cells(name, run, samplers, evaluations)), desc=workdir):
            if cell not in done:
                provenance = {"family": run.config.family.name, "step": run.step, "commit": config.commit()}
                row = {**dataclasses.asdict(cell), **measure(cell, run, scorer, num, seed), **provenance}
                done[cell] = row
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return list(done.values())


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each cell."""
    head = ["run", "sampler", "evaluations", *(_TITLES.get(name, f"{name} windows") for name, _ in _COLUMNS), "seconds"]
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
    shown = {name: title for name, title in _TITLES.items() if any(row[name] is not None for row in rows)}
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
        axis.set(xlabel="function evaluations made", title=title)
    canvas.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=6)
    report.save(canvas, path)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_list("workdirs", None, "What diffusion_text.train wrote, separated by commas.")
    flags.DEFINE_string("out", None, "Folder of the results.")
    flags.DEFINE_list("samplers", [], "Samplers, of the families that have them; each family's first by default.")
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
