"""How a proposal corrects an estimate: ``corrector`` and its parts, its weights, and images larger than a tile."""
