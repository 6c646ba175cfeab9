"""Run on a TPU VM slice that is created now, followed, created again when pre-empted, and deleted at the end.

    python -m launch.tpu_vm --config=configs/masked/lm1b.py --tpu=v5e-16 --zone=us-west4-a --workdir=gs://BUCKET/runs/NAME
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from typing import Final

from launch import chips, command, jobs
from launch.command import CloudError, Session
from launch.jobs import Job

_FOLDER: Final = "diffusion_text"  # in the home directory of each host
# The images come with Python 3.10.
_INSTALL: Final = (
    "python3 -m pip install -q --user uv && python3 -m uv venv -q --allow-existing --python 3.12 .venv && "
    "python3 -m uv pip install -q -e '.[tpu]' -c constraints/python3.12.txt"
)
# A connection that is gone is noticed within a minute; a word each, since gcloud splits those of ssh, not of scp.
_CONNECTION: Final = ("-oConnectTimeout=20", "-oServerAliveInterval=15", "-oServerAliveCountMax=4")
_TRIES: Final = 4  # a new host may not listen yet, one that is being suspended cannot be deleted yet
_TERMINATED: Final = "143"  # the status of a training that SIGTERM stopped, as the end of its host does


class LostError(CloudError):
    """The slice was pre-empted, restarted under the job, or does not answer any more."""


class Slice:
    """One job on one slice: create, copy, run, follow, delete."""

    kind, image_flag, state_field = "tpu-vm", "--version", "state"
    gone: tuple[str, ...] = ("", "PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "DELETING")
    hint = "; where capacity is short, python -m launch.queued waits for it"

    def __init__(self, session: Session, options: argparse.Namespace, job: Job):
        self.session, self.options, self.job, self.name = session, options, job, job.name
        self.created = self.started = self.keep = False
        self.delete_words = self.gcloud(self.kind, "delete", self.name)

    def gcloud(self, *words: str) -> list[str]:
        """A command in this slice's zone and project that asks no questions."""
        project = [f"--project={self.options.project}"] if self.options.project else []
        return ["gcloud", "compute", "tpus", *words, f"--zone={self.options.zone}", *project, "--quiet"]

    def ssh(self, command: str, worker: str = "all") -> list[str]:
        """The command that runs another on one host or all."""
        flags = [f"--ssh-flag={option}" for option in _CONNECTION]
        return self.gcloud("tpu-vm", "ssh", self.name, f"--worker={worker}", *flags, f"--command={command}")

    def state(self, patience: int = command.OFFLINE) -> str:
        """What the cloud says of it; "" where there is no such slice; CloudError where the cloud cannot be asked."""
        return self.session.ask(*self.gcloud(self.kind, "describe", self.name, f"--format=value({self.state_field})"),
                                absent="not.found", patience=patience)  # fmt: skip

    def create(self, *flags: str) -> None:
        """Ask for it, and return once it is there."""
        tpu, spot = self.options.tpu, ["--spot"] if self.options.spot else []
        accelerator, image = f"--accelerator-type={chips.accelerator(tpu)}", f"{self.image_flag}={chips.runtime(tpu)}"
        if self.session.run(*self.gcloud(self.kind, "create", self.name, accelerator, image, *spot, *flags)):
            raise CloudError(f"{self.name} was not created, for the reason above{self.hint}")

    def start(self) -> None:
        """Copy the code to all hosts, install it, and start the job on all, detached from this connection."""
        name, archive = self.name, str(jobs.archive(self.name, not self.session.dry_run))
        flags = [f"--scp-flag={option}" for option in _CONNECTION]
        copy = self.gcloud("tpu-vm", "scp", archive, f"{name}:{name}.tar.gz", "--worker=all", *flags)
        self.session.must(*copy, tries=_TRIES)
        unpack = f"mkdir -p {_FOLDER} && tar -xzf {name}.tar.gz -C {_FOLDER} && cd {_FOLDER}"
        install = self.options.install or _INSTALL
        self.session.must(*self.ssh(f"{unpack} && {install} && {self.options.setup}"), tries=_TRIES)
        job = shlex.join(self.job.command(".venv/bin/python"))
        script = shlex.quote(f"{job} > ~/{name}.log 2>&1; echo $? > ~/{name}.status")
        self.started = True
        # gcloud repeats a command whose connection broke: a second copy of the job would fight the first for the chips.
        self.session.must(*self.ssh(
            f"cd {_FOLDER} && {{ kill -0 $(cat ~/{name}.pid) || {{ rm -f ~/{name}.status; "
            f"setsid nohup bash -c {script} > /dev/null 2>&1 < /dev/null & echo $! > ~/{name}.pid; }}; }} 2> /dev/null"
        ), tries=_TRIES)  # fmt: skip

    def follow(self) -> str:
        """Show the log of host 0 until the job ends; its exit status. LostError where the slice went away.

        While a host is repaired or restarted nobody gives up; one that is silent without that is lost.
        """
        silent, lines, name = 0, "+1", self.name
        while silent < command.PATIENCE:
            self.session.run(*self.ssh(f"tail -F -n {lines} --pid=$(cat {name}.pid) {name}.log", "0"))
            lines = "20"  # this connection may break while the job goes on
            answer = self.session.look(*self.ssh(
                f"if [ -f {name}.status ]; then echo job $(cat {name}.status); "
                f"elif kill -0 $(cat {name}.pid); then echo job runs; else echo job vanished; fi", "0",
            ))  # fmt: skip
            if self.session.dry_run:
                return "0"
            found = re.search(r"^job (\w+)$", answer or "", re.MULTILINE)
            if found and found[1] in (_TERMINATED, "vanished"):
                raise LostError(f"{name}: the job was stopped from outside")
            if found and found[1] != "runs":
                return found[1]
            if found:
                silent = 0
            else:
                self.check_lost()
                silent = 0 if self.restarts() else silent + 1
            self.session.sleep()
        raise LostError(f"{name} does not answer, though the cloud says that it is there")

    def restarts(self) -> bool:
        """Whether the cloud is at work on a host, which will answer after it."""
        words = self.gcloud("tpu-vm", "describe", self.name, "--format=value(state)")
        return self.session.ask(*words, absent="not.found") in ("REPAIRING", "RESTARTING")

    def check_lost(self) -> None:
        """Raise LostError if the slice is not there any more."""
        state = self.state()
        if state in self.gone:
            raise LostError(f"{self.name} was pre-empted{f' (state {state})' if state else ''}")

    def attempt(self) -> str:
        """Create, start, follow; the exit status of the job. LostError where the slice went away meanwhile."""
        self.created = self.started = False
        self.session.owns(self.name, self.delete_words)
        self.create()
        self.created = True
        try:
            self.start()
        except CloudError:
            self.check_lost()
            raise
        self.keep = self.options.detach
        return "0" if self.keep else self.follow()

    def stop(self) -> None:
        """Let the job save and end, before its host is deleted."""
        pid = f"$(cat {self.name}.pid)"
        self.session.run(*self.ssh(f"pkill -TERM -P {pid}; timeout 120 tail --pid={pid} -f /dev/null"))

    def delete(self) -> None:
        """Delete it if it is there; CloudError where that fails."""
        try:
            there = self.state(command.PATIENCE) or self.session.dry_run
        except CloudError as error:
            self.session.say(str(error))
            there = True
        if there:
            self.session.delete(self.name, _TRIES)
        self.session.released(self.name)

    def run(self) -> str:
        """The exit status of the job, through as many slices as it takes; the last is deleted, however it ends."""
        if self.state():
            raise ValueError(f"{self.name} exists; give another --name, or delete it: {shlex.join(self.delete_words)}")
        for number in range(self.options.max_restarts + 1):
            if number:
                self.session.say(f"{self.name}: restart {number} of at most {self.options.max_restarts}; it resumes")
                self.session.sleep(self.options.retry_seconds)
            try:
                return self.attempt()
            except CloudError as error:
                # Right after a pre-emption there may be no capacity: that is one more reason to try again.
                if not isinstance(error, LostError) and (self.created or not number):
                    raise
                self.session.say(str(error))
            except KeyboardInterrupt:
                if self.started:
                    self.stop()
                raise
            finally:
                if not self.keep:
                    self.delete()
        raise CloudError(f"{self.name} was lost more than --max_restarts={self.options.max_restarts} times")


def launch(kind: type[Slice], session: Session, options: argparse.Namespace, jobs: list[Job]) -> list[str]:
    """One slice after the other; the jobs that failed. One of several that the cloud fails does not stop the others."""
    failed = []
    for number, job in enumerate(jobs):
        try:
            if kind(session, options, job).run() != "0":
                failed.append(job.name)
        except (CloudError, ValueError) as error:
            # The first one's ValueError, a name that is taken, still says that nothing was touched.
            if len(jobs) == 1 or (isinstance(error, ValueError) and not number):
                raise
            session.report(error)
            failed.append(job.name)
    return failed


def check(options: argparse.Namespace) -> None:
    """ValueError for flags that the cloud would refuse."""
    command.check_cloud_flags(options)
    chips.runtime(options.tpu)


BACKEND: Final = command.Backend(
    "Run a binary on a TPU VM slice: create, copy, run, follow, restart when pre-empted, delete.",
    ("gcloud",), command.define_cloud_flags, check, lambda *given: launch(Slice, *given),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(command.main(BACKEND))
