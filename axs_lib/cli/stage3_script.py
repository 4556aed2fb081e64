"""``python axs_lib/stage3_tm_ground.py``: test the model, describe it, or ground saved tensors."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from axs_lib import stage3_tm_ground
from axs_lib.bands import OPTICAL_BANDS, SAR_BANDS, TERRAMIND_S2_BANDS, VALID_DN
from axs_lib.checks import MIN_SIDE
from axs_lib.cli import options
from axs_lib.cli.command import command_line
from axs_lib.cli.options import option
from axs_lib.data.samples import load_sample
from axs_lib.errors import InputError
from axs_lib.grounding.load import load_corrector
from axs_lib.terramind.build import FSQ_LEVELS, NANO_CORE, NANO_FSQ_LEVELS, V1_CORES
from axs_lib.terramind.generator import GeneratorLayout
from axs_lib.terramind.weights import DEFAULT_VARIANT, find_variant

FAILED = 1
TIMESTEPS = 10
TEST_VARIANT = "nano"
TEST_TILE = "ireland_fields"
Check = tuple[str, bool, str]  # name, whether it passed, detail

# A group without commands, since it is the group that makes a line of an error.
app = command_line(invoke_without_command=True, subcommand_metavar="")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; gives the exit code: 0, 1 where a check of ``--test`` failed, 2 for what the user can fix."""
    try:
        app(argv, prog_name="stage3_tm_ground.py")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@app.callback()
@options.with_shared
def script(
    *,
    test: Annotated[bool, option("Build the model, run it on a packaged tile and check it.", "--test")] = False,
    info: Annotated[bool, option("Show architecture, parameters and where its weights come from.", "--info")] = False,
    infer: Annotated[bool, option("Ground the tensors of --s1 and --opt_v2, write --output.", "--infer")] = False,
    s1: Annotated[Path | None, option("(B,2,H,W) or (2,H,W): VV, VH in dB.", metavar="FILE")] = None,
    opt_v2: Annotated[
        Path | None, option("(B,4,H,W) or (4,H,W): B02, B03, B04, B08 in DN.", "--opt_v2", "--opt-v2", metavar="FILE")
    ] = None,
    output: Annotated[Path | None, option("opt_v3, shaped like opt_v2.", metavar="FILE")] = None,
    scene: options.SceneOptions,
    estimate: options.EstimateOptions,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Stage 3: ground an optical estimate in its SAR image with TerraMind, in 10 timesteps unless told otherwise."""
    if test + info + infer != 1:
        raise InputError("expected one of --test, --info and --infer")
    steps = TIMESTEPS if scene.timesteps is None else scene.timesteps
    if test:
        _test(scene, estimate.correction_mode, steps)
    elif info:
        _info(scene)
    else:
        files = {"--s1": s1, "--opt_v2": opt_v2, "--output": output}
        if missing := [flag for flag, value in files.items() if value is None]:
            raise InputError(f"--infer needs {', '.join(missing)}")
        from axs_lib.cli.ground import ground

        given = asdict(estimate) | asdict(scene) | {"timesteps": steps}
        ground(s1=[s1], opt_v2=[opt_v2], out=output, overwrite=overwrite, **given)


def _test(scene: options.SceneOptions, correction_mode: str | None, steps: int) -> None:
    device, variant = options.torch_device(scene.device), scene.variant or TEST_VARIANT
    model = scene.build("ground", steps, device, variant=variant, correction_mode=correction_mode)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"{model.variant}, {parameters / 1e6:.1f} M parameters, weights: {model.provenance['AXS_WEIGHTS']}")
    s1, opt_v2 = (torch.from_numpy(image.batch).to(device) for image in load_sample(TEST_TILE))
    failed = 0
    for name, passed, detail in _checks(model, s1, opt_v2, steps, scene.seed):
        failed += not passed
        typer.echo(f"{'OK' if passed else 'FAILED':<8}{name:<32}{detail}".rstrip())
    typer.echo(f"{failed} check(s) failed" if failed else "all checks passed")
    if failed:
        raise typer.Exit(FAILED)


def _checks(model: Any, s1: Tensor, opt_v2: Tensor, most: int, seed: int) -> Iterator[Check]:
    low, high = VALID_DN
    for timesteps in sorted({1, most}):
        name = f"timesteps={timesteps}"
        begin = time.perf_counter()
        output = model.ground(s1, opt_v2, timesteps, seed=seed)
        image = output.image
        valid = bool(((image >= low) & (image <= high)).all())  # waits for a GPU, so it belongs to the time
        seconds = time.perf_counter() - begin
        yield f"{name}: shape", image.shape == opt_v2.shape, "x".join(map(str, image.shape))
        yield f"{name}: finite, valid DN", valid, f"{float(image.min()):.0f} to {float(image.max()):.0f} DN"
        yield f"{name}: evaluations", output.nfe == timesteps, f"{output.nfe}, {seconds:.2f} s"
    yield "the same again", torch.equal(image, model.ground(s1, opt_v2, timesteps, seed=seed).image), ""
    kept = model.ground(s1, opt_v2, timesteps, seed=seed, strength=0.0).image
    yield "strength=0 returns opt_v2", torch.equal(kept, opt_v2), ""


def _info(scene: options.SceneOptions) -> None:
    from axs_lib.cli.info import PARAMETERS, find_weights

    spec = find_variant(scene.variant or DEFAULT_VARIANT)
    core = NANO_CORE if spec.packaged else V1_CORES[spec.name]
    levels = [int(level) for level in (NANO_FSQ_LEVELS if spec.packaged else FSQ_LEVELS).split("-")]
    head = sum(parameter.numel() for parameter in load_corrector(None).parameters()) / 1e6
    millions, layout = (*PARAMETERS[spec.name], head), GeneratorLayout
    defaults = inspect.signature(stage3_tm_ground.build_stage3_model).parameters
    shown = ("timesteps", "standardize", "pretrained", "scheduler", "s1_product")
    typer.echo(
        f"""Stage 3, TerraMind grounding: {spec.name}

parameters
  generator core  {millions[0]:>8.2f} M  {core.encoder_depth} encoder and {core.decoder_depth} decoder blocks
  detokenizer     {millions[1]:>8.2f} M  diffusion U-Net, one evaluation a timestep
  grounding head  {millions[2]:>8.2f} M  SAR, estimate and proposal at full resolution
  total           {sum(millions):>8.2f} M

tokens
  width           {core.dim}, {core.heads} attention heads
  pixels          {layout.patch}x{layout.patch} each
  codebook        {math.prod(levels)} entries of {len(levels)} numbers (finite scalar quantization)

inputs
  s1              (B,2,H,W) {", ".join(SAR_BANDS)} in dB, {scene.s1_product}
  opt_v2          (B,4,H,W) {", ".join(OPTICAL_BANDS)} in DN (reflectance x 10000)
  channels        the network's image has {len(OPTICAL_BANDS if spec.packaged else TERRAMIND_S2_BANDS)}
  size            H, W from {MIN_SIDE} px; above {layout.max_side} px in tiles
  padded to       a square multiple of {layout.multiple}, at least {64 if spec.packaged else layout.min_side} px

defaults
  {", ".join(f"{name}={defaults[name].default}" for name in shown)}

weights
  {scene.checkpoint or find_weights(spec)[0]}"""
    )
