"""A STAC Item beside a scene, so that catalogues and odc-stac find what was made, where, when and how."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rasterio.crs import CRS
from rasterio.warp import transform_bounds, transform_geom

from axs_lib.errors import InputError
from axs_lib.io.grid import SceneGrid
from axs_lib.io.raster import band_name
from axs_lib.io.results import Layer

_COMMON_NAMES = {band_name(name): {"eo:common_name": name} for name in ("blue", "green", "red", "nir")}
_EXTENSIONS = ("projection/v2.0.0", "processing/v1.2.0", "eo/v2.0.0", "raster/v2.0.0")


def parse_date(text: str) -> datetime:
    """A day or a moment in ISO form, in UTC where it does not say. Raises InputError: it is neither."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"the date is {text!r}; expected for example 2021-07-14") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def stac_item(path: Path, grid: SceneGrid, assets: Mapping[Path, Layer], date: str, tags: Mapping[str, str]) -> str:
    """A STAC 1.1 Item as JSON, to be written to ``path``, with relative links to its assets and what they hold."""
    crs, edges = CRS.from_wkt(grid.crs), grid.bounds()
    outline = transform_geom(crs, "EPSG:4326", {"type": "Polygon", "coordinates": [_ring(*edges)]})
    west, south, east, north = transform_bounds(crs, "EPSG:4326", *edges)
    if max(-west, east) > 180 or (west > east and outline["type"] == "Polygon"):  # GeoJSON is cut at 180 degrees
        west, east = (longitude - 360 * round(longitude / 360) for longitude in (west, east))
        parts = [(west, 180.0), (-180.0, east)] if west > east else [(west, east)]
        outline = {"type": "MultiPolygon", "coordinates": [[_ring(a, south, b, north)] for a, b in parts]}
    authority = crs.to_authority()
    code = {"proj:code": ":".join(authority)} if authority else {"proj:code": None, "proj:wkt2": grid.crs}
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{each}/schema.json" for each in _EXTENSIONS],
        "id": path.stem,
        "geometry": outline,
        "bbox": [west, south, east, north],
        "properties": {
            "datetime": parse_date(date).isoformat().replace("+00:00", "Z"),
            **code,
            "proj:shape": list(grid.size),
            "proj:transform": [*(grid.transform or ()), 0.0, 0.0, 1.0],
            "processing:software": {"axion-sat": tags.get("AXS_VERSION", "unknown")},
            # AXS_WEIGHTS_SHA256 becomes axs:weights_sha256
            **{f"axs:{k.removeprefix('AXS_').lower()}": v for k, v in tags.items() if k.startswith("AXS_")},
        },
        "links": [],
        "assets": {layer.name: _asset(path, file, layer) for file, layer in assets.items()},
    }
    return json.dumps(item, indent=2) + "\n"


def _ring(west: float, south: float, east: float, north: float) -> list[tuple[float, float]]:
    return [(west, south), (east, south), (east, north), (west, north), (west, south)]


def _asset(item: Path, file: Path, layer: Layer) -> dict[str, Any]:
    # JSON has no NaN; STAC spells it out
    about: dict[str, Any] = {"data_type": layer.dtype, "nodata": "nan" if math.isnan(layer.nodata) else layer.nodata}
    if layer.unit != "1":
        about["unit"] = layer.unit
    if layer.scale is not None:
        about |= {"raster:scale": layer.scale, "raster:offset": 0.0}
    return {
        "href": Path(os.path.relpath(file.resolve(), item.resolve().parent)).as_posix(),
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"] if layer.scale is not None else ["metadata"],
        **about,
        "bands": [{"name": band, **_COMMON_NAMES.get(band, {})} for band in layer.bands],
    }
