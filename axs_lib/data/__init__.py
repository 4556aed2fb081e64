"""Tiles and pairs on disk: reading, writing, simulating and the packaged samples. Knows no model and no network."""
