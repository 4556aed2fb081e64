"""Models whose figures are known, and a folder of tiles whose SAR determines their NIR."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from axs_lib.evaluate import Scenario, evaluate
from axs_lib.grounding.large import NO_CONTROLS, GroundingControls

CPU = torch.device("cpu")


def copy(s1: Tensor, opt_v2: Tensor) -> Tensor:
    return opt_v2


def follow_sar(s1: Tensor, opt_v2: Tensor) -> Tensor:
    """NIR as the SAR of ``tile`` has it."""
    image = opt_v2.clone()
    image[:, 3] = 10 ** ((s1[:, 0] + 5) / 10) * 10_000
    return image


@dataclass(eq=False)
class FakeModel:
    """Grounds with a function of (s1, opt_v2) and records how it was called.

    Its proposal is ``propose(s1)``; a proposal that it is given is added to what it returns. Without the SAR's content
    it meets -10 dB everywhere.
    """

    correct: Callable[[Tensor, Tensor], Tensor] = copy
    propose: Callable[[Tensor], Tensor] = lambda s1: torch.zeros(len(s1), 4, *s1.shape[-2:])
    uncertainty: float | None = None
    timesteps: int = 10
    device: torch.device = CPU
    provenance: dict[str, str] = field(default_factory=lambda: {"AXS_VARIANT": "fake"})
    calls: list[SimpleNamespace] = field(default_factory=list)
    terramind_generator: Any = field(
        default_factory=lambda: SimpleNamespace(sar=SimpleNamespace(mean=torch.tensor([-12.0, -20.0]).view(1, 2, 1, 1)))
    )

    def ground(
        self,
        s1: Tensor,
        opt_v2: Tensor,
        timesteps: int | None = None,
        *,
        seed: int = 0,
        trust: Tensor | None = None,
        ensemble_size: int = 1,
        controls: GroundingControls = NO_CONTROLS,
    ) -> Any:
        assert not torch.is_grad_enabled()
        proposal, use_sar = controls.proposal, controls.use_sar
        settings = {"timesteps": timesteps, "seed": seed, "ensemble_size": ensemble_size, "use_sar": use_sar}
        self.calls.append(SimpleNamespace(s1=s1, opt_v2=opt_v2, trust=trust, proposal=proposal, **settings))
        image = self.correct(s1 if use_sar else torch.full_like(s1, -10.0), opt_v2)
        deviation = None if self.uncertainty is None else torch.full_like(image, self.uncertainty)
        if proposal is not None:
            assert bool(proposal.isfinite().all())
            return SimpleNamespace(image=image + proposal, proposal=proposal, nfe=0, uncertainty=deviation)
        nfe = self.timesteps if timesteps is None else timesteps
        return SimpleNamespace(image=image, proposal=self.propose(s1), nfe=nfe, uncertainty=deviation)


@dataclass
class FakePlain:
    """A plain network that gives opt_v2 back, one colour where nothing is known, or 1000 DN where it is given none."""

    inputs: str
    value: float = 1000.0

    def predict(self, s1: Tensor, opt_v2: Tensor | None = None, trust: Tensor | None = None) -> Tensor:
        assert (opt_v2 is not None) == ("optical" in self.inputs)
        flat = torch.full((len(s1), 4, *s1.shape[-2:]), self.value)
        if opt_v2 is None:
            return flat
        return opt_v2 if trust is None else torch.where(trust == 1, opt_v2, flat)


@dataclass
class FakePipeline:
    """Draws 1000 DN, refines to 2000 DN, and grounds with ``follow_sar``."""

    stage3: FakeModel = field(default_factory=lambda: FakeModel(follow_sar))
    uncertainty: float | None = None
    metadata: list[Mapping[str, object]] = field(default_factory=list)
    asked: list[tuple[int | None, int]] = field(default_factory=list)
    device: torch.device = CPU
    provenance: dict[str, str] = field(default_factory=lambda: {"AXS_STAGE2_VARIANT": "fake"})

    def __call__(
        self, s1: Tensor, metadata: Any = None, timesteps: int | None = None, *, seed: int = 0, ensemble_size: int = 1
    ) -> Any:
        assert not torch.is_grad_enabled()
        self.metadata += metadata
        self.asked.append((timesteps, seed))
        drawn = torch.full((len(s1), 4, *s1.shape[-2:]), 1000.0)
        deviation = None if self.uncertainty is None else torch.full_like(drawn, self.uncertainty)
        return SimpleNamespace(
            opt_v1=drawn, opt_v2=drawn * 2, opt_v3=follow_sar(s1, drawn * 2), nfe=(12, 10), uncertainty=deviation
        )


def tile(rng: np.random.Generator, side: int) -> dict[str, np.ndarray]:
    """A tile whose SAR tells its NIR: VV = 10 log10(B08 / 10000) - 5."""
    coarse = rng.integers(800, 4000, (4, side // 8, side // 8))
    s2 = coarse.repeat(8, 1).repeat(8, 2).astype(np.uint16)
    vv = 10 * np.log10(s2[3] / 10_000) - 5
    return {"s1": np.stack([vv, vv - 6]).astype(np.float32), "s2": s2}


def outcome(model: Any, folder: Path, scenario: Scenario, **options: Any) -> dict[str, Any]:
    """What ``axs evaluate --json`` would write of one scenario."""
    report = evaluate(model, folder, [scenario], **options).to_json()
    written: dict[str, Any] = json.loads(json.dumps(report, allow_nan=False))
    return written[scenario.name] if scenario.name else written


def shown(tables: Iterable[Any], width: int = 160) -> str:
    """The text of tables on a terminal of this width."""
    console = Console(file=io.StringIO(), width=width)
    for table in tables:
        console.print(table, crop=False)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]
