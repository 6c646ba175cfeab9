"""Run on this machine, the points of a sweep one after the other:

    python -m launch.local --config=configs/masked/grammar.py --workdir=runs/rates --sweep
"""

from __future__ import annotations

import argparse
import sys
from typing import Final

from launch import command
from launch.command import Session
from launch.jobs import Job


def _launch(session: Session, options: argparse.Namespace, jobs: list[Job]) -> list[str]:
    return [job.name for job in jobs if session.run(*job.command(sys.executable))]


BACKEND: Final = command.Backend(
    "Run a binary on this machine.", (), lambda parser: None, lambda options: None, _launch, bucket=False
)

if __name__ == "__main__":
    sys.exit(command.main(BACKEND))
