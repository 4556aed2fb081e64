"""``python -m axs_lib``: the same as the ``axs`` command."""

from __future__ import annotations

from axs_lib.cli.app import main

if __name__ == "__main__":
    main()
