"""Trained weights, float16, in the files that the stages load by ``checkpoint=``, with what made them in the header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from axs_lib.grounding.load import CORRECTOR_FILE
from axs_lib.prithvi.variants import PRITHVI_VARIANTS
from axs_lib.terramind.weights import find_variant, write_state


def export_refiner(model: Any, folder: Path, header: dict[str, str]) -> None:
    """Write Stage 2 as one file under its packaged or published name.

    Raises:
        OutputError: the disk refuses.
    """
    from axs_lib.stage2_prithvi_refine import save_refiner

    spec = PRITHVI_VARIANTS[model.variant]
    name = f"{spec.packaged_name}.safetensors" if spec.generator is None else _safetensors(spec.generator.name)
    save_refiner(model, folder / name, half=True, notes=header, overwrite=True)


def export_terramind(model: Any, folder: Path, header: dict[str, str], tokenizer: nn.Module | None) -> None:
    """Write Stage 1 or 3.

    ``nano.safetensors`` (``core.``, ``detokenizer.``, ``tokenizer.``), or for published variants generator and
    tokenizer's decoder under their published names; Stage 3's ``grounding.safetensors``.

    Raises:
        OutputError: the disk refuses.
    """
    from axs_lib.terramind.build import build_nano_tokenizer

    generator = model.terramind_generator
    files: dict[str, dict[str, Tensor]] = {}
    if hasattr(model, "corrector"):
        files[CORRECTOR_FILE] = dict(model.corrector.state_dict())
    spec = find_variant(generator.layout.variant)
    if spec.generator is None or spec.tokenizer is None:
        files[f"{spec.name}.safetensors"] = {
            **_prefixed("core", generator.core),
            **_prefixed("detokenizer", generator.detokenizer),
            **_prefixed("tokenizer", tokenizer or build_nano_tokenizer()),
        }
    else:
        # The generator's file comes last, so that a folder that has it is complete.
        files[_safetensors(spec.tokenizer.name)] = _prefixed("decoder", generator.detokenizer)
        files[_safetensors(spec.generator.name)] = dict(generator.core.state_dict())
    for name, state in files.items():
        write_state(folder / name, state, header, half=True, overwrite=True)


def _safetensors(name: str) -> str:
    return Path(name).with_suffix(".safetensors").name


def _prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
