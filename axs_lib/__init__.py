"""Axion-Sat grounds an optical satellite estimate (Stage 2) in real Sentinel-1 radar with TerraMind (Stage 3).

The doors are the stage modules, chiefly ``axs_lib.stage3_tm_ground``; the ``axs`` command wraps them. Importing this
package imports nothing heavy: torch and terratorch load when a stage module is first used.
"""

from __future__ import annotations

import os

__version__ = "0.1.0"

# Importing terratorch imports two packages that ask the network for their newest version. Nothing here phones home.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")
