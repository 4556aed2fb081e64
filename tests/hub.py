"""A stand-in for the Hugging Face Hub: uploads go into a folder laid out as the Hub's cache is.

The tests run with the Hub offline, where the real client reads that very layout, revisions included; only the upload is
replaced.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


class LocalHub:
    """Repositories in a folder; ``cache`` is what ``cache_dir=`` takes."""

    def __init__(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = cache
        monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", lambda **_: self)

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str | None = None, **_: Any) -> str:
        files = sorted(path for path in Path(folder_path).rglob("*") if path.is_file())
        commit = hashlib.sha1(b"".join(path.read_bytes() for path in files)).hexdigest()
        home = self.cache / f"models--{repo_id.replace('/', '--')}"
        if not (home / "snapshots" / commit).exists():
            shutil.copytree(folder_path, home / "snapshots" / commit)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / (revision or "main")).write_text(commit)
        return commit

    def snapshot(self, repo_id: str, commit: str) -> Path:
        """The files of a commit."""
        return self.cache / f"models--{repo_id.replace('/', '--')}" / "snapshots" / commit
