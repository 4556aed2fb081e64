"""The options that commands share, each defined once; torch and rasterio are imported by what needs them."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from axs_lib.errors import AxionError, InputError, counted

if TYPE_CHECKING:
    from axs_lib.io.grid import SceneGrid
    from axs_lib.io.masks import MaskFile
    from axs_lib.scenes.api import SceneResult

DEFAULT_ENSEMBLE = 4  # members, where an uncertainty map is written and no size is given

Product = Literal["S1GRD", "S1RTC"]
S1Unit = Literal["auto", "db", "power", "amplitude"]
CorrectionMode = Literal["learned", "difference"]


def option(help: str, *names: str, **more: Any) -> Any:
    """``typer.Option`` with its help first."""
    return typer.Option(*names, help=help, **more)


# Options of some commands
S1Option = Annotated[
    list[str],
    option(
        "VV and VH: one stack, or one file a band: GeoTIFF, COG, JPEG 2000, .npz or .pt. On another grid it is warped.",
        metavar="FILE [FILE]",
    ),
]
S1UnitOption = Annotated[S1Unit, option("Unit of the SAR; auto goes by names and values and prints what it decided.")]
TimestepsOption = Annotated[
    int | None,
    option(
        "Network evaluations: 1 is the most accurate, more are sharper; default: what the weights recommend (nano: 1).",
        min=1,
        max=1000,
    ),
]
CorrectionModeOption = Annotated[
    CorrectionMode | None, option("How a correction is made; by default what the weights were trained for.")
]
DeterministicOption = Annotated[
    bool, option("One tile at a time, so that runs agree to the last DN; slower.", "--deterministic")
]
CrsOption = Annotated[str | None, option("CRS of the output, such as EPSG:32633.")]
ResOption = Annotated[float | None, option("Pixel size of the output, in units of the CRS.")]
BoundsOption = Annotated[
    str | None,
    option("Extent, in units of --crs; in degrees where no --crs is given.", metavar="LEFT,BOTTOM,RIGHT,TOP"),
]
MOST_SEED = 2**32 - 1
OverwriteOption = Annotated[bool, option("Replace existing outputs.", "--overwrite")]
QuietOption = Annotated[bool, option("Print nothing but errors.", "--quiet", "-q")]


@dataclass(frozen=True)
class ModelOptions:
    """The model and how it computes: of ``ground``, ``run``, ``batch`` and ``evaluate``."""

    checkpoint: Annotated[Path | None, option("TerraMind weights from this file or folder.")] = None
    adapter: Annotated[
        Path | None,
        option(
            "LoRA adapter and grounding head for Stage 3, from this folder of `axs train stage3` or `head`.",
            metavar="DIR",
        ),
    ] = None
    s1_product: Annotated[Product, option("Kind of Sentinel-1 image.")] = "S1GRD"
    seed: Annotated[int, option("Seed of the noise.", min=0, max=MOST_SEED)] = 0
    hold_colour: Annotated[
        bool, option("Keep the broad colours of opt_v2; real floods are not shown either.", "--hold-colour")
    ] = False
    device: Annotated[
        str | None, option("cpu, cuda, cuda:1 ...; default: a GPU, else the CPU; axs batch: cpu (default) or cuda.")
    ] = None
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        option("Arithmetic; bfloat16 is faster where the processor has the instructions."),
    ] = "float32"
    force: Annotated[bool, option("Accept values that do not look like dB and DN.", "--force")] = False

    def build(self, stage: str, timesteps: int, device: str, **given: Any) -> Any:
        """Stage 3 (``ground``) or the three stages (``pipeline``), of which ``given`` says more."""
        from axs_lib.batch.runners import build_model

        common = {"device": device, "s1_product": self.s1_product, "checkpoint": self.checkpoint, **given}
        return build_model(stage, timesteps, adapter=self.adapter, dtype=self.dtype, **common)


@dataclass(frozen=True)
class SceneOptions(ModelOptions):
    """Besides, what is read and written: of ``ground``, ``run`` and ``batch``."""

    variant: Annotated[str | None, option("nano, or terramind_v1_tiny, _small, _base (default) or _large.")] = None
    timesteps: TimestepsOption = None
    s1_unit: S1UnitOption = "auto"
    bands: Annotated[str | None, option("Order of the bands, as B04,B03,B02,B08, where files do not say it.")] = None
    same_grid: Annotated[
        bool, option("Lay images of one size on each other, although one does not say where it lies.", "--same-grid")
    ] = False
    ensemble_size: Annotated[
        int | None, option("Members averaged; by default 4 for the pipeline or an uncertainty map, else 1.", min=1)
    ] = None
    uncertainty: Annotated[
        Path | None, option("Also write the error to expect (1 std), in DN; of axs batch a folder.")
    ] = None
    gate: Annotated[
        Path | None, option("Also write how much of the correction was let through, 0 to 1; of axs batch a folder.")
    ] = None
    sar_contribution: Annotated[
        Path | None, option("Also write the change that the SAR makes, in DN (a second run); of axs batch a folder.")
    ] = None
    stac: Annotated[Path | None, option("Also write a STAC Item, which needs --date; of axs batch a folder.")] = None
    date: Annotated[str | None, option("Day the image stands for, as 2021-07-14.")] = None
    quiet: QuietOption = False

    def steps(self) -> int:
        """Network evaluations: as asked for, else as the variant's weights recommend; the variant is checked."""
        recommended = recommended_timesteps(self.variant)
        return recommended if self.timesteps is None else self.timesteps

    def for_scene(self) -> dict[str, Any]:
        """What ``ground_scene`` and ``run_scene`` take alike."""
        from axs_lib.io.raster import parse_bands

        maps = {name: getattr(self, name) or False for name in ("uncertainty", "gate", "sar_contribution")}
        as_given = {name: getattr(self, name) for name in ("seed", "stac", "s1_unit", "same_grid", "force")}
        colour = {"hold_colour": True} if self.hold_colour else {}
        tags = {"AXS_S1_PRODUCT": self.s1_product, "AXS_DTYPE": self.dtype}
        others = {"bands": parse_bands(self.bands), "tags": tags, "progress": not self.quiet}
        return {**maps, **as_given, **colour, **others}

    def carry_out(self, stage: str, make: Callable[..., SceneResult], *inputs: Any, model: Any, **how: Any) -> None:
        """Make the images of ``ground`` or ``pipeline`` with a model that is built once the inputs are found good."""
        import torch

        device, steps = torch_device(self.device), self.steps()
        build = functools.cache(lambda: self.build(stage, steps, device, variant=self.variant, **model))
        members = self.ensemble_size or (DEFAULT_ENSEMBLE if self.uncertainty or stage == "pipeline" else 1)
        kept = (self.checkpoint, self.adapter, environment_weights(self.variant), *how.pop("kept", ()))
        try:
            result = make(build, *inputs, timesteps=steps, ensemble_size=members, kept=kept, **self.for_scene(), **how)
        except torch.OutOfMemoryError as error:
            raise AxionError(
                f"{device} has too little memory for a batch of tiles; use --deterministic (one tile at a time),"
                " --dtype bfloat16, --device cpu or a smaller --variant"
            ) from error
        if not self.quiet:
            report(result, build().variant)


@dataclass(frozen=True)
class EstimateOptions:
    """How the optical image is read and changed: of ``ground`` and ``batch``."""

    mask: Annotated[
        Path | None,
        option(
            "Where the optical image was observed: 1 is clear and kept as it is, 0 is unknown and filled from SAR and"
            " context. A boolean mask, a trust map in 0..1, or a scene classification (SCL); scl is that of the"
            " Sentinel-2 product given as the image.",
            metavar="FILE",
        ),
    ] = None
    mask_kind: Annotated[Literal["auto", "boolean", "trust", "scl"], option("What the values of --mask mean.")] = "auto"
    mask_invert: Annotated[bool, option("1 is unknown in --mask, as in a cloud mask.", "--mask-invert")] = False
    drop: Annotated[
        str | None,
        option(
            "SCL classes that count as unknown, by name or number; by default no_data,saturated_or_defective,"
            "cloud_shadow,cloud_medium,cloud_high,thin_cirrus.",
            metavar="CLASSES",
        ),
    ] = None
    mask_buffer: Annotated[int, option("Enlarge the gaps by this many pixels.", metavar="PX", min=0)] = 0
    boa_offset: Annotated[
        Literal["auto", "0", "1000"], option("BOA offset in the DN of Sentinel-2; auto goes by the product's metadata.")
    ] = "auto"
    strength: Annotated[float, option("How far from the estimate the denoiser starts; 0 keeps it.", min=0, max=1)] = 1.0
    correction_mode: CorrectionModeOption = None

    def mask_file(self, path: Path | None) -> MaskFile | None:
        """The mask at this path, to be read as the options say; ``InputError`` for options without a mask."""
        from axs_lib.io.masks import MaskFile, scl_numbers

        if path is None:
            if self.mask_kind != "auto" or self.mask_invert or self.drop is not None or self.mask_buffer:
                raise InputError(
                    "--mask-kind, --mask-invert, --drop, --mask-buffer need a mask and none is given; add --mask FILE"
                )
            return None
        classes = None if self.drop is None else scl_numbers(word for word in self.drop.split(",") if word.strip())
        return MaskFile(path, self.mask_kind, self.mask_invert, classes, self.mask_buffer)


@dataclass(frozen=True)
class StageOptions:
    """Weights of the earlier stages: of ``run``, ``batch`` and ``evaluate``."""

    stage1_checkpoint: Annotated[Path | None, option("Stage 1 weights, where they are not those of Stage 3.")] = None
    stage2_checkpoint: Annotated[Path | None, option("Stage 2 weights from this file or folder.")] = None


def with_shared(command: Callable[..., None]) -> Callable[..., None]:
    """A command in which each parameter that is a dataclass is replaced by the dataclass's fields."""
    own = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {name: each.annotation for name, each in own.items() if is_dataclass(each.annotation)}
    shared = {name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, options in shared.items():
            given[name] = groups[name](**{each: given.pop(each) for each in options if each in given})
        command(**given)

    options = [each for name in own for each in (shared[name].values() if name in shared else [own[name]])]
    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in options]
    run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    return run


def parse_edges(bounds: str, crs: str | None = None) -> list[float]:
    """The four numbers of ``--bounds``; converted to degrees where ``crs``, in whose units they are, is given."""
    try:
        edges = [float(edge) for edge in bounds.split(",")]
    except ValueError:
        edges = []
    if len(edges) != 4:
        raise InputError(f"--bounds is {bounds!r}; expected four numbers LEFT,BOTTOM,RIGHT,TOP")
    if crs is None:
        return edges
    from rasterio.errors import RasterioError
    from rasterio.warp import transform_bounds

    try:
        return list(transform_bounds(crs, "EPSG:4326", *edges))
    except (RasterioError, ValueError) as error:
        raise InputError(f"--bounds {bounds} are no place in --crs {crs}: {error}") from error


def grid_from(like: Path | None, crs: str | None, res: float | None, bounds: str | None) -> SceneGrid | None:
    """The grid that ``--like``, or ``--crs --res --bounds`` together, describe; None for none of them."""
    from axs_lib.io.grid import SceneGrid

    if crs is None and res is None and bounds is None:
        return None if like is None else SceneGrid.like(like)
    if like is not None or crs is None or res is None or bounds is None:
        raise InputError("expected --like FILE, or --crs, --res and --bounds together, to say where to draw")
    return SceneGrid.of(crs, res, parse_edges(bounds))


def recommended_timesteps(variant: str | None) -> int:
    """Network evaluations that a variant's weights recommend, where ``--timesteps`` is left out."""
    from axs_lib.terramind.weights import DEFAULT_VARIANT, find_variant

    return find_variant(variant or DEFAULT_VARIANT).timesteps


def environment_weights(variant: str | None) -> str | None:
    """Where ``AXS_WEIGHTS`` says that a variant's weights are; None where it says nothing, or they are packaged."""
    from axs_lib.terramind.weights import DEFAULT_VARIANT, WEIGHTS_VARIABLE, find_variant

    return None if find_variant(variant or DEFAULT_VARIANT).packaged else os.environ.get(WEIGHTS_VARIABLE)


def torch_device(name: str | None) -> str:
    """The torch device of this name, or the best there is; ``InputError`` where it is not here."""
    import torch

    from axs_lib.checks import find_device

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(find_device(name, "--device"))


def report(result: SceneResult, variant: str) -> None:
    """Say what was assumed, on stderr, and what was made, on stdout."""
    for note in result.notes:
        typer.echo(note, err=True)
    height, width = result.grid.size
    speed = result.tiles / max(result.seconds, 1e-9)
    stages = result.nfe if isinstance(result.nfe, tuple) else (result.nfe,)
    evaluations = " and ".join(map(str, stages)) + f" network evaluation{'' if sum(stages) == 1 else 's'}"
    metadata = result.metadata.items()
    known = [f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in metadata]
    about = "".join(f", {each}" for each in known or (["no date and place"] if len(stages) > 1 else []))
    typer.echo(
        f"{height}x{width} px, {variant}{about}, {counted(result.tiles, 'tile')} in {result.seconds:.0f} s"
        f" ({speed:.1f} tiles/s), {evaluations}"
    )
    words = {"kept": "kept as observed", "filled": "filled", "corrected": "corrected", "empty": "left empty (nodata)"}
    total = sum(result.counts.values())
    shares = [
        f"{result.counts[key]:,} {text} ({100 * result.counts[key] / total:.1f} %)"
        for key, text in words.items()
        if result.counts.get(key)
    ]
    typer.echo(f"pixels: {', '.join(shares)}")
    for path, what in result.files.items():
        typer.echo(f"{path}: {what}")
