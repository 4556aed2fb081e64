"""What the tests of files share with those of scenes: a grounder that answers at once, and synthetic scenes."""

from ..scenes.conftest import (
    CORNER,
    CRS,
    GRID,
    PLACE,
    BoxGrounder,
    SceneFiles,
    grounder,
    read_tiff,
    scene,
    scene_arrays,
    write_scene,
    write_tiff,
)

__all__ = [
    "CORNER", "CRS", "GRID", "PLACE", "BoxGrounder", "SceneFiles", "grounder", "read_tiff", "scene", "scene_arrays",
    "write_scene", "write_tiff",
]  # fmt: skip
