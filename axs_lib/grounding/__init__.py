"""How a proposal corrects an estimate: the learned head, the training-free difference, and the low-frequency hold."""
