"""Published checkpoints load strictly through our own path, come frozen, and wrong ones fail loudly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from axs_lib.errors import WeightsError
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.terramind.build import load_generator
from axs_lib.terramind.weights import sha256_file
from tests.models import plausible_pair
from tests.published import Published

pytestmark = pytest.mark.xdist_group("published")
TINY = "terramind_v1_tiny"


def test_a_published_checkpoint_grounds_out_of_the_box(
    published_tiny: Published, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By ``AXS_WEIGHTS``: frozen, recorded with its hash, with the packaged head; what is not measured is said once."""
    monkeypatch.setenv("AXS_WEIGHTS", str(published_tiny.checkpoint.parent))
    with caplog.at_level("WARNING", logger="axs"):
        model = build_stage3_model(variant=TINY)
        build_stage3_model(variant=TINY)
    assert [record.getMessage().count("not measured") for record in caplog.records] == [1]
    assert not any(p.requires_grad for p in model.parameters())
    assert model.correction_mode == "learned"
    tags = model.provenance
    assert tags["AXS_HEAD"] == "packaged" and tags["AXS_VARIANT"] == TINY
    assert sha256_file(published_tiny.checkpoint) in " ".join(tags.values())
    s1, opt_v2 = plausible_pair(1, 40, 100)
    with torch.no_grad():
        out = model.ground(s1, opt_v2, 2)
    assert out.image.shape == opt_v2.shape and out.nfe == 2
    assert torch.isfinite(out.image).all() and out.proposal.std() > 10.0


@pytest.fixture
def spoiled(published_tiny: Published, tmp_path: Path) -> Path:
    """A folder with the generator's file to be changed and the tokenizer's as it is."""
    for file in published_tiny.checkpoint.parent.iterdir():
        target = tmp_path / file.name
        if file == published_tiny.checkpoint:
            shutil.copy(file, target)
        else:
            target.symlink_to(file)
    return tmp_path / published_tiny.checkpoint.name


def test_a_wrong_checkpoint_fails_loudly(spoiled: Path) -> None:
    """terratorch loads such a file with ``strict=False`` and leaves what it misses random."""
    state = torch.load(spoiled, weights_only=True)
    lost = {k: v for k, v in state.items() if k != "decoder.0.cross_attn.kv.weight"}
    prefixed = {f"sampler.model.{k}": v for k, v in state.items()}
    for wrong, message in ((lost, "cross_attn"), (prefixed, "sampler.model.")):
        torch.save(wrong, spoiled)
        with pytest.raises(WeightsError, match=message):
            load_generator(TINY, checkpoint=str(spoiled))


def test_fixed_buffers_may_be_left_out_and_parameters_may_not(spoiled: Path) -> None:
    state = torch.load(spoiled, weights_only=True)
    kept = {k: v for k, v in state.items() if not k.endswith(("pos_emb", "norm1.bias", "norm2.bias"))}
    assert len(kept) < len(state)
    torch.save(kept, spoiled)
    generator = load_generator(TINY, checkpoint=str(spoiled))
    key = "encoder_embeddings.untok_sen2l2a@224.pos_emb"
    assert torch.equal(generator.core.state_dict()[key], state[key])
