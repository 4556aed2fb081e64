"""What the tests of training share: small folders of plausible pairs, random nano weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from axs_lib.grounding.load import CORRECTOR_FILE
from axs_lib.terramind.build import build_nano_tokenizer
from axs_lib.terramind.weights import write_state
from tests.models import plausible_pair, random_nano


def write_pairs(folder: Path, count: int = 4, side: int = 72, **extra: np.ndarray) -> Path:
    """``count`` NPZ pairs, each a group of its own, with an index; ``extra`` arrays go into every file."""
    target = folder / "pairs" / "src"
    target.mkdir(parents=True)
    lines = ["source,id,group,quality,h,w,date,lat,lon"]
    for number in range(count):
        s1, s2 = (image[0].numpy() for image in plausible_pair(1, side, side, seed=number))
        np.savez(target / f"t{number}.npz", s1=s1, s2=s2.round().astype(np.uint16), **extra)
        lines.append(f"src,t{number},g{number},ok,{side},{side},2018-0{number % 9 + 1}-15,48.{number},12.5")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder of four pairs."""
    return write_pairs(tmp_path / "data")


@pytest.fixture(scope="session")
def nano_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nano file with random weights, none of them zero, and a grounding head beside it."""
    model = random_nano()
    model.corrector.head.levelled.fill_(1.0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tokenizer = build_nano_tokenizer()
    generator = model.terramind_generator
    parts = {"core": generator.core, "detokenizer": generator.detokenizer, "tokenizer": tokenizer}
    state = {f"{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    write_state(path, state, {"variant": "nano"}, half=True)
    write_state(path.with_name(CORRECTOR_FILE), model.corrector.state_dict(), half=True)
    return path
