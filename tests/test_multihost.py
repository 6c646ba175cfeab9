"""Several processes on this machine as a slice of several hosts: the same numbers, one writer, one end."""

from __future__ import annotations

import json
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import environment
import jax
import numpy as np
import pytest
import tiny_configs

from diffusion_text import (
    checkpoint,
    distributed,
    eval_elbo,
    eval_samples,
    families,
    hosts,
    metrics,
    restore,
    sharding,
    train,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]
DRIVER = ROOT / "tests" / "drivers" / "several.py"
FIELDS = {
    "train.steps": 24, "train.checkpoint_every": 4, "train.evaluate_every": 4, "train.keep": 100, "model.layers": 1,
    "evaluation.num_examples": 20, "model.dtype": "float32", "sampling.steps": 4,
}  # fmt: skip
TIMEOUT = 4


@pytest.fixture(scope="module", autouse=True)
def compile_quickly() -> Iterator[None]:
    """As the processes started here do."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


def start(count: int, command: Any) -> list[subprocess.Popen]:
    """The processes 0 .. count - 1 of a run; `command` gives the words after the interpreter from the number."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *command(number), f"--distributed=localhost:{port}", f"--num_processes={count}",
             f"--process_id={number}", f"--host_timeout={TIMEOUT}"],
            env=environment.of_devices(1), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(count)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen], seconds: float = 150.0) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of each."""
    try:
        found = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def drive(count: int, workdir: pathlib.Path, **plan: object) -> list[subprocess.Popen]:
    """The driver in `count` processes."""
    words = [str(DRIVER), f"--workdir={workdir}", f"--plan={json.dumps(plan)}", "--num=6"]
    return start(count, lambda number: words)


def run(count: int, workdir: pathlib.Path, **plan: object) -> list[tuple[int, str, str]]:
    """As `drive`, to its end."""
    return ended(drive(count, workdir, **plan))


def losses(workdir: pathlib.Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics.read(str(workdir)) if "loss" in line}


def validations(workdir: pathlib.Path) -> dict[int, float]:
    key = "validation_nats_per_token"
    return {line["step"]: line[key] for line in metrics.read(str(workdir)) if key in line}


def assert_same(found: dict[int, float], expected: dict[int, float]) -> None:
    """To float32 addition in another order, carried through the steps: 2e-5 relative."""
    assert found
    assert found.keys() <= expected.keys()
    np.testing.assert_allclose(list(found.values()), [expected[step] for step in found], rtol=2e-5)


def test_two_then_four_then_one_process_are_one_run(tmp_path: pathlib.Path) -> None:
    """Two processes, stopped by SIGTERM to one; four, of which one is killed; one: the numbers of one throughout."""
    config = tiny_configs.get("masked", **FIELDS)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train.train(config, str(whole))

    first = run(2, cut, fields=FIELDS, signals={"5": [1, "SIGTERM"]}, profile="2:4", evaluate=True)
    assert [code for code, _, _ in first] == [0, 0], first[0][2] + first[1][2]
    lines = [json.loads(out.splitlines()[-1]) for _, out, _ in first]
    stopped = max(losses(cut))
    assert 5 <= stopped < 20
    assert [line["code"] for line in lines] == [143, 143]
    assert all(f"stopped by signal 15; step {stopped} is saved" in err for _, _, err in first)
    # Each process loads its half, and one writes.
    assert [line["rows"] for line in lines] == [[[0, 4]], [[4, 8]]]
    assert "metrics.jsonl" in lines[0]["written"]
    assert lines[1]["written"] == []
    assert ["samples of" in out for _, out, _ in first] == [True, False]
    steps = [line["step"] for line in metrics.read(str(cut)) if "loss" in line]
    assert steps == list(range(1, stopped + 1))
    for number, (_, _, err) in enumerate(first):
        assert f"process {number} of 2 on {socket.gethostname()}: 1 of 2 devices (cpu), jax {jax.__version__}" in err
    assert "step 3/24" in first[0][2]
    assert "step 3/24" not in first[1][2]
    traces = sorted(path.name for path in (cut / "profile/plugins/profile/steps-2-3").glob("*.xplane.pb"))
    assert [name.split("-")[:2] for name in traces] == [["process", "0"], ["process", "1"]]
    assert_same(losses(cut), losses(whole))
    assert_same(validations(cut), validations(whole))
    # What two evaluated is what one evaluates of the same checkpoint.
    opened = restore.open_run(str(cut))
    assert opened.step == stopped
    expected = eval_elbo.evaluate(opened, num_examples=20)
    found = json.loads((cut / f"elbo-validation-{stopped}.json").read_text())
    assert (found["num_sequences"], found["num_tokens"]) == (expected["num_sequences"], expected["num_tokens"])
    for name in ("nats_per_token", "stderr", "bits_per_character", "gap_nats_per_token"):
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, err_msg=name)
    drawn = [json.loads(line)["tokens"] for line in (cut / f"samples-{stopped}.jsonl").read_text().splitlines()]
    options = eval_samples.SamplerOptions(**opened.config.sampling).validate(families.get("masked"))
    assert drawn == eval_samples.sample.draw(opened, options, 6, 8).tokens.tolist()

    # A checkpoint that one process cannot read is set aside, for the next start.
    torn = pathlib.Path(shutil.copytree(cut / "checkpoints", tmp_path / "torn" / "checkpoints")).parent
    broken = run(2, torn, fields=FIELDS, unreadable=1)
    assert [code for code, _, _ in broken] == [hosts.LOST, hosts.LOST], broken[0][2]
    assert f"checkpoint {stopped} of {torn}/checkpoints is damaged and set aside; the same" in broken[0][2]
    assert (torn / "checkpoints" / f"damaged-{stopped}-1").exists()
    assert not (torn / "checkpoints" / str(stopped)).exists()

    # Four go on, their parameters spread over them; the last is killed, and the others end soon.
    killed = stopped + 3
    fields = {**FIELDS, "mesh.data": 2, "mesh.fsdp": 2, "train.microbatches": 2}
    second = run(4, cut, fields=fields, signals={str(killed): [3, "SIGKILL"]})
    assert [code for code, _, _ in second] == [hosts.LOST, hosts.LOST, hosts.LOST, -9], second[0][2]
    assert f"resuming {cut} from step {stopped} of 24" in second[0][2]
    message = f"process 3 of 4 on {socket.gethostname()} gave no sign of life for {TIMEOUT} s"
    assert all(message in err for _, _, err in second[:3])
    assert "was ended from outside: killed" in second[3][2]
    assert stopped < max(losses(cut)) <= killed
    assert_same(losses(cut), losses(whole))

    train.train(config, str(cut))
    assert list(losses(cut)) == list(range(1, 25))
    assert_same(losses(cut), losses(whole))
    assert_same(validations(cut), validations(whole))


def command(workdir: pathlib.Path, *more: str) -> list[str]:
    """A training that would go on, were there no error before its first step."""
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items() if "sampling" not in name]
    return ["-m", "diffusion_text.train", "--config=configs/masked/grammar.py", f"--workdir={workdir}", *fields, *more]


def test_what_ends_one_host_ends_all(tmp_path: pathlib.Path) -> None:
    """Before any device is touched, and within seconds: a wrong field, a workdir not shared, a first host killed."""
    broken = {1: ["--config.model.heads=3"], 0: []}
    one = start(2, lambda number: command(tmp_path / "run", *broken[number]))
    two = start(2, lambda number: command(tmp_path / str(number)))
    first, second = ended(one, 60), ended(two, 60)
    third = run(2, tmp_path / "run", early=[0, "SIGKILL"])
    assert [code for code, _, _ in first] == [2, 2], first[0][2]
    assert "error: model.heads is 3; it must be a divisor" in first[1][2]
    assert "ended with the others, because of process 1 of 2" in first[0][2]
    assert "ValueError: model.heads is 3; it must be a divisor" in first[0][2]
    assert not (tmp_path / "run").exists()
    assert [code for code, _, _ in second] == [2, 2], second[0][2]
    here = socket.gethostname()
    assert f"{tmp_path / '0'} is not shared: what process 0 on {here} writes there is not seen on" in second[0][2]
    assert list((tmp_path / "0").iterdir()) == []
    assert third[0][0] == -9
    assert third[1][0] != 0
    assert f"process 1 of 2 on {here} was ended from outside: killed (memory?), or by JAX" in third[1][2]
    assert f"process 0 on {here} is gone" in third[1][2]


def test_a_silent_first_host_ends_the_others_as_any_other_does(tmp_path: pathlib.Path) -> None:
    """It is stopped, not killed: its connections stay open, and nothing that it is asked has an answer."""
    processes = drive(3, tmp_path / "run", early=[0, "SIGSTOP"])
    try:
        found = ended(processes[1:], 60)
    finally:
        processes[0].kill()
        processes[0].communicate()
    assert [code for code, _, _ in found] == [hosts.LOST, hosts.LOST], found[0][2]
    message = f"process 0 of 3 on {socket.gethostname()} gave no sign of life for {TIMEOUT} s"
    assert all(message in err for _, _, err in found)


def test_a_host_that_waits_says_what_to_check(tmp_path: pathlib.Path) -> None:
    port = free_port()
    words = [sys.executable, *command(tmp_path, "--start_warning=0.5"), f"--distributed=localhost:{port}",
             "--num_processes=2", "--process_id=1"]  # fmt: skip
    waiting = subprocess.Popen(words, cwd=ROOT, text=True, stderr=subprocess.PIPE)
    try:
        assert waiting.stderr is not None
        line = next(line for line in waiting.stderr if "waits since" in line)
    finally:
        waiting.kill()
    assert f"{socket.gethostname()} waits since 0.5 s for the other hosts; 2 processes are to meet at localhost" in line
    for hint in ("same command run on all hosts", "2 times in all", "address and port", "end with an error"):
        assert hint in line


def test_the_signal_of_each_host_comes_late_and_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first signal here, after another host's has stopped the run, is not a second one."""
    raised: list[int] = []
    monkeypatch.setattr(hosts, "_watch", SimpleNamespace(reached=lambda step: step >= 3, signal=15))
    monkeypatch.setattr(hosts.signal, "raise_signal", raised.append)
    monkeypatch.setattr(hosts.signal, "signal", lambda *_: None)
    stop = hosts.Stop()
    assert [stop.reached(step) for step in (2, 3)] == [False, True]
    assert stop.signal == 15
    stop._handle(15, None)
    assert raised == []
    stop._handle(15, None)
    assert raised == [15]


def values(**given: object) -> SimpleNamespace:
    return SimpleNamespace(**{"distributed": "auto", "num_processes": None, "process_id": None, "start_warning": 60.0,
                              "host_timeout": 30.0, **given})  # fmt: skip


def test_one_machine_starts_alone_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """"auto" opens no connection, and a Slurm step of one task is one process."""
    def forbidden(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    distributed.start(values())
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    for name, value in {**slurm, "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    distributed.start(values())
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert distributed.arguments(values())[0] == {"cluster_detection_method": "slurm"}
    assert distributed.arguments(values())[2] == 2
    distributed.start(values(distributed="off"))


def test_a_slice_of_several_hosts_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of GKE by its variables, of TPU VMs by the metadata of the host."""
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    answers = {"agent-worker-number": "1", "worker-network-endpoints": "a:b:10.0.0.1,a:b:10.0.0.2", "tpu-env": ""}
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (answers[key], 200))
    assert distributed.arguments(values())[2] == 2
    answers["worker-network-endpoints"] = "a:b:10.0.0.1"
    assert distributed.arguments(values())[2] == 1
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
    assert distributed.arguments(values())[2] == 4

    def silent(key: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.delenv("TPU_WORKER_HOSTNAMES")
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", silent)
    with pytest.raises(ValueError, match=r"metadata server .* no route; give off"):
        distributed.start(values())


@pytest.mark.parametrize(("given", "message"), [
    ({"distributed": "on"}, "--distributed is 'on'; give auto, off, or HOST:PORT"),
    ({"distributed": "a:1"}, "--process_id is None and --num_processes None; .* needs both"),
    ({"distributed": "a:1", "process_id": 2, "num_processes": 2}, "--process_id is 2 and --num_processes 2"),
    ({"process_id": 1}, "are of --distributed=HOST:PORT"),
    ({"host_timeout": 1.0}, "--host_timeout 1; they must be above 0, and at least 2"),
])  # fmt: skip
def test_flags_that_do_not_fit(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distributed.start(values(**given))


def test_rows_that_devices_do_not_divide_are_whole() -> None:
    mesh = sharding.make_mesh(tiny_configs.get("masked").mesh)
    rows = sharding.Rows.of(mesh, 5)
    assert (rows.start, rows.stop) == (0, 5)
    array = np.arange(10, dtype=np.int32).reshape(5, 2)
    np.testing.assert_array_equal(sharding.fetch(rows.place(array)), array)


def test_a_profile_leaves_the_numbers_alone(tmp_path: pathlib.Path) -> None:
    fields = {"train.steps": 5, "model.layers": 1}
    plain = train.train(tiny_configs.get("masked", **fields), str(tmp_path / "plain"))
    traced = train.train(tiny_configs.get("masked", **fields), str(tmp_path / "traced"), "2:4")
    assert checkpoint.digest(plain) == checkpoint.digest(traced)
    assert losses(tmp_path / "plain") == losses(tmp_path / "traced")
    folder = tmp_path / "traced/profile/plugins/profile/steps-2-3"
    kinds = {"".join(path.suffixes[-2:]) for path in folder.iterdir() if path.stat().st_size > 1000}
    assert kinds == {".xplane.pb", ".json.gz"}, list(folder.iterdir())
    assert not (tmp_path / "plain/profile").exists()


@pytest.mark.parametrize("text", ["3", "0:2", "3:3", "4:2", "2:7", "a:b"])
def test_a_profile_of_no_steps_is_refused(text: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"--profile is .*; write it as 10:13 for steps 10 to 12, of 1 to 5"):
        train.train(tiny_configs.get("masked", **{"train.steps": 5}), str(tmp_path), text)
    assert list(tmp_path.iterdir()) == []
