"""The package installs as promised: one version, typed, light to import, quiet on the network, documented commands."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import axs_lib

IMPORT_NAMES = {"pillow": "PIL", "odc-stac": "odc", "pystac-client": "pystac_client", "pyyaml": "yaml"}
HEAVY = ("torch", "terratorch", "diffusers", "rasterio", "matplotlib", "lightning", "transformers")


def _python(code: str, repository: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=repository, check=True, capture_output=True, text=True, timeout=300
    ).stdout


def test_one_version(repository: Path) -> None:
    assert importlib.metadata.version("axion-sat") == axs_lib.__version__
    assert f"## {axs_lib.__version__}" in (repository / "CHANGELOG.md").read_text(encoding="utf-8")


def test_installed_command_is_the_declared_one() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name="axs")
    assert [script.value for script in scripts] == ["axs_lib.cli.app:main"]
    assert callable(next(iter(scripts)).load())


@pytest.mark.parametrize("module", ["axs_lib", "axs_lib.cli.app", "axs_lib.bands", "axs_lib.errors"])
def test_import_is_light(repository: Path, module: str) -> None:
    loaded = _python(f"import sys, {module}; print(*sys.modules)", repository).split()
    assert module in loaded and not set(HEAVY) & set(loaded)


@pytest.mark.parametrize(("word", "expected"), [("--help", ("ground", "demo")), ("info", ("nano",))])
def test_what_is_quick_is_light(repository: Path, word: str, expected: tuple[str, ...]) -> None:
    code = (
        f"import atexit, sys; from axs_lib.cli.app import main; sys.argv = ['axs', {word!r}]\n"
        "atexit.register(lambda: print('MODULES', *sys.modules)); main()"
    )
    shown, _, loaded = _python(code, repository).partition("MODULES")
    assert all(each in shown for each in expected) and not set(HEAVY) & set(loaded.split())


def test_every_module_of_ours_that_is_imported_is_declared(repository: Path) -> None:
    """A package that is here only because another one brought it may be gone tomorrow."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["stac"]
    declared = {IMPORT_NAMES.get(name, name) for d in needed if (name := re.split(r"[<>=\[ ]", d)[0])}
    imported: set[str] = set()
    for file in (repository / "axs_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"axs_lib"}
    assert foreign <= declared
    # torchvision is named only so that it is resolved together with torch, torchgeo with terratorch, tensorboard for
    # Lightning's logger; terratorch's networks are loaded from its folders by ``axs_lib.networks``.
    assert declared - foreign <= {"torchvision", "torchgeo", "tensorboard", "terratorch"}


def test_package_data_is_not_ignored(repository: Path) -> None:
    """What git ignores, the wheel leaves out: weights and samples must not be among it."""
    inside = [str(f.relative_to(repository)) for f in (repository / "axs_lib").rglob("*") if f.is_file()]
    wanted = [name for name in inside if "__pycache__" not in name]
    assert "axs_lib/py.typed" in wanted
    if not (repository / ".git").exists():
        return
    ignored = subprocess.run(
        ["git", "check-ignore", "--stdin"], cwd=repository, input="\n".join(wanted), capture_output=True, text=True
    )
    assert ignored.stdout == ""


def test_make_has_the_two_commands_of_the_readme(repository: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"demo", "test", "lint", "types"} <= set(targets)
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme


def test_tests_and_files_named_in_the_documentation_exist(repository: Path) -> None:
    tests = {
        node.name
        for file in (repository / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    for page in (*(repository / "docs").glob("*.md"), repository / "SECURITY.md"):
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"`(test_\w+)`", text)) <= tests, page.name
        for name in re.findall(r"`((?:axs_lib|benchmarks|tests|experiments)/[\w/.]+\.\w+)`", text):
            assert (repository / name).exists(), f"{page.name} names {name}"
