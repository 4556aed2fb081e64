"""The pictures of one result: every layer as a small image in a data URI, with what to write beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image

from axs_lib.evaluate import colour
from axs_lib.evaluate.colour import Array
from axs_lib.io.saved import Result

SMALL = 256  # px: up to here every pixel is seen, and colour is not thinned
QUALITY = 78
THUMBNAIL = 72  # px
REFLECTANCE = "reflectance, mean over the bands"
MAPS = {  # label, note, palette
    "change": ("change |v3 − v2|", REFLECTANCE, "magma"),
    "removed": ("error removed", f"blue: nearer to the truth, red: further; {REFLECTANCE}", "RdBu"),
    "uncertainty": ("uncertainty (1 std)", REFLECTANCE, "viridis"),
}


class View(NamedTuple):
    """One choice of the swipe view, by the layer, such as ``opt_v3`` or ``change``."""

    key: str
    label: str  # for people
    short: str  # the same in a word or two
    note: str  # what the colours mean
    pictures: Mapping[str, str]  # data URIs by kind of colour: ``true`` and ``false`` of an optical image, else ``any``
    legend: Mapping[str, Any] | None = None  # of a map: CSS colours from low to high, and its ends in words


def views_of(result: Result) -> list[View]:
    """The pictures of a result, optical ones on one stretch: the truth's, else that of opt_v2 and opt_v3 together."""
    layers = {name: layer.astype(np.float64) for name, layer in result.layers.items()}
    names = ["truth"] if "truth" in layers else [name for name in ("opt_v2", "opt_v3") if name in layers]
    reference = np.concatenate([layers[name] for name in names], axis=1)
    stretches = {bands: colour.stretch_of(reference, bands) for bands in (colour.TRUE_COLOUR, colour.FALSE_COLOUR)}
    views = []
    for name, label in colour.labels_of(layers, result.tags.get("AXS_MASK_KIND", "")).items():
        if name in layers:
            pictures = {
                kind: _uri(colour.optical_colour(layers[name], bands, stretches[bands]))
                for kind, bands in (("true", colour.TRUE_COLOUR), ("false", colour.FALSE_COLOUR))
            }
            views.append(View(name, label, name, "", pictures))
    if "s1" in layers:
        note = "red VV, green VH, blue VV − VH"
        views.append(View("s1", "SAR · Sentinel-1", "SAR", note, {"any": _uri(colour.sar_colour(layers["s1"]))}))
    for key, layer in colour.difference_maps(layers).items():
        views.append(_map(key, *MAPS[key], layer, centred=key == "removed"))
    for name, note in (("gate", "correction let through, 0 to 1"), ("trust", "trust in opt_v2, 0 to 1")):
        if name in layers:
            views.append(_map(name, name, note, "cividis", layers[name][0], top=1.0))
    return views


def thumbnail(result: Result) -> str:
    """The grounded image, small, as a data URI."""
    image = result.layers["opt_v3"].astype(np.float64)
    step = max(1, max(image.shape[1:]) // THUMBNAIL)
    image = image[:, ::step, ::step]
    return _uri(colour.optical_colour(image, colour.TRUE_COLOUR, colour.stretch_of(image, colour.TRUE_COLOUR)))


def _map(key: str, label: str, note: str, palette: str, layer: Array, *, centred: bool = False, top: float = 0) -> View:
    colours = colormaps[palette]
    top = top or colour.top_of(layer)
    low = -top if centred else 0.0
    valid = np.isfinite(layer)
    place = np.clip((np.where(valid, layer, low) - low) / (top - low), 0, 1)
    picture = np.where(valid[..., None], colours(place)[..., :3], colour.NODATA_GREY)
    scale = [to_hex(colours(x)) for x in np.linspace(0, 1, 9)]
    first, last = (f"{end:.2g}".replace("-", "−") for end in (low, top))
    legend = {"colours": scale, "low": first, "high": last}
    short = label.split(" |")[0].split(" (")[0]
    return View(key, label, short, note, {"any": _uri(picture)}, legend)


def _uri(picture: NDArray[np.float64]) -> str:
    image = Image.fromarray(np.round(picture * 255).astype(np.uint8))
    buffer = io.BytesIO()
    sampling = 0 if max(image.size) <= SMALL else 2  # 4:4:4 or 4:2:0
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=sampling, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
