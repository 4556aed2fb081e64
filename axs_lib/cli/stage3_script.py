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
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import typer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from axs_lib import stage3_tm_ground
from axs_lib.bands import OPTICAL_BANDS, S1_PRODUCTS, SAR_BANDS, VALID_DN
from axs_lib.checks import MIN_SIDE
from axs_lib.cli.command import INTERRUPTED, USER_ERROR, show_warning
from axs_lib.errors import AxionError
from axs_lib.stage3_tm_ground import CORRECTION_MODES
from axs_lib.terramind.weights import DEFAULT_VARIANT

if TYPE_CHECKING:
    from axs_lib.stage3_tm_ground import Stage3GroundingModel

FAILED = 1
TEST_VARIANT = "nano"
TEST_SIDE = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: arguments; default those of the process.

    Returns:
        The exit code: 0, 1 where a check of ``--test`` failed, 2 for anything the user can fix.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    run = {"test": _test, "info": _info, "infer": _infer}[options.mode]
    missing = [flag for flag, value in _files(options).items() if value is None]
    if options.mode == "infer" and missing:
        parser.error(f"--infer needs {', '.join(missing)}")
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.showwarning = show_warning
        try:
            return run(options)
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
    mode = parser.add_mutually_exclusive_group(required=True)
    for name, text in (
        ("test", "build the model, run it on synthetic input and check what comes out"),
        ("info", "show the architecture, its parameters and where its weights come from"),
        ("infer", "ground the tensors of --s1 and --opt_v2 and write --output"),
    ):
        mode.add_argument(f"--{name}", dest="mode", action="store_const", const=name, help=text)
    parser.add_argument("--s1", type=Path, metavar="FILE", help="(B,2,H,W) or (2,H,W): VV, VH in dB")
    parser.add_argument(
        "--opt_v2", "--opt-v2", type=Path, metavar="FILE", help="(B,4,H,W) or (4,H,W): B02, B03, B04, B08 in DN"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="opt_v3, shaped like opt_v2")
    parser.add_argument("--timesteps", type=int, default=10, help="network evaluations, 1 to 1000 (default 10)")
    parser.add_argument(
        "--variant", help=f"nano or terramind_v1_*; default {DEFAULT_VARIANT}, for --test {TEST_VARIANT}"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help="weights from this file or folder")
    parser.add_argument("--s1-product", choices=S1_PRODUCTS, default=S1_PRODUCTS[0], help="kind of Sentinel-1 image")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--strength", type=float, default=1.0, help="0 keeps opt_v2, 1 starts from noise (default 1)")
    parser.add_argument(
        "--correction-mode", choices=CORRECTION_MODES, help="how a correction is made; default what the weights are for"
    )
    parser.add_argument("--bands", help="order of the bands in a stack that has another, such as B04,B03,B02,B08")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; default the GPU where there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument("--force", action="store_true", help="accept values that do not look like dB and DN")
    return parser


def _files(options: argparse.Namespace) -> dict[str, Path | None]:
    return {"--s1": options.s1, "--opt_v2": options.opt_v2, "--output": options.output}


# -- --infer ------------------------------------------------------------------------------------------------------


def _infer(options: argparse.Namespace) -> int:
    from axs_lib.cli.ground import ground
    from axs_lib.cli.options import CorrectionMode, Product

    ground(
        s1=[options.s1],
        opt_v2=[options.opt_v2],
        out=options.output,
        timesteps=options.timesteps,
        strength=options.strength,
        seed=options.seed,
        variant=options.variant,
        checkpoint=options.checkpoint,
        s1_product=Product(options.s1_product),
        bands=options.bands,
        correction_mode=options.correction_mode and CorrectionMode(options.correction_mode),
        device=options.device,
        overwrite=options.overwrite,
        force=options.force,
    )
    return 0


# -- --test -------------------------------------------------------------------------------------------------------


class Check(NamedTuple):
    """One line of the test's table."""

    name: str
    passed: bool
    detail: str = ""


def _test(options: argparse.Namespace) -> int:
    from axs_lib.cli.options import torch_device

    device = torch_device(options.device)
    model = stage3_tm_ground.build_stage3_model(
        options.timesteps,
        variant=options.variant or TEST_VARIANT,
        checkpoint=options.checkpoint and str(options.checkpoint),
        device=str(device),
        s1_product=options.s1_product,
        correction_mode=options.correction_mode,
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"{model.variant}, {parameters / 1e6:.1f} M parameters, weights: {model.provenance['AXS_WEIGHTS']}")
    s1, opt_v2 = (image.to(device) for image in _synthetic_pair(TEST_SIDE, options.seed))
    failed = 0
    with torch.no_grad():
        for check in _checks(model, s1, opt_v2, options):
            failed += not check.passed
            typer.echo(f"{'OK' if check.passed else 'FAILED':<8}{check.name:<32}{check.detail}".rstrip())
    typer.echo(f"{failed} check(s) failed" if failed else "all checks passed")
    return FAILED if failed else 0


def _checks(model: Stage3GroundingModel, s1: Tensor, opt_v2: Tensor, options: argparse.Namespace) -> Iterator[Check]:
    low, high = VALID_DN
    for timesteps in sorted({1, options.timesteps}):
        name = f"timesteps={timesteps}"
        begin = time.perf_counter()
        output = model.ground(s1, opt_v2, timesteps, seed=options.seed)
        image = output.image
        finite = bool(torch.isfinite(image).all())  # waits for a GPU, so it belongs to the time
        seconds = time.perf_counter() - begin
        yield Check(f"{name}: shape", image.shape == opt_v2.shape, "x".join(map(str, image.shape)))
        yield Check(
            f"{name}: finite, valid DN",
            finite and bool(((image >= low) & (image <= high)).all()),
            f"{float(image.min()):.0f} to {float(image.max()):.0f} DN",
        )
        yield Check(f"{name}: evaluations", output.nfe == timesteps, f"{output.nfe}, {seconds:.2f} s")
    again = model.ground(s1, opt_v2, timesteps, seed=options.seed).image
    yield Check("the same again", torch.equal(image, again))
    kept = model.ground(s1, opt_v2, timesteps, seed=options.seed, strength=0.0).image
    yield Check("strength=0 returns opt_v2", torch.equal(kept, opt_v2))


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
    parts = {
        "generator core": (core, f"{len(core.encoder)} encoder and {len(core.decoder)} decoder blocks"),
        "detokenizer": (generator.detokenizer, "diffusion U-Net, one evaluation a timestep"),
        "grounding head": (corrector, "SAR, estimate and proposal at full resolution"),
    }
    counts = {name: sum(p.numel() for p in module.parameters()) for name, (module, _) in parts.items()}
    entries, numbers = generator.codebook.shape
    weights = str(options.checkpoint) if options.checkpoint else find_weights(spec).source
    defaults = inspect.signature(stage3_tm_ground.build_stage3_model).parameters
    shown = ("timesteps", "standardize", "pretrained", "scheduler", "s1_product")

    typer.echo(f"Stage 3, TerraMind grounding: {spec.name}")
    typer.echo("\nparameters")
    for name, (_, text) in parts.items():
        typer.echo(f"  {name:<16}{counts[name] / 1e6:>8.2f} M  {text}")
    typer.echo(f"  {'total':<16}{sum(counts.values()) / 1e6:>8.2f} M")
    typer.echo("\ntokens")
    typer.echo(f"  width           {core.mask_token.shape[-1]}, {core.encoder[0].attn.num_heads} attention heads")
    typer.echo(f"  pixels          {layout.patch}x{layout.patch} each")
    typer.echo(f"  codebook        {entries} entries of {numbers} numbers (finite scalar quantization)")
    typer.echo("\ninputs")
    typer.echo(f"  s1              (B,2,H,W) {', '.join(SAR_BANDS)} in dB, {options.s1_product}")
    typer.echo(f"  opt_v2          (B,4,H,W) {', '.join(OPTICAL_BANDS)} in DN (reflectance x 10000)")
    typer.echo(f"  channels        the network's image has {generator.optical.channels}")
    typer.echo(f"  size            H, W from {MIN_SIDE} px; above {layout.max_side} px in tiles")
    typer.echo(f"  padded to       a square multiple of {layout.multiple}, at least {layout.min_side} px")
    typer.echo("\ndefaults")
    typer.echo("  " + ", ".join(f"{name}={defaults[name].default}" for name in shown))
    typer.echo(f"\nweights\n  {weights}")
    return 0
