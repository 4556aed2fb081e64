"""The sizes of Prithvi that Stage 2 knows and the files they are published in."""

from __future__ import annotations

from axs_lib.terramind.weights import HubFile, Variant

NANO = "nano"
DEFAULT_VARIANT = "prithvi_eo_v2_300_tl"


def _published(size: str, dim: int) -> Variant:
    file = HubFile(f"ibm-nasa-geospatial/Prithvi-EO-2.0-{size}-TL", f"Prithvi_EO_V2_{size}_TL.pt")
    return Variant(f"prithvi_eo_v2_{size.removesuffix('M')}_tl", dim, file)


PRITHVI_VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant(NANO, 144, packaged_name="nano_stage2"),
        _published("tiny", 192),
        _published("300M", 1024),
        _published("600M", 1280),
    )
}
