"""LoRA: train a few low-rank matrices beside a frozen network, save them, load them, fold them in.

In goes a module that holds TerraMind's or Prithvi's transformer blocks; its attention and MLP layers are wrapped in
place by ``peft``, and from then on the LoRA weights are the only trainable ones. An adapter on disk is PEFT's own
format (``adapter_config.json`` and ``adapter_model.safetensors``), loaded strictly. Tokenizer, detokenizer, embeddings
and heads are never wrapped.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from axs_lib.errors import InputError, WeightsError
from axs_lib.io.atomic import atomic_write, check_output
from axs_lib.terramind.weights import load_strict, read_state, sha256_file

if TYPE_CHECKING:
    from peft import LoraConfig

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
    "qkv": ("qkv",),
    "q": ("q",),
    "kv": ("kv",),
    "fc1": ("fc1",),
    "fc2": ("fc2",),
    "fc3": ("fc3",),
}
_ADAPTER = "default"
_PEFT_PREFIX = "base_model.model."
# Nothing below these is ever wrapped: tokenizers, embeddings, and heads, which are trained whole or not at all.
_OUTSIDE = ("tokenizer", "detokenizer", "quantizer", "encoder_embeddings", "decoder_embeddings", "head")
_PATH = rf"(?:(?!(?:{'|'.join(_OUTSIDE)})\.)[^.]+\.)*"
_BLOCK = r"(?:encoder|decoder|blocks)\.\d+\.(?:attn|self_attn|cross_attn|mlp)\."


def apply_lora_to_linear(
    module: nn.Module,
    rank: int = 8,
    alpha: float = 16,
    target_modules: Sequence[str] | str = DEFAULT_TARGETS,
    dropout: float = 0.0,
) -> int:
    """Wrap attention and MLP layers of a module's transformer blocks with LoRA, in place.

    The wrapped module answers as before (LoRA starts at zero), and its LoRA weights are its only trainable ones.
    Their random part is drawn from torch's global generator, as every layer's is.

    Args:
        module: for example ``model.terramind_generator``, or a Stage 2 refiner's backbone.
        rank: of the added matrices.
        alpha: their output is scaled by ``alpha / rank``.
        target_modules: names of layers: any of ``LAYERS``, or ``"all-linear"`` for all of them. ``q_proj``, ``k_proj``
            and ``v_proj`` mean the fused layers that hold them.
        dropout: on the input of the added matrices, in training.

    Returns:
        The number of wrapped layers.

    Raises:
        InputError: unknown layer names, no such layer in the module, numbers out of range, or a module that already
            has an adapter.
    """
    from peft import LoraConfig

    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"rank is {rank!r}; expected an integer from 1, such as 8")
    if not alpha > 0:
        raise InputError(f"alpha is {alpha!r}; expected a number above 0, such as 2 * rank")
    if not 0.0 <= dropout < 1.0:
        raise InputError(f"dropout is {dropout!r}; expected a number from 0 to below 1")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_pattern(target_modules),
        base_model_name_or_path=_base_name(module),
        revision=_base_hash(module),
    )
    count = _inject(module, config)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(_is_lora(name))
    _describe(module, f"lora rank {rank}")
    return count


def target_pattern(target_modules: Sequence[str] | str) -> str:
    """The regular expression of full module names that layer names stand for.

    Raises:
        InputError: a name is unknown, or there is none.
    """
    names = (target_modules,) if isinstance(target_modules, str) else tuple(target_modules)
    if names == (ALL_LINEAR,):
        names = tuple(LAYERS)
    unknown = [name for name in names if name not in LAYERS]
    if unknown or not names:
        raise InputError(
            f"target_modules names {', '.join(map(repr, unknown)) or 'nothing'}; expected any of {', '.join(LAYERS)},"
            f" or '{ALL_LINEAR}'"
        )
    layers = sorted({layer for name in names for layer in LAYERS[name]})
    return rf"{_PATH}{_BLOCK}(?:{'|'.join(layers)})"


# -- on disk ----------------------------------------------------------------------------------------------------------


def save_adapter(module: nn.Module, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a module's adapter as a PEFT folder; ``peft.PeftModel.from_pretrained`` reads it too.

    Args:
        module: what ``apply_lora_to_linear`` or ``load_adapter`` was given, or a module around it.
        folder: created where missing.
        overwrite: whether an adapter that is there already may be replaced.

    Returns:
        The folder.

    Raises:
        InputError: the module has no adapter.
        OutputError: the folder holds one already, or the disk refuses.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    adapted = _adapted(module)
    settings = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in adapted.peft_config[_ADAPTER].to_dict().items()
    }
    settings["inference_mode"] = True
    # "auto" would look the base model up on the Hub to learn about its word embeddings.
    adapter = get_peft_model_state_dict(adapted, adapter_name=_ADAPTER, save_embedding_layers=False)
    state = {_PEFT_PREFIX + name: value.detach().cpu().contiguous() for name, value in adapter.items()}
    target = Path(folder)
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        check_output(target / name, overwrite)
    with atomic_write(target / WEIGHTS_FILE, overwrite=overwrite) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    with atomic_write(target / CONFIG_FILE, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return target


def load_adapter(module: nn.Module, folder: str | os.PathLike[str], *, trainable: bool = False) -> int:
    """Put an adapter from disk into a module, completely or not at all.

    Args:
        module: the kind of module that the adapter was made for, such as ``model.terramind_generator``.
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        trainable: whether the LoRA weights are to be trained further; everything else comes frozen either way.

    Returns:
        The number of wrapped layers.

    Raises:
        InputError: the module has an adapter already.
        WeightsError: the folder lacks a file, a file cannot be read, or the adapter is of another base model, layout
            or rank. The module is then as it was.
    """
    path = Path(folder)
    config = _read_config(path / CONFIG_FILE)
    _check_base(module, config, path)
    state = {_inner_name(name): value for name, value in read_state(path / WEIGHTS_FILE).items()}
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    _check_bare(module)
    try:
        with torch.random.fork_rng(
            devices=[]
        ):  # the random start is overwritten, so nobody's draw is spent on it
            count = _inject(module, config)
    except InputError as error:
        raise WeightsError(f"the adapter in {path} does not fit: {error}") from None
    base = {name: value for name, value in module.state_dict().items() if not _is_lora(name)}
    try:
        load_strict(module, base | state, what=f"the adapter in {path}")
    except WeightsError:
        unload_adapter(module)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(trained[name])
        raise
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trainable and _is_lora(name))
    _describe(module, f"lora rank {config.r} sha256 {sha256_file(path / WEIGHTS_FILE)}")
    return count


def _read_config(path: Path) -> LoraConfig:
    from peft import LoraConfig

    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"{path.parent} has no {path.name}; expected a folder written by save_adapter (or PEFT's save_pretrained)"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsError(f"{path} is not readable JSON ({error}); save the adapter again") from None
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else type(settings).__name__
        raise WeightsError(f"{path} describes {kind!r}; expected an adapter of peft_type 'LORA'")
    known = {field.name for field in fields(LoraConfig)}
    try:
        return LoraConfig(**{key: value for key, value in settings.items() if key in known})
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path} is not a LoRA configuration: {error}") from None


def _check_base(module: nn.Module, config: LoraConfig, path: Path) -> None:
    for seen, expected, what in (
        (_base_name(module), config.base_model_name_or_path, "model"),
        (_base_hash(module), config.revision, "weights"),
    ):
        if seen and expected and seen != expected:
            raise WeightsError(
                f"the adapter in {path} was trained on the {what} {expected} and this is {seen}; load it into a model"
                " built with the same variant and weights"
            )


# -- folding in and taking off ----------------------------------------------------------------------------------------


@torch.no_grad()
def merge_adapter(module: nn.Module) -> int:
    """Fold a module's adapter into its weights, which leaves plain layers and no adapter; returns their number.

    Raises:
        InputError: the module has no adapter.
    """
    return _remove(module, merge=True)


def unload_adapter(module: nn.Module) -> int:
    """Take a module's adapter off: names and weights are as before it came; returns the number of layers.

    Raises:
        InputError: the module has no adapter.
    """
    return _remove(module, merge=False)


def _remove(module: nn.Module, *, merge: bool) -> int:
    adapted = _adapted(module)
    wrapped = list(_wrapped(adapted))
    for name, layer in wrapped:
        if merge:
            layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(adapted.get_submodule(parent), child, layer.get_base_layer())
    del adapted.peft_config
    for network in _networks(module):
        network.adapter = f"{network.adapter} merged" if merge else None
    return len(wrapped)


# -- helpers ----------------------------------------------------------------------------------------------------------


def _inject(module: nn.Module, config: LoraConfig) -> int:
    from peft import inject_adapter_in_model

    _check_bare(module)
    modes = {name: layer.training for name, layer in module.named_modules()}
    try:
        inject_adapter_in_model(config, module, adapter_name=_ADAPTER)
    except ValueError as error:
        raise InputError(
            f"{type(module).__name__} has no layer that {config.target_modules!r} names; expected a module with"
            " transformer blocks, such as model.terramind_generator, and layers that it has"
            f" ({', '.join(_layer_names(module)) or 'it has none of ' + ', '.join(LAYERS)})"
        ) from error
    wrapped = list(_wrapped(module))
    for name, layer in wrapped:
        layer.train(modes[name])  # peft's new parts are in training mode whatever the model is in
    return len(wrapped)


def _wrapped(module: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def _check_bare(module: nn.Module) -> None:
    if any("peft_config" in vars(part) for part in module.modules()):
        raise InputError(
            f"{type(module).__name__} already has an adapter; take it off with unload_adapter(module), or fold it in"
            " with merge_adapter(module)"
        )


def _adapted(module: nn.Module) -> Any:
    """The module, itself or below, that was given the adapter."""
    found = [part for part in module.modules() if "peft_config" in vars(part)]
    if len(found) != 1:
        raise InputError(
            f"{type(module).__name__} has {len(found)} adapters; expected one: pass the module that"
            " apply_lora_to_linear was given"
        )
    return found[0]


def _layer_names(module: nn.Module) -> list[str]:
    every = target_pattern(ALL_LINEAR)
    return sorted({n.rpartition(".")[2] for n, _ in module.named_modules() if re.fullmatch(every, n)})


def _is_lora(name: str) -> bool:
    return ".lora_" in name


def _inner_name(name: str) -> str:
    """A name in an adapter file as the module calls it: no PEFT prefix, with the adapter's name."""
    return re.sub(r"(\.lora_[AB])\.", rf"\1.{_ADAPTER}.", name.removeprefix(_PEFT_PREFIX))


def _networks(module: nn.Module) -> list[Any]:
    """The parts that know what they are and note their adapter: a TerraMind generator, a Prithvi backbone."""
    return [part for part in module.modules() if {"layout", "adapter"} <= vars(part).keys()]


def _base_name(module: nn.Module) -> str | None:
    """Variant of the network in the module, where it says."""
    networks = _networks(module)
    return str(networks[0].layout.variant) if networks else None


def _base_hash(module: nn.Module) -> str | None:
    """SHA-256 of the files the module's weights came from, where they are known."""
    weights = [w for part in module.modules() if (w := getattr(part, "weights", None)) is not None]
    return ",".join(sorted(weights[0].sha256.values())) if weights else None


def _describe(module: nn.Module, adapter: str) -> None:
    for network in _networks(module):
        network.adapter = adapter
