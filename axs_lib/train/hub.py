"""LoRA adapters on the Hugging Face Hub: saved, loaded and pushed by the Hub's own mixin, in PEFT's format.

In goes a module with an adapter; out comes a folder or a repository with ``adapter_config.json``,
``adapter_model.safetensors``, ``config.json`` and a generated model card. Loading puts the adapter into a module,
completely or not at all (``axs_lib.train.lora.load_adapter``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelCard, ModelHubMixin
from torch import nn

from axs_lib.hub import (
    LIBRARY,
    LICENCE,
    TAGS,
    base_repository,
    data_section,
    fetch,
    front_matter,
    provenance_table,
    readable_errors,
    scores_section,
    write_config,
)
from axs_lib.train.lora import CONFIG_FILE, WEIGHTS_FILE, load_adapter, save_adapter

Loaded = TypeVar("Loaded", bound="LoraAdapter")


class LoraAdapter(ModelHubMixin):
    """The adapter of a module.

    Args:
        module: what ``apply_lora_to_linear`` or ``load_adapter`` was given, such as ``model.terramind_generator``.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[Loaded],
        pretrained_model_name_or_path: str | Path,
        *,
        module: nn.Module,
        trainable: bool = False,
        **options: Any,
    ) -> Loaded:
        """Put an adapter from a folder or from the Hub into a module.

        Args:
            pretrained_model_name_or_path: a folder of ``save_pretrained`` or of PEFT, or a repository.
            module: the kind of module that the adapter was made for.
            trainable: whether the LoRA weights are to be trained further.
            **options: ``revision`` (commit, tag or branch), ``cache_dir``, ``token``, ``local_files_only``,
                ``force_download``.

        Raises:
            InputError: the module has an adapter already.
            WeightsError: the adapter cannot be had, or is of another base model, layout or rank.
        """
        name = str(pretrained_model_name_or_path)
        with readable_errors(name, options.get("revision")):
            folder = fetch(name, [CONFIG_FILE, WEIGHTS_FILE], **options)
        load_adapter(module, folder, trainable=trainable)
        return cls(module)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_adapter(self.module, save_directory, overwrite=True)
        write_config(save_directory, {"library": LIBRARY, "adapter": "lora", "variant": self.variant})

    @property
    def variant(self) -> str:
        """Name of the network that the adapter belongs to."""
        layouts: Iterator[Any] = (p.layout for p in self.module.modules() if hasattr(p, "layout"))
        return str(next(layouts).variant)

    def generate_model_card(
        self,
        *,
        report: Mapping[str, Any] | None = None,
        data: str = "",
        limits: str = "",
        licence: str = LICENCE,
    ) -> ModelCard:
        """The model card: what it is and how to use it, data, scores, limits, provenance and licence.

        Args:
            report: the JSON of ``axs evaluate`` with the adapter, for the scores.
            data: a paragraph on what it was trained on.
            limits: a paragraph on what it is not good for.
            licence: of the weights, as the Hub spells it.
        """
        layers = {n.rpartition(".")[2] for n, p in self.module.named_modules() if hasattr(p, "lora_A")}
        provenance: Mapping[str, str] = getattr(self.module, "provenance", {})
        parts = [
            front_matter(licence, base_repository(self.variant), (*TAGS, "lora", "peft")),
            f"# Axion-Sat, LoRA adapter of {self.variant}\n\n{_USE.format(variant=self.variant)}",
            f"Wrapped layers: {', '.join(sorted(layers))}.",
            f"## Data\n\n{data_section({}, data)}",
            f"## Scores\n\n{scores_section(report)}",
            f"## Limits\n\n{limits or 'It fits the base model and weights that it was trained on, and no others.'}",
            f"## Licence\n\n{licence} for the adapter; the base model and the training data have their own.",
            f"## Provenance\n\n{provenance_table(provenance)}",
        ]
        return ModelCard("\n\n".join(part.strip("\n") for part in parts) + "\n")


_USE = """```python
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.train.hub import LoraAdapter

model = build_stage3_model(variant="{variant}")
LoraAdapter.from_pretrained("name/repository", module=model.terramind_generator)
```"""
