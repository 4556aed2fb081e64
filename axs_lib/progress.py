"""What is said while something runs: progress bars on long work, one look everywhere, and the log ``axs``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger("axs")


def show_log() -> None:
    """Show what is read, loaded and written on stderr, with the time (``axs -v``)."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


def track(items: Iterable[T], description: str, *, enabled: bool = True, total: int | None = None) -> Iterator[T]:
    """Iterate with a bar on stderr showing count, speed and time left; silent where not ``enabled``."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(description, total, enabled=enabled) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def bar(label: str, total: int | None, *, enabled: bool = True, unit: str = "") -> Iterator[Callable[[int], None]]:
    """A bar on stderr with count, time left and, where there is a unit, speed; gives a function to be told of it."""
    if not enabled:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    speed = (TextColumn("{task.fields[speed]}"),) if unit else ()
    with Progress(*columns, *speed, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, speed="")

        def advance(done: int) -> None:
            progress.advance(task, done)
            if unit and progress.tasks[0].speed:
                progress.update(task, speed=f"{progress.tasks[0].speed:.1f} {unit}/s")

        yield advance
