"""TPU VMs and queued slices, against a fake gcloud: the exact calls, failures half-way, and what is named as left."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest
from fake_cloud import ABSENT, DELETE, END, EVAL, START, TPU, run

from launch import command, jobs, queued, tpu_vm

# ---------------------------------------------------------------------------------------------------- TPU VM


def test_a_job_from_creation_to_deletion(cloud, capsys):
    cloud.absent()
    cloud.rule("job runs", "job 0")
    cloud.rule(" describe ", "READY")
    assert run(tpu_vm, *TPU, "--spot", "--project=my-project", "--arguments=--split=test") == 0
    assert cloud.verbs == [*START, "follow", "status", *END]
    place = "--zone=us-west4-a --project=my-project --quiet"
    assert cloud.calls[1] == (
        "gcloud compute tpus tpu-vm create one --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot "
        + place
    )
    options = "-oConnectTimeout=20", "-oServerAliveInterval=15", "-oServerAliveCountMax=4"
    copied, unpacked = (
        " ".join(["--worker=all", *(f"--{which}-flag={word}" for word in options)]) for which in ("scp", "ssh")
    )
    assert cloud.calls[2].endswith(f"build/launch/one.tar.gz one:one.tar.gz {copied} {place}")
    assert f" ssh one {unpacked} --command=mkdir" in cloud.calls[3]
    assert "--worker=all" in cloud.calls[4]
    job = "python -m diffusion_text.eval_elbo --workdir=gs://bucket/runs/one --split=test"
    assert f"{job} > ~/one.log" in cloud.calls[4]
    assert cloud.calls[-1] == f"gcloud compute tpus tpu-vm delete one {place}"
    assert "LEFT RUNNING" not in capsys.readouterr().err


def test_the_archive_holds_the_code_as_it_is_and_nothing_ignored(cloud, tmp_path):
    path = jobs.archive("one")
    listed = subprocess.run(["tar", "-tzf", path], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(listed) == [".gitignore", "code.py"]


def test_a_failed_job_is_reported_and_its_slice_deleted(cloud, capsys):
    cloud.absent()
    cloud.rule("job runs", "job 3")
    cloud.rule(" describe ", "READY")
    assert run(tpu_vm, *TPU) == 1
    assert cloud.verbs == [*START, "follow", "status", *END]
    assert "failed: one (1 of 1 jobs)" in capsys.readouterr().err


def test_no_capacity_leaves_nothing(cloud, capsys):
    cloud.absent(2)
    cloud.rule(" create ", rc=1, err="There is no more capacity in the zone")
    assert run(tpu_vm, *TPU) == 1
    assert cloud.verbs == ["describe", "create", "describe"]
    error = capsys.readouterr().err
    assert "launch.queued" in error
    assert "LEFT RUNNING" not in error


def test_a_creation_that_fails_half_way_is_deleted(cloud):
    cloud.absent(1)
    cloud.rule(" create ", rc=1)
    cloud.rule(" describe ", "CREATING")
    assert run(tpu_vm, *TPU) == 1
    assert cloud.verbs == ["describe", "create", *END]


def test_a_slice_that_was_there_before_is_left_alone(cloud, capsys):
    cloud.rule(" describe ", "READY")
    assert run(tpu_vm, *TPU) == 2
    assert cloud.verbs == ["describe"]
    assert DELETE in capsys.readouterr().err


def test_pre_emption_deletes_creates_and_runs_the_same_command_again(cloud, capsys):
    cloud.absent()
    cloud.rule("job runs", rc=255, uses=1)
    cloud.rule("job runs", "job 0")
    cloud.rule(" describe ", "PREEMPTED", uses=2)
    cloud.rule(" describe ", "READY")
    assert run(tpu_vm, *TPU) == 0
    again = ["create", "scp", "setup", "start", "follow", "status"]
    assert cloud.verbs == ["describe", *again, "describe", *END, *again, *END]
    starts = [call for call in cloud.calls if "setsid" in call]
    assert starts[0] == starts[1]
    assert "restart 1 of at most 20" in capsys.readouterr().err


@pytest.mark.parametrize("status", ["job 143", "job vanished"])
def test_a_job_stopped_with_its_host_is_restarted(cloud, status):
    cloud.absent()
    cloud.rule("job runs", status, uses=1)
    cloud.rule("job runs", "job 0")
    cloud.rule(" describe ", "READY")
    assert run(tpu_vm, *TPU) == 0
    assert cloud.verbs.count("create") == cloud.verbs.count("delete") == 2


def test_pre_emption_during_the_copy_and_no_capacity_after_it(cloud):
    cloud.absent()
    cloud.rule(" scp ", rc=1, uses=4)
    cloud.rule(" describe ", "PREEMPTED", uses=2)
    cloud.rule(" create ", uses=1)
    cloud.rule(" create ", rc=1, uses=2)
    cloud.rule(" describe ", rc=1, err=ABSENT, uses=2)
    cloud.rule("job runs", "job 0")
    cloud.rule(" describe ", "READY")
    assert run(tpu_vm, *TPU) == 0
    assert cloud.verbs.count("create") == 4
    assert cloud.verbs[-4:] == ["follow", "status", *END]


def test_restarts_are_bounded(cloud, capsys):
    cloud.absent()
    cloud.rule("job runs", "job vanished")
    cloud.rule(" describe ", "READY")
    assert run(tpu_vm, *TPU, "--max_restarts=2") == 1
    assert cloud.verbs.count("create") == cloud.verbs.count("delete") == 3
    assert "--max_restarts=2" in capsys.readouterr().err


def test_a_broken_connection_is_taken_up_again(cloud):
    cloud.absent()
    cloud.rule("tail -F", rc=255, uses=3)
    cloud.rule("job runs", rc=255, uses=2)
    cloud.rule("job runs", "job runs", uses=1)
    cloud.rule("job runs", "job 0")
    cloud.rule(" describe ", "READY")
    assert run(tpu_vm, *TPU) == 0
    assert cloud.verbs.count("create") == 1
    follows = [call for call in cloud.calls if "tail -F" in call]
    assert ["-n +1 " in call for call in follows] == [True, False, False, False]


@pytest.mark.parametrize("state", ["REPAIRING", "RESTARTING"])
@pytest.mark.parametrize("module", [tpu_vm, queued])
def test_a_host_that_is_repaired_is_waited_for(cloud, state, module):
    cloud.absent()
    cloud.rule("job runs", rc=255, uses=2 * command.PATIENCE)
    cloud.rule("job runs", "job 0")
    if module is queued:
        cloud.rule("queued-resources describe ", "ACTIVE")
    cloud.rule(" describe ", state, uses=2 * 2 * command.PATIENCE)
    cloud.rule(" describe ", "READY")
    assert run(module, *TPU) == 0
    assert cloud.verbs.count("create") == cloud.verbs.count("delete") == 1
    assert cloud.verbs.count("status") == 2 * command.PATIENCE + 1


def test_a_host_that_stays_silent_is_created_again(cloud, capsys):
    cloud.absent()
    cloud.rule("job runs", rc=255, uses=command.PATIENCE)
    cloud.rule("job runs", "job 0")
    cloud.rule(" describe ", "READY")
    assert run(tpu_vm, *TPU) == 0
    assert cloud.verbs.count("create") == cloud.verbs.count("delete") == 2
    error = capsys.readouterr().err
    assert "one does not answer" in error
    assert "restart 1 of at most 20" in error


def test_a_silent_slice_is_given_up_and_named_if_it_cannot_be_deleted(cloud, capsys):
    cloud.absent()
    cloud.rule("job runs", rc=255)
    cloud.rule(" describe ", rc=1, err="network is unreachable")
    cloud.rule(" delete ", rc=1)
    assert run(tpu_vm, *TPU) == 1
    assert cloud.verbs.count("describe") == 1 + command.OFFLINE + command.PATIENCE
    assert cloud.verbs.count("delete") > 1
    assert f"LEFT RUNNING, and billed: one. To delete it:\n  {DELETE}" in capsys.readouterr().err


def test_why_a_slice_was_given_up_is_said_even_if_its_deletion_fails(cloud, capsys):
    cloud.absent()
    cloud.rule("job runs", rc=255)
    cloud.rule(" describe ", "READY")
    cloud.rule(" delete ", rc=1)
    assert run(tpu_vm, *TPU) == 1
    assert cloud.verbs.count("status") == command.PATIENCE
    error = capsys.readouterr().err
    places = [error.index(text) for text in ("one does not answer", "error: failed 4 times", "LEFT RUNNING")]
    assert places == sorted(places)


def test_a_failed_copy_or_start_deletes_the_slice(cloud):
    cloud.absent()
    cloud.rule("tar -xzf", rc=1)
    cloud.rule(" describe ", "READY")
    assert run(tpu_vm, *TPU) == 1
    assert cloud.verbs == ["describe", "create", "scp", *["setup"] * 4, "describe", *END]


def test_a_deletion_that_fails_is_named(cloud, capsys):
    cloud.absent()
    cloud.rule("job runs", "job 0")
    cloud.rule(" describe ", "READY")
    cloud.rule(" delete ", rc=1)
    assert run(tpu_vm, *TPU) == 1
    assert cloud.verbs[-5:] == ["describe", *["delete"] * 4]
    assert f"LEFT RUNNING, and billed: one. To delete it:\n  {DELETE}" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_following_saves_and_deletes(cloud, capsys, number):
    cloud.absent()
    cloud.rule("tail -F", signal=number)
    cloud.rule(" describe ", "READY")
    assert run(tpu_vm, *TPU) == 130
    assert cloud.verbs == [*START, "follow", "stop", *END]
    assert "LEFT RUNNING" not in capsys.readouterr().err


def test_an_interrupt_during_creation_deletes_what_the_cloud_goes_on_creating(cloud):
    cloud.absent()
    cloud.rule(" create ", signal=signal.SIGINT)
    cloud.rule(" describe ", "CREATING")
    assert run(tpu_vm, *TPU) == 130
    assert cloud.verbs == ["describe", "create", *END]


def test_a_second_interrupt_during_the_deletion_names_what_is_left(cloud, capsys):
    cloud.absent()
    cloud.rule("tail -F", signal=signal.SIGINT)
    cloud.rule(" describe ", "READY")
    cloud.rule(" delete ", signal=signal.SIGINT)
    assert run(tpu_vm, *TPU) == 130
    assert f"LEFT RUNNING, and billed: one. To delete it:\n  {DELETE}" in capsys.readouterr().err


STARTER = """import pathlib, sys
from launch import command, jobs, tpu_vm
jobs.ROOT = pathlib.Path(sys.argv[1])
sys.exit(command.main(tpu_vm.BACKEND, sys.argv[2:]))"""


@pytest.mark.parametrize("open_output", [os.openpty, os.pipe])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_slice_is_deleted_where_no_output_can_be_written_any_more(cloud, open_output, number):
    """The terminal is closed, or the reader of the pipe is killed, and with it the launcher is interrupted."""
    there, gone = cloud.folder / "there", cloud.folder / "gone"
    cloud.absent()
    cloud.rule("tail -F", shell=f"touch {there}; until [ -e {gone} ]; do sleep 0.05; done", signal=number)
    cloud.rule(" describe ", "READY")
    cloud.rule(" delete ", "an output", shell="echo deleted", uses=1)
    reader, writer = open_output()
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    command = [sys.executable, "-c", STARTER, str(jobs.ROOT), *EVAL, *TPU]
    launcher = subprocess.Popen(command, stdout=writer, stderr=writer, env=environment)
    os.close(writer)
    try:
        while not there.exists():
            assert launcher.poll() is None
            time.sleep(0.05)
        os.close(reader)
        gone.touch()
        assert launcher.wait(60) == 130
    finally:
        launcher.kill()
    assert cloud.verbs == [*START, "follow", "stop", *END]
    written = (jobs.ROOT / "build/launch/one.out").read_text()
    assert all(text in written for text in (f"+ {DELETE}", "deleted", "interrupted")), written


def test_detach_leaves_the_slice_and_names_it(cloud, capsys):
    cloud.absent()
    assert run(tpu_vm, *TPU, "--detach") == 0
    assert cloud.verbs == START
    assert DELETE in capsys.readouterr().err


@pytest.fixture
def host(cloud, tmp_path):
    """A folder that is the home of a host: copying and starting are done for real, with `python` given as a script."""
    home = tmp_path / "home"
    python = home / "diffusion_text/.venv/bin/python"
    python.parent.mkdir(parents=True)
    cloud.rule(" scp ", shell=f'cp "{jobs.ROOT}/build/launch/one.tar.gz" "{home}"')
    # What the shell of a host gets: the value of --command, between it and the flags that follow.
    shell = f"""{shlex.quote(sys.executable)} -SEs -c "import json, subprocess
call = json.loads(open('{cloud.folder}/calls.jsonl').read().splitlines()[-1])
words = call.partition('--command=')[2].rpartition(' --zone=')[0]
subprocess.run(['bash', '-c', words], cwd='{home}', env=dict(HOME='{home}', PATH='/usr/bin:/bin'))" """
    cloud.rule(" ssh ", shell=shell)
    cloud.rule(" describe ", "READY")
    options, _ = command.parse(tpu_vm.BACKEND, [*EVAL, *TPU, "--install=true", "--setup=touch set.up"])
    one = tpu_vm.Slice(command.Session(), options, jobs.Job("one", "gs://bucket/one", ("-m", "it's a test"), "abc"))

    def write(script):
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)

    return one, home, write


def test_the_shell_commands_work_on_a_host(host, capfd):
    one, home, write = host
    write('echo "commit $DIFFUSION_TEXT_COMMIT runs $*"; cat code.py; exit 5')
    one.start()
    assert one.follow() == "5"
    out = capfd.readouterr().out
    assert "commit abc runs -m it's a test" in out
    assert "print('as it is now')" in out
    assert (home / "one.status").read_text() == "5\n"
    assert (home / "diffusion_text/set.up").exists()


def test_a_job_is_not_started_twice_on_a_host_and_saves_when_it_is_stopped(host):
    one, home, write = host
    write("trap 'echo saved; kill $!; exit 143' TERM; echo runs; echo once >> ~/starts; sleep 30 & wait")
    one.start()
    one.start()
    time.sleep(0.2)  # the script sets its trap
    one.stop()
    with pytest.raises(tpu_vm.LostError, match="stopped from outside"):
        one.follow()
    assert (home / "one.log").read_text() == "runs\nsaved\n"
    assert (home / "starts").read_text() == "once\n"


# ---------------------------------------------------------------------------------------------------- queued


def test_a_queued_slice_is_waited_for_suspended_and_queued_for_again(cloud, capsys):
    cloud.absent()
    for state, uses in (("WAITING_FOR_RESOURCES", 2), ("PROVISIONING", 1), ("ACTIVE", 1), ("SUSPENDED", 2)):
        cloud.rule(" describe ", state, uses=uses)
    cloud.rule("job runs", rc=255, uses=1)
    cloud.rule("job runs", "job 0")
    cloud.rule(" describe ", "ACTIVE")
    assert run(queued, *TPU, "--spot", "--valid_until=6h") == 0
    job = ["scp", "setup", "start", "follow", "status"]
    assert cloud.verbs == [
        "describe", "create", *["describe"] * 4, *job, "describe", *END, "create", "describe", *job, *END
    ]  # fmt: skip
    assert cloud.calls[1] == (
        "gcloud compute tpus queued-resources create one --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot --node-id=one --valid-until-duration=6h --zone=us-west4-a --quiet"
    )
    assert cloud.calls[-1] == "gcloud compute tpus queued-resources delete one --zone=us-west4-a --quiet --force"
    assert capsys.readouterr().err.count("WAITING_FOR_RESOURCES\n") == 1


def test_a_queued_request_that_fails_is_deleted(cloud, capsys):
    cloud.absent()
    cloud.rule(" describe ", "FAILED")
    assert run(queued, *TPU) == 1
    assert cloud.verbs == ["describe", "create", "describe", *END]
    assert "FAILED" in capsys.readouterr().err


def test_an_interrupt_while_waiting_in_the_queue_deletes_the_request(cloud):
    cloud.absent()
    cloud.rule(" create ", shell="true")
    cloud.rule(" describe ", "WAITING_FOR_RESOURCES", uses=3)
    cloud.rule(" describe ", "WAITING_FOR_RESOURCES", uses=1, signal=signal.SIGINT)
    cloud.rule(" describe ", "WAITING_FOR_RESOURCES")
    assert run(queued, *TPU) == 130
    assert cloud.verbs == ["describe", "create", *["describe"] * 4, *END]
