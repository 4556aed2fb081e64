"""Write nano's model card from its weights and from the JSON of ``axs evaluate``.

Usage: python -m experiments.nano.write_model_card WEIGHTS REPORT.json [REPORT.json ...] --out axs_lib/weights/nano.md

Every figure of the card comes from the reports (one per number of timesteps, on groups kept out of training) and every
training setting from the header of the weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from axs_lib.evaluate.kinds import SPLITS, cells_of, summary_text
from axs_lib.terramind.weights import read_metadata, sha256_file

ROWS = (
    ("mse", "MSE (reflectance²)", 1e4, "×1e-4"),
    ("mae", "MAE (reflectance)", 1e2, "×1e-2"),
    ("psnr", "PSNR (dB)", 1, ""),
    ("ssim", "SSIM", 1, ""),
    ("sam", "spectral angle (°)", 1, ""),
    ("ndvi", "NDVI error", 1, ""),
    ("edge_truth", "edge agreement with the truth", 1, ""),
    ("edge_sar", "edge agreement with the SAR", 1, ""),
    ("sharpness", "sharpness (truth = 1)", 1, ""),
)


def row(name: str, label: str, scale: float, unit: str, reports: list[dict[str, Any]]) -> str:
    first = reports[0]["summary"]["ok"]["mean"]
    cells = [f"{first[f'{name}_v2'] * scale:.3f}"]
    cells += [f"{report['summary']['ok']['mean'][f'{name}_v3'] * scale:.3f}" for report in reports]
    return f"| {label} {unit} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("reports", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--note", default="", help="what the header cannot say about this run")
    arguments = parser.parse_args()
    head = arguments.weights.with_name("grounding.safetensors")
    header = read_metadata(head) | read_metadata(arguments.weights)
    config = json.loads(header["head_config"])
    reports = [json.loads(path.read_text()) for path in arguments.reports]
    reports.sort(key=lambda report: report["timesteps"])
    steps = [f"opt_v3, {report['timesteps']} step{'s' * (report['timesteps'] > 1)}" for report in reports]
    lines = [
        TEXT.format(
            sha=sha256_file(arguments.weights),
            megabytes=arguments.weights.stat().st_size / 1e6,
            head_sha=sha256_file(head),
            head_megabytes=head.stat().st_size / 1e6,
            steps=header["steps"],
            generator_steps=header["generator_steps"],
            head_steps=header["head_steps"],
            qualities=", ".join(config["qualities"]),
            test=", ".join(config["test_groups"]),
            validation=", ".join(config["validation_groups"]),
            tiles=len(reports[0]["tiles"]),
            note=f" {arguments.note}" if arguments.note else "",
        ),
        "| mean over tiles | opt_v2 | " + " | ".join(steps) + " |",
        "|---|" + "---|" * (1 + len(reports)),
        *(row(*spec, reports) for spec in ROWS),
        "",
        "| | " + " | ".join(steps) + " |",
        "|---|" + "---|" * len(reports),
    ]
    for label, get in SUMMARY:
        lines.append(f"| {label} | " + " | ".join(get(report["summary"]["ok"]) for report in reports) + " |")
    for control, label in CONTROLS.items():
        found = [report["summary"]["ok"].get(control) for report in reports]
        if all(found):
            cells = [f"{each['improvement_of_mean_%']['mse']:.1f} %" for each in found]
            lines.append(f"| MSE improvement {label} | " + " | ".join(cells) + " |")
    if "damages" in reports[0]:
        lines += [*KINDS_HEAD, *card_lines(reports[0]["damages"])]
    arguments.out.write_text("\n".join(lines) + "\n" + LIMITS)


def card_lines(damages: dict[str, Any]) -> list[str]:
    """The report's ``damages`` as a table in Markdown, of the tiles whose SAR and truth agree."""
    part = damages.get("sar_consistent", damages["all_tiles"])
    lines = [
        "| kind of estimate | in training | opt_v2, DN | opt_v3, DN | MSE | MAE | tiles better | worst tile |"
        " spread-skill |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in part["rows"]:
        kind, *cells = cells_of(row)
        ratios = [ratio for ratio in row["spread_skill"].values() if ratio is not None]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "-"
        lines.append("| " + " | ".join([kind, SPLITS[row["split"]], *cells, spread]) + " |")
    return [*lines, "", f"{summary_text(part['summary'])}. {part['tiles']} tiles."]


SUMMARY = (
    ("MSE improvement of the mean", lambda ok: f"{ok['improvement_of_mean_%']['mse']:.1f} %"),
    ("MAE improvement of the mean", lambda ok: f"{ok['improvement_of_mean_%']['mae']:.1f} %"),
    ("tiles better in MSE", lambda ok: f"{100 * ok['wins']:.0f} %"),
    ("MSE of the worst tile", lambda ok: f"{ok['worst_tile_%']:+.1f} %"),
    *(
        (f"{label}, tiles whose SAR and truth agree ¹", lambda ok, get=get: get(ok.get("sar_consistent", ok)))
        for label, get in (
            ("MSE improvement of the mean", lambda ok: f"{ok['improvement_of_mean_%']['mse']:.1f} %"),
            ("MSE of the worst tile", lambda ok: f"{ok['worst_tile_%']:+.1f} %"),
        )
    ),
    ("copy ratio", lambda ok: f"{ok['mean']['copy_ratio']:.2f}"),
)
CONTROLS = {
    "sar_swapped": "with another tile's SAR",
    "proposal_swapped": "with another tile's proposal",
    "no_sar": "of the packaged head after 6500 more steps without SAR, run without it",
    "plain": "of a plain U-Net",
}

KINDS_HEAD = [
    "",
    "What becomes of the truth itself, and of estimates of every kind (`--damages`, RMSE in DN = reflectance x 10000),",
    "on the tiles whose SAR and truth agree ¹. A change below zero is better.",
    "",
]

TEXT = """# nano, Stage 3

A small TerraMind: terratorch's encoder-decoder (dim 192, 4 + 2 blocks), an FSQ codebook of 512, a 32-channel
diffusion detokenizer, four bands throughout (`nano.safetensors`, {megabytes:.1f} MB in float16, SHA-256
`{sha}`), and the grounding head, which serves every
TerraMind variant (`grounding.safetensors`, {head_megabytes:.1f} MB, SHA-256
`{head_sha}`).

**What it is for**: trying Axion-Sat on any machine, the tests and the demo. Generator and tokenizer were trained for
{steps} steps, the generator for {generator_steps} more on its one-step image, the grounding head on top of them for
{head_steps}, on a CPU: tokenizer and generator on 87 small real tiles, the head's last 87,500 steps on 185, mostly
European summers. It is a demonstration model: do not map floods or crops with it. For that,
use IBM's TerraMind weights and fine-tune on your own area.

**Uncertainty** is calibrated on the training and validation tiles of quality ok.

**Training data**: co-registered Sentinel-1/Sentinel-2 pairs of quality {qualities} from BigEarthNet v1 and v2
(CDLA-Permissive-1.0), SEN12MS-CR, BioMassters and SSL4EO-S12 (CC BY 4.0) and WorldCereal extracts (MIT); contains
modified Copernicus Sentinel data. opt_v2 is simulated (kinds of `axs_lib.data.estimates` whose split is `train`), or
what Stages 1 and 2 make of the training tiles; the proposal is nano's own, simulated (`axs_lib.data.proposals`), of
another tile, or none. Commands, each with `--data DIR`:
`python -m experiments.nano.joint --config experiments/nano/nano_stage3.yaml`,
`python -m experiments.nano.generator --config experiments/nano/nano_generator.yaml`,
`python -m experiments.nano.tile_filter --config experiments/nano/nano_head.yaml` and
`axs train head -c experiments/nano/nano_head.yaml`, which go on from an earlier head (`experiments/nano.md`). That
run changed its settings by hand between its parts and cannot be repeated bit for bit; its file names the parts.{note}

Kept out of training: the test groups
{test}
and the validation groups
{validation}.

**Figures**: `axs evaluate --data DIR --variant nano --groups ... --controls` on the {tiles} tiles of quality ok of the
test groups; opt_v2 simulated with preset `test`, whose errors are larger than those trained on (`opt_v2_source:
degraded`).
"""

LIMITS = """
¹ On the others the SAR shows open water on more than 5 % of the pixels, which are dry land in the truth: another day
(`axs evaluate` names them). On SEN12MS-CR 4438 a whole river bed is under water in the SAR and partly green in the
truth; water that Stage 3 paints there counts as an error.

**Limits**: opt_v2 is a simulation, not the output of a real Stage 2; the tiles are few and from few places; snow, real
haze and clouds were not trained on. Smooth dark ground (wet bare soil, flooded crops) can look like open water to the
SAR, and nano may then paint water that is not there. `hold_colour=True` (`--hold-colour`) rules that out, and every
real flood with it. What else was measured, and what was missed: `docs/nano.md`.

**Licence**: Apache-2.0 for the weights; the data's licences are named above.
"""

if __name__ == "__main__":
    main()
