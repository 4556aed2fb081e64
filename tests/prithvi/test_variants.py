"""Prithvi's files are found, pinned and recorded by the same rules as TerraMind's, one file a variant."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from axs_lib.prithvi.backbone import LAYOUTS, PRITHVI_BANDS, PRITHVI_MEAN, PRITHVI_STD
from axs_lib.terramind.weights import DEFAULT_PRITHVI, PRITHVI_VARIANTS, VARIANTS, resolve

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


def test_one_file_is_all_there_is(tmp_path: Path) -> None:
    """In either format."""
    file = (tmp_path / FILE).with_suffix(".safetensors")
    save_file({"encoder.cls_token": torch.ones(1)}, file)
    files = resolve(LARGE, checkpoint=tmp_path)
    assert (files.generator, files.tokenizer, files.variant) == (file, None, DEFAULT_PRITHVI)
