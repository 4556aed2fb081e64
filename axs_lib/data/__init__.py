"""Real pairs, packaged samples, and simulated estimates, clouds and floods. Knows no model and no network."""
