"""Files in and out: read, put on one grid, mask, write. Knows no model and no network."""
