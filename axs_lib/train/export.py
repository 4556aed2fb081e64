"""Trained weights in the files that the stages load by ``checkpoint=``, with their provenance in the header.

Adapters are merged first, so that what is written is an ordinary set of weights; they are also kept by themselves in
``adapter/``. Floating-point weights are float16, as packaged ones are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from axs_lib.grounding.load import CORRECTOR_FILE
from axs_lib.io.atomic import atomic_write
from axs_lib.train.tasks import StageTask


def export_weights(task: StageTask, folder: Path, header: dict[str, str]) -> None:
    """Write a task's weights.

    TerraMind stages: ``nano.safetensors`` (``core.``, ``detokenizer.``, ``head.``, ``tokenizer.``), or for published
    variants the generator and the tokenizer's decoder under their published names, and ``grounding_head.safetensors``.
    Stage 2: one file under its packaged or published name.

    Args:
        task: after training; its adapters are merged into it.
        folder: where to.
        header: text for each file's header.

    Raises:
        OutputError: the disk refuses.
    """
    if task.config.lora is not None:
        _merge(task, folder)
    if task.stage == "stage2":
        from axs_lib.stage2_prithvi_refine import save_refiner

        save_refiner(
            task.model, folder / _stage2_name(task.config.variant), half=True, notes=header, overwrite=True
        )
        return
    for name, state in _files(task).items():
        save_state(folder / name, state, header)


def save_state(path: Path, state: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a state dict as float16 safetensors, atomically, over what is there."""
    from safetensors.torch import save

    tensors = {
        # Own copies: safetensors refuses tensors that share memory (token embedding and logit weights do).
        name: (value.half() if value.is_floating_point() else value).detach().cpu().clone().contiguous()
        for name, value in state.items()
    }
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_bytes(save(tensors, metadata=header))


def _files(task: StageTask) -> dict[str, dict[str, Tensor]]:
    from axs_lib.terramind.build import build_nano_tokenizer
    from axs_lib.terramind.weights import find_variant

    generator = task.model.terramind_generator
    files = {CORRECTOR_FILE: dict(task.model.corrector.state_dict())} if task.stage == "stage3" else {}
    spec = find_variant(task.config.variant)
    if spec.generator is None or spec.tokenizer is None:
        parts: dict[str, Any] = {
            "core": generator.core,
            "detokenizer": generator.detokenizer,
            "tokenizer": task.tokenizer or build_nano_tokenizer(),
        }
        return files | {
            f"{spec.name}.safetensors": {
                k: v for name, part in parts.items() for k, v in _prefixed(name, part)
            }
        }
    # The generator's file comes last, so that a folder that has it is complete.
    files[_safetensors(spec.tokenizer.name)] = dict(_prefixed("decoder", generator.detokenizer))
    files[_safetensors(spec.generator.name)] = dict(generator.core.state_dict())
    return files


def _stage2_name(variant: str) -> str:
    from axs_lib.prithvi.variants import PRITHVI_VARIANTS

    spec = PRITHVI_VARIANTS[variant]
    return (
        f"{spec.packaged_name}.safetensors" if spec.generator is None else _safetensors(spec.generator.name)
    )


def _safetensors(name: str) -> str:
    return Path(name).with_suffix(".safetensors").name


def _prefixed(prefix: str, module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(f"{prefix}.{name}", value) for name, value in module.state_dict().items()]


def _merge(task: StageTask, folder: Path) -> None:
    from axs_lib.train.lora import merge_adapter, save_adapter

    save_adapter(task.model, folder / "adapter", overwrite=True)
    merge_adapter(task.model)
