"""Choose a grounding head on the validation groups: every kind of estimate, gaps, floods, SAR alone, predicted error.

The cases (estimate, proposal, SAR) of every tile are made once and kept (``--cases``), so that a head costs a minute:

    python experiments/choose_head.py --data DIR --cases runs/cases.pt runs/head/grounding.safetensors [...]
    python experiments/choose_head.py --data DIR --cases runs/test.pt --part test runs/head/grounding.safetensors

``--part validation`` uses the kinds of the splits train and choose; ``--part test`` those of choose and report. Tiles over
``SIDE`` px are cut to their middle in validation. Changes are of the mean MSE over tiles, and of single tiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from axs_lib.bands import DN_PER_REFLECTANCE, VALID_DN
from axs_lib.checks import Trust
from axs_lib.data.clouds import cloud_trust
from axs_lib.data.degrade import degrade
from axs_lib.data.estimates import KINDS, kinds_of, make_estimate
from axs_lib.data.pairs import PairRecord, list_pairs, load_pair
from axs_lib.data.proposals import informed_proposal
from axs_lib.evaluate.flood import CAME_THROUGH, is_dry, measure_flood, outside_of, simulate_flood
from axs_lib.grounding.corrector import GroundingCorrector, GroundingTiles
from axs_lib.grounding.head import GroundingHead
from axs_lib.grounding.sar_inconsistency import sar_inconsistency
from axs_lib.nodata import fill_nodata, pad_square, valid_pixels
from axs_lib.stage1_tm_s2o import Stage1Model
from axs_lib.stage2_prithvi_refine import build_prithvi_refiner
from axs_lib.stage3_tm_ground import build_stage3_model
from axs_lib.terramind.weights import load_strict, read_state
from axs_lib.train.head import HeadBatch, own_proposals

SIDE = 128
TEST_KINDS = ("truth", "gaussian_blur", "refiner", "stage2")  # beside those of choose and report
CONFIG = Path(__file__).resolve().parent / "nano" / "nano_head.yaml"


@dataclass
class Case:
    """One estimate of one tile with its proposal, padded to a square; ``size`` is the tile's own."""

    name: str
    tile: int
    s1: Tensor
    estimate: Tensor
    proposal: Tensor
    trust: Tensor
    truth: Tensor
    valid: Tensor
    size: tuple[int, int]
    blind: bool = False
    flood: Tensor | None = None


def seeded(*names: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(" ".join(names).encode()))


def make_cases(records: list[PairRecord], kinds: list[str], side: int | None) -> list[Case]:
    generator = build_stage3_model(variant="nano").terramind_generator
    stage1, stage2 = Stage1Model(generator, timesteps=1).eval(), build_prithvi_refiner(variant="nano")
    tiles = []
    for record in records:
        pair = load_pair(record)
        s1, truth = torch.as_tensor(pair.s1)[None].float(), torch.as_tensor(pair.s2)[None].float()
        if side and truth.shape[-1] > side:
            top, left = ((length - side) // 2 for length in truth.shape[-2:])
            s1, truth = (image[..., top : top + side, left : left + side] for image in (s1, truth))
        elif truth.shape[-1] > 256:
            s1, truth = s1[..., :256, :256], truth[..., :256, :256]
        valid = valid_pixels(s1, truth)
        tiles.append((record, fill_nodata(s1, valid), fill_nodata(truth, valid), valid))
    cases: list[Case] = []

    def add(
        name: str, index: int, estimate: Tensor, proposal: Tensor | None, trust: Tensor, **more: object
    ) -> None:
        record, s1, truth, valid = tiles[index]
        size = tuple(truth.shape[-2:])
        square = -(-max(size) // 32) * 32
        given = more.pop("s1", s1)
        blind = bool(more.pop("blind", False))
        layers = [pad_square(each, square) for each in (given, estimate, trust, truth)]
        own = proposal is None
        drawn = HeadBatch(
            s1=layers[0],
            estimate=layers[1],
            proposal=layers[1] if own else pad_square(proposal, square),
            trust=layers[2],
            truth=layers[3],
            own=torch.tensor([own]),
            blind=torch.tensor([blind]),
            noise=torch.randint(2**62, (1,), generator=seeded("own", record.name)),
        )
        proposal = own_proposals(drawn, generator)
        s1, estimate, trust, truth = layers
        cases.append(
            Case(name, index, s1, estimate, proposal, trust, truth, valid, size, blind=blind, **more)
        )

    for index, (record, s1, truth, _) in enumerate(tiles):
        everywhere = torch.full_like(truth[:, :1], Trust.ESTIMATE)
        # 1. Kinds of estimates.
        older = next(
            (
                t
                for r, _, t, _ in [*tiles[index - 1 :: -1], *tiles[:index:-1]]
                if index
                and r.group == record.group
                and r.source == record.source
                and t.shape == truth.shape
                and record.source in ("biomassters", "worldcereal", "worldcereal_train", "ssl4eo_s12_ricohdl")
            ),
            None,
        )
        chain = stage2(stage1.generate(s1).image, [record.metadata])
        for kind in kinds:
            if KINDS[kind].needs == "older" and older is None:
                continue
            estimate = make_estimate(
                kind, truth, generator=seeded(kind, record.name), older=older, stage2=chain
            )
            trust = torch.full_like(everywhere, Trust.SAR_ONLY) if kind == "stage2" else everywhere
            add(kind, index, estimate.round(), None, trust)
        preset = (
            degrade(truth, generator=seeded("preset", record.name), preset="test").round().clamp(*VALID_DN)
        )
        add("preset test", index, preset, None, everywhere)

        # 2. Gaps beside proposals of every quality.
        random = seeded("gaps", record.name)
        trust = cloud_trust(1, *truth.shape[-2:], generator=random)
        while not 0 < trust.mean() < 1:
            trust = cloud_trust(1, *truth.shape[-2:], generator=random)
        filled = fill_nodata(truth, trust > 0)
        add("gaps own", index, filled, None, trust)
        add("gaps own, no SAR", index, filled, None, trust, blind=True)
        add("gaps informed", index, filled, informed_proposal(truth, generator=random), trust)
        add("gaps truth", index, filled, truth, trust)
        add("gaps mirrored", index, filled, truth.flip((2, 3)), trust)
        add("gaps none", index, filled, filled, trust)

        # 3. A flood that only the SAR shows.
        if is_dry(truth[0]):
            flooded, mask = simulate_flood(s1[0], record.name)
            add("flood", index, preset, None, everywhere, s1=flooded[None], flood=mask)
            add("flood, real SAR", index, preset, None, everywhere, flood=mask)
        # 4. Preset test beside better proposals.
        add("preset test, informed", index, preset, informed_proposal(truth, generator=random), everywhere)
        add("preset test, mirrored", index, preset, truth.flip((2, 3)), everywhere)

    # 5. Gaps beside another tile's own proposal.
    own = [case for case in cases if case.name == "gaps own"]
    for place, case in enumerate(own):
        others = [
            other
            for other in own[place + 1 :] + own[:place]
            if other.proposal.shape == case.proposal.shape
            and tiles[other.tile][0].group != tiles[case.tile][0].group
        ]
        if others:
            add(
                "gaps another tile's",
                case.tile,
                case.estimate[..., : case.size[0], : case.size[1]],
                others[0].proposal[..., : case.size[0], : case.size[1]],
                case.trust[..., : case.size[0], : case.size[1]],
            )
    return cases


@torch.no_grad()
def run(corrector: GroundingCorrector, cases: list[Case]) -> list[tuple[Tensor, Tensor]]:
    """opt_v3 and expected error (1, 4, h, w) in DN of every case."""
    results = []
    for case in cases:
        height, width = case.size
        tiles = GroundingTiles(case.s1, case.estimate, case.trust, sar_inconsistency(case.s1, case.estimate))
        if case.blind:
            tiles = tiles.without_sar(corrector.s1_mean)
        correction = corrector(tiles, case.proposal)
        image = (case.estimate + correction.change)[..., :height, :width]
        results.append((image.clamp(*VALID_DN), correction.error[..., :height, :width]))
    return results


def summarise(cases: list[Case], results: list[tuple[Tensor, Tensor]]) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    names = list(dict.fromkeys(case.name for case in cases))
    for name in names:
        chosen = [(case, result) for case, result in zip(cases, results, strict=True) if case.name == name]
        if name.startswith("flood"):
            inside, outside = [], []
            for case, (image, _) in chosen:
                height, width = case.size
                estimate = case.estimate[0, :, :height, :width]
                inside.append(measure_flood(estimate, image[0], case.flood))
                outside.append(measure_flood(estimate, image[0], outside_of(case.flood[None])[0]))
            rows[name] = {
                "tiles": len(chosen),
                "came_through": statistics.fmean(each["turned_to_water"] >= CAME_THROUGH for each in inside),
                "water_inside": float(torch.tensor([each["turned_to_water"] for each in inside]).nanmean()),
                "false_water": float(torch.tensor([each["turned_to_water"] for each in outside]).nanmean()),
            }
            continue
        before, after, mae2, mae3, spread, skill = [], [], [], [], [], []
        for case, (image, expected) in chosen:
            height, width = case.size
            truth, estimate = (each[..., :height, :width] for each in (case.truth, case.estimate))
            where = case.valid.expand_as(truth)
            if name.startswith("gaps"):
                where = where & (case.trust[..., :height, :width] == 0)
            a, b = ((each - truth)[where] / DN_PER_REFLECTANCE for each in (estimate, image))
            before.append(float(a.square().mean()))
            after.append(float(b.square().mean()))
            mae2.append(float(a.abs().mean()))
            mae3.append(float(b.abs().mean()))
            counts = where.sum((0, 2, 3)).clamp_min(1)
            spread.append(((expected / DN_PER_REFLECTANCE).square() * where).sum((0, 2, 3)) / counts)
            skill.append((((image - truth) / DN_PER_REFLECTANCE).square() * where).sum((0, 2, 3)) / counts)
        ratios = [b / max(a, 1e-12) for a, b in zip(before, after, strict=True)]
        row = {
            "tiles": len(chosen),
            "rmse_v2": 1e4 * statistics.fmean(before) ** 0.5,
            "rmse_v3": 1e4 * statistics.fmean(after) ** 0.5,
            "mse_%": 100 * (statistics.fmean(after) / max(statistics.fmean(before), 1e-12) - 1),
            "mae_%": 100 * (statistics.fmean(mae3) / max(statistics.fmean(mae2), 1e-12) - 1),
            "mean_tile_%": 100 * (statistics.fmean(ratios) - 1),
            "worst_%": 100 * (max(ratios) - 1),
            "better": statistics.fmean(ratio < 1 for ratio in ratios),
            "rms_change": 1e4 * statistics.fmean(after) ** 0.5,
        }
        ratio = (torch.stack(spread).mean(0) / torch.stack(skill).mean(0).clamp_min(1e-12)).sqrt()
        row |= {f"ss{band}": float(value) for band, value in enumerate(ratio)}
        rows[name] = row
    return rows


def show(rows: dict[str, dict[str, float]], title: str) -> str:
    lines = [title, f"{'case':26s} n   v2 DN  v3 DN    MSE    MAE  tiles  worst better   spread/skill"]
    for name, row in rows.items():
        if name.startswith("flood"):
            lines.append(
                f"{name:26s} {row['tiles']:2d}  came through {100 * row['came_through']:.0f} %, inside"
                f" {100 * row['water_inside']:.1f} %, outside {100 * row['false_water']:.2f} %"
            )
            continue
        ratio = " ".join(f"{row[f'ss{band}']:.2f}" for band in range(4))
        split = KINDS[name].split[0] if name in KINDS else " "
        lines.append(
            f"{split} {name:24s} {row['tiles']:2d} {row['rmse_v2']:6.1f} {row['rmse_v3']:6.1f} {row['mse_%']:+6.1f}"
            f" {row['mae_%']:+6.1f} {row['mean_tile_%']:+6.1f} {row['worst_%']:+6.0f}"
            f" {100 * row['better']:4.0f} %   {ratio}"
        )
    gaps = {name: row for name, row in rows.items() if name.startswith("gaps")}
    if gaps:
        own, blind = gaps["gaps own"], gaps["gaps own, no SAR"]
        lines.append(f"SAR's worth in gaps: {100 * (1 - (own['rmse_v3'] / blind['rmse_v3']) ** 2):.1f} %")
        if "gaps another tile's" in gaps:
            other, none = gaps["gaps another tile's"], gaps["gaps none"]
            lines.append(
                f"another tile's proposal against none: {100 * ((other['rmse_v3'] / none['rmse_v3']) ** 2 - 1):+.1f} %"
            )
    for split in ("train", "choose", "report"):
        values = [
            row["mse_%"]
            for name, row in rows.items()
            if name in KINDS and KINDS[name].split == split and name != "truth"
        ]
        if values:
            lines.append(
                f"{split}: median kind {statistics.median(values):+.1f} %, worst kind {max(values):+.1f} %"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("heads", nargs="*", type=Path)
    parser.add_argument("--data", default="/work/shared/data")
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--part", choices=("validation", "test"), default="validation")
    parser.add_argument("--floor", type=float)
    parser.add_argument("--scale", type=float)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.cases.exists():
        config = yaml.safe_load(CONFIG.read_text())
        groups = set(config[f"{arguments.part}_groups"])
        records = [record for record in list_pairs(arguments.data) if record.group in groups]
        kinds = [kind for kind in KINDS if KINDS[kind].split != "report"]
        if arguments.part == "test":
            kinds = [*TEST_KINDS, *kinds_of("choose"), *kinds_of("report")]
        with torch.no_grad():
            cases = make_cases(records, kinds, SIDE if arguments.part == "validation" else None)
        arguments.cases.parent.mkdir(parents=True, exist_ok=True)
        torch.save([vars(case) for case in cases], arguments.cases)
    cases = [Case(**each) for each in torch.load(arguments.cases, weights_only=True)]
    for path in arguments.heads:
        corrector = GroundingCorrector(GroundingHead()).eval()
        load_strict(corrector, read_state(path), what=str(path))
        head = corrector.head
        if arguments.floor is not None:
            head.gate_floor.fill_(arguments.floor)
        if arguments.scale is not None:
            head.gate_scale.fill_(arguments.scale)
        rows = summarise(cases, run(corrector, cases))
        print(
            show(rows, f"{path} floor {float(head.gate_floor):g} scale {float(head.gate_scale):g}"),
            flush=True,
        )
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
