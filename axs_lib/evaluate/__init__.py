"""Measure models on folders of real pairs: one loop (``evaluate``) and its scenarios."""

from axs_lib.evaluate.estimates import Estimates
from axs_lib.evaluate.evaluator import Report, Scenario, evaluate
from axs_lib.evaluate.flood import Floods
from axs_lib.evaluate.gaps import Gaps
from axs_lib.evaluate.kinds import EstimateKinds
from axs_lib.evaluate.uncertainty import Uncertainty

__all__ = ["EstimateKinds", "Estimates", "Floods", "Gaps", "Report", "Scenario", "Uncertainty", "evaluate"]
