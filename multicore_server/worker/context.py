"""What the arbiter gives a worker at the fork."""

from __future__ import annotations

from dataclasses import dataclass

from multicore_server.connections.handover import Handover
from multicore_server.ipc.channel import WorkerChannel
from multicore_server.ipc.cluster_state import ClusterState
from multicore_server.ipc.request_table import RequestTable
from multicore_server.ipc.scoreboard import Row
from multicore_server.settings.table import Settings


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """A worker's place, and its ties to the arbiter and to its siblings."""

    instance: int
    instances: int  # that were to run when this one was started
    generation: int
    number: int  # of its row
    row: Row
    channel: WorkerChannel
    lifeline: int  # a pipe's end that reads EOF when the arbiter is gone
    settings: Settings
    handover: Handover
    requests: RequestTable
    deployment: int  # its number: a reload makes a new one
    cluster: ClusterState
    monitor: str  # the address at which the monitor answers workers
