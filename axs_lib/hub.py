"""Stage 3 on the Hugging Face Hub: ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` by the Hub's own mixin.

In goes a Stage 3 model; out comes a folder or a repository with ``config.json``, a generated model card and its weights
as safetensors, in the files that ``checkpoint=`` reads too. Back comes the same model, strictly loaded and frozen.
Nothing but the named safetensors files and ``config.json`` is ever fetched from a repository, and nothing is executed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import ModelCard, ModelHubMixin

from axs_lib.bands import S1_PRODUCTS, sar_stats
from axs_lib.errors import InputError, WeightsError
from axs_lib.io.files import check_regular

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from axs_lib.grounding.corrector import GroundingCorrector
    from axs_lib.terramind.generator import TerraMindGenerator
    from axs_lib.terramind.weights import WeightsInfo

CONFIG_FILE = "config.json"
LIBRARY = "axion-sat"
LICENCE = "apache-2.0"
TAGS = ("remote-sensing", "sentinel-1", "sentinel-2", "sar-to-optical", "terramind")

Loaded = TypeVar("Loaded", bound="HubMixin")


class HubMixin(ModelHubMixin):
    """What a Stage 3 model needs to live on the Hub; a base class of ``Stage3GroundingModel``.

    ``save_pretrained(folder)`` writes the weights in full (float16 where that loses nothing), ``config.json`` and a
    model card; ``push_to_hub("me/mine")`` does the same to a repository; ``from_pretrained("me/mine", revision=...,
    device=...)`` loads either. Arguments of the model card go into ``model_card_kwargs`` (see
    ``generate_model_card``); keywords of the model, such as ``timesteps=1``, may be given to ``from_pretrained``.
    """

    if TYPE_CHECKING:
        terramind_generator: TerraMindGenerator
        corrector: GroundingCorrector
        timesteps: int
        standardize: bool
        correction_mode: str
        scheduler: str

    @classmethod
    def from_pretrained(cls: type[Loaded], pretrained_model_name_or_path: str | Path, **options: Any) -> Loaded:
        """Load a model from a folder or from the Hub.

        Args:
            pretrained_model_name_or_path: a folder of ``save_pretrained``, or a repository such as ``me/mine``.
            **options: ``revision`` (commit, tag or branch), ``cache_dir``, ``token``, ``local_files_only``,
                ``force_download``; ``device``; and any keyword of the model in place of the saved one.

        Returns:
            The model, frozen, in ``eval()`` mode.

        Raises:
            WeightsError: the repository, its revision or a file cannot be had, or does not fit the model.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir() and (folder / CONFIG_FILE).exists():
            check_regular(folder / CONFIG_FILE, "the configuration", WeightsError)
        with readable_errors(str(pretrained_model_name_or_path), options.get("revision")):
            model: Loaded = super().from_pretrained(pretrained_model_name_or_path, **options)
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        for name, state in _weight_files(self).items():
            save_weights(save_directory / name, state, _header(self, name))
        write_config(save_directory, config_of(self))

    @classmethod
    def _from_pretrained(
        cls: type[Loaded],
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        **settings: Any,
    ) -> Loaded:
        from axs_lib.grounding.load import load_corrector
        from axs_lib.terramind.load import load_generator

        variant = config.get("variant") if isinstance(config, Mapping) else None
        if config is None or not isinstance(variant, str):
            raise WeightsError(
                f"{model_id} has no {CONFIG_FILE} that names a variant; expected a folder of save_pretrained, or a"
                " repository of push_to_hub"
            )
        names = _file_names(variant)
        folder = fetch(
            model_id,
            names,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        product = str(config.get("s1_product", "S1GRD"))
        generator = load_generator(variant, checkpoint=str(folder), revision=revision, s1_product=product)
        corrector = load_corrector(generator.weights, s1_product=product)
        if not Path(model_id).is_dir() and generator.weights is not None:
            generator.weights = replace(generator.weights, source=f"hub {model_id}")
        model: Any = cls(generator, corrector, **settings)
        model.requires_grad_(False).eval()
        return model.to(device) if device is not None else model

    def generate_model_card(
        self, *, report: Mapping[str, Any] | None = None, data: str = "", limits: str = "", licence: str = LICENCE
    ) -> ModelCard:
        """The model card: what it is and how to use it, data, scores, limits, provenance and licence.

        Args:
            report: the JSON of ``axs evaluate``, for the scores. A packaged model has its own card's without.
            data: a paragraph on what it was trained on, beside what the weights' header says.
            limits: a paragraph on what it is not good for.
            licence: of the weights, as the Hub spells it.
        """
        return ModelCard(_card_text(self, report, data, limits, licence))


# -- what is written ----------------------------------------------------------------------------------------------


def config_of(model: HubMixin) -> dict[str, Any]:
    """What a model must be built with, beside its weights."""
    return {
        "library": LIBRARY,
        "variant": model.terramind_generator.layout.variant,
        "s1_product": _product(model),
        "timesteps": model.timesteps,
        "standardize": model.standardize,
        "correction_mode": model.correction_mode,
        "scheduler": model.scheduler,
    }


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``config.json``."""
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def save_weights(path: Path, state: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write safetensors; what float16 holds without loss is stored so, everything else as it is."""
    from axs_lib.terramind.weights import write_state

    write_state(path, {name: _shortest(value.detach()) for name, value in state.items()}, header, overwrite=True)


def _shortest(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    half = value.half()
    return half if bool((half.to(value.dtype) == value).all()) else value


def _product(model: HubMixin) -> str:
    """The SAR product, by the statistics of its adapter."""
    mean = model.terramind_generator.sar.mean.flatten().tolist()
    distance = {p: sum(abs(a - b) for a, b in zip(mean, sar_stats(p)[0], strict=True)) for p in S1_PRODUCTS}
    return min(distance, key=distance.__getitem__)


def _file_names(variant: str) -> list[str]:
    """Names of a variant's files: the generator, where it is apart the tokenizer, and last the grounding head."""
    from axs_lib.grounding.load import CORRECTOR_FILE
    from axs_lib.terramind.weights import find_variant

    spec = find_variant(variant)
    published = [Path(file.name).with_suffix(".safetensors").name for file in spec.published]
    return [*(published or [f"{spec.name}.safetensors"]), CORRECTOR_FILE]


def _weight_files(model: HubMixin) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file, as ``checkpoint=`` reads them."""
    generator = model.terramind_generator
    modules = (generator.core, generator.detokenizer, model.corrector)
    core, detokenizer, corrector = (module.state_dict() for module in modules)
    if any(".lora_" in name for name in core):
        raise InputError(
            "the model has a LoRA adapter; fold it in with merge_adapter(model), or hand the adapter on by itself:"
            " axs_lib.adapters.save_adapter(model, folder)"
        )
    names = _file_names(generator.layout.variant)
    if len(names) == 2:
        parts = {"core": core, "detokenizer": detokenizer}
        whole = {f"{part}.{k}": v for part, state in parts.items() for k, v in state.items()}
        return {names[1]: corrector, names[0]: whole}
    generator_file, tokenizer_file, corrector_file = names
    return {
        corrector_file: corrector,
        tokenizer_file: {f"decoder.{name}": value for name, value in detokenizer.items()},
        generator_file: core,
    }


def _header(model: HubMixin, name: str) -> dict[str, str]:
    """What the file that the weights came from says of them; the head's also has the calibration."""
    from axs_lib.grounding.load import CORRECTOR_FILE

    if name != CORRECTOR_FILE:
        return source_header(model.terramind_generator.weights)
    calibration = model.corrector.calibration
    header = source_header(model.corrector.weights)
    return header | (calibration.to_header() if calibration is not None else {})


def source_header(weights: WeightsInfo | None) -> dict[str, str]:
    """The header of the safetensors file that weights came from; empty where there is none."""
    from axs_lib.terramind.weights import read_metadata

    paths = [] if weights is None else list(weights.paths.values())
    readable = [path for path in paths if path.suffix == ".safetensors" and path.is_file()]
    return read_metadata(readable[0]) if readable else {}


# -- what is fetched ----------------------------------------------------------------------------------------------


def fetch(model_id: str, names: Sequence[str], **options: Any) -> Path:
    """A folder with these files: the one that was named, or a snapshot of the repository with nothing else in it.

    Raises:
        WeightsError: a file is missing.
    """
    from huggingface_hub import snapshot_download

    folder = Path(model_id)
    if not folder.is_dir():
        folder = Path(snapshot_download(model_id, allow_patterns=list(names), **options))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise WeightsError(
            f"{model_id} lacks {', '.join(missing)}; expected safetensors written by save_pretrained (other formats"
            " are not read)"
        )
    return folder


@contextlib.contextmanager
def readable_errors(model_id: str, revision: str | None) -> Iterator[None]:
    """Turn the Hub client's errors into one sentence."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        what = model_id if revision is None else f"{model_id} at revision {revision!r}"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{what} cannot be had: {reason} Expected a folder of save_pretrained, or a repository 'name/repository'"
            " that exists and that you may read, and a network or a cache that has it"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WeightsError(
            f"the {CONFIG_FILE} of {model_id} is damaged ({type(error).__name__}); save the model again"
        ) from None


# -- the card -----------------------------------------------------------------------------------------------------


def front_matter(licence: str, base_model: str | None = None, tags: Sequence[str] = TAGS) -> str:
    """The YAML that the Hub reads at the top of a card."""
    lines = ["---", f"license: {licence}", f"library_name: {LIBRARY}", "pipeline_tag: image-to-image"]
    lines += [f"base_model: {base_model}"] if base_model else []
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""])


def base_repository(variant: str) -> str | None:
    """The Hub repository of a published variant."""
    from axs_lib.terramind.weights import find_variant

    generator = find_variant(variant).generator
    return None if generator is None else generator.repo


def provenance_table(provenance: Mapping[str, str]) -> str:
    """Tags and their values, as Markdown."""
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | `{value}` |" for key, value in provenance.items())])


def data_section(header: Mapping[str, str], text: str) -> str:
    """What the weights' header says of their training, and the author's own paragraph."""
    lines = [text] if text else []
    try:
        settings = json.loads(header.get("config", "{}"))
    except (ValueError, RecursionError):
        settings = {}
    settings = settings if isinstance(settings, dict) else {}
    rows: dict[str, Any] = {k: v for k, v in header.items() if k not in ("config", "calibration")}
    rows |= {k: settings[k] for k in ("qualities", "test_groups", "validation_groups") if settings.get(k)}
    rows = {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in rows.items()}
    if rows:
        lines += ["From the header of the weights:", provenance_table({k: str(v) for k, v in rows.items()})]
    return "\n\n".join(lines) or "Not recorded in the weights, and not stated by who saved them."


def scores_section(report: Mapping[str, Any] | None) -> str:
    """Figures of a report of ``axs evaluate``, as Markdown."""
    if report is None:
        return (
            "None were given. Measure with `axs evaluate --data DIR --groups ... --controls --uncertainty --json"
            " report.json`, and save with `model_card_kwargs={'report': ...}`."
        )
    ok = report["summary"]["ok"]
    mean, better = ok["mean"], ok["improvement_of_mean_%"]
    sources = ", ".join(f"{name} ({count})" for name, count in ok["opt_v2_source"].items())
    lines = [
        f"`axs evaluate`, {ok['tiles']} tiles of quality ok, opt_v2 from: {sources}, {report['timesteps']} timesteps.",
        "",
        "| mean over tiles | opt_v2 | opt_v3 | better |",
        "|---|---|---|---|",
        *(
            f"| {label} | {mean[f'{key}_v2']:.4g} | {mean[f'{key}_v3']:.4g} |"
            + (f" {better[key]:.1f} % |" if key in better else " |")
            for key, label in (
                ("mse", "MSE (reflectance²)"),
                ("mae", "MAE (reflectance)"),
                ("ssim", "SSIM"),
                ("edge_truth", "edge agreement with the truth"),
            )
        ),
        "",
        f"opt_v3 has the smaller MSE on {100 * ok['wins']:.0f} % of the tiles.",
    ]
    if "sar_swapped" in ok:
        swapped = ok["sar_swapped"]["improvement_of_mean_%"]["mse"]
        lines.append(f"With another tile's SAR its MSE is {swapped:.1f} % better than opt_v2's.")
    if "uncertainty" in report:
        ratios = ", ".join(f"{b} {v:.2f}" for b, v in report["uncertainty"]["spread_skill"].items())
        lines.append(f"Spread-skill ratio of the uncertainty (1 is calibrated): {ratios}.")
    return "\n".join(lines)


def _card_text(model: HubMixin, report: Mapping[str, Any] | None, data: str, limits: str, licence: str) -> str:
    variant = model.terramind_generator.layout.variant
    weights = model.terramind_generator.weights
    parts = [
        front_matter(licence, base_repository(variant)),
        f"# Axion-Sat Stage 3, {variant}\n\n{_USE.format(timesteps=model.timesteps)}",
    ]
    own = None if weights is None or weights.source != "packaged" or report else _packaged_card(weights.paths)
    if own is not None:
        parts.append(own)
    else:
        parts += [
            f"## Data\n\n{data_section(source_header(model.terramind_generator.weights), data)}",
            f"## Scores\n\n{scores_section(report)}",
            f"## Limits\n\n{limits or _LIMITS}",
            f"## Licence\n\n{licence} for the weights; the licences of the training data are their owners'.",
        ]
    provenance: Mapping[str, str] = getattr(model, "provenance", model.terramind_generator.provenance)
    parts.append(f"## Provenance\n\n{provenance_table(provenance)}")
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _packaged_card(paths: Mapping[str, Path]) -> str | None:
    """The packaged card of packaged weights, a level deeper; it has data, figures, limits and licence."""
    cards = [path.with_suffix(".md") for path in paths.values()]
    if not cards or not cards[0].is_file():
        return None
    return cards[0].read_text(encoding="utf-8").replace("# ", "## ", 1)


_USE = """Grounds an optical estimate (B02, B03, B04, B08 in DN = reflectance x 10000) in a Sentinel-1 image (VV, VH in
dB) of the same place with TerraMind's conditional generator.

```python
from axs_lib.stage3_tm_ground import Stage3GroundingModel

model = Stage3GroundingModel.from_pretrained("name/repository")
output = model.ground(s1, opt_v2, timesteps={timesteps})  # image, proposal, gate, uncertainty, nfe
```"""

_LIMITS = """opt_v3 is an estimate, not an observation: look at its uncertainty and at what changed before you decide on
a pixel. Figures hold for places like those that were measured. Do not present opt_v3 as an observed image."""
