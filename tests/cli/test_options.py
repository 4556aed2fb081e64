"""Options that commands share have one default and one meaning, and the commands have those that they should."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from axs_lib.cli.app import app

COMMANDS = ("ground", "run", "batch")
EVERYWHERE = {
    *("--s1-unit", "--bands", "--same-grid", "--s1-product", "--force", "--quiet"),
    *("--variant", "--checkpoint", "--device", "--dtype", "--timesteps", "--seed", "--ensemble-size"),
    *("--hold-colour", "--uncertainty", "--gate", "--sar-contribution", "--stac", "--date"),
}
WITH_AN_ESTIMATE = {
    *("--mask", "--mask-kind", "--mask-invert", "--drop", "--mask-buffer"),
    *("--boa-offset", "--strength", "--correction-mode"),
}


def parameters(command: str) -> dict[str, Any]:
    """Options of a command by their long name."""
    group: Any = typer.main.get_command(app)
    return {
        next(name for name in parameter.opts if name.startswith("--")): parameter
        for parameter in group.commands[command].params
        if any(name.startswith("--") for name in parameter.opts)
    }


@pytest.mark.parametrize("name", sorted(EVERYWHERE | WITH_AN_ESTIMATE))
def test_the_commands_have_it_with_one_default_and_one_meaning(name: str) -> None:
    shared = [parameters(command).get(name) for command in (*COMMANDS, "evaluate")]
    declared = [(p.default, p.help, p.metavar, tuple(p.opts)) for p in shared[:3] if p is not None]
    assert len(set(map(str, declared))) == 1 and len(declared) == (3 if name in EVERYWHERE else 2)
    assert name != "--device" or "axs batch: cpu (default) or cuda" in shared[0].help
    if shared[3] is not None and name in ("--device", "--quiet", "--seed"):
        assert str((shared[3].default, tuple(shared[3].opts))) == str((declared[0][0], declared[0][3]))
