"""What the tests of files share with those of scenes: a grounder that answers at once, and synthetic scenes."""

from ..scenes.conftest import CORNER, CRS, GRID, BoxGrounder, SceneFiles, grounder, scene, scene_arrays, write_scene

__all__ = ["CORNER", "CRS", "GRID", "BoxGrounder", "SceneFiles", "grounder", "scene", "scene_arrays", "write_scene"]
