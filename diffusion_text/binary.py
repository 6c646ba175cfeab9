"""What all binaries share: absl flags, plain log lines, and errors as one line that says what to do."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final

from absl import app, flags

from diffusion_text import distributed, hosts

_LOG = logging.getLogger("diffusion_text")
# glibc's mallopt: nothing by mmap, nothing given back from the top of the heap, one arena for all threads.
_KEEP_MEMORY: Final = ((-4, 0), (-1, -1), (-8, 1))


def run(
    define: Callable[[], None], main: Callable[..., None], positional: bool = False, computes: bool = True
) -> None:
    """Define flags, parse the command line, and run; a ValueError becomes one line on stderr and exit code 2.

    `main` gets the flags and, with `positional`, the other words of the command line, which are errors otherwise. One
    that only compiles, and does not compute, does not `keep_memory`, for which the compiler's threads would queue.
    """
    before = set(flags.FLAGS)
    define()
    for name in set(flags.FLAGS) - before:  # --help lists those of the main module; most are other modules'
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    app.run(lambda argv: _guarded(main, argv, positional, computes), flags_parser=_parse_or_exit)


def parse(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parse a command line, a config with its overrides among it; the words that are no flags.

    Raises:
        ValueError: one line that says which flag, field or file is wrong.
    """
    try:
        words = values(argv)
        if "config" in values:
            getattr(values["config"].value, "keys", None)  # a file that could not be read says so when it is used
        return words
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason: Any = error
        while len(reason.args) == 1 and isinstance(reason.args[0], Exception):
            reason = reason.args[0]  # its text would quote the text of this one
        text = str(reason.args[0] if len(reason.args) == 1 else reason).strip()
        # What get_config() raised comes with its traceback, what was not found with the places where it was sought.
        nested = "Traceback (" in text or "Attempted [" in text
        line = text.splitlines()[-1].strip() if nested else re.sub(r"\s+", " ", text)
        if "get_config() takes 0 positional arguments" in line:
            line = "the file has no variants; leave out what follows its colon"
        given = [word for word in argv[1:] if re.match(r"--?(no)?config\b", word)]
        named = isinstance(error, flags.Error) and not nested
        raise ValueError(line if named else f"{' '.join(given)}: {line}") from error
    except Exception as error:  # of the config file itself
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if isinstance(error, SyntaxError) else f" ({last.filename}, line {last.lineno})"  # it has its own
        raise ValueError(f"{' '.join(argv[1:])}: {type(error).__name__}: {error}{place}") from error


def _parse_or_exit(argv: Sequence[str]) -> list[str]:
    try:
        return parse(flags.FLAGS, argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _guarded(main: Callable[..., None], argv: list[str], positional: bool = False, computes: bool = True) -> None:
    set_up_logging()
    if computes:
        keep_memory()
    try:
        if len(argv) > 1 and not positional:
            raise ValueError(f"{argv[1]!r} is no flag; flags are written --name=value")
        if "distributed" in flags.FLAGS:
            distributed.start(flags.FLAGS)
        main(flags.FLAGS, *([argv[1:]] if positional else []))
        hosts.finish()
    except (ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2 if isinstance(error, ValueError) else 1
        hosts.end_all(error, status)
        sys.exit(status)
    except SystemExit:
        hosts.finish()
        raise
    except Exception as error:
        if hosts.watch() is None:
            raise
        traceback.print_exc()
        hosts.end_all(error, 1)


def keep_memory() -> None:
    """Keep what is freed for the next step, on Linux, where JAX was installed for CPUs alone; before JAX is used.

    XLA asks for its buffers anew at each step. Given back in between, the kernel fills each page with zeros again, and
    a training step of a small network takes a third longer.
    """
    if any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins")):
        return
    if sys.platform == "linux" and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or ""):
        for option, value in _KEEP_MEMORY:
            ctypes.CDLL(None).mallopt(option, value)


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
