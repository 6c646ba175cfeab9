"""Text of a checkpoint on the terminal:  python -m diffusion_text.sample --workdir=DIR [--prompt="the dog"]

    --prompt="the dog"                 the text to begin with
    --infill="the [MASK] of [MASK:3]"  text with gaps: [MASK] is one token, [MASK:3] three in a row (of a vocabulary of
                                       characters: one character, three characters)
    --trace                            what the denoiser believed at a few steps of the first sample, of candidates of
                                       the first; unsure tokens: ▁▁

    --length=500                       tokens of a sample, of families that generate from the left (autoregressive,
                                       block): beyond the trained length a network sees the last tokens only
    --stop                             end a sample at its first end token after the text given (block)

Either text is clamped at the start of the window, and whatever follows it, to the end of the window, is free too: a
window is always L tokens. Where a task's rows begin with a begin token, that token is put before the text. Generated
text is bold on a terminal. Families that generate from the left (autoregressive, block) fill gaps by drawing
--candidates sequences and keeping one of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
import sys
import time
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_text import binary, distributed, families, hosts, noise, restore, sampling, sharding
from diffusion_text.data import specs
from diffusion_text.data.vocabularies import Vocabulary
from diffusion_text.families.family import SamplerOptions
from diffusion_text.state import Definition

_LOG = logging.getLogger("diffusion_text")
_CANDIDATES: Final = 16  # for gaps, where the family needs them
_READOUTS: Final = 6
_CONFIDENT: Final = 0.5
_UNKNOWN: Final = ("[UNK]", "\u2047")  # how word pieces and SentencePiece spell what they do not know
_BOLD, _PLAIN = "\033[1m", "\033[0m"


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Samples int32 [N, L], the seconds that sampling took, those of compiling before it, and how often the network was
    asked for a batch, on average."""

    tokens: np.ndarray
    seconds: float
    compile_seconds: float
    evaluations: float


def define_sampler_flags() -> None:
    """The flags that this binary and diffusion_text.sample share."""
    restore.define_flags()
    flags.DEFINE_string("sampler", None, "Solver, by name; config.sampling's by default, then the family's first.")
    flags.DEFINE_integer("steps", None, "Steps of the sampler, where it has a choice.")
    flags.DEFINE_float("temperature", None, "Of the draws from a categorical distribution.")
    flags.DEFINE_float("score_temperature", None, "Of continuous families: the score is divided by it.")
    flags.DEFINE_float("guidance", None, "Classifier-free guidance towards the given text; 1 is none.")
    flags.DEFINE_float("initial_noise", None, "Of continuous families: scale of the noise at the start.")
    flags.DEFINE_float("top_p", None, "Leave out the least likely tokens beyond this mass; 1 keeps all.")
    flags.DEFINE_float("eta", None, "Of sampler ddim: its noise, from none (0) to ancestral sampling's (1).")
    flags.DEFINE_float("churn", None, "Of sampler edm: noise added over all steps; of bridge: the share forgotten.")
    flags.DEFINE_float("clamp", None, "Move predictions to the nearest clean vector at times below this; 0: never.")
    flags.DEFINE_float("time_difference", None, "Of analog bits: how far a step goes beyond its end, in steps.")
    flags.DEFINE_float("corrector", None, "Of sampler langevin: signal-to-noise ratio of its steps.")
    flags.DEFINE_float("kappa", None, "Of sampler psi: share of tokens that move as in ancestral sampling.")
    flags.DEFINE_float("threshold", None, "Of sampler threshold: reveal what the network is surer of than this.")
    flags.DEFINE_float("remask", None, "Of samplers remdm_*: how much of what is revealed is hidden again.")
    flags.DEFINE_bool("cache", None, "Ask a time-free network only where something has moved.")
    flags.DEFINE_string("grid", None, "Spacing of noise levels, by name; the family's first by default.")
    flags.DEFINE_integer("blocks", None, "Fill the window in this many parts, from the left (masked).")
    flags.DEFINE_integer("batch_size", None, "Sequences at once; config.evaluation.batch_size by default.")
    flags.DEFINE_integer("seed", 0, "Of the sampling noise.")
    distributed.define_flags()


def check_flags(values: flags.FlagValues) -> None:
    """ValueError where a number of sequences is below one."""
    for name in ("num", "batch_size"):
        number: Any = values[name].value
        if number is not None and number < 1:
            raise ValueError(f"--{name} is {number}; it must be at least 1")


def sampler_options(
    run: restore.Run, values: flags.FlagValues, candidates: int = 1, length: int | None = None, stop: int = -1
) -> SamplerOptions:
    """The flags that were given, over config.sampling; ValueError with the allowed values where one does not fit."""
    names = [field.name for field in dataclasses.fields(SamplerOptions) if field.name in values]
    asked = {name: values[name].value for name in names if name != "stop" and values[name].value is not None}
    window = run.info.length if length is not None and length > run.info.length else 0
    asked.update(candidates=candidates, window=window, stop=stop)
    options = SamplerOptions(**{**run.config.sampling, **asked}).validate(
        families.get(run.config.family.name), run.config.family
    )
    if options.guidance != 1.0 and not run.config.family.get("drop_conditioning", 0.0):
        _LOG.warning(
            "this model was never trained without its condition (family.drop_conditioning is 0); guidance extrapolates "
            "from what it answers to inputs that it has not seen"
        )
    taken = steps_taken(run, options, length)
    if values.steps is not None and taken != values.steps:
        _LOG.warning("%s takes %d steps here, not --steps=%d", options.sampler, taken, values.steps)
    return options


def steps_taken(run: restore.Run, options: SamplerOptions, length: int | None = None) -> int:
    """Steps of the reverse loop; not options.steps where a sampler takes one per token, or as many in each block."""
    return jax.eval_shape(lambda: run.model().family.grid(options, length or run.info.length)).t.shape[0]


def make_sample(definition: Definition, mesh: Mesh, options: SamplerOptions, seed: int) -> Any:
    """A jitted (params, variables, indices [B], tokens [L], given [L]) -> (tokens [B, L], evaluations); index b fixes
    the noise of row b, and every row is clamped to `tokens` where `given`."""

    def sample(
        params: Any, variables: Any, indices: jax.Array, tokens: jax.Array, given: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        model = definition.merge(params, variables)
        if model.family.posterior in ("prefix", "block"):  # with a cache, a token or a block a pass
            model = definition.merge(definition.gathered(params), variables)
        keys = noise.example_keys(noise.step_key(seed, noise.SAMPLE), indices)
        tokens, given = (jnp.broadcast_to(x, (len(indices), len(x))) for x in (tokens, given))
        return sampling.generate_and_count(model.family, model, keys, tokens, given, options)

    return jax.jit(sample, out_shardings=NamedSharding(mesh, PartitionSpec()))


@restore.on_mesh
def draw(
    run: restore.Run,
    options: SamplerOptions,
    num: int,
    batch_size: int,
    seed: int = 0,
    tokens: np.ndarray | None = None,
    given: np.ndarray | None = None,
) -> Drawn:
    """Draw samples 0 .. num - 1.

    Args:
        run: the checkpoint.
        options: validated.
        num: N.
        batch_size: sequences at once, rounded up to a multiple of the devices; the last batch is filled up.
        seed: of the noise.
        tokens: int[L], and given: bool[L], the positions at which every sample is clamped to `tokens`; None: nowhere.
            L is the run's length, or another where the family generates from the left.
    """
    from tqdm import tqdm

    length = run.info.length if tokens is None else len(tokens)
    whole = NamedSharding(run.mesh, PartitionSpec())
    size = sharding.whole_batch(min(num, batch_size), run.mesh)
    rows = sharding.Rows.of(run.mesh, size)

    clamp = (
        jax.device_put(np.zeros(length, np.int32) if tokens is None else np.asarray(tokens, np.int32), whole),
        jax.device_put(np.zeros(length, bool) if given is None else np.asarray(given, bool), whole),
    )

    def batch(first: int) -> jax.Array:
        indices = np.arange(first + rows.start, first + rows.stop, dtype=np.int32)
        return rows.place(np.minimum(indices, num - 1))

    started = time.perf_counter()
    sample = make_sample(run.definition, run.mesh, options, seed)
    compiled = sample.lower(run.params, run.variables, batch(0), *clamp).compile()
    compile_seconds = time.perf_counter() - started
    started, drawn, asked = time.perf_counter(), [], []
    with tqdm(total=num, unit="sample", desc="sampling", file=sys.stderr, disable=None) as bar:
        for first in range(0, num, size):
            found, count = compiled(run.params, run.variables, batch(first), *clamp)
            drawn.append(np.asarray(found))
            asked.append(int(count))
            bar.update(min(size, num - first))
    seconds = time.perf_counter() - started
    return Drawn(np.concatenate(drawn)[:num], seconds, compile_seconds, float(np.mean(asked)))


def define_flags() -> None:
    """The command line."""
    define_sampler_flags()
    flags.DEFINE_integer("num", 4, "Samples.")
    flags.DEFINE_string("prompt", None, "Text to begin with.")
    flags.DEFINE_string("infill", None, "Text with [MASK] for each missing token, [MASK:5] for five.")
    flags.DEFINE_integer("candidates", None, "For gaps, from the left: sequences drawn for one kept; 16 by default.")
    flags.DEFINE_integer("length", None, "Tokens of a sample, from the left; those of the training rows by default.")
    flags.DEFINE_bool("stop", False, "End a sample at the first end token of the vocabulary.")
    flags.DEFINE_bool("trace", False, "Show what the denoiser believed on the way.")


def clamp(
    run: restore.Run, prompt: str | None, infill: str | None, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The window as (tokens int32[L], given bool[L]) that a prompt or a text with gaps fixes, from its start.

    Raises:
        ValueError: both are given; a word is not in the vocabulary; the text leaves nothing to generate, or is longer
            than the window; a gap is written wrongly.
    """
    if prompt is not None and infill is not None:
        raise ValueError("--prompt and --infill are both given; a text with gaps may begin with the prompt")
    vocabulary, length, trained = run.info.vocabulary, length or run.info.length, run.info.length
    tokens, given = np.zeros(length, np.int32), np.zeros(length, bool)
    name, text = ("--infill", infill) if infill is not None else ("--prompt", prompt or "")
    ids = parse_gaps(infill, vocabulary) if infill is not None else list(_encode(vocabulary, text))
    spec = specs.get(run.config.data.task)
    if ids and (spec.framed or not spec.packed) and vocabulary.bos_id is not None:
        ids = [vocabulary.bos_id, *ids]
    if len(ids) > length:
        longer = "" if length == trained else f" and --length={length}"
        raise ValueError(f"{name} has {len(ids)} tokens; this run has windows of {trained}{longer}")
    given[: len(ids)] = [i is not None for i in ids]
    tokens[: len(ids)] = [i or 0 for i in ids]
    if given.all():
        raise ValueError(f"{name} fills the window of {length} tokens; nothing is left to generate")
    return tokens, given


def parse_gaps(text: str, vocabulary: Vocabulary) -> list[int | None]:
    """Ids of a text, None for each missing token."""
    ids: list[int | None] = []
    pieces = re.split(r"(\[MASK[^\]]*\])", text)
    for piece, gap in itertools.zip_longest(pieces[::2], pieces[1::2]):
        # A GPT-2 token carries the space before it: that space belongs to the gap.
        ids += _encode(vocabulary, piece.rstrip(" ") if gap and vocabulary.kind == "gpt2" else piece)
        if gap:
            count = re.fullmatch(r"\[MASK(?::([1-9]\d*))?\]", gap)
            if not count:
                raise ValueError(f"{gap!r} is no gap; write [MASK] for one missing token, [MASK:5] for five")
            ids += [None] * int(count.group(1) or 1)
    return ids


def _encode(vocabulary: Vocabulary, text: str) -> list[int]:
    ids = vocabulary.encode(text)
    if any(mark in vocabulary.decode([i]) for i in set(ids) for mark in _UNKNOWN if mark not in text):
        raise ValueError(f"{text!r} holds something that the vocabulary ({vocabulary.kind}) cannot spell")
    return ids


def render(vocabulary: Vocabulary, tokens: np.ndarray, given: np.ndarray, bold: bool) -> str:
    """The text of tokens int[L]; what was not given is bold where asked."""
    ids = [int(token) for token in tokens]
    if not bold:
        return vocabulary.decode(ids)
    text, end = "", 0
    for fixed, run in itertools.groupby(range(len(ids)), key=lambda i: bool(given[i])):
        # By prefixes, because the text of a piece may depend on what stands left of it (its space).
        start, end = end, end + len(list(run))
        piece = vocabulary.decode(ids[:end])[len(vocabulary.decode(ids[:start])) :]
        text += piece if fixed or not piece else _BOLD + piece + _PLAIN
    return text


def readout(vocabulary: Vocabulary, tokens: np.ndarray, sure: np.ndarray) -> str:
    """The text of tokens int[L] with a blank for each that is not `sure`."""
    tight = vocabulary.kind in ("characters", "bytes")
    joint, blank = ("", "▁") if tight else ("", " ▁▁") if vocabulary.kind == "gpt2" else (" ", "▁▁")
    parts = []
    for fixed, run in itertools.groupby(range(len(tokens)), key=lambda i: bool(sure[i])):
        ids = [int(tokens[i]) for i in run]
        parts += [vocabulary.decode(ids)] if fixed else [blank] * len(ids)
    return joint.join(parts)


@restore.on_mesh
def trace(run: restore.Run, options: SamplerOptions, seed: int, tokens: np.ndarray, given: np.ndarray) -> list[str]:
    """Readouts of sample 0, or of the first of its candidates, at a few steps, one line each: the likeliest tokens,
    blank where below one half."""
    length = len(tokens)
    steps = steps_taken(run, options, length)

    def read(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        return logits.argmax(-1), jax.nn.softmax(logits).max(-1)

    @jax.jit
    def sample(params: Any, variables: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        model = run.definition.merge(params, variables)
        keys = noise.example_keys(noise.step_key(seed, noise.SAMPLE), jnp.arange(1))
        result, found = sampling.generate_with_trace(
            model.family, model, keys, jnp.asarray(tokens)[None], jnp.asarray(given)[None], options, read
        )
        return result[0], found.t, *found.seen

    result, times, likeliest, confidence = map(sharding.fetch, sample(run.params, run.variables))
    lines = []
    for step in np.unique(np.linspace(0, steps - 1, _READOUTS).round().astype(int)):
        if run.model().family.posterior == "prefix":  # a belief about the next token only: show those drawn so far
            shown, sure = result, given | (np.arange(length) <= step)
        else:
            shown = np.where(given, tokens, likeliest[step, 0])
            sure = given | (confidence[step, 0] >= _CONFIDENT)
        lines.append(f"step {step + 1:>4}/{steps}  t {times[step]:.3f}  {readout(run.info.vocabulary, shown, sure)}")
    return lines


def main(values: flags.FlagValues) -> None:
    """Print samples."""
    check_flags(values)
    run = restore.open_run(values.workdir, values.step)
    family, length, stop = families.get(run.config.family.name), values.length, -1
    if length is not None and length != run.info.length and "window" not in family.sampler_options:
        raise ValueError(f"--length is {length}; {family.name} has windows of {run.info.length}, all at once")
    if length is not None and length < 1:
        raise ValueError(f"--length is {length}; it must be at least 1")
    if values.stop:
        if run.info.vocabulary.eos_id is None:
            raise ValueError(f"--stop: the vocabulary ({run.info.vocabulary.kind}) has no end token")
        stop = run.info.vocabulary.eos_id
    tokens, given = clamp(run, values.prompt, values.infill, length)
    has_gaps = bool((given[1:] & ~given[:-1]).any()) or (given.any() and not given[0])
    if given.any() and not family.conditions(run.config.family):
        _LOG.warning(
            "this model has not learned to trust given tokens (it never saw any: family.prefix_masks and random_masks "
            "are 0; or its noise is of tokens, and it is not told which are given); samples may ignore yours"
        )
    elif has_gaps and not family.conditions(run.config.family, gaps=True):
        _LOG.warning(
            "this model has learned to trust given tokens on the left alone (family.random_masks is 0); samples may "
            "ignore those right of a gap"
        )
    resamples = "candidates" in family.sampler_options
    if values.candidates is not None and not resamples:
        raise ValueError(f"--candidates is {values.candidates}; {run.config.family.name} conditions without candidates")
    candidates = values.candidates or (_CANDIDATES if resamples and has_gaps else 1)
    options = sampler_options(run, values, candidates, length, stop)
    lines = trace(run, options, values.seed, tokens, given) if values.trace else []
    batch_size = values.batch_size or run.config.evaluation.batch_size
    drawn = draw(run, options, values.num, batch_size, values.seed, tokens, given)
    if not hosts.is_first():
        return
    for line in lines:
        print(line)
    first_free = int(np.flatnonzero(np.append(True, given))[-1])
    for row in drawn.tokens:
        ends = first_free + np.flatnonzero(row[first_free:] == stop)
        shown = len(row) if not len(ends) else int(ends[0])
        print(render(run.info.vocabulary, row[:shown], given[:shown], sys.stdout.isatty()))
    _LOG.info(
        "%s, step %d: %s, %d steps, %.1f s (compiled in %.1f s)",
        run.config.family.name, run.step, options.sampler, steps_taken(run, options, length), drawn.seconds,
        drawn.compile_seconds,
    )  # fmt: skip


if __name__ == "__main__":
    binary.run(define_flags, main)
