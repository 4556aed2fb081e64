"""A runner without a model, which does what its input file says, and the real ``axs batch`` around it.

An input is a line of words: ``ok``, ``bad``, ``bug``, ``big BYTES``, ``crash`` (kills its own process in the middle of
writing) or ``wait`` (says that it has begun, writes half an output, goes on when it may). Started with ``python -m
tests.batch.fakes ARGUMENTS`` this is the whole command line in a process of its own, the fake runner in its workers.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from axs_lib.batch import runners
from axs_lib.batch.items import Item
from axs_lib.batch.work import IMAGE, Job, Runner
from axs_lib.cli.app import main
from axs_lib.errors import InputError, WeightsError
from axs_lib.io.atomic import atomic_write

FAKE_WEIGHTS = {"fake.safetensors": "0" * 64}
UNBUILDABLE = 404  # a seed with which there is no model
FILE_LIMIT = "AXS_TEST_FILE_LIMIT"  # bytes, as a quota on each file a worker writes


def make_runner(job: Job) -> Runner:
    if job.settings["seed"] == UNBUILDABLE:
        raise WeightsError("these weights cannot be had")
    if FILE_LIMIT in os.environ:
        import resource

        limit = int(os.environ[FILE_LIMIT])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    seed = job.settings["seed"]

    def run(item: Item, outputs: Mapping[str, Path]) -> list[str]:
        source, output = Path(item.s1), outputs[IMAGE]
        with (source.parent / f"{source.name}.runs").open("a") as log:  # how often each item was worked on
            log.write(f"{os.getpid()}\n")
        word, *numbers = source.read_text().split()
        if word == "bad":
            raise InputError(f"{source} is bad")
        if word == "bug":
            raise ZeroDivisionError("division by zero")
        result = result_of(source.read_text(), seed, int(numbers[0]) if word == "big" else 0)
        with atomic_write(output) as temporary:
            temporary.write_bytes(result[: len(result) // 2])
            if word == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if word == "wait":
                Path(f"{source}.begun").write_text(str(os.getpid()))
                while not Path(f"{source}.go").exists():
                    time.sleep(0.005)
            temporary.write_bytes(result)
        for name, path in outputs.items():
            if name != IMAGE:
                path.write_text(f"{name} of {item.id}")
        return ["the unit is assumed"]

    return run


def result_of(text: str, seed: int = 0, size: int = 0) -> bytes:
    """The whole output of an input."""
    return f"{text.strip()} with seed {seed}".encode() + bytes(size)


if __name__ == "__main__":
    # By its importable name, since it travels to the workers.
    from tests.batch import fakes

    runners.build_runner = fakes.make_runner
    runners.find_weights = lambda settings, checkpoints: FAKE_WEIGHTS  # type: ignore[assignment]
    sys.exit(main())
