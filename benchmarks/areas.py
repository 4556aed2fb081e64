"""What larger areas would cost at a measured rate: what the benchmarks of scenes and of batches share.

In: km2 a second of one machine, and bytes read and written a km2. Out: a table of hours and storage, and how many such
machines a storage serves before it is what limits them.
"""

from __future__ import annotations

PIXEL_KM = 0.01
STORAGE_MB_S = 1000
# Land areas in km2: CIA World Factbook; the world without Antarctica.
AREAS = {"Austria": 82_445, "Germany": 348_672, "France (metropolitan)": 549_970, "the world's land": 134_740_000}


def cost_table(km2_per_s: float, read: float, written: float, unit: str, unit_km2: float) -> str:
    """The table, as Markdown.

    Args:
        km2_per_s: rate of one machine.
        read: bytes a km2.
        written: bytes a km2.
        unit: what is worked on, such as tiles.
        unit_km2: area of one.
    """
    lines = [f"| area | {unit} | hours on this machine | read GB | written GB |", "|---|---|---|---|---|"]
    for name, km2 in AREAS.items():
        cells = (f"{km2 / unit_km2:,.0f}", f"{km2 / km2_per_s / 3600:,.1f}", f"{km2 * read / 1e9:,.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {km2 * written / 1e9:,.1f} |")
    traffic = km2_per_s * (read + written) / 1e6
    lines += [
        "",
        f"One machine reads and writes {traffic:.2f} MB/s: a storage of {STORAGE_MB_S:,} MB/s serves"
        f" {STORAGE_MB_S / traffic:,.0f} of them. With fewer, their arithmetic is the limit; with more, the storage.",
    ]
    return "\n".join(lines)
