"""Stand-ins for the Hugging Face Hub: uploads go into a folder laid out as its cache is, downloads come from a dict.

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
from huggingface_hub.errors import LocalEntryNotFoundError


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


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def serve_files(
    monkeypatch: pytest.MonkeyPatch, cache: Path, files: dict[str, bytes], commit: str = COMMIT, cached: bool = False
) -> list[dict[str, object]]:
    """Serve files by name in the layout of the cache, or to a folder; the list notes what is asked for."""
    asked: list[dict[str, object]] = []

    def fetch(
        repo: str, name: str, revision: str | None = None, local_dir: Path | None = None, local_files_only: bool = False
    ) -> str:
        asked.append({"repo": repo, "name": name, "revision": revision, "local": local_files_only})
        if local_files_only and not cached:
            raise LocalEntryNotFoundError("not in the cache")
        place = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
        if local_dir is not None:
            place = local_dir
            note = local_dir / ".cache" / "huggingface" / "download" / f"{name}.metadata"
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(f"{commit}\netag\n0.0\n")
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(files[name])
        return str(place / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: None)
    return asked
