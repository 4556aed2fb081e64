"""MkDocs hook: ``{{ axs_lib.module.name }}`` on a line of its own becomes that docstring, its tables as they are.

In: the Markdown of a page. Out: the same with the docstrings of modules, functions and methods as text blocks. The
source is parsed, not imported, so the site builds without torch.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def docstring(name: str) -> str:
    """The docstring of ``axs_lib.module``, ``axs_lib.module.function`` or ``axs_lib.module.Class.method``."""
    parts, inner = name.split("."), list[str]()
    while not (file := ROOT.joinpath(*parts).with_suffix(".py")).is_file():
        inner.insert(0, parts.pop())
    node: Any = ast.parse(file.read_text(encoding="utf-8"))
    for each in inner:
        node = next(child for child in node.body if getattr(child, "name", None) == each)
    text = ast.get_docstring(node)
    if text is None:
        raise ValueError(f"{name} has no docstring")
    return inspect.cleandoc(text)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its docstrings."""
    return re.sub(
        r"^\{\{ (axs_lib[\w.]+) \}\}$",
        lambda match: f"`{match[1]}`\n\n```text\n{docstring(match[1])}\n```",
        markdown,
        flags=re.MULTILINE,
    )
