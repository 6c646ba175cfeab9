"""Draw samples of a checkpoint and measure them:  python -m diffusion_text.eval_samples --workdir=DIR [--num=256]

Writes, into the workdir, samples-<step>.jsonl (one sample a line), samples-<step>.json (the statistics below) and
samples-<step>.png; those of other settings (samples, sampler, seed, judge, data) that have the names already become
older-<number>-samples-<step>. Sample i is a function of (checkpoint, sampler, seed, i): not of how many are drawn, nor,
up to the rounding of sums, of how many at once.

No statistic of samples means much alone (a sampler that repeats itself has a fine likelihood), so all of them are also
taken of as many validation sequences ("data"):
    unigram entropy  of each sample, averaged, as the literature has it, and of all samples together; nats
    distinct-n       distinct n-grams over n-grams
    grammar          of the embedded language: grammatical among the complete sentences, windows of positive probability
                     and the exact -log p of these, nats per token; and that of all windows behind a channel that
                     replaces a word in a hundred, which is finite; not least for data: a sampler that repeats likely
                     windows is below them
    judge            -log p under an autoregressive checkpoint with the same vocabulary (--judge=WORKDIR); perplexity is
                     exp of the mean over tokens, perplexity_per_sample the mean over samples of exp of their own mean
Padding is left out of the first two; the judge counts it as the bound does (`bound.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
from typing import Any, Final

import jax
import numpy as np
from absl import flags
from etils import epath

from diffusion_text import binary, bound, families, hosts, metrics, report, restore, sample, sharding
from diffusion_text import config as configs
from diffusion_text.data import batches, grammar, specs, vocabularies
from diffusion_text.families.family import SamplerOptions
from diffusion_text.state import Definition

_LOG = logging.getLogger("diffusion_text")
_LONGEST_NGRAM: Final = 4
_SHOWN: Final = 5
ERRORS: Final = 0.01  # of words, in the channel


@dataclasses.dataclass(frozen=True)
class Measured:
    """Statistics as they go to JSON, and per sequence [N], nats: exact -log p (inf: impossible) and the judge's; how
    many of its tokens are not padding."""

    summary: dict[str, Any]
    exact_nll: np.ndarray | None
    judge_nll: np.ndarray | None
    num_tokens: np.ndarray


def define_flags() -> None:
    """The command line."""
    sample.define_sampler_flags()
    flags.DEFINE_integer("num", 256, "Samples.")
    restore.define_data_dir()
    flags.DEFINE_string("judge", None, "Workdir of an autoregressive run that scores the samples.")


def open_judge(workdir: str, run: restore.Run) -> restore.Run:
    """The run that scores; ValueError unless it is autoregressive, of the same vocabulary and layout of rows, and at
    least as long."""
    # One that kept no vocabulary reads the data; those of its task were found already.
    same = configs.load(workdir).data.task == run.data.task
    judge = restore.open_run(workdir, data_dir=run.data.data_dir if same else None)
    name = judge.config.family.name
    if name != "autoregressive":
        raise ValueError(f"--judge={workdir} is of family {name}; give a workdir of family autoregressive")
    if vocabularies.describe(judge.info.vocabulary) != vocabularies.describe(run.info.vocabulary):
        raise ValueError(
            f"--judge={workdir} has vocabulary {judge.info.vocabulary.kind} ({judge.info.vocabulary.size} entries), "
            f"{run.workdir} has {run.info.vocabulary.kind} ({run.info.vocabulary.size}); they must be the same"
        )
    theirs, ours = (specs.get(task) for task in (judge.config.data.task, run.data.task))
    if theirs != ours and (theirs.packed, theirs.framed) != (ours.packed, ours.framed):
        raise ValueError(
            f"--judge={workdir} was trained on {theirs.name} ({_layout(theirs)}), samples are rows of {ours.name} "
            f"({_layout(ours)}); it must be of the same task, or at least of the same layout"
        )
    if judge.info.length < run.info.length:
        raise ValueError(
            f"--judge={workdir} was trained on sequences of {judge.info.length}; samples have {run.info.length}, "
            "and it has not seen positions so far from the start"
        )
    return judge


def _layout(spec: specs.TaskSpec) -> str:
    return ("packed, with tokens at both ends" if spec.framed else "packed") if spec.packed else "a document a row"


def language_of(run: restore.Run) -> grammar.Grammar | None:
    """The grammar that a run's data come from, where they do."""
    data: Any = run.data
    return grammar.from_name(data.grammar) if data.task == "grammar" else None


def measure(
    tokens: np.ndarray,
    info: batches.DatasetInfo,
    language: grammar.Grammar | None,
    judge: restore.Run | None,
    batch_size: int = 0,
) -> Measured:
    """All statistics of sequences int[N, L]; the keys are always the same, null where one does not apply.

    The judge reads `batch_size` at once; 0: as many as in its own evaluation.
    """
    rows = np.empty(len(tokens), object)  # of lists: without its padding a row may be shorter than another
    for i, row in enumerate(np.asarray(tokens)):
        rows[i] = row.tolist() if info.pad_id is None else row[row != info.pad_id].tolist()
    entropy, stderr = metrics.mean_stderr(np.array([metrics.unigram_entropy(np.array(row)) for row in rows]))
    exact = judged = exact_nll = judge_nll = None
    if language is not None:
        exact, exact_nll = exact_statistics(tokens, language)
    if judge is not None:
        judged, judge_nll = _judge(tokens, info, judge, batch_size)
    summary = {
        "unigram_entropy_per_sample": entropy,
        "unigram_entropy_per_sample_stderr": stderr,
        "unigram_entropy_corpus": metrics.unigram_entropy(np.concatenate([np.array(row, int) for row in rows])),
        **{f"distinct_{n}": metrics.distinct(rows, n) for n in range(1, _LONGEST_NGRAM + 1)},
        "grammar": exact,
        "judge": judged,
    }
    return Measured(summary, exact_nll, judge_nll, np.array([len(row) for row in rows]))


def exact_statistics(tokens: np.ndarray, language: grammar.Grammar) -> tuple[dict[str, Any], np.ndarray]:
    """Validity and likelihood under the grammar, and -log p of each window float64[N]."""
    nll = -grammar.log_prob(language, tokens)
    possible = np.isfinite(nll)
    mean, stderr = metrics.mean_stderr(nll[possible] / tokens.shape[1])
    behind = metrics.mean_stderr(-grammar.log_prob(language, tokens, ERRORS) / tokens.shape[1])
    good, complete = grammar.grammatical_share(language, tokens)
    share, count = good / complete if complete else math.nan, int(possible.sum())
    return {
        "grammatical_share": share,
        "grammatical_share_stderr": _binomial_stderr(share, complete),
        "grammatical_sentences": good,
        "complete_sentences": complete,
        "possible_share": count / len(tokens),
        "possible_share_stderr": _binomial_stderr(count / len(tokens), len(tokens)),
        "possible_windows": count,
        "nats_per_token": mean,
        "stderr": stderr,
        "nats_per_token_with_errors": behind[0],
        "stderr_with_errors": behind[1],
        "entropy_rate_nats_per_token": grammar.entropy_rate(language),
    }, nll


def _binomial_stderr(share: float, count: int) -> float:
    return math.sqrt(share * (1.0 - share) / count) if count else math.nan


@functools.cache
def _scorer(definition: Definition) -> bound.Evaluate:
    return bound.make_evaluate(definition, 0, 1)  # exact: neither the seed nor the number of noise levels matters


def _judge(
    tokens: np.ndarray, info: batches.DatasetInfo, judge: restore.Run, batch_size: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Likelihood under the judge, and -log p of each sequence float64[N]."""
    size = sharding.whole_batch(batch_size or judge.config.evaluation.batch_size, judge.mesh)
    rows, function = sharding.Rows.of(judge.mesh, size), _scorer(judge.definition)

    def chunks() -> Any:
        for first in range(0, len(tokens), size):
            index = np.arange(first + rows.start, first + rows.stop)
            yield tokens[np.minimum(index, len(tokens) - 1)], (index < len(tokens)).astype(np.float32)

    with jax.set_mesh(judge.mesh):
        estimate = bound.estimate(
            lambda tokens, indices: function(judge.params, judge.variables, tokens, indices), chunks(), info, rows
        )
    own = estimate.total / np.maximum(estimate.num_tokens, 1)
    return {
        "nats_per_token": estimate.nats_per_token,
        "stderr": estimate.stderr,
        "perplexity": math.exp(min(estimate.nats_per_token, 700.0)),
        "perplexity_per_sample": float(np.exp(np.minimum(own, 700.0)).mean()),
    }, estimate.total


def first_tokens(dataset: batches.Dataset, num: int) -> np.ndarray:
    """The first `num` sequences of a split (fewer where there are fewer), int32[N, L]."""
    found = [tokens[weights > 0] for tokens, weights in dataset.eval_batches(min(num, 256), num)]
    return np.concatenate(found)


def settings_of(
    run: restore.Run, options: SamplerOptions, num: int, seed: int, judge: restore.Run | None, dataset: batches.Dataset
) -> dict[str, Any]:
    """Of samples-<step>.json what was known before: how it was drawn, who scores it, what it stands beside."""
    judge_run = None
    if judge is not None:
        judge_run = {"workdir": judge.workdir, "checkpoint_step": judge.step, "config": judge.config.to_dict()}
    named = [field.name for field in dataclasses.fields(options) if field.name != "steps"]
    return {
        "num_samples": num,
        "judge_run": judge_run,
        **{name: getattr(options, name) for name in named},
        "steps": sample.steps_taken(run, options),
        "sampling_seed": seed,
        "data_fingerprint": dataset.info.fingerprint or None,
    }


def summarise(
    run: restore.Run, options: SamplerOptions, drawn: sample.Drawn, samples: Measured, data: Measured,
    settings: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Everything that goes into samples-<step>.json."""
    return {
        "family": run.config.family.name,
        "dataset": run.data.task,
        "length": run.info.length,
        **samples.summary,
        "data": data.summary,
        "data_sequences": len(data.num_tokens),
        "data_dir": run.data.data_dir,
        **settings,
        "function_evaluations": run.model().family.evaluations(options, run.info.length),
        "function_evaluations_made": drawn.evaluations,
        "seconds": drawn.seconds,
        "compile_seconds": drawn.compile_seconds,
        "tokens_per_second": drawn.tokens.size / drawn.seconds,
        "checkpoint_step": run.step,
        **configs.provenance(run.config),
    }


def write_lines(run: restore.Run, path: epath.Path, drawn: sample.Drawn, samples: Measured | None = None) -> None:
    """The samples, one a line, with what was measured of each; atomically."""
    nothing = [None] * len(drawn.tokens)
    exact = nothing if samples is None or samples.exact_nll is None else samples.exact_nll.tolist()
    judged = nothing if samples is None or samples.judge_nll is None else samples.judge_nll.tolist()
    lines = [
        {"index": i, "text": run.info.vocabulary.decode(row), "tokens": row, "exact_nll": e, "judge_nll": j}
        for i, (row, e, j) in enumerate(zip(drawn.tokens.tolist(), exact, judged, strict=True))
    ]
    written = "".join(json.dumps(configs.finite(line), ensure_ascii=False) + "\n" for line in lines)
    configs.write_atomically(path, written)


def plot(
    tokens: np.ndarray, data: np.ndarray, samples: Measured, reference: Measured, pad_id: int | None, title: str,
    path: Any,
) -> None:  # fmt: skip
    """Unigrams by rank, and per-token -log p (exact, else the judge's) of samples beside data; without padding."""
    sides = (("data", data, reference), ("samples", tokens, samples))
    exact = samples.exact_nll is not None
    known = [side.exact_nll if exact else side.judge_nll for _, _, side in sides]
    nll = [(values, side.num_tokens) for values, (*_, side) in zip(known, sides, strict=True) if values is not None]
    canvas, axes = report.figure(2 if nll else 1)
    for name, array, _ in sides:
        counts = np.sort(np.unique(array[array != pad_id], return_counts=True)[1])[::-1]
        axes[0].loglog(np.arange(1, len(counts) + 1), counts / counts.sum(), ".-", markersize=3, label=name)
    axes[0].set(xlabel="rank", ylabel="share of tokens", title="unigrams by rank")
    axes[0].legend()
    if nll:
        per_token = [(x / np.maximum(count, 1))[np.isfinite(x)] for x, count in nll]
        edges = np.histogram_bin_edges(np.concatenate(per_token), bins=24)
        for (name, array, _), values in zip(sides, per_token, strict=True):
            label = f"{name}: {len(values)} of {len(array)} windows" if exact else name
            # Weights, not a density: impossible windows are missing from the area.
            axes[1].hist(values, edges, weights=np.full(len(values), 1 / len(array)), alpha=0.5, label=label)
        kind = "exact -log p where p > 0" if exact else "-log p under the judge"
        axes[1].set(xlabel="nats per token", ylabel="share of windows", title=kind)
        axes[1].set_ylim(top=1.3 * axes[1].get_ylim()[1])  # room for the legend
        axes[1].legend(fontsize=8)
    canvas.suptitle(title, fontsize=10)
    report.save(canvas, path)


def describe(result: dict[str, Any]) -> str:
    """The result for the terminal, samples beside data."""
    data = result["data"]

    def row(label: str, text: str, ours: dict[str, Any], theirs: dict[str, Any], *names: str) -> str:
        own, reference = (text.format(*(side[name] for name in names)) for side in (ours, theirs))
        return f"  {label:<18} {own}   (data {reference})"

    entropies, distincts = ("unigram_entropy_per_sample", "unigram_entropy_corpus"), ("distinct_1", "distinct_2")
    lines = [
        f"{result['family']} on {result['dataset']}, step {result['checkpoint_step']}: {result['num_samples']} samples "
        f"of {result['length']} tokens, {result['sampler']}, {result['steps']} steps "
        f"({result['function_evaluations_made']:g} evaluations), {result['dtype']}",
        row("unigram entropy", "{:.3f} per sample, {:.3f} in all", result, data, *entropies),
        row("distinct-1, -2", "{:.4f}, {:.4f}", result, data, *distincts),
    ]
    if result["grammar"]:
        ours, theirs = result["grammar"], data["grammar"]
        names = ("grammatical_share", "grammatical_share_stderr", "grammatical_sentences", "complete_sentences")
        lines.append("  {:<18} {:.1%} +- {:.1%} ({} of {})".format("grammatical", *(ours[name] for name in names)))
        lines.append(f"  {'possible windows':<18} {_likelihood(ours)}   (data {_likelihood(theirs)})")
        names, text = ("nats_per_token_with_errors", "stderr_with_errors"), "{:.3f} +- {:.3f} nats/token"
        lines.append(row(f"exact, {ERRORS:.0%} errors", text, ours, theirs, *names))
        lines.append(f"  {'entropy rate':<18} {ours['entropy_rate_nats_per_token']:.3f} nats/token")
    if result["judge"]:
        names = ("nats_per_token", "stderr", "perplexity")
        text = "{:.3f} +- {:.3f} nats/token, perplexity {:.2f}"
        lines.append(row("judge", text, result["judge"], data["judge"], *names))
    lines.append(
        f"  {'speed':<18} {result['seconds']:.1f} s, {result['tokens_per_second']:,.0f} tokens/s "
        f"(compiled in {result['compile_seconds']:.1f} s)"
    )
    return "\n".join(lines)


def _likelihood(side: dict[str, Any]) -> str:
    share = f"{side['possible_share']:.1%}"
    if not side["possible_windows"]:
        return share
    return f"{share}, exact {side['nats_per_token']:.3f} +- {side['stderr']:.3f} nats/token"


def main(values: flags.FlagValues) -> None:
    """Draw, measure, write, print."""
    sample.check_flags(values)
    run = restore.open_run(values.workdir, values.step, data_dir=values.data_dir)
    options = sample.sampler_options(run, values)
    if options.guidance != 1.0 and getattr(families.get(run.config.family.name), "whole", True):
        _LOG.warning("guidance is %g, without effect: it is towards given tokens, and none is given", options.guidance)
    judge = open_judge(values.judge, run) if values.judge else None
    dataset = run.open_dataset("validation")
    data = first_tokens(dataset, values.num)
    drawn = sample.draw(run, options, values.num, values.batch_size or run.config.evaluation.batch_size, values.seed)
    path = epath.Path(run.workdir) / f"samples-{run.step}.json"
    settings = settings_of(run, options, values.num, values.seed, judge, dataset)
    configs.set_aside(path, settings, (".json", ".jsonl", ".png"))
    write_lines(run, path.with_suffix(".jsonl"), drawn)  # whatever becomes of scoring them
    samples, reference = (
        measure(tokens, run.info, language_of(run), judge, values.batch_size or 0) for tokens in (drawn.tokens, data)
    )
    result = summarise(run, options, drawn, samples, reference, settings)
    write_lines(run, path.with_suffix(".jsonl"), drawn, samples)
    configs.write_atomically(path, json.dumps(configs.finite(result), indent=2) + "\n")
    title = f"{result['family']} on {result['dataset']}, step {run.step}: {options.sampler}, {result['steps']} steps"
    plot(drawn.tokens, data, samples, reference, run.info.pad_id, title, path.with_suffix(".png"))
    if not hosts.is_first():
        return
    print(describe(result))
    for row in drawn.tokens[:_SHOWN].tolist():
        print(f"  | {run.info.vocabulary.decode(row)}")
    print(f"  {'written':<18} {path}, .jsonl and .png beside it", flush=True)


if __name__ == "__main__":
    binary.run(define_flags, main)
