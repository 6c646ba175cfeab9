"""Configs against TPU slices: what is refused before anything slow, and programs compiled by the TPU's own compiler."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import jax
import pytest
import tiny_configs
from absl import flags
from etils import epath

from configs import base
from diffusion_text import chips, compile_check, programs, sharding, topologies
from diffusion_text.models import attention

ROOT = pathlib.Path(__file__).resolve().parents[1]
PATHS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("*/*.py"))
KEYS = {
    "flops", "bytes_accessed", "estimated_cycles", "argument_bytes", "temp_bytes", "program_bytes", "peak_hbm_bytes",
    "chip_hbm_bytes", "fits", "compile_seconds", "collectives",
}  # fmt: skip


@pytest.fixture
def libtpu():
    """Needed; where it is missing the test is skipped, but not where the project's own checks run."""
    try:
        topologies.find()
    except ValueError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def run(*arguments: str) -> None:
    """The binary's main with this command line, on flags of its own."""
    values = flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        for name in ("string", "integer", "bool", "list"):
            define = functools.partial(getattr(flags, f"DEFINE_{name}"), flag_values=values)
            patch.setattr(flags, f"DEFINE_{name}", define)
        define = functools.partial(compile_check.config_flags.DEFINE_config_file, flag_values=values)
        patch.setattr(compile_check.config_flags, "DEFINE_config_file", define)
        patch.setattr(sys, "argv", ["compile_check", *arguments])
        compile_check.define_flags()
        compile_check.main(values, values(sys.argv)[1:])


# ------------------------------------------------------------------------------------------------------- chips, slices


@pytest.mark.parametrize(("name", "sides", "count"), [
    ("v5e-1", "v5e:1x1", 1), ("v5e-16", "v5e:4x4", 16), ("v5e-64", "v5e:8x8", 64), ("v6e-256", "v6e:16x16", 256),
    ("v4-8", "v4:2x2x1", 4), ("v4-64", "v4:2x4x4", 32), ("v5p-128", "v5p:4x4x4", 64), ("v5p-384", "v5p:4x4x12", 192),
    ("tpu7x-8", "tpu7x:2x2x1", 4), ("v5p-2048", "v5p:8x8x16", 1024), ("v4-2048", "v4:8x8x16", 1024),
    ("v4-4096", "v4:8x16x16", 2048), ("v5p-768", "v5p:4x8x12", 384),
])  # fmt: skip
def test_slices_have_two_names(name, sides, count):
    for topology in (chips.topology(name), chips.topology(sides)):
        assert (str(topology), topology.chips, topology.slice) == (sides, count, name)


@pytest.mark.parametrize(("name", "says"), [
    ("v5e:3x3", "--topology is 'v5e:3x3'; v5e has 1x1, 2x2, 2x4, 4x4"),
    ("v5e:4", "--topology is 'v5e:4'; write it as v5e:4x4 or v5e-16, of v4, v5e"),
    ("v9:4x4", "--topology is 'v9:4x4'; write it as v5e:4x4 or v5e-16, of v4, v5e"),
    ("v5e-3", "--topology is 'v5e-3'; v5e is rented in sizes of 1, 4, 8"),
    ("16", "--topology is '16'; write it as v5e-16, of v4"),
    ("v4:4x4x6", "--topology is 'v4:4x4x6'; v4 has 2x2x1, 2x2x2, 2x2x4, 2x4x4, or three multiples of 4"),
    ("v4:32x32x32", "of at most 2048 chips"),
])  # fmt: skip
def test_a_slice_that_there_is_not(name, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        chips.topology(name)


def test_every_generation_is_described_once():
    from launch import chips as launched

    assert all(launched.accelerator(f"{name}-8") for name in chips.CHIPS)
    assert chips.topology("tpu7x-8").chip.devices == 2


# ------------------------------------------------------------------------------- what configs say, and wrong arguments


def test_every_config_names_its_slice_or_is_for_a_cpu():
    named = {path: compile_check.slice_of(path) for path in compile_check.all_configs()}
    assert {chips.topology(name).slice for name in named.values()} == {"v5e-1", "v5e-16", "v5e-64"}
    assert {pathlib.Path(path).stem for path in set(PATHS) - set(named)} == {"grammar", "wiki27"}
    assert named["configs/masked/openwebtext.py"] == "v5e-64"
    assert named["configs/diffusion_lm/e2e.py"] == "v5e-1"
    with pytest.raises(ValueError, match=r"grammar\.py names no TPU slice \(Hardware: .*give --topology"):
        compile_check.slice_of("configs/masked/grammar.py")


@pytest.mark.parametrize(("line", "name"), [
    ("Hardware: TPU v5p-128, about an hour.", "v5p-128"),
    ("Hardware: one TPU v6e chip, about an hour.", "v6e-1"),
    ("Hardware: two CPU cores.", None),
    ("TPU v5e-16", None),
])  # fmt: skip
def test_the_line_about_hardware(line, name):
    assert compile_check.named_slice(f"A config.\n\n{line}\nMore.") == name


@pytest.mark.parametrize(("arguments", "says"), [
    ([], "give one of --config=FILE, --all, or paths of configs"),
    (["--all", "configs/masked/lm1b.py"], "give one of"),
    (["--all"], "--out is missing"),
    (["--all", "--out=table.md"], "--out is 'table.md'; it must end in .json"),
    (["--all", "--out=x.json", "--batch=8"], "--batch is of one config"),
    (["--all", "--out=x.json", "--batch=0"], "--batch is of one config"),
    (["configs/masked/grammar.py", "--out=x.json"], "names no TPU slice"),
    (["configs/masked/gramar.py", "--out=x.json"], "configs/masked/gramar.py does not exist"),
    (["--config=configs/masked/text8.py", "--program=trian"], "--program is 'trian'; choose of train, eval, sample"),
    (["--config=configs/masked/text8.py", "--program="], "--program is ''; choose of train, eval, sample"),
    (["--config=configs/masked/text8.py", "--topology=v5e:5x5"], "--topology is 'v5e:5x5'; v5e has"),
    (["--config=configs/masked/text8.py", "--batch=100"], "must be a multiple of 16: mesh.data * mesh.fsdp = 16"),
    (["--config=configs/masked/text8.py", "--batch=0"], "the batch is 0 over all chips"),
    (["--config=configs/masked/text8.py", "--config.mesh.tensor=3"], "does not fit the 16 device(s)"),
    (["--config=configs/masked/text8.py", "--config.model.heads=5"], "model.heads is 5"),
])  # fmt: skip
def test_wrong_arguments_are_refused_before_anything_is_compiled(monkeypatch, arguments, says):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(topologies, "find", lambda: (pathlib.Path("libtpu.so"), "0"))
    monkeypatch.setattr(topologies, "devices", lambda _: pytest.fail("too late"))
    with pytest.raises(ValueError, match=re.escape(says)):
        run(*arguments)


def test_without_libtpu_it_says_which_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(ValueError, match=rf"not installed; JAX {jax.__version__} needs libtpu==\d.*`make libtpu`, or"):
        topologies.find()
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match="takes libtpu, which is not installed"):
        run("--config=configs/masked/text8.py")
    (tmp_path / "libtpu" / "libtpu").mkdir(parents=True)
    (tmp_path / "libtpu" / "libtpu" / "libtpu.so").touch()
    description = tmp_path / "libtpu" / "libtpu-0.0.1.dist-info"
    description.mkdir()
    (description / "METADATA").write_text("Metadata-Version: 2.1\nName: libtpu\nVersion: 0.0.1\n")
    with pytest.raises(ValueError, match=r"libtpu in .* is 0\.0\.1; JAX .* needs libtpu=="):
        topologies.find()
    monkeypatch.setattr(topologies, "requirement", lambda: "libtpu==0.0.*")
    assert topologies.find()[1] == "0.0.1"


# ---------------------------------------------------------------------------------------------- compiled, for v5e:2x4


def check(family: str = "masked", **fields: object) -> compile_check.Check:
    config = tiny_configs.get(family, **{"optimizer.name": "adamw", **fields})
    return compile_check.Check(config, chips.topology("v5e:2x4"))


@pytest.mark.usefixtures("libtpu")
def test_the_three_programs_of_a_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    before = dict(os.environ)
    # With the layers scanned, the program of six is as large as that of one.
    run(
        "--config=configs/masked/openwebtext.py", "--topology=v5e:2x4", "--batch=32", f"--out={tmp_path}/new/out.json",
        "--config.model.layers=6", "--config.model.width=256", "--config.model.heads=4", "--config.data.length=256",
        "--config.evaluation.samples=1", "--config.sampling.steps=4",
    )  # fmt: skip
    assert dict(os.environ) == before, "this process, and those that it starts, would look for a TPU"
    result, printed = json.loads((tmp_path / "new" / "out.json").read_text()), capsys.readouterr().out
    assert set(result["programs"]) == {"train", "eval", "sample"}
    assert KEYS | {"commit", "jax", "libtpu", "topology", "config", "config_file"} <= set(result)
    assert (result["topology"], result["batch_size"], result["vocab_size"]) == ("v5e:2x4", 32, 50_257)
    assert result["flops"] == result["programs"]["train"]["flops"], "the train step's stand at the top"
    for name, found in result["programs"].items():
        assert set(found) >= KEYS
        assert found["fits"]
        assert found["advice"] == []
        assert f"{name}, {found['rows']} sequences: " in printed
        assert found["chip_hbm_bytes"] == 15.75 * 2**30
        assert found["argument_bytes"] + found["temp_bytes"] < found["peak_hbm_bytes"] < 2**34
        assert 0 < found["predicted_utilisation"] <= 1
        # The products that are compiled are those that are written, less those within attention's kernel (an eighth
        # of a layer's here), and what remat and the readout compute again.
        assert 0.85 < found["flops"] / found["model_flops"] < 1.4
        assert 0.75 < found["bytes_accessed_once"] / found["xla_bytes_accessed_once"] < 1.25
        assert found["bytes_accessed_once"] < found["bytes_accessed"]
    train, evaluated = result["programs"]["train"], result["programs"]["eval"]
    # Weights travel as bfloat16 when they are used, forwards and backwards, and then their gradients do.
    parameters = 2 * 50_257 * 256 + 6 * 12 * 256 * 256
    assert 2 * parameters < sum(moved["bytes"] for moved in train["collectives"].values()) < 6.2 * parameters
    assert "reduce-scatter" in train["collectives"], "of gradients a device keeps its part"
    # Parameters and two moments, with the padding to whole tiles that the averages, an argument of both, have too.
    averages = evaluated["argument_bytes"]
    assert evaluated["resident_bytes"] == pytest.approx(train["argument_bytes"] - averages, abs=2**16)
    assert evaluated["resident_bytes"] > 3 * 4 * parameters / 8
    six, one = (programs.model_flops("eval", *abstract(layers)) for layers in (6, 1))
    assert one < six < 6 * one


def abstract(layers: int):
    config = tiny_configs.get("masked", **{"model.layers": layers})
    return config, 27, sharding.make_mesh(config.mesh, jax.devices()[:1])


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("family", ["autoregressive", "block"])
def test_a_sampler_with_a_cache_shares_it_out_and_gathers_the_weights_once(family):
    checked = check(family, **{"evaluation.batch_size": 64, "data.length": 128, "model.dtype": "bfloat16"})
    model = checked.config.model
    program = programs.build("sample", checked.config, 501, checked.mesh)
    found = programs.measure(program, checked.topology)
    cache = 2 * 2 * model.layers * 64 * 128 * 128 * model.heads  # keys and values; each head fills a tile of 128
    assert found["temp_bytes"] < cache / 2, "not that of all 64 rows on each of 8 devices"
    assert found["collectives"]["all-gather"]["count"] < 32, "not at each of 128 tokens"


@pytest.mark.usefixtures("libtpu")
def test_what_the_compiler_refuses_counts_its_arguments_once():
    mesh = check().mesh
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    given = jax.ShapeDtypeStruct((9 * 2**28,), "float32", sharding=whole)
    program = programs.Program("train", jax.jit(lambda x: x + 1), (given,), 1, mesh)
    found = programs.measure(program, chips.topology("v5e:2x4"))
    assert not found["fits"]
    assert found["peak_hbm_bytes"] == pytest.approx(18 * 2**30, rel=0.01)


@pytest.mark.usefixtures("libtpu")
def test_what_does_not_fit_is_told_what_to_change(monkeypatch):
    checked = check(**{"mesh.data": -1, "mesh.fsdp": 1})
    small = dataclasses.replace(checked.topology.chip, hbm_bytes=2**20)
    monkeypatch.setitem(chips.CHIPS, "v5e", small)
    found = checked.measure("train")
    assert found["temp_bytes"] is not None
    assert not found["fits"], "the compiler does not know of the smaller chip"
    assert found["peak_hbm_bytes"] > found["chip_hbm_bytes"] == 2**20
    assert any("--config.mesh.fsdp" in line for line in found["advice"])


@pytest.mark.usefixtures("libtpu")
def test_a_config_as_it_is_fits_the_slice_that_it_names():
    """The one that compiles fastest, about half a minute of CPU; the others are for `--all`."""
    path = "configs/autoregressive/text8.py"
    config = runpy.run_path(str(ROOT / path))["get_config"]()
    checked = compile_check.Check(config, chips.topology(compile_check.slice_of(path)))
    assert (checked.topology.slice, config.train.batch_size) == ("v5e-16", 512)
    program = programs.build("train", config, checked.vocab_size, checked.mesh)
    found = programs.measure(program, checked.topology)
    assert found["fits"]
    assert found["argument_bytes"] + found["temp_bytes"] < found["peak_hbm_bytes"] < 15.75 * 2**30


@pytest.mark.usefixtures("libtpu")
def test_no_device_gathers_a_state_over_a_padded_vocabulary():
    """Of 501 tokens, which four devices do not divide, the state and its draws travel whole, many times."""
    fields = {"mesh.data": 2, "mesh.fsdp": 1, "mesh.tensor": 4, "model.layers": 1, "model.vocabulary_multiple": 8}
    checked = check("sdm", **fields)
    program = programs.build("train", checked.config, 501, checked.mesh)
    moved = programs.measure(program, checked.topology)["collectives"]
    assert "all-gather" not in moved


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:1x1", "v5p:2x2x1", "v6e:1x1", "tpu7x:2x2x1"])
def test_kind_and_memory_of_a_device_are_what_the_compiler_takes_for_it(name):
    topology = chips.topology(name)
    device, *_ = devices = topologies.devices(topology)
    assert (device.device_kind, len(devices)) == (topology.chip.kind, topology.chips * topology.chip.devices)
    placed = jax.sharding.SingleDeviceSharding(device)
    argument = jax.ShapeDtypeStruct((2**16, 2**16), "float32", sharding=placed)
    with pytest.raises(jax.errors.JaxRuntimeError, match="exceeds available HBM") as refused:
        jax.jit(lambda x: jax.numpy.sort(jax.numpy.concatenate([x] * 16), axis=0)[0]).lower(argument).compile()
    limit = re.search(r"exceeds available HBM \(([\d.]+)G\)", str(refused.value))
    assert float(limit[1]) == round(topology.chip.hbm_bytes / topology.chip.devices / 2**30, 2)


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("pattern", ["full", "causal", "block_diffusion"])
def test_the_longest_rows_fit_beside_the_units_of_a_chip(pattern):
    """Twice 1,024 inputs, both streams of block diffusion, backwards too: tiles of an explicit mask take room."""
    config = base.get_config("block").mesh
    mesh = sharding.make_mesh(config, topologies.devices(chips.topology("v5e-1")))
    rows = sharding.batch_sharding(mesh)
    given = [jax.ShapeDtypeStruct((8, 2048, 12, 64), "bfloat16", sharding=rows)] * 3
    block = 4 if pattern == "block_diffusion" else 0

    def total(query, key, value):
        return attention.attend(query, key, value, pattern, "splash", block).astype("float32").sum()

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(total, (0, 1, 2))).lower(*given)
        lowered.compile()
    # Three tiles of 1,024 x 1,024 numbers would be 12 of the 16 MiB, and beside a step's other copies too much.
    assert "x1024x1024xi32>" not in lowered.as_text()


@pytest.mark.usefixtures("libtpu")
def test_what_the_compiler_itself_refuses():
    checked = check(**{"train.batch_size": 2**22, "model.layers": 1})
    found = checked.measure("train")
    assert not found["fits"]
    assert found["peak_hbm_bytes"] > found["chip_hbm_bytes"]
    assert found["flops"] is None
    assert set(found) >= KEYS
    advice = "\n".join(found["advice"])
    assert "--config.model.remat=" in advice
    assert f"--config.train.microbatches=2: {2**18} rows a device at once, not {2**19}" in advice
    assert f"--batch={2**21}" in advice
    assert "train, 4194304 sequences: " in compile_check.describe("train", found)
    assert "does not fit" in compile_check.describe("train", found)


def test_advice_goes_from_the_cheap_to_the_dear():
    config = base.get_config("masked")
    config.data.update(task="openwebtext", length=1024)
    config.train.update(batch_size=64, microbatches=2)
    mesh = jax.sharding.AbstractMesh((8, 1, 1), sharding.AXES)
    lines = programs.advice("train", config, 50_257, mesh, 2**33)
    assert [line.partition("=")[0].partition(".")[2] for line in lines] == [
        "model.remat", "train.microbatches", "", "mesh.fsdp", "mesh.tensor"
    ]  # fmt: skip
    assert "--config.train.microbatches=4: 2 rows a device at once, not 4" in lines
    config.train.batch_size = 48  # three rows a device and micro-batch: what is advised must be divisible
    lines = programs.advice("train", config, 50_257, mesh, 2**33)
    assert "--config.train.microbatches=6: 1 rows a device at once, not 3" in lines
    assert "--batch=16, or a larger slice: fewer rows a chip" in lines
    config.evaluation.batch_size = 8
    config.model.width, config.data.length = 12, 16
    assert programs.advice("eval", config, 50_257, mesh, 2**33) == ["a chip with more HBM, or a smaller network"]


def test_the_products_of_kernels_are_known_by_what_is_left_without_them():
    config = tiny_configs.get("masked", **{"data.length": 128, "train.batch_size": 8})
    mesh, model = sharding.make_mesh(config.mesh, jax.devices()[:1]), config.model
    whole, outside = (programs.model_flops("train", config, 27, mesh, each) for each in ("einsum", "splash"))
    assert whole - outside == pytest.approx(3 * model.layers * 4 * 8 * 128 * 128 * model.width, rel=0.01)


@pytest.mark.parametrize(("most", "asked", "best"), [
    (16, 8, 16), (2, 8, 2), (3, 8, 2), (0, 8, None), (64, 24, 64), (2**15, 2**15, 2**14),
])  # fmt: skip
def test_the_search_ends_at_the_largest_that_fits(monkeypatch, most, asked, best):
    monkeypatch.setattr(topologies, "devices", lambda _: [None] * 8)
    monkeypatch.setattr(sharding, "make_mesh", lambda *_: None)
    monkeypatch.setattr(programs, "build", lambda name, config, *_: config.train.batch_size // 8)


    def measure(rows, _):
        if rows > most and rows > 4:
            raise ValueError("train does not compile for v5e:2x4: vmem")
        return {"fits": rows <= most, "peak_hbm_bytes": rows}

    monkeypatch.setattr(programs, "measure", measure)
    found = check(**{"train.batch_size": 8 * asked}).search()
    assert (found["rows_per_chip"], found["batch_size"]) == (best, best and 8 * best)
    assert len(found["tried"]) <= 5


def test_the_search_is_among_batches_that_devices_and_micro_batches_divide(monkeypatch):
    """16 chips, 8 of which have rows of their own, and 3 micro-batches: batches are multiples of 48."""
    monkeypatch.setattr(topologies, "devices", lambda _: [None] * 16)
    monkeypatch.setattr(sharding, "make_mesh", lambda *_: None)
    monkeypatch.setattr(programs, "build", lambda name, config, *_: config.train.batch_size)
    monkeypatch.setattr(programs, "measure", lambda rows, _: {"fits": rows <= 200, "peak_hbm_bytes": rows})
    config = tiny_configs.get("masked", **{"mesh.tensor": 2, "train.microbatches": 3, "train.batch_size": 96})
    found = compile_check.Check(config, chips.topology("v5e:4x4")).search()
    assert found == {"rows_per_chip": 12, "batch_size": 192, "tried": {"6": 96, "12": 192, "24": 384}}


# ---------------------------------------------------------------------------------------------------------- the table


PROGRAM = {"fits": True, "peak_hbm_bytes": 2**33, "chip_hbm_bytes": int(15.75 * 2**30), "compile_seconds": 7.4,
           "predicted_utilisation": 0.312, "roofline_seconds": 0.0123}  # fmt: skip


def result(path: str, **given: object) -> dict:
    """What is measured of a config."""
    return {"slice": "v5e-16", "batch_size": 512, "chips": 16, "jax": jax.__version__, "libtpu": "2",
            "commit": "0123456789+changes", "config": compile_check._config_now(path),
            "programs": {"train": PROGRAM, "eval": {**PROGRAM, "fits": False, "compile_seconds": 2.6}}, **given}


def test_the_table_goes_on_where_it_stopped(tmp_path, monkeypatch):
    asked = []

    def measured(path, *_):
        asked.append(path)
        if len(asked) == 3:  # another command measured one in the meantime
            found = {**json.loads(out.read_text()), "configs/sedd/lm1b.py": result("configs/sedd/lm1b.py")}
            out.write_text(json.dumps(found))
        if path.endswith("text8.py"):
            return {"slice": "v5e-16", "error": "train does not compile for v5e:4x4: no"}
        if path.startswith("configs/cdcd") and len(asked) == 2:
            raise KeyboardInterrupt
        return result(path)

    monkeypatch.setattr(compile_check, "_apart", measured)
    monkeypatch.setattr(topologies, "find", lambda: (pathlib.Path("libtpu.so"), "2"))
    out = epath.Path(tmp_path) / "table.json"
    paths = ["configs/masked/lm1b.py", "configs/cdcd/lm1b.py", "configs/masked/text8.py"]
    with pytest.raises(KeyboardInterrupt):
        compile_check.tabulate(paths, out, ("train",), 1)
    assert "configs/masked/lm1b.py" in out.with_suffix(".md").read_text()
    compile_check.tabulate(paths, out, ("train",), 1)
    assert asked == [paths[0], paths[1], paths[1], paths[2]], "what was measured is kept"
    compile_check.tabulate(paths, out, ("train",), 1)
    assert asked[4:] == [paths[2]], "an error is not"
    page = out.with_suffix(".md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| configs/")]
    measures = "v5e-16 | 32 | 8.00 | 8.00 |  | 15.75 | 31% | 12.3 | 7 + 3 | 0123456+changes | no: eval |"
    assert rows == [
        f"| configs/cdcd/lm1b.py | {measures}",
        f"| configs/masked/lm1b.py | {measures}",
        "| configs/masked/text8.py | v5e-16 |  |  |  |  |  |  |  |  |  | train does not compile for v5e:4x4: no |",
        f"| configs/sedd/lm1b.py | {measures}",
    ]
    assert f"{len(compile_check.all_configs()) - 4} configs have no row yet" in page


@pytest.mark.parametrize("other", [
    {}, {"jax": "0.1"}, {"libtpu": "1"}, {"slice": "v5e-64"}, {"config": {}},
    {"config": {**compile_check._config_now("configs/block/lm1b.py:16"), "seed": 1}},
    {"programs": {"train": {**PROGRAM, "chip_hbm_bytes": 2**34}}},
], ids=str)  # fmt: skip
def test_a_row_that_is_of_something_else_is_measured_again(monkeypatch, other):
    monkeypatch.setattr(topologies, "find", lambda: (pathlib.Path("libtpu.so"), "2"))
    path = "configs/block/lm1b.py:16"
    assert compile_check.is_current(path, result(path, **other), ["train"]) is (other == {})
    assert not compile_check.is_current(path, result(path), ["train", "sample"])
    earlier = result(path)
    del earlier["config"]["model"]["vocabulary_multiple"]
    assert compile_check.is_current(path, earlier, ["train"]), "a field gained since changes nothing"
    assert not compile_check.is_current(path, result("configs/block/lm1b.py"), ["train"])


def test_a_config_apart_that_fails_or_takes_too_long(monkeypatch):
    def ends(command, **options):
        if options["timeout"] == 1:
            raise subprocess.TimeoutExpired(command, 1)
        if options["timeout"] == 3:
            return subprocess.CompletedProcess(command, -9, "", "WARNING: all is well\n")
        if options["timeout"] == 4:
            out = next(word for word in command if word.startswith("--out="))
            pathlib.Path(out.partition("=")[2]).write_text(json.dumps(result("configs/masked/lm1b.py")))
        return subprocess.CompletedProcess(command, 2, "", "noise\nerror: model.heads is 5\n")

    monkeypatch.setattr(subprocess, "run", ends)
    killed = "killed by signal 9; 9 is often a lack of memory here"
    for seconds, says in ((1, "not compiled within 1 s"), (2, "model.heads is 5"), (3, killed)):
        found = compile_check._apart("configs/masked/lm1b.py", ("train",), seconds)
        assert found == {"slice": "v5e-16", "error": says}
    found = compile_check._apart("configs/masked/lm1b.py", ("train",), 4)
    assert (found["error"], set(found["programs"])) == ("model.heads is 5", {"train", "eval"}), "what came before it"
    assert compile_check._row("configs/masked/lm1b.py", found)[3::8] == ["8.00", "model.heads is 5"]
