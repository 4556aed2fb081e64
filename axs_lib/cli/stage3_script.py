"""``python axs_lib/stage3_tm_ground.py``: test the model, describe it, or ground saved tensors.

In: ``--test``, ``--info`` or ``--infer`` with .pt files of s1 (VV, VH in dB) and opt_v2 (B02, B03, B04, B08 in DN).
Out: a table of checks, a description, or a .pt file of opt_v3. The ``axs`` command does the same and more.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from axs_lib import stage3_tm_ground
from axs_lib.bands import OPTICAL_BANDS, S1_PRODUCTS, SAR_BANDS, VALID_DN
from axs_lib.checks import MIN_SIDE
from axs_lib.cli.command import INTERRUPTED, USER_ERROR, show_warning
from axs_lib.errors import AxionError
from axs_lib.terramind.weights import DEFAULT_VARIANT

FAILED = 1
TEST_VARIANT = "nano"
TEST_SIDE = 120
Check = tuple[str, bool, str]  # name, whether it passed, detail


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: arguments; default those of the process.

    Returns:
        The exit code: 0, 1 where a check of ``--test`` failed, 2 for anything the user can fix.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    files = {"--s1": options.s1, "--opt_v2": options.opt_v2, "--output": options.output}
    missing = [flag for flag, value in files.items() if value is None]
    if options.mode is _infer and missing:
        parser.error(f"--infer needs {', '.join(missing)}")
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.showwarning = show_warning
        try:
            code: int = options.mode(options)
            return code
        except AxionError as error:
            typer.echo(f"error: {error}", err=True)
            return USER_ERROR
        except KeyboardInterrupt:
            return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stage3_tm_ground.py",
        description="Stage 3: ground an optical estimate in its SAR image with TerraMind.",
        allow_abbrev=False,
    )
    add, mode = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    for name, run, text in (
        ("--test", _test, "build the model, run it on synthetic input and check what comes out"),
        ("--info", _info, "show the architecture, its parameters and where its weights come from"),
        ("--infer", _infer, "ground the tensors of --s1 and --opt_v2 and write --output"),
    ):
        mode.add_argument(name, dest="mode", action="store_const", const=run, help=text)
    add("--s1", type=Path, metavar="FILE", help="(B,2,H,W) or (2,H,W): VV, VH in dB")
    add("--opt_v2", "--opt-v2", type=Path, metavar="FILE", help="(B,4,H,W) or (4,H,W): B02, B03, B04, B08 in DN")
    add("--output", type=Path, metavar="FILE", help="opt_v3, shaped like opt_v2")
    add("--timesteps", type=int, default=10, help="network evaluations, 1 to 1000 (default 10)")
    add("--variant", help=f"nano or terramind_v1_*; default {DEFAULT_VARIANT}, for --test {TEST_VARIANT}")
    add("--checkpoint", type=Path, metavar="PATH", help="weights from this file or folder")
    add("--s1-product", choices=S1_PRODUCTS, default=S1_PRODUCTS[0], help="kind of Sentinel-1 image")
    add("--seed", type=int, default=0, help="of the noise (default 0)")
    add("--strength", type=float, default=1.0, help="0 keeps opt_v2, 1 starts from noise (default 1)")
    modes = stage3_tm_ground.CORRECTION_MODES
    add("--correction-mode", choices=modes, help="how a correction is made; default what the weights are for")
    add("--bands", help="order of the bands in a stack that has another, such as B04,B03,B02,B08")
    add("--device", help="cpu, cuda, cuda:1 ...; default the GPU where there is one")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--force", action="store_true", help="accept values that do not look like dB and DN")
    return parser


def _infer(options: argparse.Namespace) -> int:
    from axs_lib.cli.ground import ground

    given = vars(options) | {"s1": [options.s1], "opt_v2": [options.opt_v2], "out": options.output}
    ground(**{name: value for name, value in given.items() if name not in ("mode", "output")})
    return 0


# -- --test -------------------------------------------------------------------------------------------------------


def _test(options: argparse.Namespace) -> int:
    from axs_lib.cli.options import torch_device

    device = torch_device(options.device)
    model = stage3_tm_ground.build_stage3_model(
        options.timesteps,
        variant=options.variant or TEST_VARIANT,
        checkpoint=options.checkpoint and str(options.checkpoint),
        device=device,
        s1_product=options.s1_product,
        correction_mode=options.correction_mode,
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"{model.variant}, {parameters / 1e6:.1f} M parameters, weights: {model.provenance['AXS_WEIGHTS']}")
    s1, opt_v2 = (image.to(device) for image in _synthetic_pair(TEST_SIDE, options.seed))
    failed = 0
    for name, passed, detail in _checks(model, s1, opt_v2, options.timesteps, options.seed):
        failed += not passed
        typer.echo(f"{'OK' if passed else 'FAILED':<8}{name:<32}{detail}".rstrip())
    typer.echo(f"{failed} check(s) failed" if failed else "all checks passed")
    return FAILED if failed else 0


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
    again = model.ground(s1, opt_v2, timesteps, seed=seed).image
    yield "the same again", torch.equal(image, again), ""
    kept = model.ground(s1, opt_v2, timesteps, seed=seed, strength=0.0).image
    yield "strength=0 returns opt_v2", torch.equal(kept, opt_v2), ""


def _synthetic_pair(side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Fields and speckle: s1 (1, 2, side, side) in dB and opt_v2 (1, 4, side, side) in DN."""
    random = torch.Generator().manual_seed(seed)
    fields = torch.nn.functional.interpolate(torch.rand(1, 6, 8, 8, generator=random), size=(side, side))
    speckle = torch.randn(1, 2, side, side, generator=random)
    low = torch.tensor([-14.0, -21.0, 250.0, 400.0, 300.0, 1500.0])[:, None, None]
    high = torch.tensor([-8.0, -14.0, 900.0, 1100.0, 1300.0, 4000.0])[:, None, None]
    image = low + (high - low) * fields
    return image[:, :2] + speckle, image[:, 2:]


# -- --info -------------------------------------------------------------------------------------------------------


class _WithoutMemory(TorchFunctionMode):
    """Modules built under this mode have parameters without storage; computed constants stay real.

    ``torch.device("meta")`` would take the constants too, and TerraMind reads some of them while it is built.
    """

    factories = frozenset({torch.empty, torch.zeros, torch.ones, torch.randn})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        extra = {"device": "meta"} if func in self.factories else {}
        return func(*args, **(kwargs or {}) | extra)


def _info(options: argparse.Namespace) -> int:
    from axs_lib.cli.info import find_weights
    from axs_lib.grounding.load import load_corrector
    from axs_lib.terramind.load import load_generator
    from axs_lib.terramind.weights import find_variant

    spec = find_variant(options.variant or DEFAULT_VARIANT)
    with _WithoutMemory():
        generator = load_generator(spec.name, pretrained=False, s1_product=options.s1_product)
        corrector = load_corrector(None, s1_product=options.s1_product)
    core, layout = generator.core, generator.layout
    modules = (core, generator.detokenizer, corrector)
    millions = [sum(parameter.numel() for parameter in module.parameters()) / 1e6 for module in modules]
    entries, numbers = generator.codebook.shape
    defaults = inspect.signature(stage3_tm_ground.build_stage3_model).parameters
    shown = ("timesteps", "standardize", "pretrained", "scheduler", "s1_product")
    typer.echo(
        f"""Stage 3, TerraMind grounding: {spec.name}

parameters
  generator core  {millions[0]:>8.2f} M  {len(core.encoder)} encoder and {len(core.decoder)} decoder blocks
  detokenizer     {millions[1]:>8.2f} M  diffusion U-Net, one evaluation a timestep
  grounding head  {millions[2]:>8.2f} M  SAR, estimate and proposal at full resolution
  total           {sum(millions):>8.2f} M

tokens
  width           {core.mask_token.shape[-1]}, {core.encoder[0].attn.num_heads} attention heads
  pixels          {layout.patch}x{layout.patch} each
  codebook        {entries} entries of {numbers} numbers (finite scalar quantization)

inputs
  s1              (B,2,H,W) {", ".join(SAR_BANDS)} in dB, {options.s1_product}
  opt_v2          (B,4,H,W) {", ".join(OPTICAL_BANDS)} in DN (reflectance x 10000)
  channels        the network's image has {generator.image_channels}
  size            H, W from {MIN_SIDE} px; above {layout.max_side} px in tiles
  padded to       a square multiple of {layout.multiple}, at least {layout.min_side} px

defaults
  {", ".join(f"{name}={defaults[name].default}" for name in shown)}

weights
  {options.checkpoint or find_weights(spec)[0]}"""
    )
    return 0
