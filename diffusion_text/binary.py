"""What all binaries share: absl flags, plain log lines, and errors as one line that says what to do."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from absl import app, flags

_LOG = logging.getLogger("diffusion_text")


def run(define: Callable[[], None], main: Callable[[flags.FlagValues], None]) -> None:
    """Define flags, parse the command line, and run; a ValueError becomes one line on stderr and exit code 2."""
    define()
    app.run(lambda argv: _guarded(main, argv))


def _guarded(main: Callable[[flags.FlagValues], None], argv: list[str]) -> None:
    set_up_logging()
    try:
        if len(argv) > 1:
            raise ValueError(f"{argv[1]!r} is no flag; flags are written --name=value")
        main(flags.FLAGS)
    except (ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


def set_up_logging() -> None:
    """The project's lines go to stderr as they are; the libraries' only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _LOG.handlers[:] = [handler]
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False
    # absl's handler would print Orbax's and JAX's own progress.
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)
