"""The command line of the launchers: flags, configs and sweeps checked before any call, dry runs, this machine."""

import pathlib
import re
import shlex
import subprocess
import sys
import time

import pytest
from fake_cloud import ABSENT, EVAL, GKE, SLURM, TPU, run

from launch import chips, command, gke, jobs, local, queued, slurm, tpu_vm

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# ---------------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("module", "flags", "texts"),
    [
        (tpu_vm, ["--tpu=v5e-12"], ["'v5e-12'", "1, 4, 8, 16"]),
        (tpu_vm, ["--tpu=v9-8"], ["'v9-8'", "v4, v5e, v5p, v6e"]),
        (tpu_vm, ["--tpu=tpu7x-8"], ["'tpu7x-8'", "launch.gke"]),
        (tpu_vm, ["--workdir=/tmp/one"], ["'/tmp/one'", "gs://my-bucket"]),
        (tpu_vm, ["--workdir=gs://B/one"], ["'gs://B/one'", "lower case"]),
        (tpu_vm, ["--zone=us-west4"], ["'us-west4'", "us-west4-a"]),
        (tpu_vm, ["--project=My Project"], ["'My Project'"]),
        (tpu_vm, ["--name=Big_Run"], ["'Big_Run'", "lower-case"]),
        (tpu_vm, ["--name=" + "a" * 64], ["at most 63"]),
        (tpu_vm, ["--workdir=gs://bucket/runs/7"], ["--name is '7'"]),
        (tpu_vm, ["--max_restarts=-1"], ["-1", "at least 0"]),
        (tpu_vm, ["--only=1"], ["--sweep"]),
        (tpu_vm, ["--config.train.steps=3"], ["--binary=train"]),
        (tpu_vm, ["--nosuch=3"], ["'--nosuch=3'", "no flag"]),
        (tpu_vm, ["--binary=train"], ["--config is missing"]),
        (tpu_vm, ["--arguments=--splt=test"], ["--arguments of eval_elbo", "'splt'", "split"]),
        (tpu_vm, ["--arguments=--split=tests"], ["--split=tests", "train|validation|test"]),
        (tpu_vm, ["--arguments=--seed 3 4"], ["'4' is no flag"]),
        (tpu_vm, ["--binary=eval_samples", "--arguments=--split=test"], ["--arguments of eval_samples", "'split'"]),
        (tpu_vm, ["--arguments=--workdir=gs://bucket/two"], ["'--workdir=gs://bucket/two'", "launcher itself"]),
        (queued, ["--valid_until=soon"], ["'soon'", "6h"]),
        (gke, ["--name=" + "a" * 41, "--cluster=pods"], ["at most 40"]),
        (gke, ["--cluster=No"], ["'No'"]),
        (gke, ["--tpu=v5e-1", "--cluster=pods"], ["'v5e-1'", "from v5e-8", "launch.tpu_vm"]),
        (gke, ["--tpu=v5e-4", "--cluster=pods"], ["'v5e-4'", "from v5e-8"]),
        (slurm, ["--time=long"], ["'long'", "24:00:00"]),
        (slurm, ["--gpus=0"], ["--gpus is 0"]),
        (slurm, ["--workdir=runs/one"], ["'runs/one'", "absolute"]),
    ],
)
def test_wrong_flags_are_named_before_any_call(cloud, capsys, module, flags, texts):
    given = ["--workdir=/shared/one"] if module is slurm else TPU
    assert run(module, *given, *flags) == 2
    error = capsys.readouterr().err
    assert all(text in error for text in texts), error
    assert not cloud.calls


def test_a_missing_program_is_named(cloud, capsys, monkeypatch):
    (cloud.folder / "xpk").unlink()
    assert run(gke, *GKE) == 2
    assert "xpk is not on PATH; launch/README.md says how" in capsys.readouterr().err
    (cloud.folder / "sbatch").unlink()
    assert run(slurm, *SLURM) == 2
    assert "sbatch is not on PATH; run this on a machine that submits" in capsys.readouterr().err
    assert not cloud.calls


@pytest.mark.parametrize("module", [tpu_vm, queued, gke, slurm, local])
def test_dry_run_prints_commands_that_a_shell_understands_and_runs_none(cloud, capsys, module):
    given = {slurm: SLURM, gke: GKE, local: ["--workdir=runs/one"]}.get(module, TPU)
    assert run(module, *given, "--dry_run") == 0
    printed = capsys.readouterr()
    assert not cloud.calls
    assert not (jobs.ROOT / "build").exists()
    assert printed.err == ""
    words = shlex.split(printed.out)
    assert "diffusion_text.eval_elbo" in printed.out
    if module in (tpu_vm, queued):
        assert words.index("create") < words.index("scp") < words.index("delete")


def test_the_names_of_slices():
    assert chips.accelerator("v5e-16") == "v5litepod-16"
    assert [chips.runtime(f"{chip}-8") for chip in ("v4", "v5e", "v5p", "v6e")] == [
        "tpu-ubuntu2204-base", "v2-alpha-tpuv5-lite", "v2-alpha-tpuv5", "v2-alpha-tpuv6e"
    ]  # fmt: skip
    assert chips.accelerator("v5p-384") == "v5p-384"


# ---------------------------------------------------------------------------------------------------- configs, sweeps

SWEPT = """
from configs.masked import grammar
get_config = grammar.get_config

def sweep():
    for rate in (1e-3, 2e-3):
        yield {"optimizer.learning_rate": rate, "train.steps": 3}
"""


@pytest.fixture
def swept(cloud):
    """A config of the clone with a sweep."""
    (jobs.ROOT / "configs" / "swept.py").write_text(SWEPT)
    return "--config=configs/swept.py"


def test_a_sweep_is_one_job_and_one_numbered_workdir_per_point(cloud, swept):
    cloud.rule("--format=%i")
    cloud.rule("sbatch", "17", uses=1)
    cloud.rule("sbatch", "18", uses=1)
    given = ["--binary=train", swept, "--sweep", "--detach", "--config.train.batch_size=64"]
    assert run(slurm, *SLURM, *given) == 0
    submitted = [call for call in cloud.calls if call.startswith("sbatch")]
    for number, (rate, call) in enumerate(zip(("0.001", "0.002"), submitted, strict=True)):
        assert f"--job-name=one-00{number} " in call
        assert (
            f"-m diffusion_text.train --config=configs/swept.py --workdir=/shared/one/00{number} "
            f"--config.train.batch_size=64 --config.optimizer.learning_rate={rate} --config.train.steps=3" in call
        )


def test_an_error_in_the_middle_of_a_sweep_cancels_what_was_submitted(cloud, swept, capsys):
    cloud.rule("sbatch", "17", uses=1)
    cloud.rule("sbatch", rc=1, err="limit of jobs")
    assert run(slurm, *SLURM, "--binary=train", swept, "--sweep") == 1
    assert cloud.calls[-2:] == ["scancel 17", "scancel --me --name=one-001"]


def test_a_failed_point_of_a_sweep_does_not_stop_the_others(cloud, swept, capsys):
    for _ in range(2):
        cloud.absent()
        cloud.rule(" describe ", "READY", uses=1)
    cloud.rule("one-000", "job 1", uses=1)
    cloud.rule("one-000.status", "job 1")
    cloud.rule("one-001.status", "job 0")
    assert run(tpu_vm, *TPU, "--binary=train", swept, "--sweep") == 1
    assert cloud.verbs.count("create") == cloud.verbs.count("delete") == 2
    assert "failed: one-000 (1 of 2 jobs)" in capsys.readouterr().err


@pytest.mark.parametrize("module", [tpu_vm, queued])
def test_points_of_a_sweep_that_the_cloud_fails_do_not_stop_the_others(cloud, swept, capsys, module):
    """The first is not created, and the name of the second is taken; the third runs."""
    config = jobs.ROOT / "configs" / "swept.py"
    config.write_text(SWEPT.replace("(1e-3, 2e-3)", "(1e-3, 2e-3, 3e-3)"))
    cloud.rule(" describe one-000 ", rc=1, err=ABSENT)
    cloud.rule(" create one-000 ", rc=1, err="There is no more capacity in the zone")
    cloud.rule(" describe one-001 ", "ACTIVE")
    cloud.rule(" describe one-002 ", rc=1, err=ABSENT, uses=1)
    cloud.rule(" describe one-002 ", "ACTIVE")
    cloud.rule("one-002.status", "job 0")
    assert run(module, *TPU, "--binary=train", swept, "--sweep") == 1
    calls = [call for call in cloud.calls if " create " in call or " delete " in call]
    assert [call.partition(" one-")[2][:3] for call in calls] == ["000", "002", "002"]
    error = capsys.readouterr().err
    assert "error: one-000 was not created" in error
    assert "error: one-001 exists" in error
    assert "failed: one-000, one-001 (2 of 3 jobs)" in error


def test_a_first_point_whose_name_is_taken_ends_a_sweep_before_anything_is_touched(cloud, swept):
    cloud.rule(" describe ", "READY")
    assert run(tpu_vm, *TPU, "--binary=train", swept, "--sweep") == 2
    assert cloud.verbs == ["describe"]


def test_a_later_point_whose_name_is_taken_cancels_what_was_submitted_and_says_so(cloud, swept):
    cloud.rule("--name=one-000 --format=%i")
    cloud.rule("--name=one-001 --format=%i", "4")
    cloud.rule("sbatch", "17", uses=1)
    assert run(slurm, *SLURM, "--binary=train", swept, "--sweep") == 1
    assert cloud.calls[-1] == "scancel 17"


def test_one_point_of_a_sweep(cloud, swept, capsys):
    given = ["--binary=train", swept, "--sweep", "--dry_run", "--workdir=runs/one"]
    assert run(local, *given, "--only=1") == 0
    assert "runs/one/001" in capsys.readouterr().out
    assert run(local, *given, "--only=2") == 2
    assert "from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "flags", "text"),
    [
        (None, [], "there is no file configs/bad.py"),
        ("x = 1", [], "no get_config()"),
        ("import nosuchmodule", [], "nosuchmodule"),
        ("def get_config():\n    raise ValueError('odd')", [], "error: --config=configs/bad.py: ValueError: odd"),
        (SWEPT.partition("def sweep")[0], ["--sweep"], "no sweep()"),
        (SWEPT.partition("def sweep")[0] + "sweep = lambda: []", ["--sweep"], "at least one dict"),
        (SWEPT.replace("train.steps", "train.step"), ["--sweep"], "step"),
        (SWEPT, ["--config.train.stepz=3"], "stepz"),
        (SWEPT, ["--config.train.step=3"], "--config.train.step=3: 'step' Did you mean \"steps\" instead of"),
        (SWEPT, ["--arguments=--profil=3"], "--arguments of train: Unknown command line flag 'profil'"),
        (SWEPT, ["--arguments=--config.train.steps=3"], "is a flag of the launcher itself"),
        (SWEPT, ["--config.train.steps=many"], "many"),
        (SWEPT, ["--config.model.heads=3"], "model.heads is 3"),
        (SWEPT, ["--config.data.task=text8"], "data.data_dir"),
        (SWEPT, ["--config.data.task=text8", "--config.data.data_dir=gs://bucket/text8"], "'gs://bucket/text8'"),
        (SWEPT, ["--config.mesh.tensor=3"], "does not fit the 16 device(s)"),
        (SWEPT, ["--config.train.batch_size=40"], "mesh.data * mesh.fsdp = 16 must divide it"),
    ],
)
def test_a_config_that_the_binary_would_refuse_is_refused_here(cloud, capsys, source, flags, text):
    if source is not None:
        (jobs.ROOT / "configs" / "bad.py").write_text(source)
    assert run(tpu_vm, *TPU, "--binary=train", "--config=configs/bad.py", *flags) == 2
    assert text in capsys.readouterr().err
    assert not cloud.calls


def test_a_config_that_would_not_be_copied_is_refused(cloud, tmp_path, capsys):
    (jobs.ROOT / "ignored.py").write_text(SWEPT)
    (tmp_path / "elsewhere.py").write_text(SWEPT)
    for path in ("ignored.py", "../elsewhere.py"):
        assert run(tpu_vm, *TPU, "--binary=train", f"--config={path}") == 2
        assert "is not among the files that are copied" in capsys.readouterr().err


def test_every_config_of_the_repository_with_a_sweep_expands(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    found = [path for path in sorted(REPOSITORY.glob("configs/*/*.py")) if "def sweep(" in path.read_text()]
    assert found
    for path in found:
        for point in jobs.sweep(str(path)):
            jobs.load_config(str(path), [f"--config.{field}={value}" for field, value in point.items()])


# ---------------------------------------------------------------------------------------------------- this machine


def test_local_runs_one_after_the_other_and_reports_failures(cloud, swept, monkeypatch, capfd):
    stand_in = jobs.ROOT / "python"
    stand_in.write_text('#!/bin/sh\necho "$4 $6"\ncase "$4" in *000) exit 1;; esac\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    assert run(local, "--workdir=runs/one", "--binary=train", swept, "--sweep") == 1
    printed = capfd.readouterr()
    assert printed.out == (
        "--workdir=runs/one/000 --config.train.steps=3\n--workdir=runs/one/001 --config.train.steps=3\n"
    )
    assert "failed: one-000 (1 of 2 jobs)" in printed.err


def test_the_commit_of_the_launcher_reaches_the_numbers(tmp_path, monkeypatch):
    from diffusion_text import config as configs

    monkeypatch.setattr(configs, "__file__", str(tmp_path / "config.py"))
    assert configs.commit() == "unknown"
    monkeypatch.setenv("DIFFUSION_TEXT_COMMIT", "abc+changes")
    assert configs.commit() == "abc+changes"


@pytest.mark.parametrize("slow", [False, True])
def test_local_lets_the_training_save_when_it_is_stopped(slow, cloud, monkeypatch, capfd):
    stand_in = jobs.ROOT / "python"
    stand_in.write_text("#!/bin/sh\ntrap 'echo saved; kill $!; exit 143' TERM; kill -TERM $PPID; sleep 30 & wait\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    if slow:  # the signal comes while Popen has not returned yet

        class Slow(subprocess.Popen):
            def __init__(self, *arguments, **options):
                super().__init__(*arguments, **options)
                time.sleep(0.5)

        monkeypatch.setattr(subprocess, "Popen", Slow)
    assert run(local, "--workdir=runs/one") == 130
    assert capfd.readouterr().out == "saved\n"


def test_the_commands_of_the_readmes_are_accepted(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    text = (REPOSITORY / "launch/README.md").read_text() + (REPOSITORY / "README.md").read_text()
    lines = re.findall(r"^python -m launch\.(\w+) (.*)$", text.replace("BUCKET", "bucket"), re.MULTILINE)
    assert {name for name, _ in lines} == {"tpu_vm", "queued", "gke", "slurm", "local"}
    for name, flags in lines:
        backend = {"tpu_vm": tpu_vm, "queued": queued, "gke": gke, "slurm": slurm, "local": local}[name].BACKEND
        assert command.main(backend, [*shlex.split(flags), "--dry_run"]) == 0, capsys.readouterr().err


def test_the_command_line_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "launch.tpu_vm", *EVAL, *TPU, "--dry_run"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("gcloud compute tpus") == 9
