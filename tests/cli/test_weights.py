"""``axs weights`` prints what a user needs to find, check and use the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from axs_lib.terramind.weights import resolve, sha256_file
from tests.hub import COMMIT, serve_files

from .conftest import Run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the Hub; gives the folder of its cache."""
    names = ("TerraMind_v1_base.pt", "TerraMind_v1_large.pt", "TerraMind_Tokenizer_S2L2A.pt")
    serve_files(monkeypatch, tmp_path / "cache", {name: name.encode() for name in names})
    return tmp_path / "cache"


def test_download_to_a_folder_is_found(axs: Run, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "my weights"
    result = axs("weights", "download", "terramind_v1_base", "--to", target)
    for name in ("TerraMind_v1_base.pt", "TerraMind_Tokenizer_S2L2A.pt"):
        assert str(target / name) in result.output and sha256_file(target / name) in result.output
    assert f"export AXS_WEIGHTS='{target}'" in result.output

    monkeypatch.setenv("AXS_WEIGHTS", str(target))
    assert resolve("terramind_v1_base").generator == target / "TerraMind_v1_base.pt"


def test_download_to_the_cache_prints_the_commit(axs: Run, hub: Path) -> None:
    result = axs("weights", "download", "terramind_v1_large")
    assert f"commit {COMMIT}" in result.output and "AXS_WEIGHTS" not in result.output
    assert list(hub.rglob("TerraMind_v1_large.pt"))


def test_what_cannot_be_downloaded(axs: Run, hub: Path) -> None:
    assert "nothing to download" in axs("weights", "download", "nano").output and not hub.exists()
    assert "unknown variant 'terramind'" in axs("weights", "download", "terramind", code=2).stderr


def test_list_names_every_variant_and_its_repository(axs: Run) -> None:
    output = axs("weights", "list").output
    for expected in ("nano", "in this package", "ibm-esa-geospatial/TerraMind-1.0-tiny/TerraMind_v1_tiny.pt"):
        assert expected in output
    assert "ibm-nasa-geospatial/Prithvi-EO-2.0-300M-TL/Prithvi_EO_V2_300M_TL.pt" in output
