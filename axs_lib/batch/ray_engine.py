"""Workers of a Ray cluster, or of a Ray started for this job alone: one actor each.

Ray only places workers and carries tasks (paths) and outcomes; all machines must see the same files. Where this process
is killed, Ray may take half a minute to end the actors, for which a new job must wait.
"""

from __future__ import annotations

import importlib
import math
import os
import socket
from collections.abc import Collection
from typing import Any

from axs_lib.batch.supervise import WorkerExit
from axs_lib.batch.work import Job, Outcome, Task, Worker
from axs_lib.errors import AxionError, first_line


class RayPool:
    """Workers as Ray actors: ``workers``, ``None`` for as many as the cluster's cores or GPUs have room for.

    The address is that of a running cluster, such as ``auto`` or ``ray://host:10001``; with ``None`` Ray is started
    on this machine for this job. ``AxionError`` where Ray is not installed.
    """

    def __init__(self, job: Job, workers: int | None, gpus_per_worker: float, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing here phones home
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise AxionError(
                "--engine ray needs Ray, which is not installed: pip install 'axion-sat[ray]', or use --engine local"
            ) from error
        self._job = job
        self._workers = workers
        self._address = address
        self._resources = {"num_cpus": job.threads, "num_gpus": gpus_per_worker}
        self._actors: dict[int, Any] = {}
        self._pending: dict[int, Any] = {}

    def open(self) -> int:
        """Connect to the cluster, or start one; ``AxionError`` where that fails or there is no room for a worker."""
        if self._address is None:
            room = {} if self._workers is None else {"num_cpus": self._workers * self._job.threads}
            options: dict[str, Any] = {"address": "local", "include_dashboard": False, **room}
        else:
            options = {"address": self._address}
        try:
            host, colon, port = (self._address or "").removeprefix("ray://").rpartition(":")
            if colon:  # Ray itself waits for many minutes where nobody answers
                socket.create_connection((host.strip("[]"), int(port)), timeout=30).close()
            self._ray.init(**options, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = f"at {self._address}" if self._address else "on this machine"
            raise AxionError(
                f"Ray cannot be used {where}: {first_line(error)}; check --address, or use --engine local"
            ) from error
        total = self._ray.cluster_resources()
        limits = {"CPU": self._resources["num_cpus"], "GPU": self._resources["num_gpus"]}
        room_for = min(math.floor(total.get(name, 0) / need) for name, need in limits.items() if need)
        if room_for < 1:
            raise AxionError(
                f"the Ray cluster has {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs, and a worker needs"
                f" {limits['CPU']:g} and {limits['GPU']:g}; lower --threads or --gpus-per-worker"
            )
        return min(self._workers or room_for, room_for)

    def start(self, slot: int) -> None:
        """Ray does not restart the actor by itself."""
        actor = self._ray.remote(Worker).options(**self._resources, max_restarts=0, max_task_retries=0)
        self._actors[slot] = actor.remote(self._job)

    def submit(self, slot: int, task: Task) -> None:
        self._pending[slot] = self._actors[slot].run.remote(task)

    def wait(self, slots: Collection[int]) -> list[tuple[int, Outcome | WorkerExit]]:
        ready, _ = self._ray.wait([self._pending[slot] for slot in slots], num_returns=1)
        return [(slot, self._outcome(slot)) for slot in list(slots) if self._pending[slot] in ready]

    def _outcome(self, slot: int) -> Outcome | WorkerExit:
        try:
            return self._ray.get(self._pending.pop(slot))
        except self._ray.exceptions.RayError as error:  # the actor, its node, or its memory is gone
            return WorkerExit(" ".join(str(error).split())[:300])

    def shutdown(self) -> None:
        """A cluster that was started for this job ends, too."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._pending.clear()
        self._ray.shutdown()
