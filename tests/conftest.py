"""What all tests share: no network, no user settings, one torch thread a worker, the real tile pairs if there."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.published import Published

ROOT = Path(__file__).resolve().parents[1]

# Before anything imports huggingface_hub: it reads these once. An empty home hides the developer's own downloads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="axs-tests-hub-")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests compare with the whole of terratorch, which imports two packages that ask the network for their newest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")

# Models make an example slow without making it wrong; the same examples are drawn in every run.
allowed = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("axs", deadline=None, derandomize=True, database=None, suppress_health_check=allowed)
settings.load_profile("axs")


@pytest.fixture(scope="session", autouse=True)
def _one_thread_a_worker() -> None:
    """Workers that share the cores get in each other's way with more threads than that."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not see the weights that a user has pointed to."""
    monkeypatch.delenv("AXS_WEIGHTS", raising=False)


@pytest.fixture(autouse=True)
def _full_products_and_equal_draws() -> None:
    """A test's ``import terratorch`` lets products be made in bfloat16; neither that nor its draws reach the next."""
    if "torch" in sys.modules:
        import torch

        torch.set_float32_matmul_precision("highest")
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def published_tiny(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The smallest published variant with random weights; costly, so its tests share one worker ("published")."""
    from tests.published import publish

    return publish("terramind_v1_tiny", tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="session")
def shared_pairs() -> Path:
    """Folder of real co-registered pairs (``index.csv`` and ``pairs/``), not part of the repository."""
    folder = Path(os.environ.get("AXS_PAIRS", ROOT.parent / "shared" / "data"))
    if not (folder / "index.csv").is_file():
        pytest.skip(f"no real pairs in {folder}; set AXS_PAIRS to their folder")
    return folder
