"""The house: which package may import which, no circle, nothing private across modules, one class of a name."""

from __future__ import annotations

import ast
import collections
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "axs_lib"

# A part may import itself and what stands in its row. Parts are the packages and top-level modules.
CORE = {
    "axs_lib", "bands", "blur", "checks", "errors", "nodata", "tilegrid", "progress", "metrics", "fresh",
    "precision",
}  # fmt: skip
FILES = CORE | {"io", "data"}
NETWORKS = CORE | {"networks", "terramind", "prithvi", "grounding"}
STAGES = NETWORKS | {
    "models", "hub", "stage1_tm_s2o", "stage2_prithvi_refine", "stage3_tm_ground", "stage2_losses", "stage3_losses",
    "pipeline", "adapters",
}  # fmt: skip
ALLOWED: dict[str, set[str]] = {
    **{part: CORE for part in CORE},
    "io": CORE,
    "data": CORE | {"io"},
    "networks": CORE,
    "terramind": CORE | {"io", "networks"},
    "prithvi": CORE | {"io", "terramind", "networks"},
    "grounding": CORE | {"io", "terramind"},
    **{part: STAGES | {"io"} for part in STAGES - NETWORKS},
    "scenes": STAGES | {"io", "data"},
    "batch": STAGES | FILES | {"scenes"},
    "evaluate": STAGES | FILES | {"scenes"},
    "train": STAGES | FILES | {"evaluate"},
    "cli": STAGES | FILES | {"scenes", "batch", "evaluate", "train"},
    "__main__": {"cli"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[str, str | None]]:
    """The modules of the package that a module imports when it runs, also inside functions, and the names it takes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            assert node.module is not None and node.level == 0
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                # What ``networks`` loads of terratorch has no file here; it counts as the package.
                module = node.module if node.module in known else node.module.rpartition(".")[0]
                yield (inner, None) if inner in known else (module, alias.name)


def part_of(module: str) -> str:
    """The package or top-level module that a module belongs to."""
    return module.split(".")[1] if "." in module else module


def arrows() -> dict[str, set[str]]:
    """The modules of the package that each one imports; Stage 3's own command line aside."""
    known = modules()
    own = f"{PACKAGE}.stage3_tm_ground"
    return {
        name: {other for other, _ in imports(path, known) if name != own or part_of(other) != "cli"}
        for name, path in known.items()
    }


def test_arrows_go_one_way() -> None:
    known = modules()
    assert {part_of(name) for name in known} <= set(ALLOWED)
    wrong = {
        f"{part_of(name)} -> {part_of(other)}: {name} imports {other}"
        for name, others in arrows().items()
        for other in others
        if part_of(other) not in ALLOWED[part_of(name)] | {part_of(name)} and known[name].name != "__init__.py"
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_there_is_no_circle() -> None:
    known = set(modules())
    # Raises CycleError, which shows the circle.
    graphlib.TopologicalSorter({name: (others & known) - {name} for name, others in arrows().items()}).prepare()


def test_nothing_private_is_imported_across_modules() -> None:
    known = modules()
    taken = {
        f"{name}: {other}.{what}"
        for name, path in known.items()
        for other, what in imports(path, known)
        if what is not None and what.startswith("_") and not what.startswith("__")
    }
    assert not taken, "\n".join(sorted(taken))


def test_every_warning_is_of_a_class_of_ours() -> None:
    """The command line shows no other."""
    text = "".join(path.read_text(encoding="utf-8") for path in modules().values())
    calls = re.findall(r"warnings\.warn\((.+?)stacklevel", text, re.DOTALL)
    assert len(calls) > 9 and all(re.search(r"\w+Warning,\s+$", call) for call in calls)


def test_no_two_classes_have_one_name() -> None:
    places = collections.defaultdict(list)
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not twice, twice


@pytest.mark.parametrize(
    "pattern",
    [
        r"torch\.ops\.(onednn|mkldnn)",
        r"__class__\s*=",
        r"torch\.cpu\._",
        r"allow_pickle\s*=\s*True",
        r"weights_only\s*=\s*False",
        r"torch\.manual_seed\(",
        r"\brandom\.seed\(",
        r"^\s*torch\.set_float32_matmul_precision|fp32_precision\s*=",
    ],
)
def test_what_the_package_never_does(pattern: str) -> None:
    """Private functions of torch, pickle, and switches or random states that are the process's."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in modules().values()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, "\n".join(found)
