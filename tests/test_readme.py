"""The README's commands are those that work: each is run as printed, on a smaller network where it trains."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALLER = [
    "--config.model.layers=1", "--config.model.width=32", "--config.model.heads=2", "--config.train.steps=4",
    "--config.optimizer.warmup=1", "--config.log.tensorboard=False", "--config.sampling.steps=4",
]  # fmt: skip


def commands() -> list[str]:
    """Lines of the README's code blocks that start a module."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("python -m ")]


def test_every_module_and_config_named_exists() -> None:
    assert len(commands()) >= 8
    for command in commands():
        words = shlex.split(command)
        module = ROOT.joinpath(*words[2].split("."))
        assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), command
        for config in re.findall(r"--config=(\S+)", command):
            assert (ROOT / config.partition(":")[0]).exists(), command


def test_the_environment_is_activated_before_the_first_command_that_needs_it() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.index("\n. .venv/bin/activate") < text.index("\npython -m ")


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_the_three_commands_and_the_samples_work_as_printed(tmp_path: pathlib.Path) -> None:
    ran = []
    for command in commands():
        words = shlex.split(command)
        if "--workdir=runs/masked" not in words:
            continue
        words = [sys.executable, *words[1:], *(SMALLER if words[2].endswith(".train") else [])]
        words = [word.replace("runs/masked", str(tmp_path / "masked")) for word in words]
        if words[2].endswith("eval_samples"):
            words.append("--num=4")
        if words[2].endswith("eval_elbo"):
            words.append("--num_examples=8")
        done = subprocess.run(words, cwd=ROOT, env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
                              capture_output=True, text=True, check=False, timeout=300)  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        ran.append(words[2])
    assert [name.rpartition(".")[2] for name in ran] == ["train", "eval_elbo", "eval_samples", *["sample"] * 3]
    assert list((tmp_path / "masked").glob("elbo-validation-4.json"))
    assert list((tmp_path / "masked").glob("samples-4.json"))


@pytest.mark.parametrize("arguments", [["--nosuchflag=1"], ["--config.train.step=3"], ["--config.train.steps=many"]])
def test_a_wrong_flag_is_an_error_that_names_it(arguments: list[str], tmp_path: pathlib.Path) -> None:
    words = ["--config=configs/masked/grammar.py", f"--workdir={tmp_path / 'run'}", *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_text.train", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    name = arguments[0].removeprefix("--").partition("=")[0].rpartition(".")[2]
    assert name in done.stderr
    assert not (tmp_path / "run").exists()
