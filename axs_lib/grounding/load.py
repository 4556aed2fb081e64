"""Weights of the grounding corrector: those beside a checkpoint of one's own, else the packaged ones.

One packaged head serves every variant, since it works in dB and DN with statistics of its own. A head that
``axs train`` wrote lies beside the generator's file, as ``grounding.safetensors``.
"""

from __future__ import annotations

from axs_lib.fresh import fresh_weights
from axs_lib.grounding.calibration import Calibration
from axs_lib.grounding.corrector import GroundingCorrector
from axs_lib.grounding.head import GroundingHead
from axs_lib.terramind.weights import Variant, WeightFiles, WeightsInfo, load_strict, read_metadata, read_state, resolve

CORRECTOR = Variant("grounding", 0)
CORRECTOR_FILE = f"{CORRECTOR.name}.safetensors"


def corrector_files(generator: WeightsInfo) -> WeightFiles:
    """Where the corrector's weights are read from, beside a generator with these weights.

    Raises:
        WeightsError: the packaged file is missing or not what was released.
    """
    if generator.source not in ("packaged", "hub"):
        for path in generator.paths.values():
            own = path.with_name(CORRECTOR_FILE)
            if own.is_file():
                return resolve(CORRECTOR, checkpoint=own)
    return resolve(CORRECTOR)


@fresh_weights()
def load_corrector(generator: WeightsInfo | None, *, s1_product: str = "S1GRD") -> GroundingCorrector:
    """A corrector for a generator with these weights; with a fresh head where the generator is random (``None``).

    Args:
        generator: the record of the generator's weights.
        s1_product: ``"S1GRD"`` or ``"S1RTC"``.

    Raises:
        WeightsError: weights that cannot be read or matched.
    """
    corrector = GroundingCorrector(GroundingHead(), s1_product=s1_product)
    if generator is not None:
        files = corrector_files(generator)
        load_strict(corrector, read_state(files.generator), what=f"the grounding head ({files.generator})")
        corrector.calibration = Calibration.from_header(read_metadata(files.generator))
        corrector.weights = files.info
    return corrector
