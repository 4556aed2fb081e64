"""Nothing of the process is changed: no random state, no precision, nothing of terratorch's in ``sys.modules``."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from axs_lib.fresh import fresh_weights
from axs_lib.terramind.build import build_nano

STATE = """
import copy, pickle, random, sys
import numpy, torch
from torch.utils.data import DataLoader, Dataset

def state():
    backends = torch.backends
    return (
        torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
        torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32,
        backends.cudnn.benchmark, backends.cudnn.deterministic, torch.get_default_dtype(), torch.get_num_threads(),
        torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
    )

class Tiles(Dataset):
    def __init__(self, model): self.model = model
    def __len__(self): return 2
    def __getitem__(self, index):
        heavy = [name for name in ("terratorch", "diffusers", "transformers", "lightning") if name in sys.modules]
        precision = torch.get_float32_matmul_precision()
        return self.model(torch.full((1, 2, 64, 64), -12.0), torch.full((1, 4, 64, 64), 900.0)).shape, heavy, precision

def main():
    before = state()
    from axs_lib.pipeline import build_pipeline
    from axs_lib.stage3_tm_ground import build_stage3_model
    from axs_lib.terramind.build import build_nano_tokenizer
    assert state() == before, "import"
    model = build_pipeline(variant="nano").stage3
    assert state() == before, "build"
    build_stage3_model(variant="nano", pretrained=False)
    build_nano_tokenizer()
    assert state() == before, "random weights"
    copy.deepcopy(model)
    pickle.loads(pickle.dumps(model))
    assert state() == before, "pickle"
    loader = DataLoader(Tiles(model), batch_size=None, num_workers=1, multiprocessing_context="spawn",
                        generator=torch.Generator())
    for shape, heavy, precision in loader:
        assert tuple(shape) == (1, 4, 64, 64) and heavy == [] and precision == "highest", (heavy, precision)
    assert state() == before, "loader"
    model(torch.full((1, 2, 64, 64), -12.0), torch.full((1, 4, 64, 64), 900.0))
    assert state() == before, "call"
    print("LOADED", *[n for n in sys.modules if n.split(".")[0] in HEAVY])

HEAVY = ("terratorch", "torchgeo", "diffusers", "transformers", "peft", "lightning", "kornia", "rasterio")
if __name__ == "__main__":
    main()
"""


def test_building_copying_pickling_and_running_change_nothing(tmp_path: Path) -> None:
    script = tmp_path / "state.py"
    script.write_text(STATE, encoding="utf-8")
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_fresh_weights_follow_the_seed() -> None:
    first, again = build_nano().state_dict(), build_nano().state_dict()
    torch.manual_seed(2)
    other = build_nano().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_other_threads_draw_as_ever() -> None:
    expected = torch.rand(5)
    torch.manual_seed(0)  # as the test began
    drawn: list[torch.Tensor] = []
    with fresh_weights():
        torch.nn.Linear(4, 4)
        thread = threading.Thread(target=lambda: drawn.append(torch.rand(5)))
        thread.start()
        thread.join()
    assert torch.equal(drawn[0], expected)


NETWORK = """
import socket, sys

def watch(event, given):
    local = event == "socket.connect" and given[0].family == socket.AF_UNIX
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname") and not local:
        print("NETWORK", event, given[1:])

sys.addaudithook(watch)
from axs_lib.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print("DONE")
socket.getaddrinfo("localhost", 1)  # the watch is awake
"""


@pytest.mark.parametrize("command", ["info", "ground", "run"])
def test_no_command_with_packaged_weights_reaches_the_network(command: str, repository: Path, tmp_path: Path) -> None:
    samples = repository / "axs_lib" / "data" / "samples"
    given = {"info": [], "ground": ["--opt-v2", samples / "ireland_fields_s2.tif"], "run": ["--date", "2021-07-14"]}[
        command
    ]
    if command != "info":
        given += ["--s1", samples / "ireland_fields_s1.tif", "--out", tmp_path / "out.npz", "--variant", "nano"]
    words = [sys.executable, "-c", NETWORK, command, *map(str, given)]
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, cwd=repository)
    assert result.returncode == 0, result.stderr
    before, done, after = result.stdout.partition("DONE")
    assert done and "NETWORK" not in before and after.count("NETWORK") == 1
