"""Many tiles on many workers: what to work on, who does it, and a manifest that survives whatever happens."""
