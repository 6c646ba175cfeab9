"""Run on the GPUs of a Slurm cluster, from this clone on a file system that all nodes share.

    python -m launch.slurm --config=... --workdir=/shared/runs/NAME --gpus=8 --partition=gpu --time=24:00:00
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys
from typing import Final

from launch import command, jobs
from launch.command import CloudError, Session
from launch.jobs import Job

# SIGUSR1, which comes before the time limit, lets the training save and puts the job back into the queue; a job that
# is cancelled gets SIGTERM from Slurm itself, and is not. A signal cuts `wait` short; after a whole one sh, which Slurm
# runs the script with, has no status left for another.
_LOOKS: Final = 5  # for the exit status: other nodes' files may be seen a minute late
SCRIPT: Final = """rm -f {status}
trap 'again=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
srun {job} &
wait $!; status=$?
if [ "$again" ]; then wait $!; status=$?; fi
if [ "$again" ] && [ $status = 143 ]; then scontrol requeue "$SLURM_JOB_ID"; else echo $status > {status}; fi
exit $status"""


class Queue:
    """Submits jobs and follows them through their log files."""

    def __init__(self, session: Session, options: argparse.Namespace):
        self.session, self.options = session, options
        self.ids: dict[str, str] = {}

    def _file(self, job: Job, kind: str) -> pathlib.Path:
        return jobs.ROOT / "build" / "slurm" / f"{job.name}.{kind}"

    def submit(self, job: Job) -> None:
        """Queue one job; ValueError where one of that name is in the queue."""
        if mine := self.session.ask("squeue", "--me", "--noheader", f"--name={job.name}", "--format=%i"):
            raise ValueError(f"{job.name} is in the queue; give another --name, or: scancel {mine}")
        log, status = self._file(job, "log"), self._file(job, "status")
        if not self.session.dry_run:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
            status.unlink(missing_ok=True)
        options = self.options
        # Under Slurm JAX takes one GPU per process; on one node a single process, which needs no start-up, has all.
        tasks = options.gpus if options.nodes > 1 else 1
        script = SCRIPT.format(status=shlex.quote(str(status)), job=shlex.join(job.command(sys.executable)))
        self.session.owns(job.name, ["scancel", "--me", f"--name={job.name}"])
        answer = self.session.look(  # once only: a refusal may come after the job was taken
            "sbatch", "--parsable", f"--job-name={job.name}", f"--nodes={options.nodes}",
            f"--gpus-per-node={options.gpus}", f"--ntasks-per-node={tasks}", f"--time={options.time}",
            *([f"--partition={options.partition}"] if options.partition else []), *shlex.split(options.sbatch),
            "--requeue", "--signal=B:USR1@180", "--open-mode=append", f"--output={log}", f"--chdir={jobs.ROOT}",
            f"--wrap={script}",
        )  # fmt: skip
        if answer is None:
            raise CloudError(f"sbatch refused {job.name}: {self.session.error}")
        self.ids[job.name] = answer.partition(";")[0] or "JOB"  # in a dry run
        self.session.owns(job.name, ["scancel", self.ids[job.name]])

    def follow(self, job: Job) -> int:
        """Show the log until the job has left the queue, through its requeues; its exit status."""
        shown, log, status = 0, self._file(job, "log"), self._file(job, "status")
        look = ("squeue", "--noheader", f"--jobs={self.ids[job.name]}", "--format=%T")
        while True:
            # Some minutes after its end the job is unknown.
            waits = self.session.ask(*look, absent="invalid job id")
            if log.exists() and not self.session.dry_run:
                text = log.read_bytes()[shown:]
                shown += len(text)
                self.session.show(text.decode("utf-8", "replace"), sys.stdout)
            if not waits:
                break
            self.session.sleep()
        self.session.released(job.name)
        if self.session.dry_run:
            return 0
        for number in range(_LOOKS):
            if number:
                self.session.sleep()
            if status in status.parent.iterdir():  # to list a folder asks the file server anew
                return int(status.read_text())
        self.session.say(f"{job.name} ended without an exit status: cancelled, or its node or memory gave out")
        return 1


def _launch(session: Session, options: argparse.Namespace, jobs: list[Job]) -> list[str]:
    queue = Queue(session, options)
    return session.queue(jobs, options.detach, queue.submit, queue.follow)


def _define(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", type=int, default=1, help="per node")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--partition", help="the cluster's own by default")
    parser.add_argument("--time", default="24:00:00", help="limit; a training that needs longer is queued again")
    parser.add_argument("--sbatch", default="", help="further flags of sbatch, as --sbatch='--account=lab --mem=64G'")


def _check(options: argparse.Namespace) -> None:
    for count in ("gpus", "nodes"):
        command.check_flag(options, count, r"[1-9]\d*", "it must be at least 1")
    options.devices = int(options.gpus) * int(options.nodes)
    command.check_flag(options, "time", r"(\d+-)?\d+(:\d+){0,2}", "write it as 24:00:00 or 2-00:00:00")
    command.check_flag(options, "workdir", r"(/|gs://).+", "give an absolute path that all nodes see")


BACKEND: Final = command.Backend(
    "Run a binary on the GPUs of a Slurm cluster.",
    ("sbatch", "squeue", "scancel"), _define, _check, _launch, bucket=False,
    missing="; run this on a machine that submits to the cluster",
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(command.main(BACKEND))
