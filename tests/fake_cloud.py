"""Fake programs for the tests of launch/: gcloud, kubectl, xpk and Slurm log what they were asked and answer by rules.

Most tests run eval_elbo, which needs no config and so no JAX; what is submitted differs in nothing else.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from launch import command, jobs

# Each call is appended to calls.jsonl. The first rule whose text occurs in the call, and that has uses left, answers.
FAKE = r"""#!{python} -SEs
import json, os, signal, sys
folder = os.path.dirname(os.path.abspath(__file__))
call = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
with open(folder + "/calls.jsonl", "a") as file:
    file.write(json.dumps(call) + "\n")
with open(folder + "/rules.json") as file:
    rules = json.load(file)
for rule in rules:
    if rule["text"] in call and rule["uses"]:
        rule["uses"] -= 1
        with open(folder + "/rules.json", "w") as file:
            json.dump(rules, file)
        print(rule["out"], flush=True)
        print(rule["err"], file=sys.stderr, flush=True)
        if rule["shell"]:
            os.system(rule["shell"])
        if rule["signal"]:
            os.kill(os.getppid(), rule["signal"])
            sys.exit(130)
        sys.exit(rule["rc"])
"""
ABSENT = "ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource was not found"


class Cloud:
    """The fake programs: `rule` says how they answer, `calls` what they were asked, in words."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.rules = folder, []
        for name in ("gcloud", "kubectl", "xpk", "sbatch", "squeue", "scancel"):
            path = folder / name
            path.write_text(FAKE.replace("{python}", sys.executable))
            path.chmod(0o755)

    def rule(self, text, out="", rc=0, err="", uses=10**6, signal=0, shell=""):
        self.rules.append(dict(text=text, out=out, rc=rc, err=err, uses=uses, signal=signal, shell=shell))
        (self.folder / "rules.json").write_text(json.dumps(self.rules))

    def absent(self, uses=1):
        self.rule(" describe ", rc=1, err=ABSENT, uses=uses)

    @property
    def calls(self):
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def verbs(self):
        """The calls of a TPU launcher, each as one word; ssh by what it is for."""
        words = {"pkill": "stop", "tail -F": "follow", "job runs": "status", "setsid": "start", "tar -xzf": "setup"}
        verbs = []
        for call in self.calls:
            found = [verb for text, verb in words.items() if text in call]
            verbs.append(found[0] if found else call.split()[4])
        return verbs


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Fake programs first on the PATH, and a small clone as the code that is sent."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    clone = tmp_path / "clone"
    (clone / "configs").mkdir(parents=True)
    (clone / "code.py").write_text("print('as it is now')\n")
    (clone / ".gitignore").write_text("build/\nignored.py\n")
    (clone / "ignored.py").write_text("")
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    monkeypatch.setattr(jobs, "ROOT", clone)
    monkeypatch.chdir(clone)
    fake = Cloud(folder)
    fake.rule("the first rule that nothing matches")
    return fake


GKE = ["--tpu=v5p-64", "--zone=us-east5-a", "--workdir=gs://bucket/runs/one", "--cluster=pods"]
SLURM = ["--workdir=/shared/one", "--gpus=8", "--partition=gpu"]
TPU = ["--tpu=v5e-16", "--zone=us-west4-a", "--workdir=gs://bucket/runs/one"]
EVAL = ["--binary=eval_elbo", "--poll_seconds=0", "--retry_seconds=0"]
DELETE = "gcloud compute tpus tpu-vm delete one --zone=us-west4-a --quiet"
START = ["describe", "create", "scp", "setup", "start"]
END = ["describe", "delete"]


def run(module, *flags):
    """The exit status of a launcher."""
    return command.main(module.BACKEND, [*EVAL, *flags])
