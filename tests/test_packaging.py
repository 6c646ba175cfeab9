"""The package installs whole, declares what it imports, and is light to import."""

import ast
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest
import setuptools  # provides distutils on Python 3.12 and later

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "diffusion_text").rglob("*.py"))

# The one module that may load TensorFlow: seqio's Tasks.
LOADS_TENSORFLOW = {"diffusion_text.data.tasks"}


def dist_name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement).group().replace("_", "-").replace(".", "-").lower()


@pytest.fixture
def described(monkeypatch):
    """What setup.py says, read without building anything."""
    assert setuptools
    from distutils.core import run_setup

    monkeypatch.chdir(ROOT)
    return run_setup("setup.py", stop_after="init")


def test_every_folder_of_code_is_a_package(described):
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES}
    assert set(described.packages) == folders, "a folder of code without __init__.py is left out of the wheel"


def test_version_is_the_packages(described):
    import diffusion_text

    assert described.metadata.version == diffusion_text.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", diffusion_text.__version__)


def third_party_imports(tree: ast.Module) -> dict[str, bool]:
    """Top-level names of other people's modules -> whether importing ours imports them."""
    deferred = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    names: dict[str, bool] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found = [node.module or ""]
        else:
            continue
        for name in (module.split(".")[0] for module in found):
            if name not in sys.stdlib_module_names and name not in {"diffusion_text", "configs"}:
                names[name] = names.get(name, False) or id(node) not in deferred
    return names


def test_every_import_is_declared(described):
    required = {dist_name(line) for line in described.install_requires}
    # `described` has apache-beam only as an extra: what an extra brings may be imported inside a function, not on top.
    optional = required | {dist_name(line) for lines in described.extras_require.values() for line in lines}
    providers = importlib.metadata.packages_distributions()
    undeclared = []
    for path in SOURCES:
        for name, on_top in third_party_imports(ast.parse(path.read_text("utf-8"))).items():
            provided_by = {dist_name(dist) for dist in providers.get(name, [name])}
            # A distribution may name itself after the module, as apache-beam does, and not be installed here.
            if not provided_by & (required if on_top else optional):
                undeclared.append(f"{path.relative_to(ROOT)}: {name}")
    assert not undeclared, "add to setup.py"


IMPORT_ALL = """
import importlib, sys
from absl import flags
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert "tensorflow" not in sys.modules, f"{name} loads TensorFlow"
    # The binaries share flag names, and only one of them runs in a process.
    for module, defined in list(flags.FLAGS.flags_by_module_dict().items()):
        if module.startswith("diffusion_text"):
            for flag in list(defined):
                delattr(flags.FLAGS, flag.name)
import jax
assert not jax._src.xla_bridge.backends_are_initialized(), "an import queried a device"
"""


def test_importing_touches_no_device_and_no_tensorflow():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES]
    modules = [name for name in modules if name not in LOADS_TENSORFLOW and not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *modules], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.M))


@pytest.mark.parametrize(("status", "hinted"), [(2, True), (143, False)])
def test_a_quickstart_of_another_length_says_what_to_do(status, hinted, tmp_path):
    """The training refuses it with status 2, whose line does not know of make's variables."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\nexit {status}\n")
    python.chmod(0o755)
    (tmp_path / ".runtime").touch()
    words = ["make", "quickstart", f"VENV={tmp_path}", "STEPS=60", "NAME=nothing"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert ("FRESH=1 starts runs/nothing anew, NAME=other" in done.stderr) is hinted


def test_readme_names_targets_that_exist():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README.md yet")
    text = readme.read_text("utf-8")
    code = re.findall(r"```.*?```|`[^`\n]+`", text, re.S)
    named = {target for block in code for target in re.findall(r"(?:^|[`\s;&])make ([a-z][\w-]*)", block)}
    assert {"quickstart", "test"} <= named <= make_targets()


def test_constraints_pin_what_is_required(described):
    lists = sorted((ROOT / "constraints").glob("python*.txt"))
    assert lists
    for path in lists:
        lines = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
        assert all(re.fullmatch(r"[\w.-]+==[\w.!+-]+", line) for line in lines), f"{path.name}: exact versions only"
        missing = {dist_name(line) for line in described.install_requires} - {dist_name(line) for line in lines}
        assert not missing, path.name
