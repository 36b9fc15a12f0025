"""A loop whose signals were a worker's."""

from __future__ import annotations

import asyncio
import signal

from multicore_server.worker.signals import LoopSignals


def test_once_it_is_closed_no_signal_is_written_to_a_descriptor_of_somebody_else() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    loop = asyncio.new_event_loop()
    try:
        signals = LoopSignals(loop)
        signals.take(signal.SIGUSR1, lambda _: None)
        signals.release()
        loop.close()
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGUSR1, before)
