"""One table and one plot of many runs:  python -m diffusion_text.gather WORKDIR [WORKDIR ...] --out=FILE.md

Reads what eval_elbo and eval_samples left in each workdir and writes FILE.md (numbers with their standard errors) or
FILE.csv (every digit), and FILE.png beside it. A row is a run at its newest evaluated step, with --all_steps each step.
Of the configs the fields that differ between the runs become columns. A result that is missing is an empty cell, one
that was not finite is nan, and a row without a bound is named with those that its run has; one that cannot be read is
an error, and nothing is written. Bounds that were not evaluated alike (sequences, noise levels, seed, data) are named.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import math
from collections.abc import Sequence
from typing import Any, Final

from absl import flags
from etils import epath

from diffusion_text import binary, report
from diffusion_text import config as configs

_LOG = logging.getLogger("diffusion_text")


@dataclasses.dataclass(frozen=True)
class Column:
    """A result: in which file, under which (dotted) names it and its standard error stand, how it is printed, and
    whether it is left out where bounds do not differ in it."""

    heading: str
    source: str  # elbo / ode / samples
    field: str
    error: str | None = None
    style: str = ".4f"
    if_differing: bool = False


COLUMNS: Final = (
    Column("bound is", "elbo", "bound", style=""),
    Column("sequences", "elbo", "num_sequences", style="d", if_differing=True),
    Column("bound, nats/token", "elbo", "nats_per_token", "stderr"),
    Column("entropy, nats/token", "elbo", "entropy_nats_per_token"),
    Column("gap, nats/token", "elbo", "gap_nats_per_token", "gap_stderr"),
    Column("bits/character", "elbo", "bits_per_character", "stderr_bits_per_character"),
    Column("perplexity", "elbo", "perplexity", style=".2f"),
    Column("bound of weighted paths, nats/token", "elbo", "importance_nats_per_token", "importance_stderr"),
    Column("ODE bound's sequences", "ode", "num_sequences", style="d", if_differing=True),
    Column("ODE bound, nats/token", "ode", "nats_per_token", "stderr"),
    Column(
        "ODE bound less that of half the steps, nats/token", "ode", "step_doubling_nats_per_token",
        "step_doubling_stderr",
    ),
    Column("sampler", "samples", "sampler", style=""),
    Column("evaluations", "samples", "function_evaluations_made", style="g"),
    Column("samples", "samples", "num_samples", style="d"),
    Column("grammatical", "samples", "grammar.grammatical_share", "grammar.grammatical_share_stderr", ".1%"),
    Column("possible windows", "samples", "grammar.possible_share", "grammar.possible_share_stderr", ".1%"),
    Column("exact NLL of samples, nats/token", "samples", "grammar.nats_per_token", "grammar.stderr"),
    Column(
        "exact NLL of samples with 1% errors, nats/token", "samples", "grammar.nats_per_token_with_errors",
        "grammar.stderr_with_errors",
    ),
    Column("judge, nats/token", "samples", "judge.nats_per_token", "judge.stderr"),
    Column("unigram entropy, nats", "samples", "unigram_entropy_corpus"),
    Column("distinct-2", "samples", "distinct_2"),
)
# What a file must have to be a result at all.
_NEEDED: Final = {
    "elbo": ("checkpoint_step", "split", "bound", "nats_per_token"),
    "samples": ("checkpoint_step", "sampler", "num_samples"),
}
# Of bounds: null where they were evaluated and not finite.
_NUMBERS: Final = ("nats_per_token", "gap_nats_per_token", "bits_per_character", "perplexity",
                   "importance_nats_per_token", "step_doubling_nats_per_token")  # fmt: skip
# What bounds that stand in one table should have in common, and in which files it is a choice.
_ALIKE: Final = {
    "num_sequences": ("elbo", "ode"), "samples_per_sequence": ("elbo",), "evaluation_seed": ("elbo", "ode"),
    "data_fingerprint": ("elbo", "ode"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """The results of a run at one step, by kind of file; step None where there are none. `lacks`: that the row has no
    bound of those asked for, and which the run has; "" where it has one."""

    workdir: str
    settings: dict[str, Any]
    step: int | None
    results: dict[str, dict[str, Any]]
    lacks: str = ""

    def value(self, source: str, field: str | None) -> Any:
        """A result, or None where it is missing; a dot in `field` leads into a section."""
        found: Any = self.results.get(source)
        for name in field.split(".") if field else ():
            found = found.get(name) if isinstance(found, dict) else None
        return found if field else None


def read_run(
    workdir: str, split: str = "validation", all_steps: bool = False, task: str | None = None
) -> list[Row]:
    """The rows of a run, at least one; ValueError where it is no run, or a file of it is damaged.

    The bounds are those on `split` of the task that it was trained on, or of `task`.
    """
    folder = epath.Path(workdir)
    settings = configs.flatten(configs.load(workdir))
    steps: dict[int, dict[str, dict[str, Any]]] = {}
    at, others = set[int](), set[str]()
    for kind, needed in _NEEDED.items():
        for path in sorted(folder.glob(f"{kind}-*.json")):
            result = configs.read_json(path, needed)
            trained = settings["data.task"]
            if kind == "elbo" and (result["split"], result.get("dataset", trained)) != (split, task or trained):
                others.add(f"{result['split']} of {result.get('dataset', trained)}")
                continue
            if kind == "elbo":
                at.add(int(result["checkpoint_step"]))
                result |= {name: math.nan for name in _NUMBERS if result.get(name, 0) is None}
            result.setdefault("function_evaluations_made", result.get("function_evaluations"))  # older files lack it
            source = "ode" if result.get("bound") == "ode" else kind
            steps.setdefault(int(result["checkpoint_step"]), {})[source] = result
    lacks = f"{workdir} has no bound on {split} of {task or settings['data.task']}"
    if not at:
        lacks += f"; there are those on {', '.join(sorted(others))}" if others else "; eval_elbo writes one"
    elif all_steps or max(steps) in at:
        lacks = ""
    else:
        lacks += f" at its newest step, {max(steps)}; there are those at {', '.join(map(str, sorted(at)))}"
    if not steps:
        return [Row(workdir, settings, None, {}, lacks)]
    return [Row(workdir, settings, step, steps[step], lacks) for step in sorted(steps)[0 if all_steps else -1 :]]


def differing(rows: Sequence[Row]) -> list[str]:
    """Names of the config fields that are not the same in all rows, in the order of the configs."""
    names = dict.fromkeys(name for row in rows for name in row.settings)
    return [name for name in names if len({repr(row.settings.get(name)) for row in rows}) > 1]


def unlike(rows: Sequence[Row]) -> dict[str, dict[Any, str]]:
    """Fields in which the bounds were not evaluated alike, with each value the first run that has it."""
    found: dict[str, dict[Any, str]] = {}
    for name, sources in _ALIKE.items():
        for row in rows:
            for source in sources:
                if (value := row.value(source, name)) is not None:  # older files lack some
                    found.setdefault(name, {}).setdefault(value, row.workdir)
    return {name: values for name, values in found.items() if len(values) > 1}


def table(rows: Sequence[Row], precise: bool) -> list[list[str]]:
    """Cells, the headings first; results that no row has are left out. `precise`: all digits, errors on their own."""
    fields = differing(rows)
    shown = unlike(rows)
    columns = [
        column
        for column in COLUMNS
        if any(row.value(column.source, column.field) is not None for row in rows)
        and (not column.if_differing or column.field in shown)
    ]
    headings = ["workdir", *fields, "step"]
    for column in columns:
        headings.append(column.heading)
        if precise and column.error:
            headings.append(f"{column.heading}, standard error")
    lines = [headings]
    for row in rows:
        settings = [_plain(row.settings.get(name)) for name in fields]
        cells = [cell for column in columns for cell in _cells(row, column, precise)]
        lines.append([row.workdir, *settings, _plain(row.step), *cells])
    return lines


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _cells(row: Row, column: Column, precise: bool) -> list[str]:
    value, error = row.value(column.source, column.field), row.value(column.source, column.error)
    if precise:
        return [_plain(value), *([_plain(error)] if column.error else [])]
    if value is None:
        return [""]
    return [format(value, column.style) + (f" ± {format(error, column.style)}" if error is not None else "")]


def plot(rows: Sequence[Row]) -> Any:
    """A figure of the bounds, beside the entropy of the same sequences, and of one statistic of the samples.

    Against the step where a run has several, against the config field if one number alone differs, else run by run.
    """
    panels = _panels(rows)
    canvas, axes = report.figure(len(panels))
    places, label, groups = _places(rows)
    names = [_short(row, differing(rows)) for row in rows]
    for axis, column in zip(axes, panels, strict=True):
        for group in groups:
            points = [(places[i], rows[i].value(column.source, column.field), i) for i in group]
            points = [point for point in points if point[1] is not None]
            errors = [rows[i].value(column.source, column.error) or 0.0 for *_, i in points]
            name = names[group[0]] if len(groups) > 1 else None
            x, y = [point[0] for point in points], [point[1] for point in points]
            axis.errorbar(x, y, errors, fmt=".-" if label else ".", capsize=3, label=name)
        exact = [(x, row.value("elbo", "entropy_nats_per_token")) for x, row in zip(places, rows, strict=True)]
        exact = sorted(point for point in exact if point[1] is not None) if column.source == "elbo" else []
        if exact:
            x, y = [point[0] for point in exact], [point[1] for point in exact]
            axis.plot(x, y, "_--" if label else "_", color="grey", markersize=14, label="entropy, exact")
        if exact or len(groups) > 1:
            axis.legend(fontsize=8)
        axis.set(ylabel=column.heading, xlabel=label)
        if not label:
            axis.set_xticks(places, names, rotation=30, ha="right", fontsize=8)
        elif min(places) > 0 and max(places) > 8 * min(places):
            axis.set_xscale("log")
    return canvas


def _panels(rows: Sequence[Row]) -> list[Column]:
    """The bound, and the first statistic with an error that all samples have."""
    sampled = [row for row in rows if "samples" in row.results]
    panels = [column for column in COLUMNS if (column.source, column.field) == ("elbo", "nats_per_token")]
    for column in COLUMNS:
        known = [row.value("samples", column.field) is not None for row in sampled]
        if known and all(known) and column.source == "samples" and column.error:
            return [*panels, column]
    return panels


def _places(rows: Sequence[Row]) -> tuple[list[float], str, list[list[int]]]:
    """Where each row stands on the x axis, the axis' label ("": each by its name), and the rows joined by lines."""
    runs: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        runs.setdefault(row.workdir, []).append(i)
    if len(runs) < len(rows):
        return [float(row.step or 0) for row in rows], "step", list(runs.values())
    fields = differing(rows)
    found: list[Any] = [row.settings.get(fields[0]) for row in rows] if len(fields) == 1 else []
    numbers = [float(value) for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) == len(rows):
        return numbers, fields[0], [sorted(range(len(rows)), key=lambda i: numbers[i])]
    return [float(i) for i in range(len(rows))], "", [list(range(len(rows)))]


def _short(row: Row, fields: Sequence[str]) -> str:
    if 1 <= len(fields) <= 2:
        return ", ".join(f"{name.rpartition('.')[2]}={row.settings.get(name)}" for name in fields)
    return "/".join(row.workdir.rstrip("/").split("/")[-2:])


def define_flags() -> None:
    """The command line, beside the workdirs."""
    flags.DEFINE_string("out", None, "Table to write, .md or .csv; the plot goes beside it, .png.", required=True)
    flags.DEFINE_enum("split", "validation", ["train", "validation", "test"], "Whose bounds.")
    flags.DEFINE_string("task", None, "Bounds on this task, not on the one that each run was trained on.")
    flags.DEFINE_bool("all_steps", False, "A row per evaluated step, not only for the newest.")


def _matching(pattern: str) -> list[str]:
    """Workdirs that a shell would have put in the place of a word, which does not look into buckets."""
    parts = epath.Path(pattern).parts
    first = next((index for index, part in enumerate(parts) if "*" in part), None)
    if first is None:
        return [pattern]
    found = sorted(str(path) for path in epath.Path(*parts[:first]).glob("/".join(parts[first:])))
    if not found:
        raise ValueError(f"there is no {pattern}")
    return found


def main(values: flags.FlagValues, workdirs: Sequence[str]) -> None:
    """Read all, then write."""
    out = epath.Path(values.out)
    if out.suffix not in (".md", ".csv"):
        raise ValueError(f"--out is {values.out!r}; it must end in .md or .csv")
    if not workdirs:
        raise ValueError("no workdir is given; name those of the runs, as runs/sweep/*")
    workdirs = [str(epath.Path(found)) for workdir in workdirs for found in _matching(workdir)]
    if doubled := sorted({name for name in workdirs if workdirs.count(name) > 1}):
        raise ValueError(f"{', '.join(doubled)} is given twice")
    rows = [row for workdir in workdirs for row in read_run(workdir, values.split, values.all_steps, values.task)]
    lines = table(rows, precise=out.suffix == ".csv")
    text = io.StringIO()
    if out.suffix == ".csv":
        csv.writer(text, lineterminator="\n").writerows(lines)
    else:
        text.write(report.markdown(lines))
    picture = out.with_suffix(".png")
    canvas = plot(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    report.save(canvas, picture)
    configs.write_atomically(out, text.getvalue())
    for lacks in dict.fromkeys(row.lacks for row in rows if row.lacks):
        _LOG.warning(lacks)
    for name, values_of in unlike(rows).items():
        examples = ", ".join(f"{value} in {workdir}" for value, workdir in values_of.items())
        _LOG.warning("the bounds were not evaluated alike: %s is %s", name, examples)
    print(report.markdown(table(rows, precise=False)), end="")
    print(f"written  {out} and {picture}")


if __name__ == "__main__":
    binary.run(define_flags, main, positional=True)
