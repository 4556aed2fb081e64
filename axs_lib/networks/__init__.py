"""terratorch's networks without the rest of terratorch: ``from axs_lib.networks.terramind import ...``.

``import terratorch`` loads every data set, task and backbone that it knows, which takes ten seconds, lowers the
precision of all float32 products in the process, and draws from the global random state. This package looks for its
submodules in the folders of the installed terratorch, so its networks (``terramind``, ``vit_models``, ``prithvi_mae``
and their parts) load as ordinary modules under names of this package, by which models pickle, too.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_FOLDERS = ("terramind/model", "terramind/tokenizer/quantizers", "terramind/tokenizer/models", "")

_spec = find_spec("terratorch")
if _spec is None or _spec.origin is None:
    raise ModuleNotFoundError("terratorch is not installed; pip install 'terratorch>=1.2.11'")
__path__ += [str(Path(_spec.origin).parent / "models" / "backbones" / folder) for folder in _FOLDERS]
