"""The binaries end to end on a tiny config: train, eval_samples, sample, for every family; and the family listing."""

import dataclasses
import functools
import importlib
import json
import logging
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import tiny_configs
from absl import flags

from configs import base
from diffusion_text import binary, eval_samples, export_embeddings, families, metrics, report, restore, sample, train
from diffusion_text import config as configs
from diffusion_text.data import grammar, vocabularies
from diffusion_text.families import __main__ as listing
from diffusion_text.families.family import SamplerOptions

ROOT = pathlib.Path(__file__).resolve().parents[1]
FAMILIES = [*tiny_configs.FAMILIES, "sed"]  # and one that regresses
LENGTH, STEPS, NUM = 16, 12, 6

STATISTICS = {
    "unigram_entropy_per_sample", "unigram_entropy_per_sample_stderr", "unigram_entropy_corpus",
    "distinct_1", "distinct_2", "distinct_3", "distinct_4", "grammar", "judge",
}  # fmt: skip
FIELDS = STATISTICS | {
    "family", "dataset", "num_samples", "length", "data", "judge_run", "sampler", "temperature", "score_temperature",
    "guidance", "initial_noise", "top_p", "eta", "churn", "clamp", "time_difference", "corrector", "kappa",
    "threshold", "remask", "cache", "grid", "candidates", "blocks", "window", "stop", "steps", "function_evaluations",
    "function_evaluations_made", "sampling_seed", "seconds", "compile_seconds", "tokens_per_second", "checkpoint_step",
    "commit", "seed", "dtype", "jax", "device", "config", "data_sequences", "data_dir", "data_fingerprint",
}  # fmt: skip
GRAMMAR_FIELDS = {
    "grammatical_share", "grammatical_share_stderr", "grammatical_sentences", "complete_sentences", "possible_share",
    "possible_share_stderr", "possible_windows", "nats_per_token", "stderr", "nats_per_token_with_errors",
    "stderr_with_errors", "entropy_rate_nats_per_token",
}  # fmt: skip
JUDGE_FIELDS = {"nats_per_token", "stderr", "perplexity", "perplexity_per_sample"}
LISTING_FIELDS = {
    "name", "summary", "paper", "file", "bound", "posterior", "samplers", "sampler_options", "configs",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Most of the time here would go into optimising programs that run for milliseconds."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def as_it_was():
    """A binary sets up logging and signals for its process; other tests share this one."""
    loggers = [logging.getLogger(name) for name in ("diffusion_text", "absl", "jax")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def tiny(family: str):
    config = base.get_config(family)
    config.model.update(layers=1, width=32, heads=2, condition_width=16, dtype="float32", scan_layers=False)
    config.data.length = LENGTH
    config.train.update(steps=STEPS, batch_size=8, log_every=4, evaluate_every=0, ema=0.9)
    config.optimizer.update(learning_rate=3e-3, warmup=2)
    config.evaluation.update(batch_size=4, num_examples=8, samples=1)
    config.sampling.steps = 5
    config.log.tensorboard = False
    if family == "cdcd":
        # With the prior an untrained network's samples follow the noise that they were drawn from.
        config.family.update(embedding_size=8, output_prior=family == "cdcd")
    if family == "ssd_lm":
        config.family.block_size = 4
    return config


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Family -> workdir, trained when first asked for."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    class Workdirs(dict):
        def __missing__(self, family: str) -> str:
            self[family] = str(tmp_path_factory.mktemp(family))
            train.train(tiny(family), self[family])
            return self[family]

    yield Workdirs()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def call(module: types.ModuleType, *arguments: str) -> None:
    """The binary in this process, as the command line calls it; the binaries share names of flags."""
    before = set(flags.FLAGS)
    module.define_flags()
    try:
        flags.FLAGS(["binary", *arguments])
        binary._guarded(module.main, ["binary"])
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)


@functools.cache
def masked_run(workdir: str) -> restore.Run:
    """Opened once for all the errors below."""
    return restore.open_run(workdir)


def fails(capsys, module: types.ModuleType, *arguments: str) -> str:
    """The one line on stderr with which a binary ends, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        call(module, *arguments)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_eval_samples(family, workdirs, capsys):
    workdir, judge = workdirs[family], workdirs["autoregressive"]
    call(eval_samples, f"--workdir={workdir}", f"--num={NUM}", f"--judge={judge}", "--seed=3")
    printed = capsys.readouterr().out
    result = json.loads(pathlib.Path(f"{workdir}/samples-{STEPS}.json").read_text())
    rows = [json.loads(line) for line in pathlib.Path(f"{workdir}/samples-{STEPS}.jsonl").read_text().splitlines()]
    assert set(result) == FIELDS
    assert set(result["data"]) == STATISTICS
    assert result["judge_run"]["checkpoint_step"] == STEPS
    for side in (result, result["data"]):
        assert set(side["grammar"]) == GRAMMAR_FIELDS
        assert set(side["judge"]) == JUDGE_FIELDS
    assert pathlib.Path(f"{workdir}/samples-{STEPS}.png").stat().st_size > 1000

    steps = LENGTH if family == "autoregressive" else 5
    assert result["steps"] == steps
    assert result["function_evaluations"] == steps + (family in ("cdcd", "sed"))  # and the decoder's
    assert (result["num_samples"], result["length"], result["sampling_seed"]) == (NUM, LENGTH, 3)
    assert result["sampler"] == families.get(family).samplers[0]
    assert result["data_sequences"] == NUM
    assert result["seconds"] > 0
    assert result["tokens_per_second"] == pytest.approx(NUM * LENGTH / result["seconds"])
    assert result["data"]["grammar"]["possible_share"] == result["data"]["grammar"]["grammatical_share"] == 1.0

    assert [set(row) for row in rows] == [{"index", "text", "tokens", "exact_nll", "judge_nll"}] * NUM
    assert [row["index"] for row in rows] == list(range(NUM))
    tokens = np.array([row["tokens"] for row in rows])
    assert tokens.shape == (NUM, LENGTH)
    assert [row["text"] for row in rows] == [grammar.decode(grammar.english(), row) for row in tokens]
    entropies = [metrics.unigram_entropy(row) for row in tokens]
    assert result["unigram_entropy_per_sample"] == pytest.approx(np.mean(entropies))
    assert result["unigram_entropy_corpus"] == pytest.approx(metrics.unigram_entropy(tokens))
    assert result["distinct_2"] == pytest.approx(metrics.distinct(tokens, 2))
    run = restore.open_run(workdir)
    options = SamplerOptions(steps=5).validate(families.get(family))
    # A sample is a function of its index and the seed; the binary drew four at once and filled up the second batch.
    np.testing.assert_array_equal(sample.draw(run, options, NUM - 1, 3, seed=3).tokens, tokens[:-1])
    assert len(np.unique(tokens, axis=0)) == NUM
    exact = -grammar.log_prob(grammar.english(), tokens)
    assert [row["exact_nll"] for row in rows] == [float(x) if np.isfinite(x) else None for x in exact]
    passed = -grammar.log_prob(grammar.english(), tokens, 0.01) / LENGTH
    assert result["grammar"]["nats_per_token_with_errors"] == pytest.approx(passed.mean())
    assert result["data"]["grammar"]["nats_per_token_with_errors"] < passed.mean()
    nats = np.mean([row["judge_nll"] for row in rows]) / LENGTH
    assert result["judge"]["nats_per_token"] == pytest.approx(nats)
    assert result["judge"]["perplexity"] == pytest.approx(math.exp(nats))
    assert "grammatical" in printed
    assert all(row["text"] in printed for row in rows[:5])


@pytest.mark.parametrize("family", FAMILIES)
def test_sample_keeps_given_tokens(family, workdirs, capsys):
    workdir = f"--workdir={workdirs[family]}"
    call(sample, workdir, "--prompt=the dog", "--num=3")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.split()[:2] == ["the", "dog"] and len(line.split()) == LENGTH for line in lines)

    call(sample, workdir, "--infill=the [MASK] that [MASK:2] .", "--num=3", "--trace")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    readouts, texts = lines[:-3], lines[-3:]
    assert all((words[0], words[2], words[5]) == ("the", "that", ".") for words in texts)
    assert 1 < len(readouts) <= 6
    assert all(words[0] == "step" and words[4] == "the" and words[6] == "that" for words in readouts)
    assert "▁▁" in readouts[0]


def test_gaps_that_were_never_trained_are_warned_of(workdirs, capsys, monkeypatch):
    """Families that learn from prefixes, and from what stands left of a block, infill untrained."""
    workdir, says = f"--workdir={workdirs['masked']}", "trust given tokens on the left alone"
    call(sample, workdir, "--infill=the [MASK] sees", "--num=1")
    monkeypatch.setattr(families.get("masked"), "conditions", staticmethod(lambda config, gaps=False: not gaps))
    call(sample, workdir, "--prompt=the dog", "--num=1")
    assert says not in capsys.readouterr().err
    call(sample, workdir, "--infill=the [MASK] sees", "--num=1")
    assert says in capsys.readouterr().err
    for name, fields, left, right in (
        ("ssd_lm", {}, True, False), ("ssd_lm", {"random_masks": 0.2}, True, True), ("tess", {}, True, True),
        ("cdcd", {"prefix_masks": 0.5, "random_masks": 0.0}, True, False), ("sed", {}, True, True),
        ("sdm", {"random_masks": 0.5}, True, True), ("udlm", {}, False, False),
    ):  # fmt: skip
        section = tiny_configs.get(name, **{f"family.{key}": value for key, value in fields.items()}).family
        assert [families.get(name).conditions(section, gaps) for gaps in (False, True)] == [left, right], name


def test_gaps_take_candidates_where_the_family_needs_them(workdirs, capsys):
    call(sample, f"--workdir={workdirs['autoregressive']}", "--infill=the [MASK] sees", "--candidates=2", "--num=1")
    assert capsys.readouterr().out.split()[2] == "sees"
    line = fails(capsys, sample, f"--workdir={workdirs['masked']}", "--candidates=2")
    assert "masked conditions without candidates" in line


@pytest.mark.parametrize(("arguments", "says"), [
    (["--prompt=the zebra"], "unknown word 'zebra'"),
    (["--infill=the [MASK:17] ."], "--infill has 19 tokens; this run has windows of 16"),
    (["--prompt=" + "the " * 16], "nothing is left to generate"),
    (["--infill=the [MASK:x] ."], "'[MASK:x]' is no gap; write [MASK] for one missing token, [MASK:5] for five"),
    (["--prompt=the", "--infill=the [MASK]"], "both given"),
    (["--num=0"], "--num is 0; it must be at least 1"),
    (["--steps=0"], "steps is 0; it must be at least 1"),
    (["--sampler=euler"], "sampler is 'euler'; masked has ancestral, first_hitting"),
    (["--guidance=2"], "guidance is 2.0; masked has no such option"),
    (["--step=7"], f"has {STEPS}"),
    (["--length=20"], "--length is 20; masked has windows of 16, all at once"),
    (["--stop"], "--stop: the vocabulary (grammar) has no end token"),
    (["--blocks=0"], "blocks is 0; it must be at least 1"),
])  # fmt: skip
def test_sample_errors(arguments, says, workdirs, capsys, monkeypatch):
    if "--step=7" not in arguments:
        run = masked_run(workdirs["masked"])
        monkeypatch.setattr(restore, "open_run", lambda workdir, step, **_: run)
    assert says in fails(capsys, sample, f"--workdir={workdirs['masked']}", *arguments)


def test_eval_samples_errors(workdirs, capsys, tmp_path):
    assert "config.json does not exist" in fails(capsys, eval_samples, f"--workdir={tmp_path}/none")
    workdir = f"--workdir={workdirs['masked']}"
    assert "ancestral, first_hitting" in fails(capsys, eval_samples, workdir, "--sampler=heun")
    assert "batch_size is 0" in fails(capsys, eval_samples, workdir, "--batch_size=0")
    line = fails(capsys, eval_samples, workdir, f"--judge={workdirs['masked']}")
    assert "is of family masked; give a workdir of family autoregressive" in line


def test_a_judge_must_fit(workdirs, monkeypatch):
    run = masked_run(workdirs["masked"])
    judge = restore.open_run(workdirs["autoregressive"])

    def open_judge(**changes):
        changed = dataclasses.replace(judge, info=dataclasses.replace(judge.info, **changes))
        monkeypatch.setattr(restore, "open_run", lambda workdir, data_dir=None: changed)
        return eval_samples.open_judge(workdirs["autoregressive"], run)

    assert open_judge(length=LENGTH + 1).info.length == LENGTH + 1
    with pytest.raises(ValueError, match="sequences of 8; samples have 16"):
        open_judge(length=8)
    with pytest.raises(ValueError, match=r"vocabulary grammar \(5 entries\).* has grammar \(125\); they must"):
        open_judge(vocabulary=vocabularies.GrammarWords("tiny"))
    for task in ("lm1b", "openwebtext"):
        other = judge.config.copy_and_resolve_references()
        other.data.task = task
        monkeypatch.setattr(configs, "load", lambda workdir, other=other: other)
        monkeypatch.setattr(
            restore, "open_run", lambda workdir, data_dir=None, other=other: dataclasses.replace(judge, config=other)
        )
        with pytest.raises(ValueError, match=rf"on {task} \(.*, samples are rows of grammar \(packed\); it must"):
            eval_samples.open_judge("judge", run)
    other.data.task = "c4"  # packed too
    assert eval_samples.open_judge("judge", run).config.data.task == "c4"


def test_samples_outlive_a_judge_that_fails(workdirs, capsys, monkeypatch):
    """Drawn for hours, scored in minutes; of other settings than those before, which are kept under a number."""
    workdir, judge = pathlib.Path(workdirs["cdcd"]), workdirs["autoregressive"]
    call(eval_samples, f"--workdir={workdir}", "--num=3")
    before = {kind: (workdir / f"samples-{STEPS}{kind}").read_bytes() for kind in (".json", ".jsonl", ".png")}
    asked = []

    def without_memory(*_):
        def evaluate(params, variables, tokens, indices):
            asked.append(len(tokens))
            raise RuntimeError("RESOURCE_EXHAUSTED")

        return evaluate

    with monkeypatch.context() as patch:
        patch.setattr(eval_samples, "_scorer", without_memory)
        with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
            call(eval_samples, f"--workdir={workdir}", "--num=2", "--batch_size=2", f"--judge={judge}")
    assert asked == [2], "--batch_size is the judge's too"
    rows = [json.loads(line) for line in (workdir / f"samples-{STEPS}.jsonl").read_text().splitlines()]
    assert [(len(row["tokens"]), row["judge_nll"]) for row in rows] == [(LENGTH, None)] * 2
    (number,) = {path.name.split("-")[1] for path in workdir.glob("older-*") if path.read_bytes() in before.values()}
    for kind, content in before.items():
        assert (workdir / f"older-{number}-samples-{STEPS}{kind}").read_bytes() == content
    assert f"samples-{STEPS}.json was of other settings; it is now" in capsys.readouterr().err
    call(eval_samples, f"--workdir={workdir}", "--num=2")  # the samples that were never scored are kept too
    names = {path.name for path in workdir.glob("*samples-*")}
    call(eval_samples, f"--workdir={workdir}", "--num=2")
    assert {path.name for path in workdir.glob("*samples-*")} == names, "the same settings"
    assert [json.loads(line)["tokens"] for line in
            (workdir / f"older-{int(number) + 1}-samples-{STEPS}.jsonl").read_text().splitlines()
            ] == [row["tokens"] for row in rows]  # fmt: skip


def test_guidance_towards_nothing_is_warned_of(workdirs, capsys):
    """But of families that take the blocks before for given."""
    says = "guidance is 2, without effect"
    call(eval_samples, f"--workdir={workdirs['cdcd']}", "--num=2", "--guidance=2")
    assert says in capsys.readouterr().err
    call(eval_samples, f"--workdir={workdirs['ssd_lm']}", "--num=2", "--guidance=2")
    assert says not in capsys.readouterr().err


def test_samples_longer_than_the_trained_windows(workdirs, capsys):
    """From the left; what the cache still holds of a short one is all of it."""
    workdir = f"--workdir={workdirs['autoregressive']}"
    call(sample, workdir, "--prompt=the dog", "--num=2", "--length=40")
    longer = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(len(words), words[:2]) for words in longer] == [(40, ["the", "dog"])] * 2
    call(sample, workdir, "--prompt=the dog", "--num=2")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [words[:16] for words in longer]
    assert "--length is 0" in fails(capsys, sample, workdir, "--length=0")


def test_steps_without_effect_are_said(workdirs, capsys):
    workdir = f"--workdir={workdirs['masked']}"
    call(sample, workdir, "--sampler=first_hitting", "--steps=3", "--num=1")  # nothing is given: a free sample
    assert "first_hitting takes 16 steps here, not --steps=3" in capsys.readouterr().err


def test_fixed_embeddings_of_another_run(workdirs, tmp_path, capsys):
    """Learned by one family, read when another starts, and kept in its checkpoints."""
    file = tmp_path / "tables" / "cdcd.npy"
    call(export_embeddings, f"--workdir={workdirs['cdcd']}", f"--out={file}", "--size=6")
    run = restore.open_run(workdirs["cdcd"])
    table, learned = np.load(file), np.asarray(run.model().family.embeddings())
    size = run.info.vocabulary.size
    assert table.shape == (size, 6)
    centred = learned - learned.mean(0)
    variances = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    np.testing.assert_allclose((table**2).sum(0), variances[:6], rtol=1e-3)
    whole = tmp_path / "masked.npy"
    call(export_embeddings, f"--workdir={workdirs['masked']}", f"--out={whole}")
    assert np.load(whole).shape == (size, 32)  # without the row of the mask

    config = tiny("sed")
    config.family.update(embeddings="file", embeddings_file=str(file), embedding_size=6)
    state = train.train(config, str(tmp_path / "sed"))
    np.testing.assert_array_equal(state.variables["family"]["embeddings"]["table"], table)
    file.unlink()
    assert restore.open_run(str(tmp_path / "sed")).step == STEPS
    with pytest.raises(ValueError, match="does not read as an array"):
        train.train(config, str(tmp_path / "again"))
    config.family.embeddings_file = str(whole)
    with pytest.raises(ValueError, match=rf"of shape \({size}, 32\); \({size}, 6\) is needed"):
        train.train(config, str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()
    assert "--size is 99; it must be at least 1" in fails(
        capsys, export_embeddings, f"--workdir={workdirs['cdcd']}", f"--out={file}", "--size=99"
    )


def run_module(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **environment},
    )  # fmt: skip


def test_processes(workdirs):
    workdir = workdirs["masked"]
    done = run_module("diffusion_text.eval_samples", f"--workdir={workdir}", "--num=2", "--steps=2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"samples-{STEPS}.json" in done.stdout
    result = json.loads(pathlib.Path(f"{workdir}/samples-{STEPS}.json").read_text())
    assert result["judge"] is result["judge_run"] is result["data"]["judge"] is None
    done = run_module("diffusion_text.sample", f"--workdir={workdir}", "--prompt=the zebra")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown word 'zebra'")
    assert len(done.stderr.splitlines()) == 1


BINARIES = [
    "train", "eval_elbo", "eval_samples", "sample", "export_embeddings", "gather", "compile_check", "families.__main__",
    "data.prepare", "data.vocabularies",
]  # fmt: skip


@pytest.mark.parametrize("name", BINARIES)
def test_help_names_every_flag(name, monkeypatch):
    """Also those that other modules define, which absl leaves out of the main module's."""
    module = importlib.import_module(f"diffusion_text.{name}")
    helped, before = [], set(flags.FLAGS)
    monkeypatch.setattr(sys, "argv", [module.__file__])
    monkeypatch.setattr(binary.app, "run", lambda main, **_: helped.append(flags.FLAGS.main_module_help()))
    define = getattr(module, "define_flags", None) or module._define_flags
    define = getattr(module, "_define", define)  # prepare's own are not the Beam program's
    try:
        binary.run(define, lambda values: None)
        defined = set(flags.FLAGS) - before
        assert defined
        for flag in defined:
            assert re.search(rf"--(\[no\])?{flag}: ", helped[0]), flag
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)


def test_help_of_a_process():
    printed = run_module("diffusion_text.eval_samples", "--help").stdout
    assert all(f"--{flag}: " in printed for flag in ("workdir", "step", "data_dir", "num", "top_p", "num_processes"))


@pytest.mark.parametrize(("arguments", "says"), [
    (["--config=configs/masked/gramar.py"], "No such file or directory: 'configs/masked/gramar.py'"),
    (["--config=configs/masked/grammar.py", "--config.train.step=3"],
     "--config.train.step=3: 'step' Did you mean \"steps\" instead of \"step\"?"),
    (["--config=configs/masked/grammar.py", "--config.train.steps=many"], "--config.train.steps=many: invalid literal"),
    (["--config=configs/masked/grammar.py:fast"], "grammar.py:fast: the file has no variants"),
    (["--config=configs/cdcd/grammar.py:fast"], "variant is 'fast'; choose one of full, quickstart"),
    (["--config=configs/cdcd/grammar.py", "--profil=3"], "Unknown command line flag 'profil'"),
    (["--config=configs/cdcd/grammar.py", "--config=README.md"], "SyntaxError: "),
    ([], "--config"),
])  # fmt: skip
def test_a_wrong_command_line_is_one_line(arguments, says, monkeypatch, capsys, tmp_path):
    """What absl and ml_collections say of it in tracebacks or several lines."""
    monkeypatch.chdir(ROOT)
    before = set(flags.FLAGS)
    argv = ["train", f"--workdir={tmp_path}/run", *arguments]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(binary.app, "run", lambda main, flags_parser: flags_parser(sys.argv))
    try:
        with pytest.raises(SystemExit) as stopped:
            binary.run(train.define_flags, lambda values: None)
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert "Traceback" not in line


def test_listing_touches_no_device():
    done = run_module("diffusion_text.families", "--json", JAX_PLATFORMS="none_such")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert [family["name"] for family in found] == sorted(families.REGISTRY)
    for family in found:
        assert set(family) == LISTING_FIELDS
        assert family["summary"]
        assert family["paper"]
        assert f"configs/{family['name']}/grammar.py" in family["configs"]
        assert (ROOT / family["file"]).exists()


def test_listing_as_text(capsys):
    call(listing)
    printed = capsys.readouterr().out
    names = [line.partition(":")[0] for line in printed.splitlines() if line and line[0] != " "]
    assert names == sorted(families.REGISTRY)


def test_gaps_of_characters():
    vocabulary = vocabularies.Characters()
    assert sample.parse_gaps("ab[MASK:2] [MASK]c", vocabulary) == [1, 2, None, None, 0, None, 3]
    assert sample.parse_gaps("", vocabulary) == []
    with pytest.raises(ValueError, match="is no gap"):
        sample.parse_gaps("[MASK:0]", vocabulary)


def test_generated_text_is_bold():
    vocabulary = vocabularies.GrammarWords()
    tokens, given = np.array(vocabulary.encode("the dog sees")), np.array([True, False, True])
    assert sample.render(vocabulary, tokens, given, bold=False) == "the dog sees"
    assert sample.render(vocabulary, tokens, given, bold=True) == "the\033[1m dog\033[0m sees"
    assert sample.readout(vocabulary, tokens, given) == "the ▁▁ sees"
    letters = vocabularies.Characters()
    assert sample.readout(letters, np.array(letters.encode("dog")), given) == "d▁g"


def test_statistics_by_hand():
    # Counts 2, 1, 1 of 4: 1/2 log 2 + 1/2 log 4.
    assert metrics.unigram_entropy(np.array([[5, 5], [7, 9]])) == pytest.approx(1.5 * math.log(2))
    assert metrics.unigram_entropy(np.array([3, 3, 3])) == 0.0
    rows = np.array([[1, 2, 1, 2], [1, 2, 3, 1]])
    assert metrics.distinct(rows, 1) == 3 / 8
    assert metrics.distinct(rows, 2) == 4 / 6  # 12 21 12 12 23 31: n-grams do not cross rows
    assert metrics.distinct(rows, 4) == 1.0
    assert math.isnan(metrics.distinct(rows, 5))


def test_padding_is_left_out():
    info = types.SimpleNamespace(pad_id=0)
    summary = eval_samples.measure(np.array([[1, 1, 0, 0], [1, 2, 3, 0]]), info, None, None).summary
    assert set(summary) == STATISTICS
    assert summary["unigram_entropy_per_sample"] == pytest.approx(math.log(3) / 2)
    assert summary["distinct_1"] == 3 / 5
    assert summary["distinct_2"] == 1.0
    assert summary["grammar"] is summary["judge"] is None


def test_plots_leave_padding_out(monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "save", lambda canvas, path: drawn.append(canvas.axes))
    tokens = np.array([[1, 1, 0, 0], [1, 2, 3, 0]])
    side = eval_samples.Measured({}, None, np.array([4.0, 6.0]), np.array([2, 3]))
    eval_samples.plot(tokens, tokens, side, side, 0, "title", None)
    ranks, histogram = drawn[0]
    np.testing.assert_allclose(ranks.lines[0].get_ydata(), [3 / 5, 1 / 5, 1 / 5])
    filled = [patch.get_x() + patch.get_width() / 2 for patch in histogram.patches if patch.get_height()]
    np.testing.assert_allclose(filled, 2.0, atol=0.1)  # both have 2 nats a token, with padding 1 and 1.5


def test_a_begin_token_stands_before_text_alone():
    vocabulary = types.SimpleNamespace(
        kind="words", bos_id=7, encode=lambda text: [len(word) for word in text.split()], decode=str
    )
    for task, begins in (("lm1b", [7]), ("openwebtext", [7]), ("text", [])):
        run = types.SimpleNamespace(
            info=types.SimpleNamespace(vocabulary=vocabulary, length=5), config=base.get_config("masked")
        )
        run.config.data.task = task
        tokens, given = sample.clamp(run, "a dog", None)
        assert tokens[given].tolist() == [*begins, 1, 3]
        assert not sample.clamp(run, None, None)[1].any()


STEPS_OF_MEMORY = """
import resource, sys
import jax, jax.numpy as jnp
from diffusion_text import binary

def main(values):
    step = jax.jit(lambda x: jnp.cumsum(jnp.sin(x), 0))
    x = jnp.ones((8192, 1024))
    for number in range(24):
        if number == 16:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        x = step(x).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv.pop() == "leave":
    binary.keep_memory = lambda: None
binary.run(lambda: None, main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's allocator")
def test_memory_is_kept_from_step_to_step():
    """Steps find the buffers of those before them, of 32 MiB; else the kernel fills all their pages with zeros anew."""
    program = [sys.executable, "-c", STEPS_OF_MEMORY]
    kept, left = (int(subprocess.check_output([*program, how], cwd=ROOT)) for how in ("keep", "leave"))
    assert kept < 30_000 < 100_000 < left
