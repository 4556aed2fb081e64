"""Trained weights, float16, in the files that the stages load by ``checkpoint=``, with what made them in the header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from axs_lib.hub import prefixed, weight_files
from axs_lib.prithvi.variants import PRITHVI_VARIANTS
from axs_lib.terramind.weights import write_state


def export_refiner(model: Any, folder: Path, header: dict[str, str]) -> None:
    """Write Stage 2 as one file under its packaged or published name.

    Raises:
        OutputError: the disk refuses.
    """
    from axs_lib.stage2_prithvi_refine import save_refiner

    file = folder / PRITHVI_VARIANTS[model.variant].file_names[0]
    save_refiner(model, file.with_suffix(".safetensors"), half=True, notes=header, overwrite=True)


def export_terramind(model: Any, folder: Path, header: dict[str, str], tokenizer: nn.Module | None) -> None:
    """Write Stage 1 or 3.

    ``nano.safetensors`` (``core.``, ``detokenizer.``, ``tokenizer.``), or for published variants generator and
    tokenizer's decoder under their published names; Stage 3's ``grounding.safetensors``.

    Raises:
        OutputError: the disk refuses.
    """
    from axs_lib.terramind.build import build_nano_tokenizer

    files = weight_files(model)
    if "nano.safetensors" in files:
        files["nano.safetensors"] |= prefixed("tokenizer", (tokenizer or build_nano_tokenizer()).state_dict())
    for name, state in files.items():  # the generator's file comes last, so that a folder that has it is complete
        write_state(folder / name, state, header, half=True, overwrite=True)
