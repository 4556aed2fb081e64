"""Where weights come from, verified and recorded: package, local file, ``AXS_WEIGHTS`` or Hugging Face Hub.

A record of the files (paths, source, commit, SHA-256) travels into every output. Files are read without executing
anything and loaded strictly: a missing or misshapen tensor is an error, never a random initialisation.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from axs_lib.errors import InputError, WeightsError, first_line, meant
from axs_lib.io.atomic import atomic_write
from axs_lib.io.files import PathLike, check_regular, check_utf8, open_regular
from axs_lib.progress import logger

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS_VARIABLE = "AXS_WEIGHTS"
NANO = "nano"  # the packaged variant of either model
DEFAULT_VARIANT, DEFAULT_PRITHVI = "terramind_v1_base", "prithvi_eo_v2_300_tl"
HUB_TIMEOUT = 5.0  # seconds until an unreachable Hub is reported
HASH_LIST = "SHA256SUMS"  # beside the packaged weights, in the format of sha256sum
_PACKAGED = Path(__file__).resolve().parents[1] / "weights"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_EXAMPLES = 5
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class HubFile:
    """One published file; ``commit`` is asked for by default and ``sha256`` enforced where they are known."""

    repo: str
    name: str
    commit: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Variant:
    """One size of a model: packaged without a ``generator``, whole in one file without a ``tokenizer``."""

    name: str
    dim: int  # of a token
    generator: HubFile | None = None
    tokenizer: HubFile | None = None
    packaged_name: str | None = None  # of the packaged file without suffix, where it is not the variant's name
    timesteps: int = 10  # that these weights are most accurate with, the default of the commands

    @property
    def packaged(self) -> bool:
        """Whether the weights ship with this package."""
        return self.generator is None

    @property
    def published(self) -> tuple[HubFile, ...]:
        """The published files."""
        return tuple(file for file in (self.generator, self.tokenizer) if file is not None)

    @property
    def file_names(self) -> list[str]:
        """Names of the published files, or of the packaged one."""
        return [file.name for file in self.published] or [f"{self.packaged_name or self.name}.safetensors"]


_TINY_COMMIT = "3e763e7a7daa25e73bbe01616bc1ba91ed02a217"
_TINY_SHA256 = "e56ea9ebcd4451078b9ca4893d5cd8a89bbee376ae16829c3e7fbbbc76de0eba"
_TOKENIZER = HubFile("ibm-esa-geospatial/TerraMind-1.0-Tokenizer-S2L2A", "TerraMind_Tokenizer_S2L2A.pt")


def _published(size: str, dim: int, commit: str | None = None, sha256: str | None = None) -> Variant:
    generator = HubFile(f"ibm-esa-geospatial/TerraMind-1.0-{size}", f"TerraMind_v1_{size}.pt", commit, sha256)
    return Variant(f"terramind_v1_{size}", dim, generator, _TOKENIZER)


_TERRAMIND = (
    _published("tiny", 192, _TINY_COMMIT, _TINY_SHA256), _published("small", 384), _published("base", 768),
    _published("large", 1024),
)  # fmt: skip
VARIANTS: dict[str, Variant] = {v.name: v for v in (Variant(NANO, 192, timesteps=1), *_TERRAMIND)}


def _prithvi(size: str, dim: int) -> Variant:
    file = HubFile(f"ibm-nasa-geospatial/Prithvi-EO-2.0-{size}-TL", f"Prithvi_EO_V2_{size}_TL.pt")
    return Variant(f"prithvi_eo_v2_{size.removesuffix('M')}_tl", dim, file)


# Of Stage 2, one file each.
_PRITHVI = (_prithvi("tiny", 192), _prithvi("300M", 1024), _prithvi("600M", 1280))
_PACKAGED_PRITHVI = Variant(NANO, 144, packaged_name="nano_stage2")
PRITHVI_VARIANTS: dict[str, Variant] = {v.name: v for v in (_PACKAGED_PRITHVI, *_PRITHVI)}


@dataclass(frozen=True)
class WeightsInfo:
    """The files of a variant and what they are, by their names."""

    variant: str
    source: str  # "packaged", "checkpoint", "AXS_WEIGHTS" or "hub"
    revision: str | None = None  # that was asked for
    commit: Mapping[str, str] = field(default_factory=dict)  # on the Hub, of files that came from there
    sha256: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, Path] = field(default_factory=dict)  # the generator's first, the tokenizer's second

    @property
    def generator(self) -> Path:
        """The file of the network itself."""
        return next(iter(self.paths.values()))

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer's file; ``None`` where the generator's holds everything."""
        return [*self.paths.values(), None][1]

    def tags(self) -> dict[str, str]:
        """The record as flat text, for file tags; several files are ``name=value`` joined by spaces."""
        tags = {"AXS_WEIGHTS": self.source}
        if self.revision is not None:
            tags["AXS_WEIGHTS_REVISION"] = self.revision
        for name, values in (("COMMIT", self.commit), ("SHA256", self.sha256)):
            if values:
                tags[f"AXS_WEIGHTS_{name}"] = " ".join(f"{file}={value}" for file, value in values.items())
        return tags


def find_variant(name: str, variants: Mapping[str, Variant] = VARIANTS) -> Variant:
    """The variant of this name; an InputError lists those there are."""
    if isinstance(name, str) and name in variants:
        return variants[name]
    raise InputError(f"unknown variant {name!r}; the variants are {', '.join(variants)}.{meant(name, variants, 0.5)}")


def resolve(variant: str | Variant, checkpoint: PathLike | None = None, revision: str | None = None) -> WeightsInfo:
    """Find the weight files of a variant: ``checkpoint``, then ``AXS_WEIGHTS``, then the Hub's cache, then the Hub.

    A packaged variant is read from this package and ignores ``AXS_WEIGHTS``.
    ``checkpoint`` is the generator's ``.pt`` or ``.safetensors`` with the tokenizer's beside it, or a folder that holds
    both under their published names. ``revision`` is a branch, tag or commit of the generator's Hub repository;
    ``"GENERATOR:TOKENIZER"`` also pins the tokenizer's. An unknown variant is an InputError.

    Raises WeightsError: the files are not there, cannot be had, or differ from their known SHA-256.
    """
    spec = variant if isinstance(variant, Variant) else find_variant(variant)
    if checkpoint is not None:
        return _local(spec, Path(checkpoint), "checkpoint", revision)
    if spec.packaged:
        return _record(spec, "packaged", revision, [packaged(Path(spec.file_names[0]).stem)])
    if os.environ.get(WEIGHTS_VARIABLE):
        return _local(spec, Path(os.environ[WEIGHTS_VARIABLE]), WEIGHTS_VARIABLE, revision)
    return download(spec, revision)


def packaged(name: str) -> Path:
    """Path of a weights file shipped with this package, by its name without suffix."""
    path = _PACKAGED / f"{name}.safetensors"
    if not path.is_file():
        raise WeightsError(
            f"{path.name} should be in {path.parent} and is not: the installation is incomplete; reinstall axion-sat"
        )
    return path


def download(
    variant: str | Variant, revision: str | None = None, folder: PathLike | None = None, *, refresh: bool = False
) -> WeightsInfo:
    """Fetch a published variant from the Hub unless its cache already has it.

    ``folder`` takes the files instead of the Hub's cache; ``refresh`` asks the Hub even when the cache has them, in
    case a branch has moved; ``revision`` is as in ``resolve``. Raises InputError: unknown or packaged variant, or more
    revisions than files; or WeightsError: the Hub cannot be reached or refuses, or a file differs from its known
    SHA-256.
    """
    spec = variant if isinstance(variant, Variant) else find_variant(variant)
    if spec.packaged:
        raise InputError(f"{spec.name} ships with this package: there is nothing to download")
    pins = (revision or "").split(":")
    if len(pins) > len(spec.published):
        expected = "one revision, or GENERATOR:TOKENIZER" if spec.tokenizer else "one revision"
        raise InputError(f"revision is {revision!r}; expected {expected}")
    target = None if folder is None else Path(folder)
    pinned = itertools.zip_longest(spec.published, pins)
    paths = [_hub(spec, file, pin or file.commit, target, refresh) for file, pin in pinned]
    return _record(spec, "hub", revision, paths)


def _hub(spec: Variant, file: HubFile, revision: str | None, folder: Path | None, refresh: bool) -> Path:
    """One file from the Hub's cache or, failing that, from the Hub."""
    import huggingface_hub as hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    fetch = functools.partial(hub.hf_hub_download, file.repo, file.name, revision=revision)
    if folder is None and not refresh:
        try:
            return Path(fetch(local_files_only=True))
        except LocalEntryNotFoundError:
            pass
    try:
        # One cheap question first: the download itself retries an unreachable Hub for about half a minute.
        hub.get_hf_file_metadata(hub.hf_hub_url(file.repo, file.name, revision=revision), timeout=HUB_TIMEOUT)
        return Path(fetch(local_dir=folder))
    except hub.errors.RevisionNotFoundError:
        raise WeightsError(
            f"{file.repo} has no revision {revision!r} on the Hub; leave revision out, or name a commit"
        ) from None
    except hub.errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        reason = f"the Hub answered {status}" if status else "the Hub refused"
    except OSError as error:
        reason = error.strerror or "the Hub cannot be reached"
    except Exception as error:  # the HTTP client's own errors, whichever client the hub library uses
        reason = f"the Hub cannot be reached ({type(error).__name__})"
    raise WeightsError(
        f"the weights of {spec.name} are not here and cannot be fetched ({file.repo}/{file.name}: {reason})."
        " Three ways out:\n"
        f"  1. on a machine with network: axs weights download {spec.name} --to DIR, and bring DIR here;\n"
        f"  2. point to local files: checkpoint=DIR (--checkpoint DIR), or {WEIGHTS_VARIABLE}=DIR;\n"
        '  3. use the small weights that ship with this package: variant="nano" (--variant nano).'
    ) from None


def _local(spec: Variant, path: Path, source: str, revision: str | None) -> WeightsInfo:
    """Files at a path that the user named: a generator file, or a folder under the published names."""
    if not path.exists():
        raise WeightsError(f"{source} names {path}, which does not exist")
    folder = path if path.is_dir() else path.parent
    paths: list[Path] = []
    for name in spec.file_names:
        candidates = (folder / name, (folder / name).with_suffix(".safetensors"))
        found = next((c for c in candidates if c.is_file()), None)
        if not paths and not path.is_dir():
            found = path
        if found is None and spec.packaged:
            raise WeightsError(f"{source} names the folder {path}, which has no {name}")
        if found is None:
            raise WeightsError(
                f"{source} names {path}, and {folder} has no {name} (nor the same as .safetensors); {spec.name} needs"
                f" {' and '.join(spec.file_names)}{' in one folder' if spec.tokenizer else ''}:"
                f" axs weights download {spec.name} --to DIR puts {'them' if spec.tokenizer else 'it'} there"
            )
        paths.append(found)
    return _record(spec, source, revision, paths)


def _record(spec: Variant, source: str, revision: str | None, paths: Sequence[Path]) -> WeightsInfo:
    """Hash the files; a packaged one, or one from the Hub at a known commit, must have its known content."""
    hashes = {path.name: sha256_file(path) for path in paths}
    commits = {path.name: commit for path in paths if (commit := _commit(path)) is not None}
    if source == "packaged":
        for path in paths:
            _check_packaged(path, hashes[path.name])
    if source == "hub":
        for path, file in zip(paths, spec.published, strict=True):
            if file.sha256 not in (None, hashes[path.name]) and commits.get(path.name) == file.commit:
                raise WeightsError(
                    f"{path} is not what was published: its SHA-256 is {hashes[path.name]}, expected {file.sha256};"
                    " delete it and download it again"
                )
    return WeightsInfo(spec.name, source, revision, commits, hashes, {path.name: path for path in paths})


def _check_packaged(path: Path, digest: str) -> None:
    """Compare a packaged file with the list beside it, which ``experiments/hash_weights.py`` writes."""
    listed = path.with_name(HASH_LIST)
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    known = {name: value for value, _, name in (line.partition("  ") for line in lines)}
    if known.get(path.name) != digest:
        expected = known.get(path.name, f"no entry for it in {listed}")
        raise WeightsError(
            f"{path} is not what this package was released with: its SHA-256 is {digest}, expected {expected}."
            " Reinstall axion-sat (pip install --force-reinstall axion-sat); if you replaced the file on purpose, run"
            " python experiments/hash_weights.py, or leave it where it was and pass checkpoint="
        )


def _commit(path: Path) -> str | None:
    """Hub commit of a file, from its place in the Hub's cache or from the note a download leaves beside it."""
    if path.parent.parent.name == "snapshots" and _COMMIT.fullmatch(path.parent.name):
        return path.parent.name
    note = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    try:
        first = note.read_text(encoding="utf-8").split("\n", 1)[0].strip()
    except (OSError, UnicodeDecodeError):
        return None
    return first if _COMMIT.fullmatch(first) else None


def sha256_file(path: PathLike) -> str:
    """SHA-256 of a regular file's content in hexadecimal; asked twice, an unchanged file is read once."""
    try:
        file = check_regular(Path(path).resolve(), "the weights file", WeightsError)
        status = file.stat()
        return _sha256(file, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int) -> str:
    with open_regular(path, "the weights file", WeightsError) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: PathLike) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors`` or a torch file, without executing what is in it.

    A torch file holds a flat state dict, or one under ``model`` or ``state_dict``. Tensors are on the CPU, mapped from
    the file where its format allows. Raises WeightsError: missing, no regular file, empty, truncated, not a weights
    file; or it holds anything but tensors that its bytes have room for.
    """
    file = Path(path)
    check_utf8(file, "the weights file", WeightsError)
    with open_regular(file, "the weights file", WeightsError) as opened:
        start = opened.read(len(_LFS))
    if not start:
        raise WeightsError(f"{file} is empty: the download or copy was cut off; fetch it again")
    if start == _LFS:
        raise WeightsError(f"{file} is a pointer of Git LFS and not the weights: fetch them with git lfs pull")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    if isinstance(content, Mapping):
        content = next((content[k] for k in ("state_dict", "model") if isinstance(content.get(k), Mapping)), content)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file} holds a {type(content).__name__}; expected a state dict (names to tensors)")
    if not content:
        raise WeightsError(f"{file} holds an empty state dict; expected the weights of a model")
    for name, value in content.items():
        _check_entry(name, value, file)
    return dict(content)


def read_metadata(path: PathLike) -> dict[str, str]:
    """The text metadata in a ``.safetensors`` file's header; empty where there is none."""
    check_regular(path, "the weights file", WeightsError)
    check_utf8(path, "the weights file", WeightsError)
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {first_line(error)}") from None


def groups_in(header: Mapping[str, str], uses: Sequence[str] = ("train", "validation")) -> set[str]:
    """The groups that weights were trained or chosen on, by their header; a WeightsError where it is unreadable."""
    try:
        return {str(group) for use in uses for group in json.loads(header.get(f"{use}_groups", "[]"))}
    except (TypeError, ValueError, RecursionError):
        raise WeightsError("the groups of training in a weights file's header are not a list of names") from None


def _read_safetensors(file: Path) -> object:
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{file} is not a readable safetensors file ({first_line(error)}): it may be truncated; fetch it again"
        ) from None


def _read_torch(file: Path) -> object:
    import torch

    if not zipfile.is_zipfile(file):  # torch's format before 1.6 reserves whatever size the file claims
        raise WeightsError(
            f"{file} is not a readable torch file: it may be truncated, or older than torch 1.6; fetch it again, save"
            " it again with torch.save, or give .safetensors"
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{file} is not a file of plain tensors: it is damaged, or its pickle asks to run code, which is refused."
            " Expected a state dict saved by torch.save, or .safetensors"
        ) from None
    except Exception as error:  # torch raises half a dozen kinds for a damaged archive
        raise WeightsError(
            f"{file} is not a readable torch file ({first_line(error)}): it may be truncated or of another kind; fetch"
            " it again, or give a .pt or .safetensors file of weights"
        ) from None


def _check_entry(name: object, value: object, file: Path) -> None:
    """Check that an entry of a state dict is a tensor with values, and that they lie in the file."""
    import torch

    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise WeightsError(
            f"{file} holds {name!r}, a {type(value).__name__}, where only tensors are expected; save the model's"
            " state_dict() alone"
        )
    plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not plain or value.numel() * value.element_size() > file.stat().st_size:
        raise WeightsError(
            f"{file} is damaged: {name} claims to be {_describe(value)}, {value.layout} on {value.device}, for which"
            " the file has no room; fetch it again"
        )


def write_state(
    path: PathLike,
    state: Mapping[str, Tensor],
    header: Mapping[str, str] | None = None,
    *,
    half: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a state dict and a header of text as safetensors, atomically; with ``half`` as float16."""
    from safetensors.torch import save

    tensors = {
        # Own copies: safetensors refuses tensors that share memory (token embedding and logit weights do).
        name: (value.half() if half and value.is_floating_point() else value).detach().cpu().clone().contiguous()
        for name, value in state.items()
    }
    # As bytes, not by safetensors' save_file, whose files only their owner may read.
    with atomic_write(path, overwrite=overwrite) as temporary:
        text = {k: str(value).encode(errors="backslashreplace").decode() for k, value in (header or {}).items()}
        temporary.write_bytes(_sorted_header(save(tensors, metadata=text)))


def _sorted_header(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted, which the library writes in another order in every process."""
    # The header's length (8 bytes), the header (JSON, padded to 8 bytes), and the numbers.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def substate(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, with the prefix taken off."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def load_strict(
    module: nn.Module, state: Mapping[str, Tensor], *, ignore_prefixes: Iterable[str] = (), what: str = "the checkpoint"
) -> None:
    """Load a state dict into a module so that every parameter and buffer comes from it.

    Values are copied in place and converted to the module's dtype and device. Extra entries are allowed under
    ``ignore_prefixes`` alone. Raises WeightsError, which calls the state ``what``, and leaves the module unchanged:
    entries are missing, unexpected, of another shape or kind, or hold numbers that are not finite; up to five of each
    are named.
    """
    wanted = module.state_dict()
    prefixes = tuple(ignore_prefixes)
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted and not name.startswith(prefixes)]
    misfits = [
        f"{name} {_describe(state[name])}, expected {_describe(value)}"
        for name, value in wanted.items()
        if name in state
        and (state[name].shape != value.shape or state[name].is_floating_point() != value.is_floating_point())
    ]
    endless = [] if misfits else [name for name in wanted if name in state and not _is_finite(state[name])]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misfits}
    found["with numbers that are not finite"] = endless
    problems = [
        f"{len(names)} {problem} ({', '.join(names[:_EXAMPLES])}{', ...' if len(names) > _EXAMPLES else ''})"
        for problem, names in found.items()
        if names
    ]
    if problems:
        raise WeightsError(f"{what} does not fit the model: {'; '.join(problems)}.{_hint(state, wanted)}")
    module.load_state_dict({name: state[name] for name in wanted}, strict=True)
    logger.info("loaded %s", what)


def _is_finite(tensor: Tensor) -> bool:
    """Whether every number is in float32 or less, as the sum is then and only then."""
    import torch

    tensor = tensor.float() if tensor.dtype == torch.float64 else tensor
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float64)))


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _hint(state: Mapping[str, Tensor], wanted: Collection[str]) -> str:
    """What the state seems to be instead, where that can be told."""
    found = Counter(name.removesuffix(own) for own in list(wanted)[:20] for name in state if name.endswith(f".{own}"))
    if found and not any(name in wanted for name in state):
        return f" Its names start with {found.most_common(1)[0][0]!r}: save the inner module's state dict instead."
    if any(name.startswith(("quant_proj.", "quantize.")) for name in state):
        return " This looks like a tokenizer's file."
    norm = state.get("encoder.0.norm1.weight")
    if norm is not None and norm.ndim == 1:
        dim = norm.shape[0]
        names = [v.name for v in VARIANTS.values() if v.dim == dim and not v.packaged]
        return f" This looks like {names[0]}: dim {dim}." if names else f" Its token dimension is {dim}."
    return ""
