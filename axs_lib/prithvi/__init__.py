"""What Stage 2 adds around terratorch's Prithvi: backbone and its weights, metadata, the ConvNeXt head."""
