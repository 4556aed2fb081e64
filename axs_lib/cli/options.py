"""Every option that commands share: its name, its default and its meaning, once; and what turns words into objects.

In: the words of a command line. Out: types for Typer's parameters, and masks, grids, devices and settings made of their
values. Imports neither torch nor rasterio until one of the functions is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from axs_lib.io.grid import SceneGrid
    from axs_lib.io.masks import MaskFile
    from axs_lib.scenes.api import SceneResult

DEFAULT_ENSEMBLE = 4  # members, where an uncertainty map is written and no size is given


class Precision(StrEnum):
    """Arithmetic of the network."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Product(StrEnum):
    """Kind of Sentinel-1 image."""

    S1GRD = "S1GRD"
    S1RTC = "S1RTC"


class MaskKind(StrEnum):
    """What the values of a mask mean."""

    auto = "auto"
    boolean = "boolean"
    trust = "trust"
    scl = "scl"


class CorrectionMode(StrEnum):
    """How a correction is made."""

    learned = "learned"
    difference = "difference"


class S1Unit(StrEnum):
    """Unit of the backscatter."""

    auto = "auto"
    db = "db"
    power = "power"
    amplitude = "amplitude"


class BoaOffset(StrEnum):
    """What Sentinel-2 DN hold too much."""

    auto = "auto"
    none = "0"
    thousand = "1000"


def _path(help: str, metavar: str = "PATH") -> Any:
    return typer.Option(metavar=metavar, help=help)


# Inputs
S1Option = Annotated[
    list[str],
    typer.Option(
        metavar="FILE [FILE]",
        help="VV and VH: one stack, or one file a band: GeoTIFF, COG, JPEG 2000, .npz or .pt. On another grid it"
        " is warped.",
    ),
]
BandsOption = Annotated[
    str | None, typer.Option(help="Order of the bands in the files, as B04,B03,B02,B08, where they do not say it.")
]
S1UnitOption = Annotated[
    S1Unit, typer.Option(help="Unit of the SAR; auto goes by names and values and prints what it decided.")
]
S1ProductOption = Annotated[Product, typer.Option(help="Kind of Sentinel-1 image.")]
BoaOffsetOption = Annotated[
    BoaOffset, typer.Option(help="BOA offset in the DN of Sentinel-2; auto goes by the product's metadata.")
]
SameGridOption = Annotated[
    bool,
    typer.Option("--same-grid", help="Lay images of one size on each other, although one does not say where it lies."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Accept values that do not look like dB and DN.")]
MaskOption = Annotated[
    Path | None,
    _path(
        "Where the optical image was observed: 1 is clear and kept as it is, 0 is unknown and filled from SAR and"
        " context. A boolean mask, a trust map in 0..1, or a scene classification (SCL); scl is that of the Sentinel-2"
        " product given as the image.",
        "FILE",
    ),
]
MaskKindOption = Annotated[MaskKind, typer.Option(help="What the values of --mask mean.")]
MaskInvertOption = Annotated[bool, typer.Option("--mask-invert", help="1 is unknown in --mask, as in a cloud mask.")]
DropOption = Annotated[
    str | None,
    typer.Option(
        metavar="CLASSES",
        help="SCL classes that count as unknown, by name or number; by default no_data,saturated_or_defective,"
        "cloud_shadow,cloud_medium,cloud_high,thin_cirrus.",
    ),
]
MaskBufferOption = Annotated[int, typer.Option(metavar="PX", min=0, help="Pixels by which what is unknown grows.")]

# The model
VariantOption = Annotated[
    str | None, typer.Option(help="nano, or terramind_v1_tiny, _small, _base (default) or _large.")
]
CheckpointOption = Annotated[Path | None, _path("TerraMind weights from this file or folder.")]
AdapterOption = Annotated[
    Path | None,
    _path("LoRA adapter and grounding head for Stage 3, from this folder of `axs train stage3` or `head`.", "DIR"),
]
Stage1CheckpointOption = Annotated[Path | None, _path("Stage 1 weights, where they are not those of Stage 3.")]
Stage2CheckpointOption = Annotated[Path | None, _path("Stage 2 weights from this file or folder.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default a GPU where there is one, else the CPU.")
]
DtypeOption = Annotated[
    Precision, typer.Option(help="Arithmetic; bfloat16 is faster where the processor has the instructions.")
]
TimestepsOption = Annotated[
    int | None,
    typer.Option(
        help="Network evaluations, 1 to 1000: 1 is the most accurate, more are sharper; by default what the weights"
        " recommend (nano: 1)."
    ),
]
StrengthOption = Annotated[
    float, typer.Option(help="How far from the estimate the denoiser starts, 0 to 1; 0 keeps it.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of the noise.")]
EnsembleOption = Annotated[
    int | None, typer.Option(min=1, help="Members averaged; by default 4 where an uncertainty map is written, else 1.")
]
CorrectionModeOption = Annotated[
    CorrectionMode | None, typer.Option(help="How a correction is made; by default what the weights were trained for.")
]
HoldColourOption = Annotated[
    bool, typer.Option("--hold-colour", help="Change detail only: no flood comes through, none is invented.")
]
DeterministicOption = Annotated[
    bool, typer.Option("--deterministic", help="One tile at a time, so that runs agree to the last DN; slower.")
]

# Outputs
UncertaintyOption = Annotated[
    Path | None, _path("Also write the error to expect (1 std), in DN; of axs batch a folder.")
]
GateOption = Annotated[
    Path | None, _path("Also write how much of the correction was let through, 0 to 1; of axs batch a folder.")
]
SarContributionOption = Annotated[
    Path | None, _path("Also write the change that the SAR makes, in DN (a second run); of axs batch a folder.")
]
StacOption = Annotated[Path | None, _path("Also write a STAC Item, which needs --date; of axs batch a folder.")]
DateOption = Annotated[str | None, typer.Option(help="Day the image stands for, as 2021-07-14.")]
LikeOption = Annotated[Path | None, _path("Draw on the grid of this raster.", "FILE")]
CrsOption = Annotated[str | None, typer.Option(help="CRS of the output, such as EPSG:32633.")]
ResOption = Annotated[float | None, typer.Option(help="Its pixel side, in units of the CRS.")]
BoundsOption = Annotated[
    str | None,
    typer.Option(
        metavar="LEFT,BOTTOM,RIGHT,TOP", help="Extent, in units of --crs; in degrees where no --crs is given."
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def mask_file(path: Path | None, kind: MaskKind, invert: bool, drop: str | None, buffer: int) -> MaskFile | None:
    """The mask that ``--mask`` and its options describe.

    Raises:
        InputError: options without a mask, or classes that there are not.
    """
    from axs_lib.errors import InputError
    from axs_lib.io.masks import MaskFile, scl_numbers

    if path is None:
        if kind != MaskKind.auto or invert or drop is not None or buffer:
            raise InputError(
                "--mask-kind, --mask-invert, --drop and --mask-buffer say how to read a mask and none is given; add"
                " --mask FILE"
            )
        return None
    dropped = None if drop is None else scl_numbers(word for word in drop.split(",") if word.strip())
    return MaskFile(path, kind.value, invert, dropped, buffer)


def parse_edges(bounds: str, crs: str | None = None) -> list[float]:
    """The four numbers of ``--bounds``; given a CRS in whose units they are, as degrees.

    Raises:
        InputError: they are none, or another count, or the CRS is unknown.
    """
    from axs_lib.errors import InputError

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
    """The grid that ``--like``, or ``--crs --res --bounds``, describe; None for none of them.

    Raises:
        InputError: both or only a part is given, or it is no grid.
    """
    from axs_lib.errors import InputError
    from axs_lib.io.grid import SceneGrid

    given = [value is not None for value in (crs, res, bounds)]
    if like is not None and not any(given):
        return SceneGrid.like(like)
    if like is None and not any(given):
        return None
    if like is not None or crs is None or res is None or bounds is None:
        raise InputError("expected --like FILE, or --crs, --res and --bounds together, to say where to draw")
    return SceneGrid.of(crs, res, parse_edges(bounds))


def recommended_timesteps(variant: str | None) -> int:
    """Network evaluations that a variant's weights recommend, where ``--timesteps`` is left out.

    Raises:
        InputError: unknown variant.
    """
    from axs_lib.terramind.weights import DEFAULT_VARIANT, find_variant

    return find_variant(variant or DEFAULT_VARIANT).timesteps


def torch_device(name: str | None) -> Any:
    """The torch device of this name, or the best there is.

    Raises:
        InputError: there is no such device here.
    """
    import torch

    from axs_lib.errors import InputError

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        count = torch.cuda.device_count()
        there = "cpu" + (f" and cuda:0 to cuda:{count - 1}" if count else "; there is no CUDA GPU here")
        raise InputError(f"--device {name} cannot be used; expected {there}") from error
    return device


@contextmanager
def memory_errors(device: str) -> Iterator[None]:
    """Say in words that a device has too little memory."""
    import torch

    from axs_lib.errors import AxionError

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise AxionError(
            f"{device} has too little memory for a batch of tiles; use --deterministic (one tile at a time), --dtype"
            " bfloat16, --device cpu or a smaller --variant"
        ) from error


def report(result: SceneResult, variant: str, known: Sequence[str] = ()) -> None:
    """Say what was assumed, on stderr, and what was made, on stdout."""
    for note in result.notes:
        typer.echo(note, err=True)
    height, width = result.grid.size
    speed = result.tiles / max(result.seconds, 1e-9)
    evaluations = " and ".join(map(str, result.nfe)) if isinstance(result.nfe, tuple) else str(result.nfe)
    about = "".join(f", {each}" for each in known)
    typer.echo(
        f"{height}x{width} px, {variant}{about}, {result.tiles} tiles in {result.seconds:.0f} s ({speed:.1f} tiles/s),"
        f" {evaluations} network evaluations"
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


def shown(metadata: Mapping[str, Any]) -> list[str]:
    """What is known of time and place, for people."""
    return [f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in metadata.items()]
