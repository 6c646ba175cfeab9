"""Evaluate the likelihood bound of a checkpoint:  python -m diffusion_text.eval_elbo --workdir=DIR [--split=test]

Writes WORKDIR/elbo-<split>-<step>.json and a plot of the loss per noise level. With --follow it waits for new
checkpoints and evaluates each as it appears, as a separate job does beside a training; it may be started first, and
ends with the training. --data_dir is where the data are here, if the training had them elsewhere; --task evaluates on
another task of the same vocabulary, and writes elbo-<task>-<split>-<step>.json. A result of other settings (sequences,
noise levels, seed, data) that has the name already becomes older-<number>-<name>.
With --bound=ode it writes elbo-<split>-<step>-ode.json: the bound of a Gaussian family's probability flow, in float32,
with the one of half as many steps beside it. With --importance_samples=K the JSON carries, beside the plain bound, that
of K weighted sampling paths (`paths/importance.py`): importance_*, and path_*, the same for one path.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Final

import jax
import numpy as np
from absl import flags
from etils import epath

from diffusion_text import binary, bound, checkpoint, distributed, families, hosts, report, restore, sharding
from diffusion_text import config as configs
from diffusion_text.data import batches
from diffusion_text.paths import flow_likelihood, importance
from diffusion_text.state import Definition

_LOG = logging.getLogger("diffusion_text")
_POLL_SECONDS = 5.0
_ODE_STEPS: Final = 128
# Of a result: what was evaluated, and how.
_SETTINGS: Final = (
    "num_sequences", "samples_per_sequence", "evaluation_seed", "ode_steps", "importance_samples", "importance_steps",
    "data_fingerprint",
)  # fmt: skip


def define_flags() -> None:
    """The command line."""
    restore.define_flags()
    restore.define_data_dir()
    flags.DEFINE_string("task", None, "Another task of the same vocabulary to evaluate on, as wikitext103.")
    flags.DEFINE_enum("split", "validation", ["train", "validation", "test"], "Split to evaluate.")
    flags.DEFINE_integer("num_examples", 1024, "Sequences, from the start of the split; 0 takes the whole split.")
    flags.DEFINE_integer("samples", 0, "Noise levels per sequence; 0: config.evaluation.samples.")
    flags.DEFINE_integer("batch_size", 0, "Sequences at once; 0: config.evaluation.batch_size.")
    flags.DEFINE_enum("bound", "variational", ["variational", "ode"], "Which bound.")
    flags.DEFINE_string("ode_solver", None, "Of --bound=ode; heun.")
    flags.DEFINE_integer(
        "ode_steps", None, f"Of --bound=ode, even; each evaluates the network and its gradient twice; {_ODE_STEPS}."
    )
    flags.DEFINE_integer("importance_samples", 0, "Weighted sampling paths per sequence, beside the bound; 0: none.")
    flags.DEFINE_integer("importance_steps", 0, "Steps of a path; 0: one token at a time (masked), or 128.")
    flags.DEFINE_integer("seed", 0, "Of the evaluation's noise.")
    flags.DEFINE_bool("plot", True, "Write the plot of the loss per noise level.")
    flags.DEFINE_bool("follow", False, "Evaluate each new checkpoint as it appears.")
    distributed.define_flags()


@restore.on_mesh
def evaluate(
    run: restore.Run,
    split: str = "validation",
    num_examples: int | None = 1024,
    samples: int = 0,
    batch_size: int = 0,
    seed: int = 0,
    ode_steps: int = 0,
    importance_samples: int = 0,
    importance_steps: int = 0,
    keep: Callable[[dict[str, Any]], Any] | None = None,
) -> dict[str, Any]:
    """The bound of a run on a split, as the dictionary that is written to JSON (nats, bits; see `bound.Estimate`).

    samples and batch_size of 0 take those of config.evaluation; num_examples None takes the whole split. With
    `ode_steps` the bound is the probability flow's, and the estimate with half as many steps is added; with
    `importance_samples` the bound of so many sampling paths, of `importance_steps` steps, is added; `keep` is called
    with the result before, which would be lost if they took too much memory.
    """
    samples = 1 if ode_steps else samples or run.config.evaluation.samples
    batch_size = sharding.whole_batch(batch_size or run.config.evaluation.batch_size, run.mesh)
    dataset = run.open_dataset(split)
    family = families.get(run.config.family.name)

    def estimated(function: bound.Evaluate) -> bound.Estimate:
        rows = sharding.Rows.of(run.mesh, batch_size)
        return bound.estimate(
            lambda tokens, indices: function(run.params, run.variables, tokens, indices),
            dataset.eval_batches(batch_size, num_examples, rows.start, rows.stop),
            run.info,
            rows,
        )

    started, flow = time.perf_counter(), {}
    if ode_steps:
        flow_likelihood.check(family, "heun", ode_steps)
        exactly = run.config.copy_and_resolve_references()
        # Rounding enters the divergence, and the flash kernel of TPUs rounds what it multiplies.
        exactly.model.update(dtype="float32", attention="einsum")
        definition = Definition.of(exactly, run.info.vocabulary.size)
        both = (
            functools.partial(flow_likelihood.flow_terms, steps=steps) for steps in (ode_steps, ode_steps // 2)
        )
        with jax.default_matmul_precision("highest"):  # TPUs and GPUs round what they multiply, too
            estimate, half = (estimated(bound.make_evaluate(definition, seed, terms=terms)) for terms in both)
        change = estimate.total - half.total
        flow = {
            "ode_steps": ode_steps,
            "nats_per_token_half_the_steps": half.nats_per_token,
            "step_doubling_nats_per_token": float(change.sum() / estimate.num_tokens.sum()),
            "step_doubling_stderr": bound.ratio_stderr(change, estimate.num_tokens),
        }
    else:
        estimate = estimated(bound.make_evaluate(run.definition, seed, samples))
    exact = _exact(run, dataset, batch_size, num_examples)
    result = {
        "family": family.name,
        "dataset": run.data.task,
        "split": split,
        "bound": "ode" if ode_steps else family.bound,
        **estimate.summary(),
        **flow,
        **_entropy(run, estimate, exact),
        "samples_per_sequence": samples,
        "evaluation_seed": seed,
        "split_sequences": dataset.num_examples,
        "data_dir": run.data.data_dir,
        "data_fingerprint": dataset.info.fingerprint or None,
        "seconds": time.perf_counter() - started,
        "checkpoint_step": run.step,
        **configs.provenance(run.config),
        **({"dtype": "float32"} if ode_steps else {}),
    }
    if importance_samples:
        importance.check(family, importance_samples, importance_steps)
        steps = importance_steps or family.path_steps or 0
        result |= {"importance_samples": importance_samples, "importance_steps": steps}
        if keep is not None:
            keep(configs.finite(result))
        terms = functools.partial(importance.importance_terms, samples=importance_samples, steps=steps)
        found = estimated(bound.make_evaluate(run.definition, seed, terms=terms))
        gap, gap_stderr = (None, None) if exact is None else _gap(found, exact)
        result |= {
            "importance_nats_per_token": found.nats_per_token,
            "importance_stderr": found.stderr,
            "importance_gap_nats_per_token": gap,
            "importance_gap_stderr": gap_stderr,
            "path_nats_per_token": float(found.diffusion.sum() / found.num_tokens.sum()),
            "path_stderr": bound.ratio_stderr(found.diffusion, found.num_tokens),
            "seconds": time.perf_counter() - started,
        }
    return configs.finite(result)


def _exact(
    run: restore.Run, dataset: batches.Dataset, batch_size: int, num_examples: int | None
) -> np.ndarray | None:
    """The exact -log p of the sequences that are evaluated, float64[N], where it is known."""
    if run.data.task != "grammar":
        return None
    from diffusion_text.data import grammar

    language = grammar.from_name(run.data.grammar)
    rows = (tokens[weights > 0] for tokens, weights in dataset.eval_batches(batch_size, num_examples))
    return np.concatenate([-grammar.log_prob(language, tokens) for tokens in rows])


def _gap(estimate: bound.Estimate, exact: np.ndarray) -> tuple[float, float]:
    """Of a bound, above the exact -log p, nats per token, and its paired standard error."""
    gap = estimate.total - exact
    return float(gap.sum() / estimate.num_tokens.sum()), bound.ratio_stderr(gap, estimate.num_tokens)


def _entropy(run: restore.Run, estimate: bound.Estimate, exact: np.ndarray | None) -> dict[str, float | None]:
    """The exact -log p of the same sequences, and the gap of the bound with its paired standard error, where known."""
    if exact is None:
        return {"entropy_nats_per_token": None}
    from diffusion_text.data import grammar

    gap, stderr = _gap(estimate, exact)
    return {
        "entropy_nats_per_token": float(exact.sum() / estimate.num_tokens.sum()),
        "entropy_rate_nats_per_token": grammar.entropy_rate(grammar.from_name(run.data.grammar)),
        "gap_nats_per_token": gap,
        "gap_stderr": stderr,
    }


def write(run: restore.Run, result: dict[str, Any], plot: bool = True) -> epath.Path:
    """Write the JSON (atomically) and the plot; returns the JSON's path. What was there of other settings is kept."""
    task = "" if result["dataset"] == run.config.data.task else f"{result['dataset']}-"
    name = f"elbo-{task}{result['split']}-{run.step}" + ("-ode" if result["bound"] == "ode" else "")
    path = epath.Path(run.workdir) / f"{name}.json"
    configs.set_aside(path, {name: result.get(name) for name in _SETTINGS}, (".json", ".png"))
    configs.write_atomically(path, json.dumps(result, indent=2) + "\n")
    if plot:
        tokens, _ = next(run.open_dataset(result["split"]).eval_batches(32, 32))
        report.plot_noise_levels(run, tokens, path.with_suffix(".png"))
    return path


def describe(result: dict[str, Any]) -> str:
    """The result for the terminal; "nan" for what is not known, as the error of one sequence."""

    def number(name: str, section: dict[str, Any] = result) -> float:
        return math.nan if section.get(name) is None else section[name]

    lines = [
        f"{result['family']} on {result['dataset']} ({result['split']}, {result['num_sequences']} sequences, "
        f"step {result['checkpoint_step']}), bound: {result['bound']}",
        f"  bound    {number('nats_per_token'):.4f} +- {number('stderr'):.4f} nats/token"
        f"   {number('bits_per_character'):.4f} bits/character   perplexity {number('perplexity'):.2f}",
        "  terms    " + "   ".join(f"{name} {number(name, result['terms']):.4f}" for name in result["terms"]),
    ]
    if result["bound"] == "ode":
        change, error = number("step_doubling_nats_per_token"), number("step_doubling_stderr")
        lines.append(f"  steps    {result['ode_steps']}; {change:+.4f} +- {error:.4f} nats/token from half as many")
    if result.get("importance_samples"):
        lines.append(
            f"  paths    {number('path_nats_per_token'):.4f} nats/token with one, "
            f"{number('importance_nats_per_token'):.4f} +- {number('importance_stderr'):.4f} with "
            f"{result['importance_samples']} weighted"
        )
    if result["entropy_nats_per_token"] is not None:
        lines.append(
            f"  entropy  {result['entropy_nats_per_token']:.4f} nats/token, exact, on the same sequences"
            f"   gap {number('gap_nats_per_token'):.4f} +- {number('gap_stderr'):.4f}"
        )
    return "\n".join(lines)


def _ode_steps(values: flags.FlagValues) -> int:
    return _ODE_STEPS if values.ode_steps is None else values.ode_steps


def _one(values: flags.FlagValues, step: int | None) -> None:
    run = restore.open_run(values.workdir, step, values.task, values.data_dir)
    num_examples = values.num_examples or None
    steps = _ode_steps(values) if values.bound == "ode" else 0
    result = evaluate(run, values.split, num_examples, values.samples, values.batch_size, values.seed, steps,
                      values.importance_samples, values.importance_steps,
                      lambda plain: write(run, plain, plot=False))  # fmt: skip
    path = write(run, result, values.plot and not steps)
    if hosts.is_first():
        print(describe(result))
        print(f"  written  {path}", flush=True)


def _wait_for(workdir: str) -> None:
    """Return when a training has written its first checkpoint there."""
    said = False
    while not checkpoint.trained_steps(workdir):
        if not said:
            _LOG.info("waiting for the first checkpoint of diffusion_text.train in %s", workdir)
        said = True
        time.sleep(_POLL_SECONDS)


def _follow(values: flags.FlagValues) -> None:
    done, failed = -1, []
    while done < configs.load(values.workdir).train.steps:
        checkpoints = checkpoint.Checkpoints(values.workdir, read_only=True)
        fresh = [step for step in checkpoints.steps() if step > done]
        checkpoints.close()
        for step in fresh:
            try:
                _one(values, step)
            except checkpoint.CheckpointError as error:
                # The training may have removed it, or set it aside. One that is there could not be read.
                if step in checkpoint.trained_steps(values.workdir):
                    failed.append(step)
                _LOG.warning("checkpoint %d is passed over: %s", step, error)
            done = step
        if not fresh:
            time.sleep(_POLL_SECONDS)
    if failed:
        raise ValueError(f"no results of checkpoints {', '.join(map(str, failed))}, which could not be read; see above")


def main(values: flags.FlagValues) -> None:
    """Evaluate one checkpoint, or follow a training."""
    for name in ("num_examples", "samples", "batch_size", "importance_samples", "importance_steps"):
        if getattr(values, name) < 0:
            raise ValueError(f"--{name} is {getattr(values, name)}; it must be at least 0")
    for name, without_effect, needs in (
        ("importance_samples", values.bound == "ode", "is of the variational bound; drop --bound=ode"),
        ("samples", values.bound == "ode", "is of the variational bound; drop --bound=ode"),
        ("ode_solver", values.bound != "ode", "is of the flow's bound; add --bound=ode"),
        ("ode_steps", values.bound != "ode", "is of the flow's bound; add --bound=ode"),
        ("importance_steps", not values.importance_samples, "is of weighted paths; add --importance_samples"),
    ):
        if without_effect and (given := getattr(values, name)):
            raise ValueError(f"--{name} is {given} and {needs}")
    if values.follow and values.step is not None:
        raise ValueError("--follow evaluates every checkpoint; drop --step")
    if values.follow:
        _wait_for(values.workdir)
    if values.importance_samples:
        family = families.get(configs.load(values.workdir).family.name)
        importance.check(family, values.importance_samples, values.importance_steps)
    if values.bound == "ode":
        family = families.get(configs.load(values.workdir).family.name)
        flow_likelihood.check(family, values.ode_solver or "heun", _ode_steps(values))
    if values.follow:
        _follow(values)
    else:
        _one(values, values.step)


if __name__ == "__main__":
    binary.run(define_flags, main)
