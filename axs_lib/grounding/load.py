"""Weights of the grounding corrector: those beside a checkpoint of one's own, else the packaged ones.

One packaged head serves every variant, since it works in dB and DN with statistics of its own.
"""

from __future__ import annotations

from axs_lib.fresh import fresh_weights
from axs_lib.grounding.calibration import Calibration
from axs_lib.grounding.corrector import GroundingCorrector
from axs_lib.grounding.head import GroundingHead
from axs_lib.terramind.weights import Variant, WeightsInfo, load_strict, read_metadata, read_state, resolve

CORRECTOR = Variant("grounding", 0)
CORRECTOR_FILE = f"{CORRECTOR.name}.safetensors"


def corrector_files(generator: WeightsInfo) -> WeightsInfo:
    """Where the corrector's weights are read from, beside a generator with these weights."""
    own = [path.with_name(CORRECTOR_FILE) for path in generator.paths.values()]
    if generator.source not in ("packaged", "hub"):
        for path in filter(lambda path: path.is_file(), own):
            return resolve(CORRECTOR, checkpoint=path)
    return resolve(CORRECTOR)


@fresh_weights()
def load_corrector(generator: WeightsInfo | None, *, s1_product: str = "S1GRD") -> GroundingCorrector:
    """A corrector for a generator with these weights; with a fresh head where the generator is random (``None``)."""
    corrector = GroundingCorrector(GroundingHead(), s1_product=s1_product)
    if generator is not None:
        load_weights(corrector, corrector_files(generator))
    return corrector


def load_weights(corrector: GroundingCorrector, files: WeightsInfo) -> None:
    """Load a corrector's weights and calibration, completely or not at all, and record where they came from."""
    calibration = Calibration.from_header(read_metadata(files.generator))
    load_strict(corrector, read_state(files.generator), what=f"the grounding head ({files.generator})")
    corrector.calibration, corrector.weights = calibration, files
