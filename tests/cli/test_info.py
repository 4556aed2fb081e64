"""``axs info`` tells what is there, at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from axs_lib.cli import info
from axs_lib.terramind.weights import VARIANTS

from .conftest import Run


def test_it_lists_versions_and_variants(axs: Run) -> None:
    result = axs("info")
    files = ("nano.safetensors", "nano_stage2.safetensors", "grounding.safetensors")
    for word in ("axion-sat", "python", "torch", "terratorch", "CPU cores", *VARIANTS, *files):
        assert word in result.output


def test_one_variant_shows_its_files(axs: Run) -> None:
    result = axs("info", "--variant", "terramind_v1_tiny")
    assert "TerraMind_v1_tiny.pt" in result.output and "not cached" in result.output
    assert "e56ea9ebcd4451078b9ca4893d5cd8a89bbee376ae16829c3e7fbbbc76de0eba" in result.output


def test_local_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AXS_WEIGHTS", str(tmp_path))
    assert info.find_weights(VARIANTS["terramind_v1_base"])[0] == f"AXS_WEIGHTS={tmp_path}"
    monkeypatch.setenv("AXS_WEIGHTS", str(tmp_path / "gone"))
    assert "does not exist" in info.find_weights(VARIANTS["terramind_v1_base"])[0]


def test_cached_files_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    cached = {"TerraMind_v1_tiny.pt": str(tmp_path / "a")}

    def look(repo: str, name: str, **_: object) -> str | None:
        return cached.get(name)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look)
    assert "1 of 2 files cached" in info.find_weights(VARIANTS["terramind_v1_tiny"])[0]
    cached["TerraMind_Tokenizer_S2L2A.pt"] = str(tmp_path / "b")
    assert info.find_weights(VARIANTS["terramind_v1_tiny"])[0].endswith("Hub, cached")
