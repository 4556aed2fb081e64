"""terratorch's networks without the rest of terratorch: ``from axs_lib.networks.terramind import ...``.

``import terratorch`` loads every data set, task and backbone that it knows, which takes ten seconds, lowers the
precision of all float32 products in the process, and draws from the global random state. The networks' own modules need
none of that. This package looks for its submodules in the folders of the installed terratorch, so they load as ordinary
modules under names of this package. ``terratorch`` itself is not imported, and stays as it is where somebody else
imports it. Models pickle by these names, so a worker process does not import terratorch either.

Submodules, all terratorch's: ``terramind`` (encoder and decoder), ``tm_utils``, ``encoder_embeddings``,
``decoder_embeddings``, ``quantize_finite_scalar`` (the codebook), ``vit_models`` (the tokenizer's encoder) and
``prithvi_mae`` (Stage 2's backbone).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_FOLDERS = ("terramind/model", "terramind/tokenizer/quantizers", "terramind/tokenizer/models", "")


def _folders() -> list[str]:
    spec = find_spec("terratorch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("terratorch is not installed; pip install 'terratorch>=1.2.11'")
    backbones = Path(spec.origin).parent / "models" / "backbones"
    return [str(backbones / folder) for folder in _FOLDERS]


__path__ += _folders()
