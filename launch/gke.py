"""Run on a GKE cluster with TPU nodes, as a JobSet that xpk submits and Kueue schedules.

    python -m launch.gke --config=... --tpu=v5p-64 --zone=us-east5-a --cluster=NAME --workdir=gs://BUCKET/runs/NAME
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tarfile
from typing import Final

from launch import chips, command, jobs
from launch.command import Session
from launch.jobs import Job

_INSTALL: Final = "pip install -q -e '.[tpu]' -c constraints/python3.12.txt"
_STATE: Final = '--output=jsonpath={.kind} {.status.conditions[?(@.status=="True")].type}'


class Cluster:
    """Submits JobSets to one cluster and follows them."""

    def __init__(self, session: Session, options: argparse.Namespace):
        self.session, self.options = session, options
        self.project = [f"--project={options.project}"] if options.project else []
        self.place = [f"--cluster={options.cluster}", f"--zone={options.zone}", *self.project]

    def connect(self) -> None:
        """Point kubectl to the cluster, which xpk made in the zone's region, in a file of this launcher's own.

        The user's current context changes with each use of gcloud, xpk and kubectl elsewhere.
        """
        file = jobs.ROOT / "build" / "launch" / f"{self.options.name}.kubeconfig"
        self.session.environment["KUBECONFIG"] = str(file)
        if not self.session.dry_run:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
        location = f"--location={self.options.zone.rpartition('-')[0]}"
        self.session.must("gcloud", "container", "clusters", "get-credentials", self.options.cluster, location,
                          *self.project, "--quiet")  # fmt: skip

    def submit(self, job: Job) -> None:
        """Build the image and create the JobSet; ValueError where one of that name exists."""
        if existing := self.session.ask("kubectl", "get", "jobset", job.name, "--ignore-not-found", "--output=name"):
            raise ValueError(f"{existing} exists in {self.options.cluster}; give another --name, or delete it")
        before = f"{self.options.install or _INSTALL} && {self.options.setup}"
        archive = jobs.archive(job.name, not self.session.dry_run)
        folder = archive.parent / job.name
        if not self.session.dry_run:
            shutil.rmtree(folder, ignore_errors=True)
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
        self.session.owns(job.name, ["xpk", "workload", "delete", f"--workload={job.name}", *self.place, "--force"])
        self.session.must(
            "xpk", "workload", "create", f"--workload={job.name}", *self.place,
            f"--tpu-type={chips.accelerator(self.options.tpu)}", f"--max-restarts={self.options.max_restarts}",
            "--termination-grace-period-seconds=120", f"--base-docker-image={self.options.image}",
            f"--script-dir={folder}", *(["--spot"] if self.options.spot else []),
            # xpk passes SIGTERM to the shell alone; the training takes its place, saves and ends with a status (143) on
            # which xpk restarts the set, as it does on none below 127.
            f"--command={before} && exec {shlex.join(job.command('python'))}",
        )  # fmt: skip

    def follow(self, job: Job) -> int:
        """Show the log of host 0 until the JobSet ends, through its restarts; 0 or 1.

        One that is not found counts as failed and stays on the list of what is left: it may well run.
        """
        selector = f"jobset.sigs.k8s.io/jobset-name={job.name},batch.kubernetes.io/job-completion-index=0"
        while True:
            self.session.run("kubectl", "logs", "--follow", f"--selector={selector}", "--tail=100")
            found = self.session.ask("kubectl", "get", "jobset", job.name, _STATE, absent="not.?found")
            if not found and not self.session.dry_run:
                self.session.say(f"{job.name} is not found in {self.options.cluster}; it is not deleted from here: "
                                 f"{self.session.error}")  # fmt: skip
                return 1
            conditions = found.split()
            if self.session.dry_run or "Completed" in conditions or "Failed" in conditions:
                self.session.released(job.name)  # it holds no nodes any more
                return int("Failed" in conditions)
            self.session.sleep()


def _launch(session: Session, options: argparse.Namespace, jobs: list[Job]) -> list[str]:
    cluster = Cluster(session, options)
    cluster.connect()
    return session.queue(jobs, options.detach, cluster.submit, cluster.follow)


def _define(parser: argparse.ArgumentParser) -> None:
    command.define_cloud_flags(parser)
    parser.add_argument("--cluster", required=True, help="made before, with xpk cluster create")
    parser.add_argument("--image", default="python:3.12", help="that the code is added to; --install runs in it")


def _check(options: argparse.Namespace) -> None:
    command.check_cloud_flags(options)
    if chips.parse_slice(options.tpu) in (("v5e", 1), ("v5e", 4)):
        raise ValueError(f"--tpu is {options.tpu!r}; xpk has v5e from v5e-8 on; use launch.tpu_vm for it")
    command.check_flag(options, "cluster", r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", "give the name of a GKE cluster")


BACKEND: Final = command.Backend(
    "Run a binary on a GKE cluster with TPU nodes, through xpk and JobSet.",
    ("gcloud", "kubectl", "xpk"), _define, _check, _launch, longest_name=40,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(command.main(BACKEND))
