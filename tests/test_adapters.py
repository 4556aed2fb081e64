"""LoRA adapters: where they go, what they train, and that they save, load, merge and come off without a trace."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from axs_lib import stage3_tm_ground
from axs_lib.adapters import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    apply_lora_to_linear,
    load_adapter,
    merge_adapter,
    save_adapter,
    unload_adapter,
)
from axs_lib.errors import InputError, OutputError, WeightsError
from axs_lib.grounding.load import CORRECTOR_FILE
from axs_lib.pipeline import build_pipeline
from axs_lib.stage2_prithvi_refine import build_prithvi_refiner
from axs_lib.stage3_tm_ground import Stage3GroundingModel
from axs_lib.terramind import build
from axs_lib.terramind.build import build_nano_tokenizer
from axs_lib.terramind.weights import WeightsInfo
from tests.document import snippet
from tests.models import plausible_pair, random_nano, z_inputs

DOCUMENTED = ["proj", "q_proj", "k_proj", "v_proj"]
ENCODER, DECODER = 4, 2  # nano's blocks


@pytest.fixture(scope="module")
def shared() -> Stage3GroundingModel:
    return random_nano()


@pytest.fixture
def model(shared: Stage3GroundingModel) -> Stage3GroundingModel:
    """A frozen Stage 3 model in eval mode, as it comes from loaded weights."""
    return copy.deepcopy(shared)


def lora_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if ".lora_" in name}


def disturb(module: nn.Module, seed: int = 1) -> None:
    """Give the LoRA matrices that start at zero some weight, so that the adapter does something."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(module).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))


@torch.no_grad()
def answer(model: Any) -> torch.Tensor:
    """Token logits of a fixed input, which everything LoRA touches goes through."""
    return model.terramind_generator.logits(z_inputs(1, seed=3))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (DOCUMENTED, ENCODER * 2 + DECODER * (2 + 3)),
        (["qkv"], ENCODER + DECODER),
        (["q_proj"], ENCODER + DECODER * 2),
        (["k_proj", "v_proj"], ENCODER + DECODER * 2),
        (["q", "kv"], DECODER * 2),
        (["fc1", "fc2", "fc3"], (ENCODER + DECODER) * 3),
        ("all-linear", ENCODER * 5 + DECODER * 8),
        (["all-linear"], ENCODER * 5 + DECODER * 8),
    ],
)
def test_the_number_of_wrapped_layers(model: Stage3GroundingModel, targets: list[str] | str, expected: int) -> None:
    assert apply_lora_to_linear(model.terramind_generator, target_modules=targets) == expected


def test_only_blocks_are_wrapped(model: Stage3GroundingModel) -> None:
    """A plain suffix list would also hit ``proj`` of the patch embeddings and everything in a tokenizer."""
    module = nn.ModuleDict({"model": model, "tokenizer": build_nano_tokenizer()})
    assert any(name.endswith("attn.qkv") for name, _ in module["tokenizer"].named_modules())
    apply_lora_to_linear(module, target_modules="all-linear")
    names = {name.partition(".lora_")[0] for name in lora_parameters(module)}
    assert names
    prefix = "model.terramind_generator.core."
    assert all(name.startswith((f"{prefix}encoder.", f"{prefix}decoder.")) for name in names)


@pytest.mark.parametrize(
    ("variant", "fused", "mlp"), [("terramind_v1_tiny", 12 * 2 + 4 * 5, 2), ("terramind_v1_base", 12 * 7, 3)]
)
def test_published_layouts_have_the_same_names(variant: str, fused: int, mlp: int) -> None:
    """tiny's blocks are plain, base's gated; both have the layers that the document names."""
    config = dataclasses.replace(build.V1_CORES[variant], dim=48, heads=3)
    core = build.build_core(config, build.SAR_KEYS["S1RTC"], 12, 64, image_size=224)
    assert apply_lora_to_linear(core, target_modules=DOCUMENTED) == fused
    unload_adapter(core)
    blocks = config.encoder_depth + config.decoder_depth
    assert apply_lora_to_linear(core, target_modules=["fc1", "fc2", "fc3"]) == blocks * mlp
    if mlp == 2:
        unload_adapter(core)
        with pytest.raises(InputError, match=r"fc3.*fc1, fc2, kv, proj, q, qkv"):
            apply_lora_to_linear(core, target_modules=["fc3"])


def test_prithvi_has_layers_of_the_same_names() -> None:
    refiner = build_prithvi_refiner(variant="nano", pretrained=False)
    assert apply_lora_to_linear(refiner, target_modules=DOCUMENTED) == 4 * 2
    names = set(lora_parameters(refiner))
    assert names == {n for n, p in refiner.named_parameters() if p.requires_grad}
    assert all(name.startswith("backbone.vit.blocks.") for name in names)
    assert refiner.provenance["AXS_STAGE2_ADAPTER"] == "lora rank 8"
    unload_adapter(refiner)
    assert apply_lora_to_linear(refiner.backbone, target_modules="all-linear") == 4 * 4


def test_lora_starts_as_nothing_and_is_all_that_trains(model: Stage3GroundingModel) -> None:
    before = answer(model)
    apply_lora_to_linear(model.terramind_generator)
    assert torch.equal(answer(model), before)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(lora_parameters(model)) != set()
    assert model.provenance["AXS_ADAPTER"] == "lora rank 8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["to_q"]}, r"'to_q'.*q_proj.*all-linear"),
        ({"target_modules": []}, "names nothing"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"alpha": 0}, "alpha"),
    ],
)
def test_impossible_arguments(model: Stage3GroundingModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        apply_lora_to_linear(model.terramind_generator, **options)
    assert not lora_parameters(model)


def test_no_blocks_no_adapter_and_a_second_adapter_are_refused(model: Stage3GroundingModel, tmp_path: Path) -> None:
    for call in (merge_adapter, unload_adapter, lambda m: save_adapter(m, tmp_path / "none")):
        with pytest.raises(InputError, match="0 adapters"):
            call(model)
    with pytest.raises(InputError, match="no layer"):
        apply_lora_to_linear(model.corrector)
    apply_lora_to_linear(model.terramind_generator)
    with pytest.raises(InputError, match="already has an adapter"):
        apply_lora_to_linear(model)


def test_the_top_level_door(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("axs_lib.cli.train.main", asked.append)
    monkeypatch.setattr(sys, "argv", ["train_stage1.py", "-c", "mine.yaml"])
    script = str(repository / "train_stage1.py")
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    assert end.value.code == 0 and asked == [["stage1", "-c", "mine.yaml"]]
    assert runpy.run_path(script)["apply_lora_to_linear"] is apply_lora_to_linear


@pytest.fixture
def adapter(model: Stage3GroundingModel, tmp_path: Path) -> Path:
    """A saved adapter that does something, of rank 4; ``model`` carries it."""
    apply_lora_to_linear(model.terramind_generator, rank=4, alpha=8, target_modules=DOCUMENTED)
    disturb(model)
    return save_adapter(model.terramind_generator, tmp_path / "adapter")


def test_loaded_it_answers_alike(model: Stage3GroundingModel, shared: Stage3GroundingModel, adapter: Path) -> None:
    fresh = copy.deepcopy(shared)
    state = torch.get_rng_state()
    count = load_adapter(fresh.terramind_generator, adapter)
    assert torch.equal(torch.get_rng_state(), state)
    assert count == ENCODER * 2 + DECODER * 5
    assert torch.equal(answer(fresh), answer(model))
    assert (answer(fresh) - answer(shared)).abs().max() > 0.01
    assert not any(p.requires_grad for p in fresh.parameters())
    assert "sha256" in fresh.provenance["AXS_ADAPTER"]
    unload_adapter(fresh)
    load_adapter(fresh.terramind_generator, adapter, trainable=True)
    assert {n for n, p in fresh.named_parameters() if p.requires_grad} == set(lora_parameters(fresh))


def test_a_stage3_model_gets_the_head_that_was_saved_with_it(
    shared: Stage3GroundingModel, model: Stage3GroundingModel, tmp_path: Path
) -> None:
    """The adapter of a model holds its grounding head; the generator alone takes and gives LoRA alone."""
    apply_lora_to_linear(model, rank=2)
    disturb(model)
    with torch.no_grad():
        model.corrector.head.body.out.weight.mul_(2.0)
    with warnings.catch_warnings(action="error"):  # peft would ask the Hub for a configuration, and warn of none
        folder = save_adapter(model, tmp_path / "adapter")
    assert {path.name for path in folder.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, CORRECTOR_FILE}
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    (tmp_path / "neighbour").touch()
    assert modes == {(tmp_path / "neighbour").stat().st_mode & 0o777}
    fresh, generator = copy.deepcopy(shared), copy.deepcopy(shared)
    load_adapter(fresh, folder)
    load_adapter(generator.terramind_generator, folder)
    s1, opt_v2 = plausible_pair(1)
    wanted, image, without = (each.ground(s1, opt_v2, 1).image for each in (model, fresh, generator))
    assert torch.equal(image, wanted) and not torch.equal(without, wanted)
    digest = hashlib.sha256((folder / CORRECTOR_FILE).read_bytes()).hexdigest()
    assert fresh.provenance["AXS_HEAD_SHA256"].endswith(digest)
    (folder / CORRECTOR_FILE).write_bytes(b"damaged")
    again = copy.deepcopy(shared)
    with pytest.raises(WeightsError, match="grounding"):
        load_adapter(again, folder)
    assert not lora_parameters(again)


def test_of_a_pipeline_only_stage_3_takes_it(model: Stage3GroundingModel, tmp_path: Path) -> None:
    apply_lora_to_linear(model, rank=2)
    disturb(model)
    folder = save_adapter(model, tmp_path / "adapter")
    pipeline = build_pipeline("nano", pretrained=False)
    pipeline.stage3.requires_grad_(False)
    assert pipeline.shares_generator
    before = answer(pipeline.stage1)
    (tmp_path / "head").mkdir()
    with pytest.raises(WeightsError, match="holds no adapter"):
        load_adapter(pipeline, tmp_path / "head")
    (folder / CORRECTOR_FILE).rename(tmp_path / "head" / CORRECTOR_FILE)
    assert load_adapter(pipeline, tmp_path / "head") == 0 and pipeline.shares_generator  # which nothing changes in
    (tmp_path / "head" / "nano.safetensors").touch()
    with pytest.raises(WeightsError, match=r"no adapter but whole weights \(nano\.safetensors\).*--checkpoint"):
        load_adapter(pipeline, tmp_path / "head")
    load_adapter(pipeline, folder)
    assert torch.equal(answer(pipeline.stage1), before) and not lora_parameters(pipeline.stage1)
    assert lora_parameters(pipeline.stage3)


def test_peft_itself_reads_the_folder(model: Stage3GroundingModel, shared: Stage3GroundingModel, adapter: Path) -> None:
    fresh = copy.deepcopy(shared)
    fresh.terramind_generator = peft.PeftModel.from_pretrained(fresh.terramind_generator, adapter).base_model.model
    assert torch.equal(answer(fresh), answer(model))


@pytest.mark.parametrize(
    ("targets", "count"),
    [(["encoder.0.attn.qkv", "encoder.1.attn.qkv"], 2), (r"core\.encoder\.\d+\.attn\.qkv", ENCODER)],
)
def test_a_folder_that_peft_wrote_loads(shared: Stage3GroundingModel, tmp_path: Path, targets: Any, count: int) -> None:
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets)
    wrapped = peft.get_peft_model(copy.deepcopy(shared).terramind_generator, config)
    disturb(wrapped)
    wrapped.save_pretrained(tmp_path / "theirs")
    fresh, theirs = copy.deepcopy(shared), copy.deepcopy(shared)
    assert load_adapter(fresh.terramind_generator, tmp_path / "theirs") == count
    theirs.terramind_generator = wrapped.base_model.model
    assert torch.equal(answer(fresh), answer(theirs))


def test_merging_changes_nothing_but_the_layers(model: Stage3GroundingModel, adapter: Path) -> None:
    before = answer(model)
    assert merge_adapter(model.terramind_generator) == ENCODER * 2 + DECODER * 5
    assert not lora_parameters(model)
    assert (answer(model) - before).abs().max() < 1e-5 * max(1.0, float(before.abs().max()))
    assert model.provenance["AXS_ADAPTER"].endswith("merged")


def test_unloading_restores_weights(model: Stage3GroundingModel, shared: Stage3GroundingModel, adapter: Path) -> None:
    assert unload_adapter(model) == ENCODER * 2 + DECODER * 5
    before, after = shared.state_dict(), model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "AXS_ADAPTER" not in model.provenance
    with warnings.catch_warnings(action="error"):
        apply_lora_to_linear(model.terramind_generator)  # and the next one finds a bare module


def test_an_adapter_is_not_overwritten_unasked(model: Stage3GroundingModel, adapter: Path) -> None:
    before = (adapter / WEIGHTS_FILE).read_bytes()
    disturb(model, seed=2)
    with pytest.raises(OutputError, match="exists already"):
        save_adapter(model, adapter)
    assert (adapter / WEIGHTS_FILE).read_bytes() == before
    save_adapter(model, adapter, overwrite=True)
    assert (adapter / WEIGHTS_FILE).read_bytes() != before


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit_config(f, r=8), "says rank 8, .* holds rank 4"),
        (lambda f: edit_config(f, r=2), r"of another shape.*\(4, 192\).*expected \(2, 192\)"),
        (lambda f: edit_config(f, r=10**9), "1000000000}?; expected .*to 16383"),
        (lambda f: edit_config(f, rank_pattern={"qkv": 10**9}), "1000000000}?; expected .*to 16383"),
        (lambda f: edit_config(f, target_modules=["core.encoder.0.attn.qkv"]), "unexpected"),
        (lambda f: edit_config(f, target_modules=["no_such_layer"]), "does not fit"),
        (lambda f: edit_config(f, bias="all"), "bias is 'all'; expected 'none'"),
        (lambda f: edit_config(f, alpha_pattern={"(a+)+": 2}), "alpha_pattern is"),
        (lambda f: edit_config(f, modules_to_save=["head"]), "sets modules_to_save to"),
        (lambda f: edit_config(f, use_dora=True), "sets use_dora to True"),
        (lambda f: edit_config(f, megatron_config={"a": 1}, megatron_core="evil"), "sets megatron_co"),
        (lambda f: edit_config(f, invented={"class_path": "evil"}), "sets invented to"),
        (lambda f: (f / CONFIG_FILE).write_text("[" * 100_000), "not readable JSON"),
        (lambda f: (f / CONFIG_FILE).write_bytes(b"\xff"), "not readable JSON"),
        (lambda f: (f / CONFIG_FILE).write_text("[1]"), "holds a list"),
        (lambda f: (f / CONFIG_FILE).write_text(" " * 2_000_000), "2000000 bytes"),
        (lambda f: edit_config(f, peft_type="IA3"), "IA3.*expected.*LORA"),
        (lambda f: edit_config(f, base_model_name_or_path="terramind_v1_base"), "terramind_v1_base.*nano"),
        (lambda f: (f / CONFIG_FILE).unlink(), "save_adapter"),
        (lambda f: (f / WEIGHTS_FILE).unlink(), "has no file adapter_model"),
        (lambda f: (f / WEIGHTS_FILE).write_bytes(b"\0" * 40), "truncated"),
    ],
)
def test_a_wrong_adapter_is_refused_and_leaves_no_trace(
    shared: Stage3GroundingModel, adapter: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(adapter)
    fresh = copy.deepcopy(shared)
    fresh.corrector.requires_grad_(True)
    flags = {name: p.requires_grad for name, p in fresh.named_parameters()}
    modules = set(sys.modules)
    with pytest.raises(WeightsError, match=message):
        load_adapter(fresh.terramind_generator, adapter)
    assert not {name for name in set(sys.modules) - modules if name.startswith(("megatron", "evil"))}
    assert {name: p.requires_grad for name, p in fresh.named_parameters()} == flags
    assert torch.equal(answer(fresh), answer(shared))
    assert apply_lora_to_linear(fresh.terramind_generator) > 0


def test_an_adapter_of_other_weights_is_refused(shared: Stage3GroundingModel, tmp_path: Path) -> None:
    models = [copy.deepcopy(shared) for _ in range(3)]
    for model, digest in zip(models, ("a" * 64, "a" * 64, "b" * 64), strict=True):
        model.terramind_generator.weights = WeightsInfo("nano", "packaged", sha256={"nano": digest})
    apply_lora_to_linear(models[0].terramind_generator)
    folder = save_adapter(models[0].terramind_generator, tmp_path / "adapter")
    load_adapter(models[1].terramind_generator, folder)
    with pytest.raises(WeightsError, match=r"trained on the weights aaa.*this is bbb"):
        load_adapter(models[2].terramind_generator, folder)


def test_the_documents_lora_and_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Word for word, on nano, since IBM's weights are not packaged, and on the CPU where there is no GPU."""
    nano = functools.partial(stage3_tm_ground.build_stage3_model, variant="nano")
    monkeypatch.setattr(stage3_tm_ground, "build_stage3_model", nano)
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    s1, opt_v2 = plausible_pair(1)
    truth = opt_v2 + 200.0 * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None]
    loader = [{"s1": s1, "opt_v2": opt_v2, "s2_truth": truth}]
    names: dict[str, Any] = {"torch": torch, "num_epochs": 6, "train_loader": loader}
    losses: list[float] = []
    exec(snippet("Apply LoRA to Stage 3"), names)
    criterion, loop = snippet("Training Loop").replace("(...)", "()").split("for epoch")
    exec(criterion, names)
    names["criterion"].register_forward_hook(lambda *args: losses.append(args[2].item()))
    exec(f"for epoch{loop}", names)
    assert "Applied LoRA to 18 layers" in capsys.readouterr().out
    assert names["apply_lora_to_linear"] is apply_lora_to_linear
    lora = lora_parameters(names["model"])
    assert {id(p) for p in names["lora_params"]} == {id(p) for p in lora.values()}
    assert all(p.grad is not None and p.grad.any() for p in lora.values())
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert len(losses) == 6
