"""Import a network of terratorch without the rest of it.

``import terratorch`` loads every data set, task and backbone it knows, which is most of the start of a short command.
The networks that are built here lie in modules that need none of that. Inside ``networks_only`` the packages above
them are empty stand-ins, so that only the modules asked for are executed; they are terratorch's own, under their own
names, and a later ``import terratorch`` finds them and loads the rest as ever.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# Packages whose __init__ imports what a single network does not need.
PACKAGES = (
    "terratorch",
    "terratorch.models",
    "terratorch.models.backbones",
    "terratorch.models.backbones.terramind",
)
_LOCK = threading.RLock()


@contextlib.contextmanager
def networks_only() -> Iterator[None]:
    """Skip the ``__init__`` of terratorch's packages for imports in this block; those already imported stay."""
    with _LOCK:
        spec = importlib.util.find_spec(PACKAGES[0]) if PACKAGES[0] not in sys.modules else None
        stand_ins: dict[str, ModuleType] = {}
        if spec is not None and spec.submodule_search_locations:
            root = Path(next(iter(spec.submodule_search_locations)))
            for name in PACKAGES:
                if name not in sys.modules:
                    stand_ins[name] = ModuleType(name)
                    stand_ins[name].__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules.update(stand_ins)
        try:
            yield
        finally:
            for name, module in stand_ins.items():
                if sys.modules.get(name) is module:
                    del sys.modules[name]
