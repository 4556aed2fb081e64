"""Scenes of any size: read and warp by rows, ground in blended tiles, write Cloud Optimized GeoTIFFs."""
