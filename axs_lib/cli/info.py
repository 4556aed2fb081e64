"""``axs info``: what is installed, which variants there are, and where their weights would come from.

In: optionally one variant's name. Out: versions, devices, parameter counts, and for the weights that are here
their paths and hashes. It answers at once: torch and terratorch are not imported, the network is not asked.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from axs_lib.terramind.weights import Variant

Show = Callable[[str], None]

PACKAGES = ("torch", "terratorch", "diffusers", "rasterio", "numpy")

# Millions of parameters of (encoder-decoder, detokenizer) as this library runs them; tests count them again.
PARAMETERS = {
    "nano": (3.38, 2.37),
    "terramind_v1_tiny": (11.38, 196.95),
    "terramind_v1_small": (42.90, 196.95),
    "terramind_v1_base": (213.38, 196.95),
    "terramind_v1_large": (725.15, 196.95),
}


@dataclass(frozen=True)
class Weights:
    """Where a variant's weights would come from.

    Attributes:
        source: in words.
        files: the files that are here; empty where they would have to be fetched.
        complete: whether nothing would have to be fetched.
    """

    source: str
    files: tuple[Path, ...]
    complete: bool


def info(
    variant: Annotated[str | None, typer.Option(help="Only this variant, with its files and hashes.")] = None,
) -> None:
    """Show versions, variants and where their weights come from."""
    from rich.console import Console

    from axs_lib.terramind.weights import VARIANTS, find_variant

    console = Console(highlight=False)

    def show(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    if variant is not None:
        _show_variant(show, find_variant(variant))
        return
    from rich.table import Table

    _show_installation(show)
    table = Table("variant", "encoder-decoder", "detokenizer", "weights", box=None, pad_edge=False)
    for spec in VARIANTS.values():
        core, detokenizer = PARAMETERS[spec.name]
        table.add_row(spec.name, f"{core:.1f} M", f"{detokenizer:.1f} M", find_weights(spec).source)
    console.print()
    console.print(table)
    show("A variant that is not cached: axs weights download VARIANT")
    nano = find_weights(VARIANTS["nano"])
    console.print()
    for path in nano.files:
        _show_file(show, path)


def find_weights(spec: Variant) -> Weights:
    """Where the weights of a variant would come from now, without asking the network."""
    from axs_lib.errors import WeightsError
    from axs_lib.terramind.weights import WEIGHTS_VARIABLE, packaged

    if spec.packaged:
        try:
            return Weights("packaged", (packaged(spec.name),), True)
        except WeightsError:
            return Weights("packaged, and missing from this installation", (), False)
    if os.environ.get(WEIGHTS_VARIABLE):
        path = Path(os.environ[WEIGHTS_VARIABLE])
        here = path.exists()
        state = "" if here else " (does not exist)"
        return Weights(f"{WEIGHTS_VARIABLE}={path}{state}", (path,) if path.is_file() else (), here)
    return _hub_weights(spec)


def _hub_weights(spec: Variant) -> Weights:
    from huggingface_hub import try_to_load_from_cache

    wanted = [file for file in (spec.generator, spec.tokenizer) if file is not None]
    found = [try_to_load_from_cache(file.repo, file.name, revision=file.commit) for file in wanted]
    files = tuple(Path(path) for path in found if isinstance(path, str))
    if len(files) == len(wanted):
        return Weights("Hugging Face Hub, cached", files, True)
    if files:
        return Weights(f"Hugging Face Hub, {len(files)} of {len(wanted)} files cached", files, False)
    return Weights("Hugging Face Hub, not cached", files, False)


def _show_installation(show: Show) -> None:
    from axs_lib import __version__

    system = f"{platform.system()} {platform.machine()}"
    show(f"axion-sat {__version__}  python {platform.python_version()}  {system}")
    show("  ".join(f"{name} {_version(name)}" for name in PACKAGES))
    show(f"{os.cpu_count()} CPU cores, {_gpus()}")


def _show_variant(show: Show, spec: Variant) -> None:
    core, detokenizer = PARAMETERS[spec.name]
    weights = find_weights(spec)
    show(f"{spec.name}: {core:.1f} M encoder-decoder + {detokenizer:.1f} M detokenizer parameters")
    show(f"weights: {weights.source}")
    for file in (spec.generator, spec.tokenizer):
        if file is not None:
            show(f"  {file.repo}/{file.name}")
            show(f"    commit {file.commit or 'not pinned'}, sha256 {file.sha256 or 'not known'}")
    for path in weights.files:
        _show_file(show, path)


def _show_file(show: Show, path: Path) -> None:
    from axs_lib.terramind.weights import sha256_file

    show(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    show(f"  sha256 {sha256_file(path)}")


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> str:
    """NVIDIA GPUs as the driver lists them; asking torch would take seconds."""
    folder = Path("/proc/driver/nvidia/gpus")
    names = []
    for description in sorted(folder.glob("*/information")):
        lines = description.read_text(encoding="utf-8", errors="replace").splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return ", ".join(names) if names else "no NVIDIA GPU seen"
