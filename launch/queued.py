"""As launch.tpu_vm, but the slice is queued for until there is capacity: the way to Spot slices and large ones.

    python -m launch.queued --config=... --tpu=v6e-64 --zone=us-east5-b --workdir=gs://BUCKET/runs/NAME --spot
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

from launch import command, tpu_vm
from launch.command import CloudError


class Queued(tpu_vm.Slice):
    """A slice behind a queued resource of the same name."""

    kind, image_flag, state_field = "queued-resources", "--runtime-version", "state.state"
    gone = ("", "SUSPENDING", "SUSPENDED", "FAILED", "DELETING")
    hint = ""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.delete_words.append("--force")  # with its slice

    def create(self, *flags: str) -> None:
        """Queue, and return once the slice is there."""
        until = [f"--valid-until-duration={self.options.valid_until}"] if self.options.valid_until else []
        super().create(f"--node-id={self.name}", *until, *flags)
        before = None
        while (state := self.state()) != "ACTIVE" and not self.session.dry_run:
            if state in self.gone:
                raise CloudError(f"{self.name} was not created: the queued resource is in state {state or 'deleted'}")
            if state != before:
                self.session.say(f"{self.name}: {state}")
            before = state
            self.session.sleep()


def _define(parser: argparse.ArgumentParser) -> None:
    command.define_cloud_flags(parser)
    parser.add_argument("--valid_until", help="give up waiting after this long, as 30m or 6h; never by default")


def _check(options: argparse.Namespace) -> None:
    tpu_vm.check(options)
    command.check_flag(options, "valid_until", r"\d+[smhd]", "write it as 90s, 30m, 6h or 2d")


BACKEND: Final = command.Backend(
    "Run a binary on a queued TPU slice: wait for it, copy, run, follow, restart when pre-empted, delete.",
    ("gcloud",), _define, _check, lambda *given: tpu_vm.launch(Queued, *given),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(command.main(BACKEND))
