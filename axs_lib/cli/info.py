"""``axs info``: versions, variants and where their weights would come from, at once: without torch and the network."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from axs_lib.terramind.weights import Variant

PACKAGES = ("torch", "terratorch", "diffusers", "rasterio", "numpy")

# Millions of parameters of (encoder-decoder, detokenizer) as this library runs them; tests count them again.
PARAMETERS = {
    "nano": (3.38, 2.37),
    "terramind_v1_tiny": (11.38, 196.95),
    "terramind_v1_small": (42.90, 196.95),
    "terramind_v1_base": (213.38, 196.95),
    "terramind_v1_large": (725.15, 196.95),
}


def info(variant: Annotated[str | None, typer.Option(help="Only this variant, with files and hashes.")] = None) -> None:
    """Show versions, variants and where their weights come from."""
    from importlib.metadata import version

    from rich.console import Console
    from rich.filesize import decimal

    from axs_lib import __version__
    from axs_lib.terramind.weights import VARIANTS, find_variant, sha256_file

    console = Console(highlight=False, markup=False, soft_wrap=True)
    spec = find_variant(variant or "nano")
    source, here = find_weights(spec)
    if variant is not None:
        core, detokenizer = PARAMETERS[spec.name]
        console.print(f"{spec.name}: {core:.1f} M encoder-decoder + {detokenizer:.1f} M detokenizer parameters")
        console.print(f"weights: {source}")
        for file in spec.published:
            console.print(f"  {file.repo}/{file.name}")
            console.print(f"    commit {file.commit or 'not pinned'}, sha256 {file.sha256 or 'not known'}")
    else:
        from rich.table import Table

        system = f"{platform.system()} {platform.machine()}"
        console.print(f"axion-sat {__version__}  python {platform.python_version()}  {system}")
        console.print("  ".join(f"{name} {version(name)}" for name in PACKAGES))
        console.print(f"{os.cpu_count()} CPU cores, {_gpus()}\n")
        table = Table("variant", "encoder-decoder", "detokenizer", "weights", box=None, pad_edge=False)
        for each in VARIANTS.values():
            core, detokenizer = PARAMETERS[each.name]
            table.add_row(each.name, f"{core:.1f} M", f"{detokenizer:.1f} M", find_weights(each)[0])
        console.print(table, soft_wrap=False)
        console.print("A variant that is not cached: axs weights download VARIANT\n")
    for path in here:
        console.print(f"{path}  {decimal(path.stat().st_size)}\n  sha256 {sha256_file(path)}")


def find_weights(spec: Variant) -> tuple[str, list[Path]]:
    """Where a variant's weights would come from, in words, and its files that are here; the network is not asked."""
    from axs_lib.errors import WeightsError
    from axs_lib.terramind.weights import WEIGHTS_VARIABLE, packaged

    if spec.packaged:
        try:
            return "packaged", [packaged(name) for name in (spec.name, f"{spec.name}_stage2", "grounding")]
        except WeightsError:
            return "packaged, and missing from this installation", []
    if os.environ.get(WEIGHTS_VARIABLE):
        path = Path(os.environ[WEIGHTS_VARIABLE])
        state = "" if path.exists() else " (does not exist)"
        return f"{WEIGHTS_VARIABLE}={path}{state}", [path] if path.is_file() else []
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(file.repo, file.name, revision=file.commit) for file in spec.published]
    files = [Path(path) for path in found if isinstance(path, str)]
    if files and len(files) < len(found):
        return f"Hugging Face Hub, {len(files)} of {len(found)} files cached", files
    return f"Hugging Face Hub, {'cached' if files else 'not cached'}", files


def _gpus() -> str:
    """NVIDIA GPUs as the driver lists them; asking torch would take seconds."""
    folder = Path("/proc/driver/nvidia/gpus")
    names = []
    for description in sorted(folder.glob("*/information")):
        lines = description.read_text(encoding="utf-8", errors="replace").splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return ", ".join(names) if names else "no NVIDIA GPU seen"
