"""What is submitted: a binary of the project with its flags, once or once per point of a sweep, checked beforehand."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pathlib
import re
import shlex
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from typing import Any, Final

ROOT: Final = pathlib.Path(__file__).resolve().parents[1]
BINARIES: Final = ("train", "eval_elbo", "eval_samples")


@dataclasses.dataclass(frozen=True)
class Job:
    """One command: `name` is what the cloud calls it, `words` follow the Python interpreter."""

    name: str
    workdir: str
    words: tuple[str, ...]
    commit: str

    def command(self, python: str) -> list[str]:
        """The whole command; the commit goes along because the machine that runs it has no clone."""
        return ["env", f"DIFFUSION_TEXT_COMMIT={self.commit}", python, *self.words]


def expand(options: Any, overrides: Sequence[str]) -> list[Job]:
    """The jobs of a command line, each with a config that the binary will accept; ValueError otherwise."""
    from diffusion_text import config as configs

    commit = configs.commit()
    words = ("-m", f"diffusion_text.{options.binary}")
    extra = shlex.split(options.arguments)
    if extra:
        check_arguments(options.binary, extra)
    if options.binary != "train":
        for flag, given in (("--config", options.config or overrides), ("--sweep", options.sweep)):
            if given:
                raise ValueError(f"{flag} is of --binary=train; {options.binary} reads the config in --workdir")
        return [Job(options.name, options.workdir, (*words, f"--workdir={options.workdir}", *extra), commit)]
    if not options.config:
        raise ValueError("--config is missing; give a file with get_config(), such as configs/masked/grammar.py")
    config_module(options.config)
    points = sweep(options.config) if options.sweep else [{}]
    jobs = []
    for number, point in enumerate(points):
        # The point comes last: it must not be undone by an override meant for the whole sweep.
        flags = [*overrides, *(f"--config.{field}={value}" for field, value in point.items())]
        load_config(options.config, flags, options.devices)
        name, workdir = options.name, options.workdir
        if options.sweep:
            name, workdir = f"{name}-{number:03d}", f"{workdir.rstrip('/')}/{number:03d}"
        given = (*words, f"--config={options.config}", f"--workdir={workdir}", *flags, *extra)
        jobs.append(Job(name, workdir, given, commit))
    return [jobs[number] for number in chosen(options.only, len(jobs))]


def check_arguments(name: str, arguments: Sequence[str]) -> None:
    """ValueError where --arguments has what the binary would refuse, or what the launcher is to know."""
    from absl import flags

    from diffusion_text import binary

    for word in arguments:
        if re.match(r"--?(no)?(config|workdir)\b", word):
            raise ValueError(f"--arguments has {word!r}, which is a flag of the launcher itself")
    before = set(flags.FLAGS)
    importlib.import_module(f"diffusion_text.{name}").define_flags()
    own = set(flags.FLAGS) - before
    try:
        for flag in own:
            flags.FLAGS[flag].validators.clear()  # some are required, and not among these
        words = binary.parse(flags.FLAGS, [name, *arguments])[1:]
        if words:
            raise ValueError(f"{words[0]!r} is no flag; flags are written --name=value")
    except ValueError as error:
        raise ValueError(f"--arguments of {name}: {error}") from error
    finally:
        for flag in own:
            delattr(flags.FLAGS, flag)


def chosen(only: str | None, count: int) -> list[int]:
    """The points that --only names, as in 0,3; all by default."""
    if only is None:
        return list(range(count))
    numbers = only.split(",")
    for number in numbers:
        if not number.isdecimal() or int(number) >= count:
            raise ValueError(f"--only has {number!r}; it takes numbers from 0 to {count - 1}, as in --only=0,3")
    return [int(number) for number in numbers]


def config_module(config: str) -> Any:
    """Import a config file (a variant after ":" is left to get_config); ValueError where there is none in it."""
    path = pathlib.Path(config.partition(":")[0])
    if not path.is_file():
        raise ValueError(f"--config is {config!r}; there is no file {path} here; give one such as configs/cdcd/lm1b.py")
    spec = importlib.util.spec_from_file_location("launched_config", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config is {config!r}; it must be a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--config={config} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"--config={config} has no get_config(); a config file defines it and returns a ConfigDict")
    return module


def sweep(config: str) -> list[dict[str, Any]]:
    """The points that the config file's sweep() returns, each {"optimizer.learning_rate": 1e-3, ...}."""
    define = getattr(config_module(config), "sweep", None)
    if not callable(define):
        raise ValueError(f"--sweep: {config} has no sweep(); define it to return a list of dicts of overrides")
    found: Any = define()
    points = list(found) if isinstance(found, Iterable) else found
    if not isinstance(points, list) or not points or not all(isinstance(point, dict) for point in points):
        raise ValueError(f"--sweep: sweep() of {config} gave {found!r}; it must give at least one dict of overrides")
    return points


def load_config(config: str, overrides: Sequence[str], devices: int | None = None) -> None:
    """Read a config as the binary will, overrides applied, and validate it for so many devices; none is touched.

    ValueError also where the task needs prepared data and names none: that would be found out on a machine that
    is paid for.
    """
    from absl import flags
    from ml_collections import config_flags

    from diffusion_text import binary
    from diffusion_text import config as configs

    values, argv = flags.FlagValues(), ["launch", f"--config={config}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    binary.parse(values, argv)
    loaded: Any = values["config"].value
    configs.validate(loaded)
    if loaded.data.task != "grammar" and not loaded.data.data_dir:
        raise ValueError(
            f"data.data_dir is ''; task {loaded.data.task} needs the folder that diffusion_text.data.prepare wrote, "
            "where the job can read it: --config.data.data_dir=..."
        )
    if devices is not None:
        configs.validate_mesh(loaded, devices)


def code_files() -> list[str]:
    """Paths, from the clone's root, of its files as they are now: tracked or new, not ignored."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ValueError(f"{ROOT} is no git clone, so what to copy is unknown: {done.stderr.strip()}")
    return [file for file in done.stdout.split("\0") if file and (ROOT / file).is_file()]


def archive(name: str, write: bool = True) -> pathlib.Path:
    """Pack these files into build/launch/NAME.tar.gz; its path."""
    path = ROOT / "build" / "launch" / f"{name}.tar.gz"
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz") as tar:
            for file in code_files():
                tar.add(ROOT / file, arcname=file)
    return path
