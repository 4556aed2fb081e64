"""Measure models on folders of real pairs, and draw what they did: ``evaluator`` and ``panel``."""
