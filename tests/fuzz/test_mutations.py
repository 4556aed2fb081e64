"""Damaged files of every kind that is read: each is read, or refused in one line; no traceback, no signal, no hang."""

from __future__ import annotations

import copy
import faulthandler
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from axs_lib import stage3_tm_ground
from axs_lib.adapters import apply_lora_to_linear, load_adapter, save_adapter
from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS
from axs_lib.batch.items import list_items
from axs_lib.batch.manifest import JOURNAL, MANIFEST, open_manifest
from axs_lib.cli.app import app
from axs_lib.cli.command import USER_ERROR
from axs_lib.cli.train import parse
from axs_lib.errors import AxionError
from axs_lib.stage3_tm_ground import Stage3GroundingModel
from axs_lib.terramind.weights import load_strict, read_metadata, read_state
from axs_lib.train.config import CONFIGS
from tests.batch.test_manifest import fill
from tests.models import plausible_pair, random_nano
from tests.scenes.conftest import BoxGrounder, write_tiff

pytestmark = pytest.mark.slow

SECONDS = 60  # for one file, on a busy machine; what takes longer hangs
TOKENS = [
    b"[" * 5000, b"{", b"null", b"-1", b"1e999", b"NaN", b"9" * 400, b"\0", b"\xff\xfe", b"'", b'"', b"../",
    b"/dev/zero", b"&a [*a]", b"!!python/object/apply:os.system", b"\\ud800", b"(2147483647, 2147483647)",
    b"\x80\x04", b"|O",
]  # fmt: skip


def mutated(content: bytes, seed: int) -> bytes:
    """One of the ways in which a file is damaged, or made by somebody who means harm; the same for a seed."""
    draw = random.Random(seed)
    data = bytearray(content)
    at = draw.randrange(len(data))
    end = min(len(data), at + draw.choice((1, 4, 16, 200)))
    way = draw.randrange(7)
    if way == 0:
        return bytes(data[:at])
    if way == 1:
        for _ in range(draw.choice((1, 3, 20))):
            data[draw.randrange(min(len(data), draw.choice((64, 512, len(data)))))] ^= 1 << draw.randrange(8)
    elif way == 2:
        data[at:end] = bytes([draw.choice((0, 255))]) * (end - at)
    elif way == 3:
        data[at:end] = b""
    elif way == 4:
        data[at:at] = draw.randbytes(draw.choice((1, 8, 300)))
    elif way == 5:
        data[at:end] = draw.choice(TOKENS)
    else:
        data[at:at] = bytes(data[end : end + 300]) * 3
    return bytes(data)


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """A hang becomes a failure; in a library that does not give way, the end of the test run."""

    def hang(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, hang)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    faulthandler.cancel_dump_traceback_later()


def attack(original: Path, target: Path, count: int, read: Callable[[], object]) -> None:
    """Read ``count`` damaged copies of a file at ``target``; ``read`` may raise ``AxionError`` and nothing else."""
    content = original.read_bytes()
    target.write_bytes(content)
    read()  # the whole file is read
    failed = []
    for seed in range(count):
        target.write_bytes(mutated(content, seed))
        signal.alarm(SECONDS)
        faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
        try:
            with warnings.catch_warnings(action="ignore"):
                read()
        except AxionError as error:
            if not str(error).strip():
                failed.append(f"{seed}: an error without words")
        except BaseException as error:
            failed.append(f"{seed}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
    assert not failed, "\n".join([f"{len(failed)} of {count}", *failed])


def command(*arguments: object) -> Callable[[], None]:
    """A command line that ends with 0, or with 2 and words, without a traceback."""

    def run() -> None:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if result.exit_code == USER_ERROR:
            raise AxionError(result.stderr)
        if result.exit_code != 0:
            raise AssertionError(f"exit code {result.exit_code}: {result.output[-300:]}")

    return run


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A tile of 40 x 56 pixels in every format, and a mask."""
    s1, opt_v2 = plausible_pair(1, 40, 56)
    mask = np.ones((40, 56), dtype=np.uint8)
    mask[8:16, 8:24] = 0
    np.savez(tmp_path / "both.npz", s1=s1[0].numpy(), opt_v2=opt_v2[0].numpy())
    np.savez_compressed(tmp_path / "packed.npz", s1=s1[0].numpy(), opt_v2=opt_v2[0].numpy())
    np.savez(tmp_path / "mask.npz", mask=mask)
    torch.save(s1[0], tmp_path / "s1.pt")
    torch.save(opt_v2[0], tmp_path / "opt_v2.pt")
    write_tiff(tmp_path / "s1.tif", s1[0].numpy(), SAR_BANDS)
    write_tiff(tmp_path / "opt_v2.tif", opt_v2[0].numpy().astype("uint16"), OPTICAL_BANDS)
    write_tiff(tmp_path / "mask.tif", mask[None])
    (tmp_path / "bad").mkdir()
    return tmp_path


@pytest.fixture
def ground(monkeypatch: pytest.MonkeyPatch, files: Path) -> Callable[..., Callable[[], None]]:
    """``axs ground`` with a stand-in for the model, on the damaged file in place of one of the others."""
    monkeypatch.setattr(BoxGrounder, "variant", "fake", raising=False)
    monkeypatch.setattr(stage3_tm_ground, "build_stage3_model", lambda *_, **__: BoxGrounder())

    def given(**options: Path) -> Callable[[], None]:
        words: list[object] = []
        for name, path in options.items():
            words += [f"--{name.replace('_', '-')}", path]
        return command("ground", *words, "--out", files / "out.npz", "--timesteps", 1, "--overwrite", "-q")

    return given


@pytest.mark.parametrize(
    ("option", "name", "beside"),
    [
        *(("s1", name, []) for name in ("both.npz", "packed.npz")),
        ("s1", "s1.pt", ["opt_v2.pt"]),
        ("s1", "s1.tif", ["opt_v2.tif"]),
        ("opt_v2", "opt_v2.tif", ["s1.tif"]),
        *(("mask", name, ["s1.tif", "opt_v2.tif"]) for name in ("mask.tif", "mask.npz")),
    ],
)
def test_images_and_masks(files: Path, ground: Any, option: str, name: str, beside: list[str]) -> None:
    bad = files / "bad" / name
    others = {other.partition(".")[0]: files / other for other in beside}
    attack(files / name, bad, 30, ground(**others, **{option: bad}))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights(tmp_path: Path, suffix: str) -> None:
    module = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7))
    whole, bad = tmp_path / f"whole{suffix}", tmp_path / f"bad{suffix}"
    if suffix == ".pt":
        torch.save(module.state_dict(), whole)
    else:
        save_file(module.state_dict(), whole, metadata={"stage": "2"})

    def read() -> None:
        if suffix == ".safetensors":
            read_metadata(bad)
        load_strict(copy.deepcopy(module), read_state(bad))

    attack(whole, bad, 60, read)


def test_configuration_of_a_saved_model(tmp_path: Path) -> None:
    random_nano().save_pretrained(tmp_path)
    whole = tmp_path / "whole.json"
    (tmp_path / "config.json").rename(whole)
    attack(whole, tmp_path / "config.json", 20, lambda: Stage3GroundingModel.from_pretrained(tmp_path))


def test_adapters(tmp_path: Path) -> None:
    model = random_nano()
    apply_lora_to_linear(model.terramind_generator, rank=2)
    save_adapter(model, tmp_path)
    bare = random_nano()
    for name, count in (("adapter_config.json", 25), ("adapter_model.safetensors", 10)):
        content = (tmp_path / name).read_bytes()
        (tmp_path / "whole").write_bytes(content)
        attack(tmp_path / "whole", tmp_path / name, count, lambda: load_adapter(copy.deepcopy(bare), tmp_path))
        (tmp_path / name).write_bytes(content)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_lists_of_tiles(tmp_path: Path, suffix: str) -> None:
    whole, bad = tmp_path / f"whole{suffix}", tmp_path / f"bad{suffix}"
    rows = [{"id": f"a/{n}", "path": f"in/{n}.npz", "date": "2021-07-14", "lat": 48.2} for n in range(5)]
    if suffix == ".csv":
        whole.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), whole)
    attack(whole, bad, 40, lambda: list_items(bad, "pipeline"))


@pytest.mark.parametrize("name", [JOURNAL, MANIFEST])
def test_manifest_of_a_batch(tmp_path: Path, name: str) -> None:
    fill(tmp_path, *(f"t{number}" for number in range(5)))
    kept = {each: (tmp_path / each).read_bytes() for each in (JOURNAL, MANIFEST)}
    (tmp_path / "whole").write_bytes(kept[name])

    def read() -> None:
        if name == MANIFEST:
            (tmp_path / JOURNAL).unlink(missing_ok=True)
        else:
            (tmp_path / MANIFEST).write_bytes(kept[MANIFEST])
        with open_manifest(tmp_path):
            pass

    attack(tmp_path / "whole", tmp_path / name, 40, read)


def test_configurations_of_training(tmp_path: Path) -> None:
    whole, bad = tmp_path / "whole.yaml", tmp_path / "bad.yaml"
    whole.write_text("out: run\nseed: 3\nsteps: 20\nlora:\n  rank: 8\ndata:\n  folder: pairs\n")
    attack(whole, bad, 60, lambda: parse(CONFIGS["stage3"], ["-c", str(bad)], "axs train stage3"))


def test_mutations_are_many_and_the_same_each_time() -> None:
    once, again = ([mutated(bytes(range(256)), seed) for seed in range(50)] for _ in range(2))
    assert once == again and len(set(once)) > 40
