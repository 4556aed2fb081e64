"""What goes wrong in long jobs, done for real: nothing lost, nothing done twice, nothing partial under a final name."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from axs_lib.batch.manifest import JOURNAL, LOCK, MANIFEST
from tests.batch.conftest import Batch, until
from tests.batch.fakes import FILE_LIMIT, UNBUILDABLE, result_of

pytestmark = pytest.mark.slow  # processes are really killed; minutes


def alive(process: int) -> bool:
    """Whether a process still runs; one that has ended and that nobody has waited for does not."""
    try:
        os.kill(process, 0)
        status = Path(f"/proc/{process}/stat")
        return not status.exists() or status.read_text().rpartition(") ")[2][0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_worker_killed_in_mid_tile_costs_nothing(batch: Batch) -> None:
    batch.write(a="wait a", b="ok b", c="ok c")
    job = batch.start("--workers", 2)
    os.kill(batch.begun("a"), signal.SIGKILL)
    batch.allow("a")
    output, errors = job.communicate(timeout=60)
    assert job.returncode == 0, errors
    assert output.startswith("3 items: 3 done;")
    assert batch.runs("a") == 2 and batch.runs("b") == batch.runs("c") == 1
    batch.check_outputs()


def test_an_item_that_kills_its_workers_is_recorded_and_the_rest_is_done(batch: Batch) -> None:
    batch.write(a="crash", b="ok b", c="ok c", d="crash d")
    result = batch.run("--workers", 2)
    assert result.returncode == 1
    assert "crashed: a: its worker ended 2 times: killed by SIGKILL" in result.stderr
    assert batch.statuses() == {"a": "crashed", "b": "done", "c": "done", "d": "crashed"}
    assert batch.runs("a") == 2 and batch.runs("b") == 1
    batch.check_outputs()


def test_a_killed_driver_takes_its_workers_along_and_the_next_job_goes_on(batch: Batch) -> None:
    batch.write(a="ok a", b="ok b", c="wait c", d="ok d")
    job = batch.start("--workers", 1)
    worker = batch.begun("c")
    job.kill()
    job.wait()
    until(lambda: "" if alive(worker) else "gone")
    assert (batch.out / JOURNAL).exists() and not (batch.out / MANIFEST).exists()
    assert batch.statuses() == {"a": "done", "b": "done", "c": "started"}
    assert {p.name for p in batch.out.glob("[!.]*.npz")} == {"a.npz", "b.npz"}
    batch.allow("c")
    result = batch.run("--workers", 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("4 items: 2 done, 2 done before;")
    assert [batch.runs(name) for name in "abcd"] == [1, 1, 2, 1]


def test_ctrl_c_stops_cleanly(batch: Batch) -> None:
    batch.write(a="ok a", b="wait b", c="wait c", d="ok d")
    job = batch.start("--workers", 2)
    workers = [batch.begun("b"), batch.begun("c")]
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does: everyone hears it
    output, errors = job.communicate(timeout=60)
    assert job.returncode == 130
    assert output == errors == ""
    assert not any(alive(worker) for worker in workers)
    assert batch.statuses() == {"a": "done", "b": "started", "c": "started"}
    batch.check_outputs()
    batch.allow("b", "c")
    assert batch.run().returncode == 0
    assert batch.runs("a") == 1 and batch.runs("d") == 1


def test_two_jobs_on_one_folder(batch: Batch) -> None:
    batch.write(a="wait a", b="ok b")
    first = batch.start("--workers", 1)
    batch.begun("a")
    second = batch.run("--workers", 1)
    assert second.returncode == 2
    assert f"is in use by another axs batch (process {first.pid} on " in second.stderr
    assert "Traceback" not in second.stderr
    (batch.out / LOCK).unlink()  # and a job whose lock was removed gives way to the next
    batch.allow("a")
    third = batch.run()
    first.communicate(timeout=60)
    assert first.returncode == 2 and third.returncode == 0
    batch.check_outputs()


def test_garbage_among_good_ones_fails_alone(batch: Batch) -> None:
    batch.write(a="ok a", b="bad", c="bug", d="ok d")
    (batch.inputs / "e.npz").mkdir()
    (batch.inputs / "f.npz").symlink_to(batch.inputs / "missing")
    result = batch.run("--workers", 2)
    assert result.returncode == 1
    assert result.stdout.startswith("5 items: 2 done, 3 failed;")
    assert "failed: b: " in result.stderr and "b.npz is bad" in result.stderr
    assert "failed: c: ZeroDivisionError: division by zero" in result.stderr
    assert "f.npz does not exist" in result.stderr
    assert batch.statuses() == {"a": "done", "b": "failed", "c": "failed", "d": "done", "f": "failed"}
    assert "b.npz is bad" in batch.records()["b"].error
    batch.check_outputs()


def test_fail_fast_stops_at_the_first_failure(batch: Batch) -> None:
    batch.write(a="bad", b="wait b", c="ok c")
    result = batch.run("--workers", 1, "--fail-fast")
    assert result.returncode == 1
    assert result.stdout.startswith("3 items: 0 done, 1 failed, 2 left;")
    assert batch.statuses() == {"a": "failed"}
    batch.check_outputs()


def test_what_is_missing_or_changed_is_done_again_and_nothing_else(batch: Batch) -> None:
    """Inputs of the same size and age, other settings, outputs that are lost, cut, or of a job without its record."""
    batch.write(a="ok a", b="ok b")
    batch.run()
    before = (batch.inputs / "a.npz").stat()
    batch.write(a="ok z")
    os.utime(batch.inputs / "a.npz", ns=(before.st_atime_ns, before.st_mtime_ns))
    once = "2 items: 1 done, 1 done before;"
    assert batch.run().stdout.startswith(once)
    assert batch.runs("a") == 2 and batch.runs("b") == 1
    output, manifest = batch.out / "a.npz", (batch.out / MANIFEST).read_bytes()
    for damaged in (b"", output.read_bytes()[:5]):
        output.write_bytes(damaged) if damaged else output.unlink()
        assert batch.run().stdout.startswith(once)
    for change in (("--timesteps", "3"), ("--seed", "7")):
        assert batch.run(*change).stdout.startswith("2 items: 2 done;")
        assert batch.run(*change).stdout.startswith("2 items: 0 done, 2 done before;")
    batch.check_outputs(seed=7)
    # As if the job with another seed, whose outputs have the same size, had been killed before it could take note.
    (batch.out / MANIFEST).write_bytes(manifest)
    (batch.out / JOURNAL).unlink()
    assert batch.run().stdout.startswith("2 items: 2 done;")
    # An output stays the batch's own when its item fails.
    batch.write(a="bad")
    assert batch.run().returncode == 1 and output.exists()
    batch.write(a="ok again")
    assert batch.run().returncode == 0


def test_an_input_replaced_while_it_is_read_is_no_result(batch: Batch) -> None:
    batch.write(a="wait a")
    job = batch.start("--workers", 1)
    batch.begun("a")
    batch.write(a="wait another")
    batch.allow("a")
    job.communicate(timeout=60)
    assert job.returncode == 1
    assert "changed while it was read" in batch.records()["a"].error
    batch.check_outputs()
    assert batch.run().returncode == 0


SMALL_DISK = "mount -t tmpfs -o size=256k tmpfs $0 && $@; code=$?; cp -a $0/. $0.copy; exit $code"


def may_mount() -> list[str] | None:
    """How to run a shell that may mount a small disk of its own, where this system allows it."""
    ways = (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"])
    test = ["sh", "-c", "mount -t tmpfs -o size=64k tmpfs /tmp"]
    for way in ways if shutil.which("unshare") else ():
        if subprocess.run([*way, *test], capture_output=True, check=False).returncode == 0:
            return way
    return None


def test_a_full_disk_stops_the_job_and_keeps_the_manifest(batch: Batch) -> None:
    """On a real file system of 256 KB where one may be mounted; else the quota of a file stands in for it."""
    batch.write(a="ok a", b="big 150000", c="big 150000", d="ok d")
    way = may_mount()
    if way is None:
        assert batch.run("--workers", 1, **{FILE_LIMIT: "100000"}).returncode == 1
    else:
        batch.out.mkdir()
        command = [sys.executable, "-m", "tests.batch.fakes", "batch", batch.inputs, "--out", batch.out, "-q"]
        shell = [*way, "sh", "-c", SMALL_DISK, str(batch.out), *map(str, command), "--workers", "1"]
        result = subprocess.run(shell, cwd=batch.repository, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 2, result.stderr
        assert "c.npz: the disk is full" in result.stderr and "2 of 4 items are done" in result.stderr
        assert "Traceback" not in result.stderr
        batch.out.rmdir()
        batch.out.with_name("out.copy").rename(batch.out)
        assert batch.statuses() == {"a": "done", "b": "done", "c": "failed"}
    batch.check_outputs()
    assert batch.run().returncode == 0
    assert batch.runs("a") == 1


def test_a_job_without_a_model_stops_at_once(batch: Batch) -> None:
    batch.write(a="ok a", b="ok b")
    result = batch.run("--seed", UNBUILDABLE)
    assert result.returncode == 2
    assert result.stderr.startswith("error: the model cannot be built: these weights cannot be had")
    assert not (batch.out / "a.npz").exists() and batch.runs("a") == 0


def test_the_same_outputs_whatever_happened(batch: Batch) -> None:
    """Two workers with a kill and a stop in between give the bytes of one worker that was left alone."""
    batch.write(**{f"t{number}": f"wait {number}" for number in range(4)})
    job = batch.start("--workers", 2)
    first, second = batch.begun("t0"), batch.begun("t1")
    os.kill(first, signal.SIGKILL)
    batch.allow("t1")
    batch.begun("t2")
    assert alive(second)
    job.kill()
    job.wait()
    batch.allow("t0", "t2", "t3")
    assert batch.run("--workers", 2).returncode == 0
    disturbed = {name: (r.key, r.output_sha256) for name, r in batch.records().items()}
    shutil.rmtree(batch.out)
    assert batch.run("--workers", 1).returncode == 0
    assert {name: (r.key, r.output_sha256) for name, r in batch.records().items()} == disturbed


def test_a_file_that_the_batch_never_made_is_refused_by_name_and_kept(batch: Batch) -> None:
    batch.write(a="ok a")
    assert batch.run().returncode == 0
    mine = batch.out / "b.npz"
    mine.write_text("mine")
    batch.write(b="ok b", c="ok c")
    for _ in range(2):  # neither does a failed item account for it
        result = batch.run()
        assert result.returncode == 1
        assert f"failed: b: {mine} exists already and the manifest does not account for it" in result.stderr
        assert mine.read_text() == "mine"
    assert batch.statuses() == {"a": "done", "b": "failed", "c": "done"}
    assert batch.runs("b") == 0
    assert batch.run("--overwrite").returncode == 0


def test_links_in_the_folder_are_not_written_through(batch: Batch, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "sub").mkdir(parents=True)
    (elsewhere / "precious").write_text("precious")
    batch.write(a="ok a")
    batch.run()
    batch.write(b="ok b")
    (batch.inputs / "sub").mkdir()
    (batch.inputs / "sub" / "c.npz").write_text("ok c")
    (batch.out / "b.npz").symlink_to(elsewhere / "precious")
    (batch.out / "sub").symlink_to(elsewhere / "sub")
    for options in ((), ("--overwrite",)):
        result = batch.run(*options)
        assert result.returncode == 1 and "sub leads through a symbolic link" in result.stderr
        assert "failed: b: " in result.stderr
    assert (elsewhere / "precious").read_text() == "precious" and not list((elsewhere / "sub").iterdir())


def test_every_input_fails_alone_whatever_it_is_called(batch: Batch) -> None:
    batch.write(a="ok a")
    names = [b"\xff\xe9.npz", b"new\nline.npz", b"esc\x1b[31m.npz", b"b\\udcff.npz", "ä.npz".encode(), b"-x.npz"]
    for name in names:
        (batch.inputs / os.fsdecode(name)).write_text("ok it is")
        (batch.inputs / os.fsdecode(b"bad" + name)).write_text("bad")
    (batch.inputs / "manifest.parquet").mkdir()
    (batch.inputs / "manifest.parquet" / "k.npz").write_text("ok k")
    os.mkfifo(batch.inputs / "pipe.npz")
    (batch.inputs / "zero.npz").symlink_to("/dev/zero")
    (batch.inputs / "kernel.npz").symlink_to("/proc/kmsg")  # a regular file of no size, which is waited for
    for number in range(2):
        result = batch.run("--workers", 2)
        assert result.returncode == 1 and "Traceback" not in result.stderr
        before = "0 done, 7 done before" if number else "7 done"
        assert result.stdout.startswith(f"17 items: {before}, 10 failed;")
        assert "\x1b" not in result.stderr and r"bad\udcff\udce9" in result.stderr
        assert "pipe.npz is a named pipe" in result.stderr and "zero.npz is a device" in result.stderr
        assert "the id 'manifest.parquet/k' stands for a file of the manifest" in result.stderr
    for name in names:
        assert (batch.out / os.fsdecode(name)).read_bytes() == result_of("ok it is")
        assert batch.records()[os.fsdecode(name).removesuffix(".npz")].status == "done"


def test_a_folder_that_is_removed_in_mid_job_is_told(batch: Batch) -> None:
    batch.write(a="ok a", b="wait b", c="ok c")
    job = batch.start("--workers", 1)
    batch.begun("b")
    shutil.rmtree(batch.out)
    batch.allow("b")
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 2
    assert "was removed, replaced or taken over" in errors and "Traceback" not in errors
    assert not batch.out.exists() or not list(batch.out.iterdir())
    assert batch.run().stdout.startswith("3 items: 3 done;")


def test_an_output_that_is_removed_in_mid_job_fails_at_its_end(batch: Batch) -> None:
    batch.write(a="ok a", b="wait b")
    job = batch.start("--workers", 1)
    batch.begun("b")
    (batch.out / "a.npz").unlink()
    batch.allow("b")
    output, errors = job.communicate(timeout=60)
    assert job.returncode == 1 and output.startswith("2 items: 1 done, 1 failed;")
    assert "failed: a: its output was removed or changed after it was written" in errors
    assert batch.run().stdout.startswith("2 items: 1 done, 1 done before;")


def test_an_output_whose_record_was_lost_to_a_kill_is_the_batchs_own(batch: Batch) -> None:
    """The job was killed after the output was put in place and before it was recorded."""
    batch.write(a="ok a", b="ok b")
    batch.run("--workers", 1)
    (batch.out / MANIFEST).unlink()
    lines = (batch.out / JOURNAL).read_bytes().splitlines(keepends=True)
    assert b'"done"' in lines[-1] and b'"started"' in lines[-2]
    (batch.out / JOURNAL).write_bytes(b"".join(lines[:-1]))
    assert batch.run().stdout.startswith("2 items: 1 done, 1 done before;")


def test_a_manifest_of_which_nothing_can_be_read_is_rebuilt_by_one_command(batch: Batch) -> None:
    batch.write(a="ok a", b="ok b")
    batch.run()
    (batch.out / JOURNAL).unlink()
    (batch.out / MANIFEST).write_bytes((batch.out / MANIFEST).read_bytes()[:300])
    result = batch.run()
    assert result.returncode == 2 and "--overwrite" in result.stderr
    assert batch.run("--overwrite").stdout.startswith("2 items: 2 done;")
    assert batch.run().stdout.startswith("2 items: 0 done, 2 done before;")


@pytest.mark.parametrize("words", ["batch in --out out -q", "--help", "weights list", "train stage3 --help"])
def test_standard_output_on_a_full_device_is_one_line(batch: Batch, tmp_path: Path, words: str) -> None:
    batch.write(a="ok a")
    arguments = words.split()
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "tests.batch.fakes", *arguments]
        where: dict[str, Any] = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(batch.repository)}}
        result = subprocess.run(command, **where, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr == "error: cannot write to standard output: No space left on device\n"
    if arguments[0] == "batch":
        batch.check_outputs()


def test_ray_survives_a_killed_worker_and_local_goes_on_where_it_was(batch: Batch) -> None:
    if importlib.util.find_spec("ray") is None:
        batch.write(a="ok a")  # else there is nothing to do with or without it
        assert "pip install 'axion-sat[ray]'" in batch.run("--engine", "ray").stderr
        return
    batch.write(a="wait a", b="bad", c="crash", d="ok d")
    job = batch.start("--engine", "ray", "--workers", 2)
    os.kill(batch.begun("a"), signal.SIGKILL)
    batch.allow("a")
    output, errors = job.communicate(timeout=180)
    assert job.returncode == 1, errors
    assert "\n4 items: 2 done, 2 failed;" in f"\n{output}"
    assert batch.statuses() == {"a": "done", "b": "failed", "c": "crashed", "d": "done"}
    assert [batch.runs(name) for name in "abcd"] == [2, 1, 2, 1]
    batch.check_outputs()
    by_ray = {name: (r.key, r.output_sha256) for name, r in batch.records().items() if r.status == "done"}
    batch.write(b="ok b", c="ok c")
    assert batch.run().stdout.startswith("4 items: 2 done, 2 done before;")
    assert by_ray.items() <= {name: (r.key, r.output_sha256) for name, r in batch.records().items()}.items()
