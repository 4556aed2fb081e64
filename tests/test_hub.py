"""A model goes to the Hub and comes back as it was, with a card that says what is known and nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from axs_lib.adapters import apply_lora_to_linear, merge_adapter
from axs_lib.errors import InputError, OutputError, WeightsError
from axs_lib.grounding.calibration import Calibration
from axs_lib.stage3_tm_ground import Stage3GroundingModel, build_stage3_model, stage3_inference
from axs_lib.terramind.weights import packaged, read_metadata, resolve
from tests.hub import LocalHub
from tests.models import plausible_pair, random_nano


@pytest.fixture(scope="module")
def model() -> Stage3GroundingModel:
    plain = random_nano()
    return Stage3GroundingModel(plain.terramind_generator, plain.corrector, timesteps=2, scheduler="dpmsolver++").eval()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    return LocalHub(tmp_path / "hub", monkeypatch)


def test_a_saved_model_comes_back_bit_for_bit(model: Stage3GroundingModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md", "config.json", "grounding.safetensors", "nano.safetensors",
    ]  # fmt: skip
    loaded = Stage3GroundingModel.from_pretrained(tmp_path)
    s1, opt_v2 = plausible_pair(1, 40, 40)
    assert torch.equal(stage3_inference(loaded, s1, opt_v2), stage3_inference(model, s1, opt_v2))
    assert (loaded.timesteps, loaded.scheduler, loaded.correction_mode) == (2, "dpmsolver++", "learned")
    other = Stage3GroundingModel.from_pretrained(tmp_path, timesteps=5, device="cpu")  # a keyword goes before
    assert (other.timesteps, other.scheduler) == (5, "dpmsolver++")
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    # The same folder is a checkpoint.
    other = build_stage3_model(2, variant="nano", checkpoint=str(tmp_path), scheduler="dpmsolver++")
    assert torch.equal(stage3_inference(other, s1, opt_v2), stage3_inference(model, s1, opt_v2))


def test_a_model_is_never_saved_through_a_link(model: Stage3GroundingModel, tmp_path: Path) -> None:
    (tmp_path / "README.md").symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match=r"README\.md is a symbolic link"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "precious").exists()


def test_what_changed_after_building_is_saved(model: Stage3GroundingModel, tmp_path: Path) -> None:
    changed = copy.deepcopy(model)  # the mixin must survive a copy, as the averaged weights of training are one
    changed.timesteps = 7
    changed.correction_mode, changed.hold_colour = "difference", True
    changed.corrector.calibration = Calibration({1: (2.0, 2.0, 2.0, 2.0)})
    changed.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {
        "library": "axion-sat", "variant": "nano", "s1_product": "S1GRD", "timesteps": 7, "standardize": True,
        "correction_mode": "difference", "scheduler": "dpmsolver++", "hold_colour": True,
    }  # fmt: skip
    loaded = Stage3GroundingModel.from_pretrained(tmp_path)
    assert (loaded.timesteps, loaded.hold_colour, loaded.correction_mode) == (7, True, "difference")
    assert Calibration.from_header(read_metadata(tmp_path / "grounding.safetensors")) == changed.corrector.calibration


def test_weights_from_a_packaged_file_stay_as_short_and_keep_their_header(tmp_path: Path) -> None:
    path = packaged("nano")
    build_stage3_model(1, variant="nano").save_pretrained(tmp_path)
    saved, original = load_file(tmp_path / "nano.safetensors"), load_file(path)
    assert {name: value.dtype for name, value in saved.items()} == {n: original[n].dtype for n in saved}
    assert all(torch.equal(value, original[name]) for name, value in saved.items())
    header = read_metadata(tmp_path / "nano.safetensors")
    assert header.items() >= {k: v for k, v in read_metadata(path).items() if k != "calibration"}.items()
    card = ModelCard.load(tmp_path / "README.md")
    assert "**Training data**" in card.text and "**Limits**" in card.text  # the packaged card's own words
    assert resolve("nano").sha256["nano.safetensors"] in card.text


def test_the_hub_keeps_revisions(model: Stage3GroundingModel, hub: LocalHub) -> None:
    first = model.push_to_hub("me/mine")
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.corrector.head.body.out.bias.add_(0.25)
    second = changed.push_to_hub("me/mine", branch="next")
    assert first != second
    for revision, expected in ((None, model), ("main", model), ("next", changed), (second, changed)):
        loaded = Stage3GroundingModel.from_pretrained("me/mine", revision=revision, cache_dir=hub.cache)
        assert torch.equal(loaded.corrector.head.body.out.bias, expected.corrector.head.body.out.bias)
    assert loaded.provenance["AXS_WEIGHTS"] == "hub me/mine"
    assert loaded.provenance["AXS_WEIGHTS_COMMIT"] == f"nano.safetensors={second}"
    with pytest.raises(WeightsError, match="me/mine at revision 'gone' cannot be had"):
        Stage3GroundingModel.from_pretrained("me/mine", revision="gone", cache_dir=hub.cache)
    with pytest.raises(WeightsError, match="me/other cannot be had"):
        Stage3GroundingModel.from_pretrained("me/other", cache_dir=hub.cache)


def test_only_safetensors_are_read(model: Stage3GroundingModel, hub: LocalHub, tmp_path: Path) -> None:
    folder = hub.snapshot("me/mine", model.push_to_hub("me/mine"))
    (folder / "nano.safetensors").rename(folder / "nano.pt")
    with pytest.raises(WeightsError, match=r"nano\.safetensors"):
        Stage3GroundingModel.from_pretrained("me/mine", cache_dir=hub.cache)
    model.save_pretrained(tmp_path / "cut")
    (tmp_path / "cut" / "nano.safetensors").write_bytes(b"cut off")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        Stage3GroundingModel.from_pretrained(tmp_path / "cut")


@pytest.mark.parametrize("config", [None, "{}", '{"variant": 3}', "[]", '{"variant": "nano", "auto_map": {}}'])
def test_a_folder_without_its_configuration_is_refused(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(WeightsError, match=r"config\.json (that names a variant|.* damaged|.* unknown are auto_map)"):
        Stage3GroundingModel.from_pretrained(tmp_path)


def test_an_adapter_is_folded_in_or_goes_by_itself(model: Stage3GroundingModel, tmp_path: Path) -> None:
    adapted = copy.deepcopy(model)
    apply_lora_to_linear(adapted.terramind_generator, rank=2)
    with pytest.raises(InputError, match=r"merge_adapter.*save_adapter"):
        adapted.save_pretrained(tmp_path)
    merge_adapter(adapted.terramind_generator)
    adapted.save_pretrained(tmp_path)
    assert Stage3GroundingModel.from_pretrained(tmp_path).provenance["AXS_VARIANT"] == "nano"


def test_the_card_says_what_it_is_given(model: Stage3GroundingModel, tmp_path: Path) -> None:
    mean = {f"{key}_{v}": 0.5 for key in ("mse", "mae", "ssim", "edge_truth") for v in ("v2", "v3")}
    ok = {
        "tiles": 3, "opt_v2_source": {"degraded": 3}, "mean": mean, "wins": 2 / 3,
        "improvement_of_mean_%": {"mse": 12.34, "mae": 5.0},
        "sar_swapped": {"improvement_of_mean_%": {"mse": 6.78}},
    }  # fmt: skip
    report = {"summary": {"ok": ok}, "timesteps": 2, "uncertainty": {"spread_skill": {"B02": 0.93}}}
    report = {"timesteps_table": [], "reports": [{"timesteps": 10}, report]}  # of --timesteps 10,2
    with pytest.raises(InputError, match="no figures of quality ok; expected what `axs evaluate --json FILE`"):
        model.generate_model_card(report=report["reports"][0])
    settings = {"report": report, "data": "Our own fields.", "limits": "Not for snow.", "licence": "cc-by-4.0"}
    model.save_pretrained(tmp_path, model_card_kwargs=settings)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "axion-sat"
    for words in ("12.3 %", "67 % of the tiles", "6.8 %", "B02 0.93", "degraded (3)", "timesteps: 2."):
        assert words in card.text, words
    for words in ("Our own fields.", "Not for snow.", "cc-by-4.0 for the weights", "AXS_VARIANT"):
        assert words in card.text, words


def test_a_card_without_figures_invents_none(model: Stage3GroundingModel) -> None:
    card = model.generate_model_card()
    assert "None were given" in card.text and "Not recorded" in card.text
    assert card.data.license == "apache-2.0"


@pytest.mark.slow
@pytest.mark.xdist_group("published")
def test_a_published_variant_comes_back(published_tiny: Any, tmp_path: Path) -> None:
    options = {"variant": "terramind_v1_tiny", "correction_mode": "difference"}
    built = build_stage3_model(1, checkpoint=str(published_tiny.checkpoint), s1_product="S1RTC", **options)
    model = Stage3GroundingModel(built.terramind_generator, built.corrector, timesteps=1, correction_mode="difference")
    model.save_pretrained(tmp_path)
    loaded = Stage3GroundingModel.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["s1_product"] == "S1RTC"
    s1, opt_v2 = plausible_pair(1, 96, 96)
    assert torch.equal(stage3_inference(loaded, s1, opt_v2), stage3_inference(built, s1, opt_v2))
    assert "base_model: ibm-esa-geospatial/TerraMind-1.0-tiny" in (tmp_path / "README.md").read_text()
