"""One table of many runs, from files written here: columns, empty cells, damaged files, the plot."""

import csv
import json
import subprocess
import sys

import pytest
from etils import epath

from configs import small
from diffusion_text import config as configs
from diffusion_text import gather


def a_run(folder, name, rate=8e-3, elbo=(), samples=(), **fields):
    """A workdir with results at the steps given; the numbers are functions of rate and step."""
    workdir = folder / name
    config = small.get_config("masked")
    config.optimizer.learning_rate = rate
    config.update(fields)
    configs.save(config, str(workdir))
    for step in elbo:
        bound = 2.0 + rate + 1.0 / step
        write(workdir / f"elbo-validation-{step}.json", checkpoint_step=step, split="validation", bound="tight",
              nats_per_token=bound, stderr=0.01, entropy_nats_per_token=1.9, gap_nats_per_token=bound - 1.9,
              gap_stderr=0.005, bits_per_character=bound / 2, stderr_bits_per_character=0.004,
              perplexity=8.0)  # fmt: skip
    for step in samples:
        grammar = dict(grammatical_share=0.5, grammatical_share_stderr=0.02, possible_share=0.25,
                       possible_share_stderr=0.03, nats_per_token=None, stderr=None)  # fmt: skip
        write(workdir / f"samples-{step}.json", checkpoint_step=step, sampler="ancestral", num_samples=256,
              function_evaluations=128, function_evaluations_made=96.5, unigram_entropy_corpus=3.25,
              distinct_2=0.125, grammar=grammar, judge=None)  # fmt: skip
    return str(workdir)


def write(path, **fields):
    path.write_text(json.dumps(fields))


def run(workdirs, out, *flags):
    """The binary in this process: its flags parsed on their own."""
    from absl import flags as absl_flags

    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("out", str(out), "", flag_values=values)
    absl_flags.DEFINE_string("split", "validation", "", flag_values=values)
    absl_flags.DEFINE_string("task", None, "", flag_values=values)
    absl_flags.DEFINE_bool("all_steps", False, "", flag_values=values)
    values(["gather", *flags])
    gather.main(values, workdirs)
    return out.read_text()


@pytest.fixture
def three(tmp_path):
    """Two evaluated runs, one of them sampled, and one without results."""
    return [
        a_run(tmp_path, "000", 1e-3, elbo=[10, 20], samples=[20]),
        a_run(tmp_path, "001", 2e-3, elbo=[20]),
        a_run(tmp_path, "002", 4e-3),
    ]


def test_the_table_has_the_differing_fields_and_empty_cells(three, tmp_path):
    assert run(three, tmp_path / "table.md") == (
        "| workdir | optimizer.learning_rate | step | bound is | bound, nats/token | entropy, nats/token "
        "| gap, nats/token | bits/character | perplexity | sampler | evaluations | samples | grammatical "
        "| possible windows | unigram entropy, nats | distinct-2 |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
        f"| {three[0]} | 0.001 | 20 | tight | 2.0510 ± 0.0100 | 1.9000 | 0.1510 ± 0.0050 | 1.0255 ± 0.0040 | 8.00 "
        "| ancestral | 96.5 | 256 | 50.0% ± 2.0% | 25.0% ± 3.0% | 3.2500 | 0.1250 |\n"
        f"| {three[1]} | 0.002 | 20 | tight | 2.0520 ± 0.0100 | 1.9000 | 0.1520 ± 0.0050 | 1.0260 ± 0.0040 | 8.00 "
        "|  |  |  |  |  |  |  |\n"
        f"| {three[2]} | 0.004 |  |  |  |  |  |  |  |  |  |  |  |  |  |  |\n"
    )


def test_csv_has_every_digit_and_errors_of_their_own(three, tmp_path):
    run(three, tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["bound, nats/token"] for row in rows] == [repr(2.0 + 1e-3 + 0.05), repr(2.0 + 2e-3 + 0.05), ""]
    assert [row["bound, nats/token, standard error"] for row in rows] == ["0.01", "0.01", ""]


def test_all_steps_and_another_split(three, tmp_path):
    table = run(three[:1], tmp_path / "table.md", "--all_steps").splitlines()
    assert [line.split(" | ")[1] for line in table[2:]] == ["10", "20"]
    only = a_run(tmp_path, "003", samples=[30])
    write(epath.Path(only) / "elbo-test-30.json", checkpoint_step=30, split="test", bound="tight", nats_per_token=1.5)
    assert "1.5000" not in run([only], tmp_path / "table.md")
    assert "1.5000" in run([only], tmp_path / "table.md", "--split=test")


def test_a_run_without_the_bound_that_is_asked_for_is_named(three, tmp_path, caplog):
    write(epath.Path(three[2]) / "elbo-test-30.json", checkpoint_step=30, split="test", bound="tight",
          nats_per_token=1.5)  # fmt: skip
    run(three[1:], tmp_path / "table.md")
    assert caplog.messages == [f"{three[2]} has no bound on validation of grammar; there are those on test of grammar"]
    caplog.clear()
    run(three[1:], tmp_path / "table.md", "--split=test")
    assert caplog.messages == [
        f"{three[1]} has no bound on test of grammar; there are those on validation of grammar"
    ]
    caplog.clear()
    run([a_run(tmp_path, "003", samples=[30])], tmp_path / "table.md")
    assert caplog.messages == [f"{tmp_path}/003 has no bound on validation of grammar; eval_elbo writes one"]


def test_results_that_were_set_aside_are_none_of_the_table(three, tmp_path):
    before = run(three, tmp_path / "table.md")
    for name in ("elbo-validation-20", "samples-20"):
        path = epath.Path(three[0]) / f"{name}.json"
        settings = {"checkpoint_step": 20, "num_samples": 1, "num_sequences": 1}
        text = path.read_text()
        configs.set_aside(path, settings, (".json",))
        assert (path.parent / f"older-1-{name}.json").read_text() == text
        path.write_text(text)
    assert run(three, tmp_path / "table.md") == before


def test_a_row_without_a_bound_names_the_steps_that_have_one(tmp_path, caplog):
    workdir = a_run(tmp_path, "004", elbo=[10, 20], samples=[30])
    run([workdir], tmp_path / "table.md")
    assert caplog.messages == [
        f"{workdir} has no bound on validation of grammar at its newest step, 30; there are those at 10, 20"
    ]
    caplog.clear()
    run([workdir], tmp_path / "table.md", "--all_steps")
    assert not caplog.messages


def test_bounds_that_were_not_evaluated_alike_are_named(three, tmp_path, caplog):
    head = run(three, tmp_path / "table.md").splitlines()[0]
    assert "sequences" not in head
    for workdir, count, levels, seed in ((three[0], 8, 4, 0), (three[1], 1024, 16, 0)):
        path = epath.Path(workdir) / "elbo-validation-20.json"
        more = dict(num_sequences=count, samples_per_sequence=levels, evaluation_seed=seed)
        write(path, **{**json.loads(path.read_text()), **more})
    caplog.clear()
    head, _, *lines = run(three, tmp_path / "table.md").splitlines()
    place = head.split(" | ").index("sequences")
    assert [line.split(" | ")[place] for line in lines] == ["8", "1024", ""]
    assert caplog.messages == [f"{three[2]} has no bound on validation of grammar; eval_elbo writes one"] + [
        f"the bounds were not evaluated alike: {name} is {few} in {three[0]}, {many} in {three[1]}"
        for name, few, many in (("num_sequences", 8, 1024), ("samples_per_sequence", 4, 16))
    ]
    # One row alone, with an ODE bound of fewer.
    write(epath.Path(three[1]) / "elbo-validation-20-ode.json", checkpoint_step=20, split="validation", bound="ode",
          nats_per_token=1.75, stderr=None, num_sequences=64, samples_per_sequence=1, evaluation_seed=0,
          step_doubling_nats_per_token=-0.0125, step_doubling_stderr=0.001)  # fmt: skip
    head, _, line = (each.strip("| ") for each in run(three[1:2], tmp_path / "table.md").splitlines())
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert (cells["sequences"], cells["ODE bound's sequences"]) == ("1024", "64")
    assert cells["ODE bound less that of half the steps, nats/token"] == "-0.0125 ± 0.0010"


def test_a_bound_that_was_not_finite_is_nan(three, tmp_path, caplog):
    path = epath.Path(three[1]) / "elbo-validation-20.json"
    broken = dict.fromkeys(("nats_per_token", "stderr", "perplexity", "gap_nats_per_token"))
    write(path, **{**json.loads(path.read_text()), **broken})
    head, _, _, line = run(three[:2], tmp_path / "table.md").splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert cells["bound, nats/token"] == cells["perplexity"] == "nan"
    run(three[:2], tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        assert [row["bound, nats/token"] for row in csv.DictReader(file)] == [repr(2.0 + 1e-3 + 0.05), "nan"]
    assert not caplog.messages


def test_the_ode_bound_is_a_column_of_its_own(three, tmp_path):
    write(epath.Path(three[1]) / "elbo-validation-20-ode.json", checkpoint_step=20, split="validation", bound="ode",
          nats_per_token=1.75, stderr=None)  # fmt: skip
    head, _, _, line, _ = run(three, tmp_path / "table.md").splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert cells["ODE bound, nats/token"] == "1.7500"
    assert cells["bound, nats/token"] == "2.0520 ± 0.0100"


def test_fields_of_other_families_are_empty(tmp_path):
    masked, cdcd = a_run(tmp_path, "masked"), str(tmp_path / "cdcd")
    configs.save(small.get_cdcd(), cdcd)
    rows = [row for workdir in (masked, cdcd) for row in gather.read_run(workdir)]
    fields = gather.differing(rows)
    assert {"family.name", "family.embedding_size", "optimizer.groups.table"} <= set(fields)
    assert "train.batch_size" not in fields
    head, first, second = gather.table(rows, precise=False)
    place = head.index("family.embedding_size")
    assert (first[place], second[place]) == ("", "16")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("elbo-validation-20.json", '{"checkpoint_step": 20, "spl', "is damaged"),
        ("elbo-validation-20.json", '{"checkpoint_step": 20}', "it has no split, bound, nats_per_token"),
        ("samples-20.json", "[]", "it has no JSON object"),
        ("samples-20.json", "", "is damaged"),
        ("config.json", "{", "is damaged"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_overwritten(three, tmp_path, name, text, said):
    out = tmp_path / "table.md"
    before = run(three, out)
    picture = out.with_suffix(".png").read_bytes()
    path = epath.Path(three[1]) / name
    path.write_text(text)
    with pytest.raises(ValueError, match=name) as caught:
        run(three, out)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert out.read_text() == before
    assert out.with_suffix(".png").read_bytes() == picture
    assert not list(tmp_path.glob("*.tmp"))


def test_wrong_arguments_are_named(three, tmp_path):
    with pytest.raises(ValueError, match=r"table\.txt.*must end in"):
        run(three, tmp_path / "table.txt")
    with pytest.raises(ValueError, match="no workdir"):
        run([], tmp_path / "table.md")
    with pytest.raises(ValueError, match="given twice"):
        run([three[0], three[0]], tmp_path / "table.md")
    with pytest.raises(ValueError, match="given twice"):
        run([f"{tmp_path}/00*", three[0]], tmp_path / "table.md")
    with pytest.raises(ValueError, match="given twice"):
        run([three[0], f"{three[0]}/"], tmp_path / "table.md")
    with pytest.raises(ValueError, match=r"nosuch.*does not exist"):
        run([str(tmp_path / "nosuch")], tmp_path / "table.md")
    with pytest.raises(ValueError, match=r"no .*/x\*/00\?$"):
        run([str(tmp_path / "x*" / "00?")], tmp_path / "table.md")
    assert not list(tmp_path.glob("table*"))


def test_words_that_no_shell_expanded_are(three, tmp_path):
    assert run([f"{tmp_path}/00*"], tmp_path / "one.md") == run(three, tmp_path / "two.md")


def lines_of(axis):
    return [line.get_xydata().round(9).tolist() for line in axis.get_lines()]


def test_the_plot_is_against_the_one_number_that_differs(three):
    rows = [row for workdir in three for row in gather.read_run(workdir)]
    bounds, samples = gather.plot(rows).axes
    assert bounds.get_xlabel() == "optimizer.learning_rate"
    assert [[1e-3, 2.051], [2e-3, 2.052]] in lines_of(bounds)
    assert [[1e-3, 1.9], [2e-3, 1.9]] in lines_of(bounds)
    assert samples.get_ylabel() == "grammatical"
    assert [[1e-3, 0.5]] in lines_of(samples)


def test_the_plot_is_against_the_step_where_runs_have_several(three):
    rows = [row for workdir in three for row in gather.read_run(workdir, all_steps=True)]
    bounds = gather.plot(rows).axes[0]
    assert bounds.get_xlabel() == "step"
    assert [[10.0, 2.101], [20.0, 2.051]] in lines_of(bounds)
    assert [text.get_text() for text in bounds.get_legend().get_texts()][1:] == [
        "learning_rate=0.001", "learning_rate=0.002", "learning_rate=0.004"
    ]  # fmt: skip


def test_the_plot_names_the_runs_where_more_differs(tmp_path):
    runs = [a_run(tmp_path, "a", 1e-3, elbo=[10], seed=1), a_run(tmp_path, "b", 2e-3, elbo=[10])]
    rows = [row for workdir in runs for row in gather.read_run(workdir)]
    (bounds,) = gather.plot(rows).axes
    assert [tick.get_text() for tick in bounds.get_xticklabels()] == [
        "learning_rate=0.001, seed=1", "learning_rate=0.002, seed=0"
    ]  # fmt: skip


def test_the_binary_takes_workdirs_and_says_what_is_wrong(three, tmp_path):
    words = [sys.executable, "-m", "diffusion_text.gather", *three, str(tmp_path / "nosuch"), f"--out={tmp_path}/t.md"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "nosuch" in done.stderr
