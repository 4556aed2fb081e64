"""The documentation holds together: links and anchors, pages of the site, code blocks, commands and doctests."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from axs_lib.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
TOP = ("README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / name for name in TOP)])
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r'--8<-- "([^":]+)(?::(\w+))?"')
DOCSTRING = re.compile(r"^\{\{ ([\w.]+) \}\}$", re.MULTILINE)
# Names that snippets take for given, as a reader has them: a tile and models.
GIVEN = """
import torch
from axs_lib.data.samples import load_sample
from axs_lib.stage3_tm_ground import build_stage3_model, stage3_inference
s1, opt_v2 = (torch.from_numpy(raster.batch) for raster in load_sample("ireland_fields"))
opt_v1 = opt_v2
model = build_stage3_model(timesteps=1, variant="nano")
output = model.ground(s1, opt_v2)
"""
# Pages whose Python runs as it stands, one block after the other; the others need files, a GPU or published weights.
RUNS = ("gaps", "hub", "report", "stage2", "tutorial")
MOST_LINES = 1100
DOCTESTED = sorted(file for file in (ROOT / "axs_lib").rglob("*.py") if ">>> " in file.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(page: Path) -> str:
    """A page with what it includes."""

    def included(match: re.Match[str]) -> str:
        text = (ROOT / match[1]).read_text(encoding="utf-8")
        return text.split(f"[start:{match[2]}]")[1].split(f"[end:{match[2]}]")[0] if match[2] else text

    return SNIPPET.sub(included, page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, spelled as Markdown's table of contents and GitHub do."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_resolves(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{name(page)} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{name(page)} links to {target}; it has {sorted(anchors(file))}"


def test_the_site_has_every_page_once() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("nav:")[1].split("plugins:")[0]
    listed = re.findall(r"([\w/]+\.md)", navigation)
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_modules_that_pages_document_exist() -> None:
    for page in PAGES:
        for module in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), f"{name(page)} documents {module}"


def test_docstrings_that_pages_show_exist() -> None:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    shown = [found for page in PAGES for found in DOCSTRING.findall(page.read_text(encoding="utf-8"))]
    assert len(shown) >= 10
    assert all(len(hooks.docstring(found)) > 80 for found in shown)


def test_the_guides_are_short() -> None:
    assert sum(len(page.read_text().splitlines()) for page in (ROOT / "docs").glob("*.md")) <= MOST_LINES


@pytest.mark.parametrize("page", RUNS)
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(GIVEN, names)
    blocks = FENCE.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
    code = [block for language, block in blocks if language == "python"]
    assert code
    for block in code:
        exec(block, names)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_parse_and_import_what_exists(page: Path) -> None:
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        indent = len(block) - len(block.lstrip(" "))
        code = "\n".join(line[indent:] for line in block.splitlines())
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("axs_lib"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{name(page)}: {node.module} has no {alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist_with_their_options(page: Path) -> None:
    helps: dict[tuple[str, ...], str] = {}
    for _, block in FENCE.findall(page.read_text(encoding="utf-8")):
        for line in re.sub(r" *\\\n *", " ", block).splitlines():
            words = shlex.split(line, comments=True) if line.strip().startswith("axs ") else []
            # The options of `axs train` are its configuration's own, checked when it runs.
            if not words or words[1] == "train":
                continue
            command = tuple(words[1:3] if words[1] == "weights" else words[1:2])
            if command not in helps:
                helps[command] = CliRunner().invoke(app, [*command, "--help"], terminal_width=200).output
            for word in words[2:]:
                option = word.split("=")[0]
                assert not option.startswith("--") or option in helps[command], f"{name(page)}: {line}"


def test_no_two_commands_write_one_file() -> None:
    """Who follows the pages in order meets no output that exists already; batches and training runs go on."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    lines = [line for _, block in FENCE.findall(text) for line in re.sub(r" *\\\n *", " ", block).splitlines()]
    lines = [line for line in lines if re.match("axs (ground|run|report|evaluate|fetch)", line)]
    written = [file for line in lines for file in re.findall(r"--(?:out|json|stac) (\S+)", line)]
    assert len(written) > 20 and sorted(written) == sorted(set(written))


@pytest.mark.parametrize("file", DOCTESTED, ids=name)
def test_every_doctest_runs(file: Path) -> None:
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    failed, attempted = doctest.testmod(module, raise_on_error=False)
    assert attempted > 0 and failed == 0
