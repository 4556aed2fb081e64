"""Stage 3 on the Hugging Face Hub: ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` by the Hub's own mixin.

Weights are safetensors in the files that ``checkpoint=`` reads too. Nothing but these and ``config.json`` is ever
fetched from a repository, and nothing is executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download
from torch import Tensor

from axs_lib.checks import find_device
from axs_lib.errors import AxionError, InputError, WeightsError, first_line, listed
from axs_lib.grounding.corrector import GroundingCorrector
from axs_lib.grounding.load import CORRECTOR_FILE, load_corrector
from axs_lib.io.atomic import check_output, write_json
from axs_lib.io.files import check_regular
from axs_lib.terramind.build import load_generator
from axs_lib.terramind.generator import TerraMindGenerator
from axs_lib.terramind.weights import WeightsInfo, find_variant, read_metadata, write_state

CONFIG_FILE = "config.json"
CARD = Path(__file__).with_name("model_card.jinja")
CONFIG_FIELDS = (
    "library", "variant", "s1_product", "timesteps", "standardize", "correction_mode", "scheduler", "hold_colour",
)  # fmt: skip
LIBRARY = "axion-sat"
LICENCE = "apache-2.0"
TAGS = ["remote-sensing", "sentinel-1", "sentinel-2", "sar-to-optical", "terramind"]


class HubMixin(ModelHubMixin):
    """What a Stage 3 model needs to live on the Hub; a base class of ``Stage3GroundingModel``.

    ``save_pretrained(folder)`` writes the weights in full (float16 where that loses nothing), ``config.json`` and a
    model card; ``push_to_hub("me/mine")`` does the same to a repository. Arguments of the model card go into
    ``model_card_kwargs`` (see ``generate_model_card``).
    """

    terramind_generator: TerraMindGenerator
    corrector: GroundingCorrector
    timesteps: int
    provenance: Any

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a model, frozen and in ``eval()`` mode, from a folder or from the Hub.

        Of a folder of ``save_pretrained``, or a repository such as ``me/mine``. Options are ``revision`` (commit, tag,
        branch), ``cache_dir``, ``token``, ``local_files_only``, ``force_download``, ``device``, and any keyword of the
        model in place of the saved one.

        Raises WeightsError: the repository, its revision or a file cannot be had, or does not fit the model.
        """
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        source, revision = pretrained_model_name_or_path, options.get("revision")
        if os.path.lexists(Path(source) / CONFIG_FILE):
            check_regular(Path(source) / CONFIG_FILE, "the configuration", WeightsError)
        try:
            return super().from_pretrained(source, **options)
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
            what = source if revision is None else f"{source} at revision {revision!r}"
            raise WeightsError(
                f"{what} cannot be had: {first_line(error)} Expected a folder of save_pretrained, or a repository"
                " 'name/repository' that exists and that you may read, and a network or a cache that has it"
            ) from None
        except (AttributeError, ValueError, RecursionError) as error:
            if isinstance(error, AxionError):
                raise
            raise WeightsError(
                f"the {CONFIG_FILE} of {source} is damaged ({type(error).__name__}); save the model again"
            ) from None

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        config: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        **settings: Any,
    ) -> Self:
        variant = config.get("variant") if isinstance(config, Mapping) else None
        if config is None or not isinstance(variant, str):
            raise WeightsError(
                f"{model_id} has no {CONFIG_FILE} that names a variant; expected a folder of save_pretrained, or a"
                " repository of push_to_hub"
            )
        unknown = [name for name in config if name not in CONFIG_FIELDS]
        if unknown or config.get("library", LIBRARY) != LIBRARY:
            raise WeightsError(
                f"the {CONFIG_FILE} of {model_id} is not of {LIBRARY}: library is {config.get('library')!r}, unknown"
                f" are {listed(unknown) or 'no fields'}; expected {listed(CONFIG_FIELDS)}"
            )
        place = find_device(device)
        access = {name: settings.pop(name) for name in ("cache_dir", "force_download", "local_files_only", "token")}
        names, folder = _file_names(variant), Path(model_id)
        local = folder.is_dir()
        if not local:
            folder = Path(snapshot_download(model_id, allow_patterns=names, revision=revision, **access))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise WeightsError(
                f"{model_id} lacks {', '.join(missing)}; expected safetensors written by save_pretrained (other formats"
                " are not read)"
            )
        product = str(config.get("s1_product", "S1GRD"))
        generator = load_generator(variant, checkpoint=folder, revision=revision, s1_product=product)
        corrector = load_corrector(generator.weights, s1_product=product)
        if not local and generator.weights is not None:
            generator.weights = replace(generator.weights, source=f"hub {model_id}")
        model: Any = cls(generator, corrector, **settings)
        return model.requires_grad_(False).eval().to(place)

    def _save_pretrained(self, save_directory: Path) -> None:
        check_output(save_directory / "README.md", overwrite=True)  # which the Hub's mixin writes, through links too
        for name, state in weight_files(self).items():
            short = {key: _lossless_half(value.detach()) for key, value in state.items()}
            header = source_header((self.corrector if name == CORRECTOR_FILE else self.terramind_generator).weights)
            if name == CORRECTOR_FILE and self.corrector.calibration is not None:
                header |= self.corrector.calibration.to_header()
            write_state(save_directory / name, short, header, overwrite=True)
        layout = self.terramind_generator.layout
        config = {"library": LIBRARY, "variant": layout.variant, "s1_product": layout.s1_product}
        config |= {name: getattr(self, name) for name in CONFIG_FIELDS[3:]}
        write_json(save_directory / CONFIG_FILE, config, overwrite=True, sort_keys=True)

    def generate_model_card(
        self, *, report: Mapping[str, Any] | None = None, data: str = "", limits: str = "", licence: str = LICENCE
    ) -> ModelCard:
        """The model card: what it is and how to use it, data, scores, limits, provenance and licence.

        ``report`` is the JSON of ``axs evaluate``, for the scores (of several ``--timesteps`` the model's own, or
        else the first); a packaged model has its own card's without.
        ``data`` and ``limits`` are paragraphs on what it was trained on, beside what the weights' header says, and on
        what it is not good for; ``licence`` is that of the weights, as the Hub spells it.
        """
        weights, variant = self.terramind_generator.weights, self.terramind_generator.layout.variant
        base, steps = getattr(find_variant(variant).generator, "repo", None), self.timesteps
        about: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": "image-to-image", "tags": TAGS}
        front = ModelCardData(license=licence, base_model=base, **about)
        own = [path.with_suffix(".md") for path in weights.paths.values()] if weights is not None else []
        parts: dict[str, Any] = {"variant": variant, "timesteps": steps, "provenance": _table(self.provenance)}
        if weights is not None and weights.source == "packaged" and not report and own[0].is_file():
            text = own[0].read_text(encoding="utf-8").replace("# ", "## ", 1)  # has all of them, a level higher
            parts["sections"] = text.strip("\n")
        else:
            parts |= {"data": _data_section(source_header(weights), data), "report": _chosen_report(report, steps)}
            parts |= {"limits": limits, "licence": licence}
        return ModelCard.from_template(front, template_str=CARD.read_text(encoding="utf-8"), **parts)


def _lossless_half(value: Tensor) -> Tensor:
    """The values in float16 where that loses nothing."""
    half = value.half() if value.is_floating_point() else value
    return half if bool((half.to(value.dtype) == value).all()) else value


def _file_names(variant: str) -> list[str]:
    """Names of a variant's files: the generator, where it is apart the tokenizer, and last the grounding head."""
    return [*(Path(name).with_suffix(".safetensors").name for name in find_variant(variant).file_names), CORRECTOR_FILE]


def weight_files(model: Any) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file of a Stage 1 or 3 model, as ``checkpoint=`` reads them; the generator's comes last."""
    generator, corrector = model.terramind_generator, getattr(model, "corrector", None)  # Stage 3 has one
    core, detokenizer = generator.core.state_dict(), generator.detokenizer.state_dict()
    if any(".lora_" in name for name in core):
        raise InputError(
            "the model has a LoRA adapter; fold it in with merge_adapter(model), or hand the adapter on by itself:"
            " axs_lib.adapters.save_adapter(model, folder)"
        )
    generator_file, *tokenizer_file, corrector_file = _file_names(generator.layout.variant)
    files = {} if corrector is None else {corrector_file: corrector.state_dict()}
    if tokenizer_file:
        return files | {tokenizer_file[0]: prefixed("decoder", detokenizer), generator_file: core}
    return files | {generator_file: prefixed("core", core) | prefixed("detokenizer", detokenizer)}


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with a prefix before every name."""
    return {f"{prefix}.{name}": value for name, value in state.items()}


def source_header(weights: WeightsInfo | None) -> dict[str, str]:
    """The header of the safetensors file that weights came from; empty where there is none."""
    paths = [] if weights is None else weights.paths.values()
    readable = [path for path in paths if path.suffix == ".safetensors" and path.is_file()]
    return read_metadata(readable[0]) if readable else {}


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | `{value}` |" for key, value in rows.items())])


def _data_section(header: Mapping[str, str], text: str) -> str:
    """What the weights' header says of their training, and the author's own paragraph."""
    try:
        settings = json.loads(header.get("config", "{}"))
    except (ValueError, RecursionError):
        settings = {}
    settings = settings if isinstance(settings, dict) else {}
    rows: dict[str, Any] = {k: v for k, v in header.items() if k not in ("config", "calibration")}
    rows |= {k: settings[k] for k in ("qualities", "test_groups", "validation_groups") if settings.get(k)}
    rows = {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in rows.items()}
    parts = [text, f"From the header of the weights:\n\n{_table(rows)}" if rows else ""]
    return "\n\n".join(filter(None, parts)) or "Not recorded in the weights, and not stated by who saved them."


def _chosen_report(report: Mapping[str, Any] | None, timesteps: int) -> Mapping[str, Any] | None:
    """The report of ``axs evaluate`` that the card shows: of several the one with these timesteps, or the first."""
    if report is None:
        return None
    reports = report.get("reports") or [report]
    chosen: Mapping[str, Any] = next((each for each in reports if each.get("timesteps") == timesteps), reports[0])
    if "ok" not in chosen.get("summary", {}):
        raise InputError("the report has no figures of quality ok; expected what `axs evaluate --json FILE` wrote")
    return chosen
