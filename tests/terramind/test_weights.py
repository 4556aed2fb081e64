"""Weights are found in a stated order, read without running code, and loaded completely or not at all."""

from __future__ import annotations

import functools
import io
import itertools
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from axs_lib.errors import InputError, WeightsError
from axs_lib.terramind import weights
from axs_lib.terramind.build import other_modalities
from axs_lib.terramind.weights import (
    VARIANTS,
    load_strict,
    read_metadata,
    read_state,
    resolve,
    sha256_file,
    write_state,
)
from experiments.hash_weights import write_hashes
from tests.hub import COMMIT, serve_files

GENERATOR, TOKENIZER = "TerraMind_v1_small.pt", "TerraMind_Tokenizer_S2L2A.pt"


class Small(nn.Module):
    """The published generator's names at a toy size, with the modalities asked for."""

    def __init__(self, dim: int = 8, modalities: tuple[str, ...] = ("untok_sen1grd@224", "untok_sen2l2a@224")) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([nn.ModuleDict({"norm1": nn.LayerNorm(dim, bias=False)})])
        self.encoder_embeddings = nn.ModuleDict({m: nn.ModuleDict({"proj": nn.Linear(4, dim)}) for m in modalities})
        self.decoder_embeddings = nn.ModuleDict({"tok_sen2l2a@224": nn.ModuleDict({"token_emb": nn.Embedding(5, dim)})})
        self.register_buffer("levels", torch.tensor([8, 6]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a generator and a tokenizer file under their published names."""
    torch.save({"encoder.0.norm1.weight": torch.ones(384)}, tmp_path / GENERATOR)
    torch.save({"decoder.conv.weight": torch.ones(3)}, tmp_path / TOKENIZER)
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, object]]]:
    """``hub(files)`` serves files and gives what was asked for."""
    return functools.partial(serve_files, monkeypatch, tmp_path)


def test_unknown_variant_lists_the_known_ones_and_guesses() -> None:
    with pytest.raises(InputError, match=r"nano, terramind_v1_tiny.*Did you mean 'terramind_v1_base'"):
        resolve("terramind_v1_bas")


def test_checkpoint_folder_and_file_find_both_files(folder: Path) -> None:
    for checkpoint in (folder, folder / GENERATOR, str(folder)):
        files = resolve("terramind_v1_small", checkpoint=checkpoint)
        assert (files.generator, files.tokenizer) == (folder / GENERATOR, folder / TOKENIZER)
        assert files.source == "checkpoint"
        assert files.sha256 == {name: sha256_file(folder / name) for name in (GENERATOR, TOKENIZER)}
    (folder / TOKENIZER).unlink()
    with pytest.raises(WeightsError, match=TOKENIZER):
        resolve("terramind_v1_small", checkpoint=folder / GENERATOR)


def test_environment_comes_before_the_hub_and_after_checkpoint(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, hub: Callable[..., object]
) -> None:
    asked = hub({})
    monkeypatch.setenv("AXS_WEIGHTS", str(folder))
    files = resolve("terramind_v1_small")
    assert files.source == "AXS_WEIGHTS"
    assert files.generator == folder / GENERATOR
    with pytest.raises(WeightsError, match=r"AXS_WEIGHTS.*TerraMind_v1_base\.pt"):
        resolve("terramind_v1_base")
    assert asked == []
    other = tmp_path_factory.mktemp("other")
    for name in (GENERATOR, TOKENIZER):
        shutil.copy(folder / name, other)
    assert resolve("terramind_v1_small", checkpoint=other).generator == other / GENERATOR


def test_packaged_variant_ignores_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXS_WEIGHTS", str(folder))
    monkeypatch.setattr(weights, "_PACKAGED", folder)
    save_file({"w": torch.ones(2)}, folder / "nano.safetensors", metadata={"config": "{}"})
    write_hashes(folder)
    files = resolve("nano")
    assert files.generator == folder / "nano.safetensors"
    assert files.tokenizer is None
    assert files.source == "packaged"
    assert read_metadata(files.generator) == {"config": "{}"}


def test_packaged_weights_are_checked_by_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_PACKAGED", tmp_path)
    path = tmp_path / "nano.safetensors"
    with pytest.raises(WeightsError, match=r"nano\.safetensors.*reinstall"):
        resolve("nano")
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(WeightsError, match=r"no entry for it.*Reinstall.*experiments/hash_weights\.py"):
        resolve("nano")
    write_hashes(tmp_path)
    info = resolve("nano")
    assert info.paths == {"nano.safetensors": path}
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=f"SHA-256 is {sha256_file(path)}, expected {info.sha256[path.name]}"):
        resolve("nano")
    assert resolve("nano", checkpoint=path).source == "checkpoint"  # a file of one's own may be anything


def test_offline_without_weights_is_one_error_with_three_ways_out() -> None:
    """The suite runs with the Hub offline and its cache empty."""
    with pytest.raises(WeightsError) as caught:
        resolve("terramind_v1_base")
    for way in ("axs weights download terramind_v1_base", "checkpoint=", "AXS_WEIGHTS", 'variant="nano"'):
        assert way in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_hub_download_records_commit_and_hash(hub: Callable[..., list[dict[str, object]]]) -> None:
    asked = hub({GENERATOR: b"generator", TOKENIZER: b"tokenizer"})
    files = resolve("terramind_v1_small", revision="main:v2")
    assert files.generator.read_bytes() == b"generator"
    assert [(a["name"], a["revision"]) for a in asked if not a["local"]] == [(GENERATOR, "main"), (TOKENIZER, "v2")]
    assert files.commit == {GENERATOR: COMMIT, TOKENIZER: COMMIT}
    tags = files.tags()
    assert tags["AXS_WEIGHTS"] == "hub"
    assert tags["AXS_WEIGHTS_REVISION"] == "main:v2"
    assert f"{GENERATOR}={sha256_file(files.generator)}" in tags["AXS_WEIGHTS_SHA256"]


def test_revision_of_one_part_leaves_the_tokenizer_alone(hub: Callable[..., list[dict[str, object]]]) -> None:
    asked = hub({GENERATOR: b"generator", TOKENIZER: b"tokenizer"}, cached=True)
    resolve("terramind_v1_small", revision=COMMIT)
    assert [a["revision"] for a in asked] == [COMMIT, None]
    assert all(a["local"] for a in asked)  # what is cached needs no network
    with pytest.raises(InputError, match="GENERATOR:TOKENIZER"):
        resolve("terramind_v1_small", revision="a:b:c")


def test_known_hash_is_pinned_and_enforced(hub: Callable[..., list[dict[str, object]]], tmp_path: Path) -> None:
    published = VARIANTS["terramind_v1_tiny"].generator
    assert published is not None and published.commit is not None
    files = {published.name: b"something else", TOKENIZER: b"tokenizer"}
    asked = hub(files, commit=published.commit)
    with pytest.raises(WeightsError, match=f"not what was published.*{published.sha256}"):
        resolve("terramind_v1_tiny")
    assert asked[0]["revision"] == published.commit
    with pytest.raises(WeightsError, match="not what was published"):
        weights.download("terramind_v1_tiny", folder=tmp_path / "here")
    hub(files)  # another commit may have another content
    assert resolve("terramind_v1_tiny", revision="main").source == "hub"


def test_hash_is_of_the_content_now(tmp_path: Path) -> None:
    file = tmp_path / "w"
    file.write_bytes(b"abc")
    assert sha256_file(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    file.write_bytes(b"abcd")
    assert sha256_file(file).startswith("88d4266fd4e6338d")


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_torch_files_flat_or_wrapped(tmp_path: Path, wrap: str | None) -> None:
    state = {"a": torch.arange(3.0), "b": torch.tensor([1, 2])}
    torch.save(state if wrap is None else {wrap: state, "epoch": 3}, tmp_path / "w.pt")
    read = read_state(tmp_path / "w.pt")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], value) for name, value in state.items())


class Hostile:
    """Pickles to a call that leaves a mark on disk."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, writer: Callable[[object, Path], object]) -> None:
    mark = tmp_path / "ran"
    writer({"a": Hostile(mark)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError) as caught:
        read_state(tmp_path / "w.pt")
    assert not mark.exists()
    assert "weights_only=False" not in str(caught.value)


def _saved(value: object, **how: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"not weights", "not a "),
        (_saved({"a": torch.ones(1000)})[:-600], "not a "),
        (_saved({"a": torch.ones(1000)})[:300], "not a "),
        (_saved({}), "empty state dict"),
        (_saved({"a": torch.ones(2), "epoch": 3}), "'epoch', a int"),
        (_saved([torch.ones(2)]), "holds a list"),
        (_saved({"model": {"a": 1}}), "only tensors"),
        (_saved({"a": torch.ones(2)}, _use_new_zipfile_serialization=False), r"older than torch 1\.6"),
    ],
)
def test_what_is_not_a_state_dict_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        read_state(tmp_path / "w.pt")


HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
HOSTILE = (
    HEADER.replace(b"[2]", b"[4294967296,4294967296]"),
    HEADER.replace(b"8]", b"800000000000]"),
    HEADER.replace(b"F32", b"os.system"),
    HEADER.replace(b"{", b'{"__metadata__":{"a":{"b":1}},', 1),
    b'{"a":' + b"[" * 100_000 + b"}",
)
BROKEN = [b"", b"x", b"\xff" * 64, save({"a": torch.ones(1000)})[:-100]]
BROKEN += [length.to_bytes(8, "little") + HEADER + bytes(8) for length in (0, 10**3, 10**9, 2**62, 2**64 - 1)]
BROKEN += [len(header).to_bytes(8, "little") + header + bytes(8) for header in HOSTILE]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_broken_and_hostile_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(content)
    for read in (read_state, read_metadata):
        with pytest.raises(WeightsError, match=r"is empty|not a readable safetensors"):
            read(file)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    zero = tmp_path / "zero.safetensors"
    zero.symlink_to("/dev/zero")
    for path, said in (
        (tmp_path, "a folder"),
        (tmp_path / "missing.pt", "does not exist"),
        (tmp_path / "pipe.pt", "a named pipe"),
        (zero, "a device"),
    ):
        for read in (read_state, read_metadata, sha256_file):
            with pytest.raises(WeightsError, match=said):
                read(path)
    with pytest.raises(WeightsError, match="a named pipe"):
        resolve("nano", checkpoint=tmp_path / "pipe.pt")


def test_a_pointer_of_git_lfs_is_no_weights(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(WeightsError, match="git lfs pull"):
        read_state(tmp_path / "w.safetensors")


def test_a_tensor_for_which_the_file_has_no_room_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(10**5, 10**5)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"a claims to be \(100000, 100000\)"):
        read_state(tmp_path / "w.pt")
    for value in (torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta")):
        torch.save({"a": value}, tmp_path / "w.pt")
        with pytest.raises(WeightsError):
            read_state(tmp_path / "w.pt")


def test_strict_loading_takes_every_value_and_the_modules_dtype() -> None:
    source, target = Small(), Small().to(torch.bfloat16)
    state = source.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    load_strict(target, state)
    for name, value in target.state_dict().items():
        assert value.dtype == (torch.bfloat16 if value.is_floating_point() else state[name].dtype)
        assert torch.equal(value, before[name].to(value.dtype))
        assert torch.equal(state[name], before[name])


def test_published_modalities_that_the_module_lacks_are_allowed_and_no_others() -> None:
    published = Small(modalities=("untok_sen1grd@224", "untok_sen2l2a@224", "untok_dem@224")).state_dict()
    module = Small()
    with pytest.raises(WeightsError, match="unexpected"):
        load_strict(module, published)
    extra = other_modalities(module, published)
    assert extra == ("encoder_embeddings.untok_dem@224.",)
    load_strict(module, published, ignore_prefixes=extra)

    del published["encoder_embeddings.untok_sen1grd@224.proj.weight"]
    with pytest.raises(WeightsError, match=r"1 missing \(encoder_embeddings\.untok_sen1grd@224\.proj\.weight\)"):
        load_strict(module, published, ignore_prefixes=other_modalities(module, published))


def test_wrong_shape_names_the_variant_it_looks_like_and_changes_nothing() -> None:
    module = Small(dim=8)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_strict(module, Small(dim=192).state_dict(), what="tiny.pt")
    assert "tiny.pt does not fit the model" in str(caught.value)
    assert "(192,) float32, expected (8,) float32" in str(caught.value)
    assert "looks like terramind_v1_tiny: dim 192" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with pytest.raises(WeightsError, match="looks like a tokenizer"):
        load_strict(module, {"quant_proj.weight": torch.ones(2), "encoder.x": torch.ones(2)})


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        *itertools.product((float("nan"), float("inf"), -float("inf")), (torch.float32, torch.float16, torch.bfloat16)),
        (1e300, torch.float64),  # infinite in the float32 of the module
    ],
)
def test_numbers_that_are_not_finite_are_refused(value: float, dtype: torch.dtype) -> None:
    model = Small()
    state = {k: v.clone().to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    state["encoder.0.norm1.weight"][3] = value
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"1 with numbers that are not finite \(encoder\.0\.norm1\.weight\)"):
        load_strict(model, state)
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


def test_groups_in_a_header_that_are_no_list_are_refused() -> None:
    assert weights.groups_in({"train_groups": '["a"]', "validation_groups": '["b"]'}) == {"a", "b"}
    for text in ("{", "3", "[" * 100_000):
        with pytest.raises(WeightsError, match="groups of training"):
            weights.groups_in({"train_groups": text})


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    """safetensors writes the metadata in an order of its own, another one in every process."""
    header = {name: "é\n" for name in "hgfedcba"}
    write_state(tmp_path / "w.safetensors", {"w": torch.ones(3), "b": torch.zeros(1)}, header)
    written = (tmp_path / "w.safetensors").read_bytes()
    assert (
        b"".join(b'"%c":"\\u00e9\\n"%c' % (name, end) for name, end in zip(b"abcdefgh", b",,,,,,,}", strict=True))
        in written
    )
    assert read_metadata(tmp_path / "w.safetensors") == header
    assert read_state(tmp_path / "w.safetensors")["w"].tolist() == [1.0, 1.0, 1.0]
