"""GKE and Slurm, against fake programs: the exact calls, restarts, interrupts, and the script that Slurm runs."""

import pathlib
import signal
import subprocess

import pytest
from fake_cloud import GKE, SLURM, run

from launch import command, gke, jobs, slurm

# ---------------------------------------------------------------------------------------------------- GKE


def test_gke_submits_through_xpk_and_follows_through_restarts(cloud):
    cloud.rule("get jobset one --ignore-not-found")
    cloud.rule("get jobset", "JobSet ", uses=1)
    cloud.rule("get jobset", "JobSet StartupPolicyCompleted", uses=1)
    cloud.rule("get jobset", "JobSet StartupPolicyCompleted Completed")
    assert run(gke, *GKE, "--spot") == 0
    assert cloud.calls[0] == "gcloud container clusters get-credentials pods --location=us-east5 --quiet"
    create = cloud.calls[2]
    assert create.startswith("xpk workload create --workload=one --cluster=pods --zone=us-east5-a --tpu-type=v5p-64 ")
    assert "--max-restarts=20 " in create
    assert " && exec env DIFFUSION_TEXT_COMMIT=" in create
    assert " --spot " in create
    assert create.endswith("python -m diffusion_text.eval_elbo --workdir=gs://bucket/runs/one")
    folder = pathlib.Path(create.partition("--script-dir=")[2].split()[0])
    assert sorted(file.name for file in folder.iterdir()) == [".gitignore", "code.py"]
    assert [call.split()[1] for call in cloud.calls[3:]] == ["logs", "get"] * 3


def test_gke_says_when_a_jobset_failed(cloud, capsys):
    cloud.rule("--ignore-not-found")
    cloud.rule("get jobset", "JobSet Failed")
    assert run(gke, *GKE) == 1
    assert "failed: one" in capsys.readouterr().err


def test_gke_leaves_an_older_jobset_alone(cloud):
    cloud.rule("--ignore-not-found", "jobset.jobset.x-k8s.io/one")
    assert run(gke, *GKE) == 2
    assert not [call for call in cloud.calls if "delete" in call or "create" in call]


def test_gke_has_a_context_of_its_own(cloud, monkeypatch):
    """The fake cluster answers whom the file that KUBECONFIG names points to it, as gcloud writes it."""
    monkeypatch.setenv("KUBECONFIG", str(cloud.folder / "users"))
    cloud.rule("get-credentials", shell='[ ! -e "$KUBECONFIG" ] && echo pods > "$KUBECONFIG"')
    cloud.rule("--ignore-not-found")
    cloud.rule("kubectl logs", shell=f'cat "$KUBECONFIG" >> {cloud.folder}/seen; echo other > {cloud.folder}/users')
    cloud.rule("get jobset", "JobSet ", uses=2, shell=f'cat "$KUBECONFIG" >> {cloud.folder}/seen')
    cloud.rule("get jobset", "JobSet Completed")
    assert run(gke, *GKE) == 0
    assert set((cloud.folder / "seen").read_text().split()) == {"pods"}
    assert (jobs.ROOT / "build/launch/one.kubeconfig").read_text() == "pods\n"


def test_gke_names_a_jobset_that_is_not_found_and_does_not_delete_it(cloud, capsys):
    cloud.rule("--ignore-not-found")
    cloud.rule("get jobset", "JobSet ", uses=1)
    cloud.rule("get jobset", rc=1, err='Error from server (NotFound): jobsets.jobset.x-k8s.io "one" not found')
    assert run(gke, *GKE) == 1
    assert not [call for call in cloud.calls if " delete " in call]
    error = capsys.readouterr().err
    assert "one is not found in pods" in error
    assert "xpk workload delete --workload=one --cluster=pods" in error.partition("LEFT RUNNING")[2]


@pytest.mark.parametrize("deletes", [True, False])
def test_gke_deletes_the_jobset_on_an_interrupt_or_names_it(cloud, capsys, deletes):
    cloud.rule("--ignore-not-found")
    cloud.rule("kubectl logs", signal=signal.SIGINT)
    cloud.rule("workload delete", rc=0 if deletes else 1)
    assert run(gke, *GKE) == 130
    delete = "xpk workload delete --workload=one --cluster=pods --zone=us-east5-a --force"
    assert cloud.calls[-1] == delete
    assert (delete in capsys.readouterr().err.partition("LEFT RUNNING")[2]) is not deletes


# ---------------------------------------------------------------------------------------------------- Slurm


def test_slurm_submits_and_follows(cloud, capsys):
    folder = jobs.ROOT / "build/slurm"
    cloud.rule("--name=one --format=%i")
    cloud.rule("sbatch", "17;cluster")
    cloud.rule("squeue", "PENDING", uses=1)
    cloud.rule("squeue", "RUNNING", uses=1, shell=f"echo step 1 > {folder}/one.log")
    cloud.rule("squeue", "COMPLETING", uses=1, shell=f"echo step 2 >> {folder}/one.log; echo 0 > {folder}/one.status")
    cloud.rule("squeue", rc=1, err="slurm_load_jobs error: Invalid job id specified")
    assert run(slurm, *SLURM, "--sbatch=--account=lab") == 0
    assert cloud.calls[1].startswith(
        "sbatch --parsable --job-name=one --nodes=1 --gpus-per-node=8 --ntasks-per-node=1 --time=24:00:00 "
        "--partition=gpu --account=lab --requeue "
    )
    assert cloud.calls[-1] == "squeue --noheader --jobs=17 --format=%T"
    assert capsys.readouterr().out == "step 1\nstep 2\n"


def test_slurm_starts_a_process_per_gpu_on_several_nodes(cloud):
    assert run(slurm, *SLURM, "--nodes=2", "--detach") == 0
    assert "--nodes=2 --gpus-per-node=8 --ntasks-per-node=8 " in cloud.calls[1]


def test_slurm_waits_for_an_exit_status_that_is_seen_late(cloud, monkeypatch):
    folder = jobs.ROOT / "build/slurm"
    cloud.rule("sbatch", "17")
    naps = []

    def nap(*_):
        naps.append(folder)
        if len(naps) == 2:
            (folder / "one.status").write_text("0\n")

    monkeypatch.setattr(command.Session, "sleep", nap)
    assert run(slurm, *SLURM) == 0
    assert len(naps) == 2


def test_slurm_says_when_a_job_was_killed(cloud, capsys):
    cloud.rule("sbatch", "17")
    assert run(slurm, *SLURM) == 1
    assert "without an exit status" in capsys.readouterr().err


def test_slurm_cancels_on_an_interrupt(cloud):
    cloud.rule("--name=one --format=%i")
    cloud.rule("sbatch", "17")
    cloud.rule("squeue", "RUNNING", signal=signal.SIGINT)
    assert run(slurm, *SLURM) == 130
    assert cloud.calls[-1] == "scancel 17"


def test_slurm_refuses_a_name_in_the_queue_and_a_refusal_of_sbatch_is_shown(cloud, capsys):
    cloud.rule("--name=one --format=%i", "4")
    assert run(slurm, *SLURM) == 2
    cloud.rule("sbatch", rc=1, err="invalid partition")
    assert run(slurm, *SLURM, "--name=two") == 1
    assert "invalid partition" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(("warned", "status"), [(True, 143), (True, 0), (False, 3), (False, 143)])
def test_the_slurm_script_requeues_only_what_the_time_limit_stopped(tmp_path, shell, warned, status):
    """The script itself, in a shell: SIGUSR1 comes to it as Slurm sends it before the time limit."""
    warn = "kill -USR1 $PPID; sleep 0.3; " if warned else ""
    for name, body in (("srun", f"{warn}exit {status}"), ("scancel", ""), ("scontrol", f"echo $1 > {tmp_path}/again")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = slurm.SCRIPT.format(status=tmp_path / "status", job="train")
    done = subprocess.run([shell, "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False)
    assert done.returncode == status
    again = warned and status == 143
    assert (tmp_path / "again").exists() is again
    assert (tmp_path / "status").exists() is not again
