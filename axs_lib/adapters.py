"""LoRA adapters: train a few low-rank matrices beside a frozen network, save them, load them, fold them in.

Layers are wrapped in place by ``peft``, and files are in PEFT's format, with a Stage 3 model's grounding head beside
them. Of the configuration only the fields in ``FIELDS`` are read, so that a folder from elsewhere runs no code.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from axs_lib.checks import check_type
from axs_lib.errors import InputError, WeightsError
from axs_lib.grounding.corrector import GroundingCorrector
from axs_lib.grounding.load import CORRECTOR, CORRECTOR_FILE, load_weights
from axs_lib.io.atomic import check_output, write_json
from axs_lib.io.files import PathLike
from axs_lib.terramind.weights import load_strict, read_state, resolve, sha256_file, write_state

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["adapter_files", "apply_lora_to_linear", "load_adapter", "merge_adapter", "save_adapter", "unload_adapter"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
DEFAULT_TARGETS = ("proj", "q_proj", "k_proj", "v_proj")
ALL_LINEAR = "all-linear"

# What users call a layer, and what it is called here: TerraMind's and Prithvi's blocks fuse query, key and value
# (qkv), and TerraMind's cross-attention fuses key and value (kv).
LAYERS: dict[str, tuple[str, ...]] = {
    "proj": ("proj",),
    "q_proj": ("qkv", "q"),
    "k_proj": ("qkv", "kv"),
    "v_proj": ("qkv", "kv"),
    **{name: (name,) for name in ("qkv", "q", "kv", "fc1", "fc2", "fc3")},
}
_ADAPTER = "default"
_PEFT_PREFIX = "base_model.model."
# Nothing below these is ever wrapped: tokenizers, embeddings, and heads, which are trained whole or not at all.
_OUTSIDE = {"tokenizer", "detokenizer", "quantizer", "encoder_embeddings", "decoder_embeddings", "head"}
_BLOCK = r"(?:.+\.)?(?:encoder|decoder|blocks)\.\d+\.(?:attn|self_attn|cross_attn|mlp)\.(\w+)"


def apply_lora_to_linear(
    module: nn.Module, rank: int = 8, alpha: float = 16, target_modules: Sequence[str] | str = DEFAULT_TARGETS
) -> int:
    """Wrap attention and MLP layers of a module's transformer blocks with LoRA, in place; returns their number.

    The wrapped module gives the same output as before (LoRA starts at zero), and its LoRA weights are its only
    trainable ones. Their random part is drawn from torch's global generator, as every layer's is.

    The module is for example ``model.terramind_generator``, a whole Stage 3 model, or a Stage 2 refiner. The output of
    the added matrices is scaled by ``alpha / rank``. ``target_modules`` are any names of ``LAYERS``, or
    ``"all-linear"`` for all of them.

    Raises InputError: unknown layer names, no such layer in the module, numbers out of range, or a module that already
    has an adapter.
    """
    from peft import LoraConfig

    for name, value in {"rank": rank, "alpha": alpha}.items():
        check, expected = FIELDS["r" if name == "rank" else f"lora_{name}"]
        if not check(value):
            raise InputError(f"{name} is {value!r}; expected {expected}")
    _check_bare(module)
    wanted, network = _wanted_layers(target_modules), _network(module)
    layers = {
        name: match[1]
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and (match := re.fullmatch(_BLOCK, name)) and not _OUTSIDE & {*name.split(".")}
    }
    targets = sorted(name for name, kind in layers.items() if kind in wanted)
    if not targets:
        there = ", ".join(sorted({*layers.values()} & _wanted_layers(ALL_LINEAR)))
        raise InputError(
            f"{type(module).__name__} has no layer {target_modules!r} in a transformer block; it has"
            f" {there or 'no transformer block: pass a module with some, such as model.terramind_generator'}"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        base_model_name_or_path=_base_name(network),
        revision=_base_hash(module),
    )
    count = _inject(network, config)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    _describe(network, f"lora rank {rank}")
    return count


def _wanted_layers(target_modules: Sequence[str] | str) -> set[str]:
    """What the layers that users name are called here."""
    names = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    if names == [ALL_LINEAR]:
        names = list(LAYERS)
    unknown = [name for name in names if name not in LAYERS]
    if unknown or not names:
        raise InputError(
            f"target_modules names {', '.join(map(repr, unknown)) or 'nothing'}; expected any of {', '.join(LAYERS)},"
            f" or '{ALL_LINEAR}'"
        )
    return {layer for name in names for layer in LAYERS[name]}


def save_adapter(
    model: nn.Module, folder: PathLike, *, overwrite: bool = False, notes: Mapping[str, str] | None = None
) -> Path:
    """Write a model's adapter, and a Stage 3 model's grounding head beside it; returns the folder.

    ``peft.PeftModel.from_pretrained(model.terramind_generator, folder)`` reads the LoRA part, too. ``notes`` go into
    the headers of the weights. Raises InputError: the model has no adapter; or OutputError: the folder holds one
    already and ``overwrite`` is false, or the disk refuses.
    """
    from peft import get_peft_model_state_dict

    adapted, corrector, target = _adapted(model), _corrector(model), Path(folder)
    for name in (WEIGHTS_FILE, CONFIG_FILE, *((CORRECTOR_FILE,) if corrector is not None else ())):
        check_output(target / name, overwrite)
    header = {"format": "pt", **({} if notes is None else notes)}
    if corrector is not None:
        extra = corrector.calibration.to_header() if corrector.calibration is not None else {}
        write_state(target / CORRECTOR_FILE, corrector.state_dict(), header | extra, overwrite=overwrite)
    # "auto" would look the base model up on the Hub to learn about its word embeddings.
    state = get_peft_model_state_dict(adapted, adapter_name=_ADAPTER, save_embedding_layers=False)
    named = {_PEFT_PREFIX + name: value for name, value in state.items()}
    write_state(target / WEIGHTS_FILE, named, header, overwrite=overwrite)
    config = adapted.peft_config[_ADAPTER].to_dict() | {"inference_mode": True}
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    write_json(target / CONFIG_FILE, settings, overwrite, sort_keys=True)
    return target


def load_adapter(model: nn.Module, folder: PathLike, *, trainable: bool = False) -> int:
    """Put an adapter from disk into a model, completely or not at all; returns the number of wrapped layers.

    A Stage 3 model gets LoRA and, where the folder holds one, the grounding head that was trained beside it; so does a
    pipeline's Stage 3, for LoRA with a generator of its own where Stage 1 shares it; any other module with the network
    (such as ``model.terramind_generator``) gets LoRA alone. The folder is written by ``save_adapter``, by PEFT, or by
    ``axs train``: ``weights/adapter`` of a run with LoRA, or ``weights`` of ``axs train head``, which holds a grounding
    head alone. The LoRA weights are trained further where ``trainable``; everything else comes frozen either way.

    Raises InputError: the model has an adapter already; or WeightsError: the folder lacks a file or holds what cannot
    be read or is not allowed (see ``FIELDS``), or the adapter is of another base model, layout or rank. The model is
    then as it was.
    """
    pipeline: Any = model
    path = Path(folder)
    head_alone = not any((path / name).exists() for name in (CONFIG_FILE, WEIGHTS_FILE))
    stage3 = getattr(pipeline, "stage3", None)
    if stage3 is not None:  # a pipeline, whose Stage 1 stays as it is
        shared = stage3.terramind_generator
        if shared is pipeline.stage1.terramind_generator and not head_alone:
            stage3.terramind_generator = copy.deepcopy(shared)
        try:
            return load_adapter(stage3, folder, trainable=trainable)
        except (InputError, WeightsError):
            stage3.terramind_generator = shared
            raise
    _check_bare(model)
    network = _network(model)
    if head_alone:
        if others := sorted(file.name for file in path.glob("*.safetensors") if file.name != CORRECTOR_FILE):
            raise WeightsError(
                f"{path} holds no adapter but whole weights ({', '.join(others)}), of which the head would be taken"
                " alone; give the folder as checkpoint= (axs: --checkpoint), or the head in a folder of its own"
            )
        if not _load_head(model, path / CORRECTOR_FILE):
            raise _nothing(path)
        model.requires_grad_(False)
        return 0
    if not (path / WEIGHTS_FILE).is_file():
        raise _nothing(path, WEIGHTS_FILE)
    weights = {
        re.sub(r"(\.lora_[AB])\.", rf"\1.{_ADAPTER}.", name.removeprefix(_PEFT_PREFIX)): value
        for name, value in read_state(path / WEIGHTS_FILE).items()
    }  # by the network's own names
    config = _read_config(path / CONFIG_FILE, weights)
    named = ("model", _base_name(network), config.base_model_name_or_path)
    for kind, ours, theirs in (named, ("weights", _base_hash(model), config.revision)):
        if ours and theirs and ours != theirs:
            raise WeightsError(
                f"the adapter in {path} was trained on the {kind} {theirs} and this is {ours}; load it into a model"
                " built with the same variant and weights"
            )
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    what = f"the adapter in {path}"
    try:
        with torch.random.fork_rng(devices=[]):  # the random start is overwritten: nobody's draw is spent on it
            count = _inject(network, config)
    except ValueError as error:
        raise WeightsError(f"{what} does not fit {type(model).__name__}: {error}") from None
    base = {name: value for name, value in network.state_dict().items() if ".lora_" not in name}
    try:
        load_strict(network, base | weights, what=what)
        _load_head(model, path / CORRECTOR_FILE)
    except WeightsError:
        unload_adapter(network)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
        raise
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable and ".lora_" in name)
    _describe(network, f"lora rank {config.r} sha256 {sha256_file(path / WEIGHTS_FILE)}")
    return count


def adapter_files(folder: PathLike) -> list[Path]:
    """The files of an adapter, for hashing; a WeightsError where there are none."""
    path = Path(folder)
    files = [path / name for name in (CONFIG_FILE, WEIGHTS_FILE, CORRECTOR_FILE) if (path / name).is_file()]
    if not {WEIGHTS_FILE, CORRECTOR_FILE} & {file.name for file in files}:
        raise _nothing(path)
    return files


def _load_head(model: nn.Module, file: Path) -> bool:
    """Load the grounding head beside an adapter, where there are both; returns whether there were."""
    corrector = _corrector(model)
    if corrector is None or not file.is_file():
        return False
    load_weights(corrector, resolve(CORRECTOR, checkpoint=file))
    return True


def _nothing(folder: Path, lacking: str = "") -> WeightsError:
    return WeightsError(
        f"{folder} holds no adapter{lacking and f': it has no file {lacking}'}; expected a folder written by"
        f" `axs train`, save_adapter or PEFT, with {CONFIG_FILE} and {WEIGHTS_FILE}, or for a Stage 3 model with"
        f" {CORRECTOR_FILE} alone"
    )


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**14  # no layer is wider


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_plain(value: object) -> bool:
    """Part of a module's name; anything else would be run as a regular expression by peft."""
    return isinstance(value, str) and re.fullmatch(r"\w+(?:\.\w+)*", value) is not None


def _is_pattern(of: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(_is_plain(k) and of(v) for k, v in value.items())


# The fields of adapter_config.json that are read, and what each may hold.
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, "an integer from 1 to 16383, such as 8"),
    "lora_alpha": (_is_positive, "a number above 0, such as twice the rank"),
    "lora_dropout": (
        lambda value: (value == 0 and value is not False) or (_is_positive(value) and value < 1),
        "a number from 0 to below 1",
    ),
    "target_modules": (
        lambda value: isinstance(value, str) or (isinstance(value, list) and all(map(_is_plain, value))),
        "a list of layer names",
    ),
    "rank_pattern": (_is_pattern(_is_rank), "layer names, each with an integer from 1 to 16383"),
    "alpha_pattern": (_is_pattern(_is_positive), "layer names, each with a number above 0"),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "bias": (lambda value: value == "none", "'none'"),
    "base_model_name_or_path": (lambda value: isinstance(value, str | None), "a name"),
    "revision": (lambda value: isinstance(value, str | None), "a hash"),
}
# PEFT's notes on who wrote the file. They are neither read nor passed on: auto_mapping names a module to import.
NOTES = ("auto_mapping", "inference_mode", "peft_type", "peft_version", "task_type")
MAX_CONFIG_BYTES = 1_000_000


def _read_config(path: Path, weights: Mapping[str, Tensor]) -> LoraConfig:
    """The fields that are known of a configuration; where it names layers by a pattern, they come from the weights."""
    from peft import LoraConfig

    if not path.is_file():
        raise _nothing(path.parent, path.name)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes, more than {MAX_CONFIG_BYTES}")
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not readable JSON ({_short(error)}); save the adapter again") from None
    if not isinstance(settings, dict):
        raise WeightsError(f"{path} holds a {type(settings).__name__}; expected a JSON object")
    if settings.get("peft_type") != "LORA":
        raise WeightsError(f"{path} describes {settings.get('peft_type')!r}; expected an adapter of peft_type 'LORA'")
    default = LoraConfig().to_dict()
    for name, value in settings.items():
        if name in FIELDS:
            check, expected = FIELDS[name]
            if not check(value):
                raise WeightsError(f"{path}: {name} is {_short(value)}; expected {expected}")
        elif name not in NOTES and value and value != default.get(name):
            raise WeightsError(
                f"{path} sets {name} to {_short(value)}, which is not supported; expected a LoRA adapter of the fields"
                f" {', '.join(FIELDS)}"
            )
    known = {name: value for name, value in settings.items() if name in FIELDS}
    ranks = {len(value) for name, value in weights.items() if ".lora_A." in name and value.ndim}
    declared = {known.get("r", default["r"]), *known.get("rank_pattern", {}).values()}
    if max(declared) > max(ranks, default=0):
        raise WeightsError(f"{path} says rank {max(declared)}, and {WEIGHTS_FILE} holds rank {max(ranks, default=0)}")
    if not isinstance(known.get("target_modules"), list):
        known["target_modules"] = sorted({name.partition(".lora_")[0] for name in weights})
    return LoraConfig(**known)


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, Exception) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@torch.no_grad()
def merge_adapter(module: nn.Module) -> int:
    """Fold a module's adapter into its weights, which leaves plain layers; returns their number."""
    adapted = _adapted(module)
    for layer in _wrapped(adapted).values():
        layer.merge(safe_merge=True)
    merged = f"{getattr(adapted, 'adapter', None)} merged"
    count = unload_adapter(adapted)
    _describe(adapted, merged)
    return count


def unload_adapter(module: nn.Module) -> int:
    """Take a module's LoRA off: names and weights are as before it came; returns the number of layers."""
    adapted = _adapted(module)
    wrapped = _wrapped(adapted)
    for name, layer in wrapped.items():
        parent, _, child = name.rpartition(".")
        setattr(adapted.get_submodule(parent), child, layer.get_base_layer())
    del adapted.peft_config
    _describe(adapted, None)
    return len(wrapped)


def _network(module: nn.Module) -> nn.Module:
    """What an adapter's names are relative to: the TerraMind generator or Prithvi backbone in a module, or itself."""
    found = [part for part in module.modules() if {"layout", "adapter"} <= vars(part).keys()]
    return found[0] if len(found) == 1 else module


def _corrector(module: nn.Module) -> GroundingCorrector | None:
    """The grounding corrector of a Stage 3 model; ``None`` in any other module."""
    return next((part for part in module.modules() if isinstance(part, GroundingCorrector)), None)


def _inject(network: nn.Module, config: LoraConfig) -> int:
    from peft import inject_adapter_in_model

    modes = {name: layer.training for name, layer in network.named_modules()}
    inject_adapter_in_model(config, network, adapter_name=_ADAPTER)
    wrapped = _wrapped(network)
    for name, layer in wrapped.items():
        layer.train(modes[name])  # peft's new parts are in training mode whatever the network is in
    return len(wrapped)


def _wrapped(module: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def _with_adapter(module: nn.Module) -> list[Any]:
    parts = check_type("the model", module, nn.Module, "a torch.nn.Module").modules()
    return [part for part in parts if "peft_config" in vars(part)]


def _check_bare(module: nn.Module) -> None:
    if _with_adapter(module):
        raise InputError(
            f"{type(module).__name__} already has an adapter; take it off with unload_adapter(module), or fold it in"
            " with merge_adapter(module)"
        )


def _adapted(module: nn.Module) -> Any:
    """The network in the module that has the adapter."""
    found = _with_adapter(module)
    if len(found) != 1:
        raise InputError(
            f"{type(module).__name__} has {len(found)} adapters; expected one: pass the module that"
            " apply_lora_to_linear was given"
        )
    return found[0]


def _base_name(network: nn.Module) -> str | None:
    """The variant of a network, where it says."""
    layout = getattr(network, "layout", None)
    return None if layout is None else str(layout.variant)


def _base_hash(module: nn.Module) -> str | None:
    """SHA-256 of the files the module's weights came from, where they are known."""
    weights = [w for part in module.modules() if (w := getattr(part, "weights", None)) is not None]
    return ",".join(sorted(weights[0].sha256.values())) if weights else None


def _describe(network: Any, adapter: str | None) -> None:
    """Note the adapter for the provenance, where the network keeps one."""
    if hasattr(network, "adapter"):
        network.adapter = adapter
