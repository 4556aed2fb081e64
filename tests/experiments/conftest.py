"""What the tests of experiments share with those of training."""

from tests.train.conftest import nano_weights

__all__ = ["nano_weights"]
