"""What the tests of files share with those of scenes."""

from ..scenes.conftest import grounder, scene

__all__ = ["grounder", "scene"]
