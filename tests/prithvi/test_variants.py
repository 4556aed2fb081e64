"""Prithvi's files are found, pinned and recorded by the same rules as TerraMind's, one file a variant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from axs_lib.prithvi.backbone import LAYOUTS, PRITHVI_BANDS, PRITHVI_MEAN, PRITHVI_STD
from axs_lib.terramind.weights import DEFAULT_PRITHVI, PRITHVI_VARIANTS, VARIANTS, resolve, sha256_file

LARGE = PRITHVI_VARIANTS[DEFAULT_PRITHVI]
FILE = "Prithvi_EO_V2_300M_TL.pt"


def test_the_published_files_are_terratorchs() -> None:
    from terratorch.models.backbones.prithvi_vit import pretrained_weights, prithvi_cfgs

    for name, spec in PRITHVI_VARIANTS.items():
        if spec.generator is None:
            assert name == "nano"
            continue
        theirs = pretrained_weights[name]
        assert (spec.generator.repo, spec.generator.name) == (theirs["hf_hub_id"], theirs["hf_hub_filename"])
        sizes, ours = prithvi_cfgs[name], LAYOUTS[name]
        assert spec.dim == ours.dim == sizes["embed_dim"]
        assert (ours.image, ours.depth, ours.heads) == tuple(sizes[key] for key in ("img_size", "depth", "num_heads"))
        assert sizes["patch_size"] == [1, ours.patch, ours.patch] and sizes["mlp_ratio"] == 4.0
        assert list(PRITHVI_MEAN) == sizes["mean"] and list(PRITHVI_STD) == sizes["std"]
        assert list(PRITHVI_BANDS) == [band.value for band in sizes["bands"]]
    assert set(VARIANTS) & set(PRITHVI_VARIANTS) == {"nano"}


def test_one_file_is_all_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"encoder.cls_token": torch.ones(1)}, tmp_path / FILE)
    for checkpoint in (tmp_path, tmp_path / FILE):
        files = resolve(LARGE, checkpoint=checkpoint)
        assert (files.generator, files.tokenizer) == (tmp_path / FILE, None)
        assert files.variant == DEFAULT_PRITHVI
        assert files.sha256 == {FILE: sha256_file(tmp_path / FILE)}
    monkeypatch.setenv("AXS_WEIGHTS", str(tmp_path))
    assert resolve(LARGE).source == "AXS_WEIGHTS"
    (tmp_path / FILE).unlink()
    save_file({"encoder.cls_token": torch.ones(1)}, (tmp_path / FILE).with_suffix(".safetensors"))
    assert resolve(LARGE).generator.suffix == ".safetensors"
