"""Train Stage 1 from SAR to optical: ``python train_stage1.py -c FILE`` is ``axs train stage1 -c FILE``.

Importing this gives ``apply_lora_to_linear``, which serves every stage.
"""

from __future__ import annotations

from axs_lib.adapters import apply_lora_to_linear

__all__ = ["apply_lora_to_linear"]

if __name__ == "__main__":
    import sys

    from axs_lib.cli.app import app

    app(["train", "stage1", *sys.argv[1:]], prog_name="axs")
