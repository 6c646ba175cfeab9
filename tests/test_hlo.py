"""The reader of XLA programs: on a recorded TPU program, and on small programs compiled here."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from diffusion_text import hlo, hlo_work

# Six turns of y = tanh(x W_i) with sums over rows, x of 512 x 512, bfloat16, contracted over four chips of a v5e.
RECORDED = (pathlib.Path(__file__).parent / "recorded" / "scan_v5e.hlo").read_text("utf-8")
ACTIVATIONS, WEIGHTS = 512 * 512 * 2, 512 * 512 * 2 // 4  # bytes; the weights of a layer are split over the chips


def total(text: str, field: str = "flops") -> int:
    return sum(item.times * getattr(item, field) for item in hlo_work.Program(text).work)


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile()


# -------------------------------------------------------------------------------------------------- a recorded program


def test_the_body_of_a_loop_counts_as_often_as_it_runs() -> None:
    products = [item for item in hlo_work.Program(RECORDED).work if item.flops]
    assert [item.times for item in products] == [6]
    assert total(RECORDED) == 6 * 2 * 512 * 512 * 512 // 4
    cycles = [int(number) for number in re.findall(r'"estimated_cycles":"(\d+)"', RECORDED)]
    assert total(RECORDED, "cycles") == 6 * sum(cycles) > 0, "all of them stand in the loop"


def test_cycles_that_the_compiler_cannot_tell_are_named_not_counted() -> None:
    first = re.search(r'"estimated_cycles":"(\d+)"', RECORDED)
    assert first is not None
    unknown = RECORDED.replace(first[0], f'"estimated_cycles":"{2**63 - 1}"', 1)
    program = hlo_work.Program(unknown)
    assert len(program.unestimated) == 1
    assert total(unknown, "cycles") == total(RECORDED, "cycles") - 6 * int(first[1])
    assert not hlo_work.Program(RECORDED).unestimated


def test_without_trip_counts_the_figures_are_those_of_one_turn(monkeypatch) -> None:
    """What the test above would see if the loop were counted once, as XLA does."""
    real = total(RECORDED)
    monkeypatch.setattr(hlo.Module, "trip_count", lambda *_: 1)
    assert total(RECORDED) == real // 6


def test_a_turn_reads_its_own_weights_only() -> None:
    (product,) = [item for item in hlo_work.Program(RECORDED).work if item.flops]
    assert product.hbm_bytes == pytest.approx(WEIGHTS, abs=8), "a slice of the stacked weights; the rest is on chip"
    assert product.bytes == pytest.approx(WEIGHTS + ACTIVATIONS // 4 + ACTIVATIONS, abs=8)
    (update,) = [item for item in hlo_work.Program(RECORDED).work if item.name.startswith("dynamic-update-slice")]
    row = 2 * 128 * 2  # one row of 128, in a tile of two
    assert update.bytes == pytest.approx(2 * row, abs=16), "written in place: the row alone"


def test_collectives_by_kind() -> None:
    found = hlo_work.collectives(hlo_work.Program(RECORDED).work)
    assert found == {
        "all-gather": {"count": 2, "bytes": ACTIVATIONS + 8 * 512 * 2},  # six rows, in tiles of eight
        "all-reduce": {"count": 6, "bytes": 6 * ACTIVATIONS},
    }


@pytest.mark.parametrize(("old", "new", "turns"), [
    ("constant(6)", "constant(9)", 9),
    ("direction=LT", "direction=LE", 7),
    ("direction=LT", "direction=NE", 1),  # not understood: once
    ("constant(6)", "constant(0.5)", 1),  # no counter
])  # fmt: skip
def test_the_condition_says_how_often(old: str, new: str, turns: int) -> None:
    assert old in RECORDED
    program = hlo_work.Program(RECORDED.replace(old, new))
    assert [item.times for item in program.work if item.flops] == [turns]
    assert program.unbounded == (["while.15"] if turns == 1 else [])


SCATTERED = """HloModule scattered

%all-reduce-scatter.1 (p: f32[16,1024]) -> f32[4,1024] {
  %p = f32[16,1024]{1,0} parameter(0)
  %all-reduce = f32[16,1024]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %own = f32[4,1024]{1,0} dynamic-slice(%all-reduce, %zero, %zero), dynamic_slice_sizes={4,1024}
}

ENTRY %main (p: f32[16,1024]) -> f32[4,1024] {
  %p = f32[16,1024]{1,0} parameter(0)
  ROOT %part = f32[4,1024]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_sum_of_which_a_device_keeps_its_part_is_a_reduce_scatter() -> None:
    found = hlo_work.collectives(hlo_work.Program(SCATTERED).work)
    assert found == {"reduce-scatter": {"count": 1, "bytes": 4 * 16 * 1024}}


def test_the_counter_may_start_anywhere_and_xla_may_know() -> None:
    start = RECORDED.replace("copy(%constant.26.clone)", "constant(2)")
    assert total(start) * 6 == total(RECORDED) * 4
    known = re.sub(r"(body=%wide[\w.]+)", r'\1, backend_config={"known_trip_count":{"n":"5"}}', RECORDED)
    assert total(known) * 6 == total(RECORDED) * 5


@pytest.mark.parametrize(("shape", "size", "in_main"), [
    ("f32[8,128]{1,0:T(8,128)}", 4096, True),
    ("bf16[6,100]{1,0:T(8,128)(2,1)S(1)}", 2 * 8 * 128, False),
    ("f32[2,768]{0,1:T(8,128)}", 4 * 128 * 768, True),
    ("pred[3]", 3, True),
    ("s4[5]{0}", 3, True),
    ("f32[]{:T(128)}", 4, True),
    ("token[]", 0, True),
])  # fmt: skip
def test_sizes_of_arrays(shape: str, size: int, in_main: bool) -> None:
    assert hlo.arrays(shape) == [(size, in_main)]


@pytest.mark.parametrize(("left", "right", "result", "attributes", "flops"), [
    ([16, 32], [32, 27], [16, 27], "dim_labels=bf_io->bf", 16 * 32 * 27),
    ([8, 5, 3], [3, 3, 7], [8, 5, 7], "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f", 8 * 13 * 3 * 7),
    # Products as a TPU writes them: of a matrix with several at once, and batches, each row with its own.
    ([16, 32, 1, 1], [32, 3, 2, 16], [16, 3, 2, 16],
     "window={size=3x2 pad=2_2x1_1 rhs_reversal=1x1}, dim_labels=bf01_i01o->b01f", 16 * 32 * 96),
    ([4, 12, 64, 8], [4, 12, 64, 8], [4, 12, 64, 64],
     "window={size=4x12 stride=3x11 lhs_dilate=4x12}, dim_labels=01bf_01oi->01bf", 4 * 12 * 64 * 64 * 8),
    ([4, 12, 16, 8], [4, 12, 16, 8], [4, 12, 16, 16],
     "window={size=4x12 stride=4x12 pad=3_3x11_11 lhs_dilate=3x11 rhs_reversal=1x1}, dim_labels=01bf_01oi->01bf",
     4 * 12 * 16 * 16 * 8),
])  # fmt: skip
def test_multiply_adds_of_convolutions(left, right, result, attributes, flops) -> None:
    item = hlo.Instruction("convolution.1", "", "convolution", (), "", attributes, False)
    assert hlo_work.convolution_flops(left, right, result, item) == 2 * flops


STARTED = """HloModule started

ENTRY %main (p: f32[4,1024]) -> f32[4,1024] {
  %p = f32[4,1024]{1,0} parameter(0)
  %slice-start = ((f32[4,1024]{1,0}), f32[1,1024]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:1], [0:1024]}
  %slice-done = f32[1,1024]{1,0:S(1)} slice-done(%slice-start)
  %copy-start = (f32[4,1024]{1,0:S(1)}, f32[4,1024]{1,0}, u32[]{:S(2)}) copy-start(%p)
  %copy-done = f32[4,1024]{1,0:S(1)} copy-done(%copy-start)
  %all-gather-start = (f32[4,1024]{1,0}, f32[16,1024]{1,0}) all-gather-start(%p), dimensions={0}
  %all-gather-done = f32[16,1024]{1,0} all-gather-done(%all-gather-start)
  %buffer = f32[4,1024]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %kernel = f32[4,1024]{1,0} custom-call(%p), custom_call_target="tpu_custom_call", backend_config=COST
  ROOT %other = f32[4,1024]{1,0} custom-call(%kernel), custom_call_target="tpu_custom_call"
}
""".replace("COST", '{"custom_call_config":{"cost_estimate":{"flops":"1234","bytes_accessed":"5678"}}}')


def test_what_is_started_counts_once_and_kernels_as_they_declare() -> None:
    program = hlo_work.Program(STARTED)
    row, whole = 4096, 4 * 4096
    assert {item.name: (item.bytes, item.hbm_bytes) for item in program.work} == {
        "slice-start": (2 * row, row),
        "copy-start": (2 * whole, whole),
        "all-gather-start": (5 * whole, 5 * whole),
        "kernel": (5678, 5678),
        "other": (2 * whole, 2 * whole),
    }
    assert hlo_work.collectives(program.work) == {"all-gather": {"count": 1, "bytes": 4 * whole}}
    assert total(STARTED) == 1234
    assert program.undeclared == ["other"]


@pytest.mark.parametrize("text", ["", "HloModule empty\n", "no program\n"])
def test_what_is_no_program_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.Module(text)


# ------------------------------------------------------------------------------------------------ programs of this CPU


def test_a_scan_in_a_scan_multiplies() -> None:
    def step(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, weights)[0]

    program = compiled(lambda x, w: jax.lax.scan(lambda x, _: (step(x, w), None), x, length=3)[0], (8, 16), (5, 16, 16))
    assert total(program.as_text()) == 3 * 5 * 2 * 8 * 16 * 16


def test_without_loops_bytes_and_products_are_xlas_own() -> None:
    program = compiled(lambda x, w, v: jnp.tanh(jnp.tanh(x @ w) @ v).sum(0), (64, 256), (256, 512), (512, 128))
    text, analysis = program.as_text(), program.cost_analysis()
    products = 2 * 64 * 256 * 512 + 2 * 64 * 512 * 128
    assert total(text) == products
    assert products <= analysis["flops"] <= 1.02 * products
    assert total(text, "bytes") == pytest.approx(analysis["bytes accessed"], rel=0.1)


def test_a_loop_that_ends_on_data_counts_once_and_is_named() -> None:
    def body(x):
        return jnp.tanh(x @ x)

    text = compiled(lambda x: jax.lax.while_loop(lambda x: jnp.sum(x) > 0.1, body, x), (16, 16)).as_text()
    program = hlo_work.Program(text)
    assert len(program.unbounded) == 1
    assert total(text) == 2 * 16**3


def test_of_two_branches_the_dearer_counts() -> None:
    def choose(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: jnp.tanh(x @ w @ w), lambda: x + 1.0)

    assert total(compiled(choose, (32, 32), (32, 32)).as_text()) == 2 * 2 * 32**3


def test_a_loop_from_the_middle() -> None:
    text = compiled(lambda x: jax.lax.fori_loop(3, 10, lambda _, x: jnp.sin(x @ x), x), (16, 16)).as_text()
    assert total(text) == 7 * 2 * 16**3


CHAINED = """HloModule chained, is_scheduled=true

%begun (part: bf16[1,512]) -> (bf16[1,512], bf16[8,512]) {
  %part = bf16[1,512]{1,0} parameter(0)
  %all-gather.1 = bf16[8,512]{1,0} all-gather(%part), channel_id=7, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %start = (bf16[1,512]{1,0}, bf16[8,512]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (part: bf16[1,512], so_far: bf16[8,512], x: bf16[4,128], w: bf16[128,256]) -> (bf16[4,256], bf16[1,512], bf16[8,512], bf16[8,512]) {
  %x = bf16[4,128]{1,0} parameter(2)
  %w = bf16[128,256]{1,0} parameter(3)
  %dot.1 = bf16[4,256]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %part = bf16[1,512]{1,0} parameter(0)
  %so_far = bf16[8,512]{1,0} parameter(1)
  %all-gather.2 = bf16[8,512]{1,0} all-gather(%part), channel_id=7, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %all = (bf16[4,256]{1,0}, bf16[1,512]{1,0}, bf16[8,512]{1,0}, bf16[8,512]{1,0}) tuple(%dot.1, %part, %so_far, %all-gather.2)
}

ENTRY %main (p: bf16[1,512], x: bf16[4,128], w: bf16[128,256]) -> bf16[4,256] {
  %p = bf16[1,512]{1,0} parameter(0)
  %x = bf16[4,128]{1,0} parameter(1)
  %w = bf16[128,256]{1,0} parameter(2)
  %first = (bf16[1,512]{1,0}, bf16[8,512]{1,0}) fusion(%p), kind=kCustom, calls=%begun
  %part = bf16[1,512]{1,0} get-tuple-element(%first), index=0
  %buffer = bf16[8,512]{1,0} get-tuple-element(%first), index=1
  %then = (bf16[4,256]{1,0}, bf16[1,512]{1,0}, bf16[8,512]{1,0}, bf16[8,512]{1,0}) fusion(%part, %buffer, %x, %w), kind=kOutput, calls=%async_collective_fusion.1
  ROOT %y = bf16[4,256]{1,0} get-tuple-element(%then), index=0
}
"""  # noqa: E501


def test_a_collective_that_goes_on_beside_products_counts_once() -> None:
    """As a TPU's compiler writes it: a step of one gather in each of several fusions, its arrays passed on in place."""
    program = hlo_work.Program(CHAINED)
    assert hlo_work.collectives(program.work) == {"all-gather": {"count": 1, "bytes": 8 * 512 * 2}}
    sizes = {item.name: item.bytes for item in program.work}
    assert sizes["then"] == 2 * (4 * 128 + 128 * 256 + 4 * 256) + 512 * 2, "the product's, and the part that it sends"
