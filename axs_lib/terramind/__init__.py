"""What Axion-Sat adds around terratorch's TerraMind modules: adapters, exact sampling, noise field, weights."""
