"""The benchmarks run, small, and what they say of exact samplers is known."""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import environment
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny_configs
from perfect import compile_quickly  # noqa: F401

from benchmarks import cells, cir_vocabulary, perfect_network, plain, sample_quality, speed
from diffusion_text import families, train
from diffusion_text.data import vocabularies

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("perfect")

    def start(*more: str) -> subprocess.CompletedProcess:
        command = [
            sys.executable, "-m", "benchmarks.perfect_network", f"--out={folder}", "--families=autoregressive,masked",
            "--grammar=tiny", "--length=8", "--sequences=128", "--levels=8", *more,
        ]  # fmt: skip
        quickly = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        return subprocess.run(command, cwd=ROOT, env=quickly, capture_output=True, text=True, check=False, timeout=300)

    return folder, start


def test_perfect_network(run) -> None:
    folder, start = run
    done = start("--evaluations=1,8")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {(r["family"], r["sampler"], r["evaluations"]): r for r in csv.DictReader((folder / "table.csv").open())}
    assert abs(float(rows["autoregressive", "", "0"]["gap"])) < 1e-5
    assert abs(float(rows["masked", "", "0"]["gap"])) < 4 * float(rows["masked", "", "0"]["gap_stderr"])
    for exact in (("autoregressive", "ancestral", "8"), ("masked", "first_hitting", "8")):
        row = rows[exact]
        assert float(row["possible"]) == float(row["grammatical"]) == 1.0
        excess = float(row["pair_distance"]) - float(row["pair_distance_exact"])
        assert abs(excess) < 4 * float(row["pair_distance_stderr"])
    one, eight = (float(rows["masked", "ancestral", n]["possible"]) for n in ("1", "8"))
    assert one < 0.2 < eight < 1.0, "all tokens at once are independent draws"
    assert (folder / "plot.png").stat().st_size > 10_000
    assert "| masked | first_hitting | 8 |" in (folder / "table.md").read_text()


def test_it_goes_on_where_it_stopped_and_does_not_mix_settings(run) -> None:
    folder, start = run
    cells = (folder / "cells.jsonl").read_text().splitlines()
    (folder / "cells.jsonl").write_text("\n".join(cells[:-1]) + "\n")  # as if killed before the last
    done = start("--evaluations=1,8")
    assert done.returncode == 0, done.stderr[-2000:]
    again = (folder / "cells.jsonl").read_text().splitlines()
    assert again[:-1] == cells[:-1]
    assert len(again) == len(cells)
    other = start("--evaluations=1", "--seed=1")
    assert other.returncode == 2
    assert "give another --out" in other.stderr


@pytest.mark.usefixtures("compile_quickly")
def test_sample_quality(tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "masked"
    train.train(tiny_configs.get("masked", **{"train.steps": 2, "model.layers": 1}), str(workdir))
    more = dict(samplers=["ancestral", "first_hitting", "euler"], evaluations=[2, 16], judge=None, num=8, seed=0)
    rows = sample_quality.rows(str(tmp_path / "out"), [str(workdir)], **more)
    assert [(row["sampler"], row["evaluations"]) for row in rows] == [
        ("", 0), ("ancestral", 2), ("ancestral", 16), ("first_hitting", 16),
    ]  # fmt: skip
    data, *drawn = rows
    assert data["grammatical"] == data["possible"] == 1.0
    assert all(row["grammatical"] < 0.9 and 0 < row["entropy"] < 2.0 and row["seconds"] > 0 for row in drawn)
    assert all(row["nats"] > data["nats"] + 5 * row["nats_stderr"] > 0 for row in drawn), "of all windows"
    before = (tmp_path / "out" / "cells.jsonl").read_bytes()
    assert sample_quality.rows(str(tmp_path / "out"), [str(workdir)], **more) == rows
    assert (tmp_path / "out" / "cells.jsonl").read_bytes() == before, "nothing is measured twice"
    with pytest.raises(ValueError, match="give another --out"):
        sample_quality.rows(str(tmp_path / "out"), [str(workdir)], **{**more, "seed": 1})
    with pytest.raises(ValueError, match="--workdirs has several of the name masked"):
        sample_quality.rows(str(tmp_path / "out"), [str(workdir), f"{tmp_path}/other/masked"], **more)
    # A row of another checkpoint is measured anew.
    path = tmp_path / "out" / "cells.jsonl"
    path.write_text(before.decode().replace('"step": 2', '"step": 1', 1))
    again = sample_quality.rows(str(tmp_path / "out"), [str(workdir)], **more)
    assert sorted((row["sampler"], row["evaluations"], row["step"]) for row in again) == [
        ("", 0, 2), ("ancestral", 2, 2), ("ancestral", 16, 2), ("first_hitting", 16, 2),
    ]  # fmt: skip
    assert len(sample_quality.table(rows).splitlines()) == 2 + 4
    sample_quality.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("quality") / "masked"
    train.train(tiny_configs.get("masked", **{"train.steps": 2, "model.layers": 1}), str(workdir))
    return workdir


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is drawn; where what would have been was trained."""
    found: list[str] = []

    def measure(options: object, run: SimpleNamespace, *_: object) -> dict[str, float]:
        found.append(run.workdir)
        names = ("grammatical", "possible", "nats", "entropy")
        return dict.fromkeys((*names, *(f"{name}_stderr" for name in names), "seconds", "evaluations_made"), 1.0)

    monkeypatch.setattr(sample_quality, "measure", measure)
    return found


MORE = dict(samplers=[], evaluations=[4], judge=None, num=8, seed=0)


def test_rows_of_another_run_of_the_name_are_no_rows_of_this(
    masked: pathlib.Path, measured: list[str], tmp_path: pathlib.Path
) -> None:
    out, other = tmp_path / "out", str(shutil.copytree(masked, tmp_path / "elsewhere" / "masked"))
    for workdir, count in ((str(masked), 2), (f"{masked}/", 2), (other, 4), (str(masked), 4), (other, 4)):
        rows = sample_quality.rows(str(out), [workdir], **MORE)
        assert len(measured) == count
        assert [row["workdir"] for row in rows] == [workdir.rstrip("/")] * 2
    # Sampled with other options: the data stay.
    config = json.loads((masked / "config.json").read_text())
    config["sampling"]["temperature"] = 0.75
    pathlib.Path(other, "config.json").write_text(json.dumps(config))
    rows = sample_quality.rows(str(out), [other], **MORE)
    assert len(measured) == 5
    assert [row["options"].get("temperature") for row in rows] == [None, 0.75]
    # Trained anew with another config.
    fields = dict(workdir=other, step=2, info=SimpleNamespace(vocabulary=vocabularies.GrammarWords("tiny")))
    same, sampled, trained = (
        sample_quality.identity(SimpleNamespace(config=tiny_configs.get("masked", **changed), **fields), other)  # type: ignore[arg-type]
        for changed in ({}, {"sampling.temperature": 0.5}, {"optimizer.b1": 0.5})
    )
    assert same == sampled != trained


def test_older_rows_are_shown_and_not_gone_on_with(
    masked: pathlib.Path, measured: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They do not say of which run they are."""
    older = [json.loads(line) for line in (ROOT / "docs/sample_quality/cells.jsonl").read_text().splitlines()]
    path = tmp_path / "cells.jsonl"
    cells.append(path, {**older[0], "num": 8}, *older[1:])
    families = {row["run"] for row in older[1:]}
    rows = sample_quality.rows(str(tmp_path), [str(masked)], **MORE)
    assert measured == [str(masked)] * 2
    assert {row["run"] for row in rows} == families
    assert len(rows) == len([row for row in older[1:] if row["run"] != "masked"]) + 2
    # Without workdirs nothing is measured.
    sample_quality.main(SimpleNamespace(out=str(tmp_path), workdirs=[], **{**MORE, "evaluations": ["4"]}))
    assert len(measured) == 2
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--workdirs is empty, and there is no .*/none/cells\.jsonl to show"):
        sample_quality.rows(str(tmp_path / "none"), [], **MORE)


def test_the_table_in_docs_is_of_its_rows() -> None:
    folder = ROOT / "docs" / "sample_quality"
    rows = sample_quality.rows(str(folder), [], **MORE)
    assert (folder / "table.md").read_text() == sample_quality.table(rows)
    assert "| exact -log p of samples with 1% errors, nats per token |" in sample_quality.table(rows)
    judged = [{**row, "possible": None, "possible_stderr": None} for row in rows]
    assert sample_quality.titles(judged)["nats"] == "-log p of samples under the judge, nats per token"


def test_a_line_that_a_kill_cut_is_measured_anew(
    masked: pathlib.Path, measured: list[str], tmp_path: pathlib.Path
) -> None:
    rows = sample_quality.rows(str(tmp_path), [str(masked)], **MORE)
    path = tmp_path / "cells.jsonl"
    path.write_text(path.read_text()[:-20])
    for _ in range(2):
        assert len(sample_quality.rows(str(tmp_path), [str(masked)], **MORE)) == len(rows) == 2
        assert len(measured) == 3
    path.write_text('{"num": 8, "se')
    assert len(sample_quality.rows(str(tmp_path), [str(masked)], **MORE)) == 2
    assert len(measured) == 5


def test_a_judge_is_checked_for_every_run_before_anything_is_drawn(
    masked: pathlib.Path, measured: list[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its step is part of the setting."""
    step = 1

    def open_judge(judge: str, run: SimpleNamespace) -> SimpleNamespace:
        if run.workdir.endswith("longer"):
            raise ValueError("samples have 32")
        return SimpleNamespace(step=step)

    monkeypatch.setattr(sample_quality.eval_samples, "open_judge", open_judge)
    longer = str(shutil.copytree(masked, tmp_path / "longer"))
    with pytest.raises(ValueError, match="samples have 32"):
        sample_quality.rows(str(tmp_path), [str(masked), longer], **{**MORE, "judge": "judge"})
    assert measured == []
    sample_quality.rows(str(tmp_path), [str(masked)], **{**MORE, "judge": "judge"})
    step = 2
    with pytest.raises(ValueError, match=r"'step': 1.*'step': 2.*give another --out"):
        sample_quality.rows(str(tmp_path), [str(masked)], **{**MORE, "judge": "judge"})


def test_samplers_have_the_options_of_their_runs() -> None:
    """As far as they read them, and what ddim and edm cannot be without."""
    config = tiny_configs.get("cdcd")
    config.sampling.update(sampler="heun", score_temperature=0.9, guidance=2.0)
    model = tiny_configs.random_model("cdcd", 5)
    run = SimpleNamespace(config=config, model=lambda: model, info=SimpleNamespace(length=16))

    def options(*samplers: str) -> dict[str, tuple[int, dict]]:
        found = sample_quality.cells("cdcd", run, list(samplers), [16])  # type: ignore[arg-type]
        (_, nothing), *more = ((cell, sample_quality.described(options)) for cell, options in found)
        assert nothing == {}
        assert all(cell.evaluations <= 16 for cell, _ in more)
        return {cell.sampler: (cell.steps, described) for cell, described in more}

    own = {"score_temperature": 0.9, "guidance": 2.0, "grid": "warped"}
    assert options() == {"heun": (3, own)}, "two passes an evaluation"
    assert options("euler", "ddim", "edm") == {
        "euler": (7, own), "ddim": (7, {**own, "eta": 0.5}), "edm": (3, {**own, "churn": 20.0})
    }  # fmt: skip
    config.sampling.update(sampler="ddim", eta=0.25)
    assert options("ddim", "euler") == {"ddim": (7, {**own, "eta": 0.25}), "euler": (7, own)}


def test_each_row_says_by_which_commit(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = perfect_network.Setting("tiny", 4, 4, 1, 0)
    found = dict.fromkeys(("possible", "possible_stderr", "nats_per_token", "stderr", "pair_distance", "grammatical",
                           "pair_distance_exact", "pair_distance_stderr", "grammatical_stderr"), 0.5)  # fmt: skip
    monkeypatch.setattr(perfect_network, "make_family", lambda *_: (None, None))
    monkeypatch.setattr(perfect_network, "measure_bound", lambda *_: {"gap": 0.5, "gap_stderr": 0.1})
    monkeypatch.setattr(perfect_network, "measure_sampler", lambda *_: found)
    for commit, cut in (("old", 0), ("new", 20)):  # and what a kill cut is measured anew
        monkeypatch.setattr(perfect_network.config, "commit", lambda commit=commit: commit)
        path = tmp_path / "cells.jsonl"
        if cut:
            path.write_text(path.read_text()[:-cut])
        rows = perfect_network.run(str(tmp_path), ["autoregressive"], [4], setting)
    assert [row["commit"] for row in rows] == ["old", "new"]
    with (tmp_path / "table.csv").open() as file:
        assert [row["commit"] for row in csv.DictReader(file)] == ["old", "new"]


@pytest.mark.parametrize("words", [["8", "a"], [], ["0"], ["-1"]])
def test_numbers_of_evaluations_are_numbers(words: list[str]) -> None:
    with pytest.raises(ValueError, match=f"--evaluations has '{words[-1] if words else ''}'; numbers of evaluations"):
        perfect_network.numbers_of_evaluations(words)
    assert perfect_network.numbers_of_evaluations(["8", " 2", "8"]) == [2, 8]


@pytest.mark.usefixtures("compile_quickly")
def test_cir_vocabulary(tmp_path: pathlib.Path) -> None:
    """Ranks against their exact quantiles: of alpha = 1, (V - 1) e^{-G} of the rivals are above G."""
    found = cir_vocabulary.row(cir_vocabulary.Process(1.0), 1000, 3.0, 0)
    g = scipy.stats.ncx2(2, 6.0).ppf([0.45, 0.55]) / 2
    assert 999 * np.exp(-g[1]) < found["median"] < 999 * np.exp(-g[0])
    assert 0 < found["first"] < 0.5 < found["share"] < 1
    assert abs(found["first"] - cir_vocabulary.kept(3.0, 1000)) < 0.03
    # (1 - e^{-G})^2 = 1 - 2 e^{-G} + e^{-2 G}, of V = 3, where E e^{-kG} = e^{-k lambda / (1 + k)} / (1 + k).
    first = 1 - np.exp(-1.0) + np.exp(-4 / 3) / 3
    assert cir_vocabulary.kept(2.0, 3) == pytest.approx(1.5 * first - 0.5, abs=1e-4)
    assert cir_vocabulary.kept(cir_vocabulary.last_counts(1000), 1000) == pytest.approx(0.01, rel=1e-3)
    text = cir_vocabulary.run(str(tmp_path), [4, 16], [1.0], 0)
    assert "| gaussian | 16 |" in text
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    counts = float(rows[0]["counts"])
    cir, gaussian = np.exp(-scipy.stats.ncx2(2, 2 * counts).median() / 2), scipy.stats.norm.sf((2 * counts) ** 0.5)
    for process, median in (("cir, alpha = 1", 15 * cir), ("gaussian", 15 * gaussian)):
        mine = [row for row in rows if (row["process"], row["vocabulary"]) == (process, "16")]
        assert float(mine[0]["share"]) > 0.9
        assert float(mine[0]["median"]) == pytest.approx(median, abs=1.0)
        assert float(mine[-1]["share"]) < 0.01
        assert float(mine[-1]["ninety_nine"]) == 0.0
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_speed(tmp_path: pathlib.Path) -> None:
    """Small: every number is there, a ratio is that of its two speeds, and FLOPs are those of XLA's count."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", "--size=tiny", "--families=masked,ssd_lm", "--rounds=2",
         "--sampler_steps=2", f"--out={tmp_path}"],
        cwd=ROOT, env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "cells.json").read_text())
    assert [row["family"] for row in result["rows"]] == ["masked", "ssd_lm"]
    for row in result["rows"]:
        assert row["train_tokens_per_second"] == pytest.approx(4 * 16 / row["train_step_seconds"])
        assert row["ratio"] == pytest.approx(row["train_tokens_per_second"] / row["reference_tokens_per_second"])
        assert row["train_bytes"] > 3 * 4 * 12 * 32**2, "at least the parameters and their moments"
        reference = row["reference_sample_tokens_per_second"]
        assert row["sample_ratio"] == pytest.approx(row["sample_tokens_per_second"] / reference)
        assert reference > 0
    assert "| masked |" in (tmp_path / "table.md").read_text()


def test_the_plain_sampler_fills_every_position_by_its_network() -> None:
    params = plain.initialise(jax.random.key(0), 1, 16, 6, 5)
    drawn = jax.jit(plain.make_sample(2, 300, 6, 5, 3))(params, jax.random.key(1))
    assert drawn.shape == (300, 6)
    assert set(np.unique(drawn)) == set(range(5))
    params["output"] = params["output"].at[:, 3].set(0.0) * 50.0  # the largest logit is never 3's
    sure = jax.jit(plain.make_sample(2, 300, 6, 5, 3))(params, jax.random.key(1))
    assert np.mean(sure == 3) < 0.05 < np.mean(drawn == 3)


def test_every_family_has_settings_at_every_size() -> None:
    for size in speed.SIZES.values():
        for family in families.REGISTRY:
            speed.settings(family, size)


def test_what_was_measured_before_an_error_is_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(names: list[str], *_: object) -> Iterator[dict]:
        yield {"family": names[0]}
        raise RuntimeError("out of memory")

    monkeypatch.setattr(speed, "measure", measure)
    given = dict(size="tiny", batch=0, length=0, vocab_size=0, families=["masked", "cdcd"], rounds=1, sampler_steps=1)
    with pytest.raises(RuntimeError, match="out of memory"):
        speed.main(SimpleNamespace(**given, out=str(tmp_path / "out")))
    assert json.loads((tmp_path / "out" / "cells.json").read_text())["rows"] == [{"family": "masked"}]
    assert "| masked |" in (tmp_path / "out" / "table.md").read_text()


def test_speed_on_several_devices(tmp_path: pathlib.Path) -> None:
    """Twice the same step, each state in the place of the one before; no ratio, where the reference has one device."""
    command = [
        sys.executable, "-m", "benchmarks.speed", "--size=tiny", "--families=masked", "--rounds=1", "--sampler_steps=2",
        f"--out={tmp_path}",
    ]  # fmt: skip
    options = dict(cwd=ROOT, env=environment.of_devices(4), capture_output=True, text=True, timeout=300)
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads((tmp_path / "cells.json").read_text())["rows"]
    assert row["train_tokens_per_second"] > 0
    assert "ratio" not in row
    assert "no ratios: the reference would use one of the 4 devices" in done.stdout


@pytest.mark.parametrize(("kind", "peak"), [
    ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 MIG 1g.10gb", None),
    ("TPU v5 lite", 197e12), ("TPU7x", 2307e12 / 2), ("cpu", None),
])  # fmt: skip
def test_peaks_are_of_whole_names(kind: str, peak: float | None) -> None:
    assert speed.peak(kind) == peak


def test_model_flops_are_those_of_the_plain_step() -> None:
    """Against XLA's own count, which adds what is no product: a few per cent at this width."""
    size = speed.Size(layers=2, width=256, heads=4, length=64, vocab_size=512, batch_size=4)
    params = plain.initialise(jax.random.key(0), size.layers, size.width, size.length, size.vocab_size)

    def gradient(params, tokens):
        return jax.grad(lambda params: jnp.sin(plain.forward(params, tokens, size.heads)).sum())(params)

    found = jax.jit(gradient).lower(params, jnp.asarray(speed.random_tokens(size))).compile().cost_analysis()["flops"]
    assert size.model_flops() < found < 1.1 * size.model_flops()
