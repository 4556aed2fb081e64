"""The user's document, ``user_document.md``: its code blocks by the heading above them."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).with_name("user_document.md").read_text(encoding="utf-8")


def snippet(heading: str) -> str:
    """The first code block below a heading, word for word."""
    last = ""
    for title, code in re.findall(r"^#+ (.+?)$|^```\w*\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL):
        if code and last == heading:
            return str(code)
        last = title or last
    raise KeyError(heading)
