"""Trained weights in the files that the stages load by ``checkpoint=``, with their provenance in the header.

An adapter is first written by itself, with the grounding head that was trained beside it, to ``adapter/``, and then
merged, so that what lies above it is an ordinary set of weights. Those are float16, as packaged ones are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from axs_lib.adapters import merge_adapter, save_adapter
from axs_lib.hub import prefixed, weight_files
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
    file = folder / PRITHVI_VARIANTS[variant].file_names[0]
    save_refiner(model, file.with_suffix(".safetensors"), half=True, notes=header, overwrite=True)


def export_terramind(model: Any, folder: Path, header: dict[str, str], *, tokenizer: nn.Module | None) -> None:
    """Write Stage 1 or 3.

    ``nano.safetensors`` (``core.``, ``detokenizer.``, ``tokenizer.``), or for published variants generator and
    tokenizer's decoder under their published names; Stage 3's ``grounding.safetensors``; an adapter to ``adapter/``.

    Raises:
        OutputError: the disk refuses.
    """
    from axs_lib.terramind.build import build_nano_tokenizer

    if _has_adapter(model):
        save_adapter(model, folder / ADAPTER, overwrite=True, notes=header)
        merge_adapter(model)
    files = weight_files(model)
    if "nano.safetensors" in files:
        files["nano.safetensors"] |= prefixed("tokenizer", (tokenizer or build_nano_tokenizer()).state_dict())
    for name, state in files.items():  # the generator's file comes last, so that a folder that has it is complete
        write_state(folder / name, state, header, half=True, overwrite=True)


def _has_adapter(model: nn.Module) -> bool:
    return any(".lora_" in name for name, _ in model.named_parameters())
