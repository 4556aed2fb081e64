"""List the SHA-256 of the packaged weights, against which they are checked whenever they are loaded.

Usage: python experiments/hash_weights.py [FOLDER]

Writes ``SHA256SUMS`` beside the ``.safetensors`` files of the folder (``axs_lib/weights``), in the format that
``sha256sum --check`` reads. Run it after replacing a packaged file, and look at the difference before you commit it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from axs_lib.io.atomic import atomic_write
from axs_lib.terramind.weights import HASH_LIST, sha256_file

WEIGHTS = Path(__file__).resolve().parents[1] / "axs_lib" / "weights"


def write_hashes(folder: Path) -> Path:
    """Write the list for every ``.safetensors`` file of a folder."""
    lines = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(folder.glob("*.safetensors"))]
    with atomic_write(folder / HASH_LIST, overwrite=True) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    return folder / HASH_LIST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=WEIGHTS)
    print(write_hashes(parser.parse_args().folder).read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
