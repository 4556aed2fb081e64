"""Trained weights in the files that the stages load by ``checkpoint=``, with their provenance in the header.

An adapter is first written by itself, with the grounding head that was trained beside it, to ``adapter/``, and then
merged, so that what lies above it is an ordinary set of weights. Those are float16, as packaged ones are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from axs_lib.adapters import merge_adapter, save_adapter
from axs_lib.grounding.load import CORRECTOR_FILE
from axs_lib.terramind.weights import write_state

ADAPTER = "adapter"


def export_refiner(model: Any, folder: Path, header: dict[str, str], *, variant: str) -> None:
    """Write Stage 2 as one file under its packaged or published name; an adapter is merged.

    Raises:
        OutputError: the disk refuses.
    """
    from axs_lib.prithvi.variants import PRITHVI_VARIANTS
    from axs_lib.stage2_prithvi_refine import save_refiner

    if _has_adapter(model):
        merge_adapter(model)
    spec = PRITHVI_VARIANTS[variant]
    name = f"{spec.packaged_name}.safetensors" if spec.generator is None else _safetensors(spec.generator.name)
    save_refiner(model, folder / name, half=True, notes=header, overwrite=True)


def export_terramind(model: Any, folder: Path, header: dict[str, str], *, tokenizer: nn.Module | None) -> None:
    """Write Stage 1 or 3.

    ``nano.safetensors`` (``core.``, ``detokenizer.``, ``tokenizer.``), or for published variants generator and
    tokenizer's decoder under their published names; Stage 3's ``grounding.safetensors``; an adapter to ``adapter/``.

    Raises:
        OutputError: the disk refuses.
    """
    if _has_adapter(model):
        save_adapter(model, folder / ADAPTER, overwrite=True, notes=header)
        merge_adapter(model)
    for name, state in _files(model, tokenizer).items():
        write_state(folder / name, state, header, half=True, overwrite=True)


def _files(model: Any, tokenizer: nn.Module | None) -> dict[str, dict[str, Tensor]]:
    from axs_lib.terramind.build import build_nano_tokenizer
    from axs_lib.terramind.weights import find_variant

    generator = model.terramind_generator
    corrector = getattr(model, "corrector", None)  # Stage 3's
    files = {} if corrector is None else {CORRECTOR_FILE: dict(corrector.state_dict())}
    spec = find_variant(generator.layout.variant)
    if spec.generator is None or spec.tokenizer is None:
        parts: dict[str, nn.Module] = {
            "core": generator.core,
            "detokenizer": generator.detokenizer,
            "tokenizer": tokenizer or build_nano_tokenizer(),
        }
        state = {key: value for name, part in parts.items() for key, value in _prefixed(name, part).items()}
        return files | {f"{spec.name}.safetensors": state}
    # The generator's file comes last, so that a folder that has it is complete.
    files[_safetensors(spec.tokenizer.name)] = _prefixed("decoder", generator.detokenizer)
    files[_safetensors(spec.generator.name)] = dict(generator.core.state_dict())
    return files


def _has_adapter(model: nn.Module) -> bool:
    return any(".lora_" in name for name, _ in model.named_parameters())


def _safetensors(name: str) -> str:
    return Path(name).with_suffix(".safetensors").name


def _prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
