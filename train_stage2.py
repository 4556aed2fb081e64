"""Train Stage 2: ``python train_stage2.py -c FILE`` is ``axs train stage2 -c FILE``."""

from __future__ import annotations

from axs_lib.train.lora import apply_lora_to_linear

__all__ = ["apply_lora_to_linear"]

if __name__ == "__main__":
    import sys

    from axs_lib.cli.train import main

    main(["stage2", *sys.argv[1:]], program="train_stage2.py")
