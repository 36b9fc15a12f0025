"""What befalls the server: each fault by its name in a plan, done to the running server."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import time
from collections.abc import Callable

import psutil

from tests.chaos.plan import GRACEFUL_TIMEOUT, TIMEOUT, WORKERS, Plan
from tests.chaos.record import Excuse, Record
from tests.chaos.running import Running
from tests.support.processes import gone
from tests.support.waiting import wait_for

PATIENCE = 40.0  # seconds that a reload or a boot may take on a loaded machine
# A worker that gets a deadly signal may end at once, or finish first what it has begun.
AFTERMATH = 1.5  # seconds


class Faults:
    """``workers`` is how many there are to be."""

    def __init__(self, running: Running, plan: Plan, record: Record) -> None:
        self.running = running
        self.record = record
        self.workers = WORKERS
        self._dice = random.Random(plan.seed)

    def do(self, fault: str, argument: str) -> None:
        FAULTS[fault](self, argument)

    def victim(self) -> int:
        """A worker; one of those that there are at this moment."""
        return self._dice.choice(self.running.workers())

    def send(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def request(self, path: str) -> None:
        """One that its worker may not survive: nobody waits for an answer."""
        with contextlib.suppress(OSError), self.running.connect() as connection:
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            )
            self.record.unsure += 1
            connection.settimeout(TIMEOUT + 10)
            while connection.recv(65536):
                pass

    # --- reloads and deploys: planned, nothing may fail

    def reload(self, _: str = "") -> None:
        self.send(self.running.arbiter, signal.SIGHUP)

    def deploy(self, _: str = "") -> None:
        self.running.deploy(f"version = {time.monotonic()}")
        self.reload()

    def deploy_slowly(self, _: str) -> None:
        self.running.deploy("import time; time.sleep(1.5)")
        self.reload()

    def deploy_broken(self, _: str) -> None:
        """Until it was rolled back; then what is on disk is good again."""
        self.wait_for_reloads()
        self.running.deploy("import nowhere")
        before = self.running.logged("reload rolled back")
        self.reload()
        wait_for(lambda: self.running.logged("reload rolled back") > before, "a reload rolled back", PATIENCE)
        self.running.deploy()

    def configure(self, _: str) -> None:
        self.running.configure(raw_env=[f"CHANGED={time.monotonic()}"])
        self.reload()

    def configure_badly(self, _: str) -> None:
        self.wait_for_reloads()
        bad = self._dice.choice(
            ("(", "import nowhere", "timeout = 'soon'", "max_restarts = 'often'", "1 / 0")
        )
        self.running.configure(more=bad)
        before = self.running.logged("reload failed")
        self.reload()
        wait_for(lambda: self.running.logged("reload failed") > before, "a reload that failed", PATIENCE)
        self.running.configure()

    def wait_for_reloads(self) -> None:
        """A reload that is under way would take what is broken for its own."""
        self.running.wait_settled(PATIENCE)

    # --- other planned ends

    def scale(self, change: int) -> None:
        self.workers += change
        self.send(self.running.arbiter, signal.SIGTTIN if change > 0 else signal.SIGTTOU)

    def scale_up(self, _: str) -> None:
        if self.workers < 2 * WORKERS:
            self.scale(1)

    def scale_down(self, _: str) -> None:
        if self.workers > 2:
            self.scale(-1)

    def terminate_worker(self, _: str) -> None:
        self.send(self.victim(), signal.SIGTERM)

    def leak(self, _: str) -> None:
        self.request("/leak?300")

    def reopen_logs(self, _: str) -> None:
        self.send(self.running.arbiter, signal.SIGUSR1)

    def start_another(self) -> int:
        """USR2; the pid of the arbiter that it started, when its workers are ready."""
        self.running.wait_settled(PATIENCE)
        before, started = self.running.ready(), self.running.logged(r"\[INFO\] Starting gunicorn")
        self.send(self.running.arbiter, signal.SIGUSR2)
        wait_for(
            lambda: self.running.logged(r"\[INFO\] Starting gunicorn") > started, "USR2's arbiter", PATIENCE
        )
        wait_for(lambda: self.running.ready() >= before + WORKERS, "USR2's workers", PATIENCE)
        lines = re.findall(r"\[(\d+)\] \[INFO\] Starting gunicorn", self.running.server.log)
        return int(lines[-1])

    def go_back(self, _: str) -> None:
        self.end_arbiter(self.start_another())

    def end_arbiter(self, pid: int) -> None:
        """TERM to one of two: nobody takes WebSockets over, so they are told at once."""
        begin = time.monotonic()
        self.send(pid, signal.SIGTERM)
        wait_for(lambda: gone(pid), "the end of one arbiter of two", PATIENCE)
        self.record.add(Excuse(begin, time.monotonic(), "the end of an arbiter", client="websocket"))

    def go_forward(self, _: str) -> None:
        new = self.start_another()
        old, self.running.arbiter = self.running.arbiter, new
        self.workers = WORKERS
        self.running.counts_from_zero = True
        self.end_arbiter(old)

    # --- unplanned ends: what the worker has in hand may fail

    def kill_worker(self, _: str) -> None:
        self.record.excuse(AFTERMATH, "SIGKILL")
        self.send(self.victim(), signal.SIGKILL)

    def signal_worker(self, name: str) -> None:
        self.record.excuse(AFTERMATH + GRACEFUL_TIMEOUT * (name in ("SIGINT", "SIGQUIT")), name)
        self.send(self.victim(), getattr(signal, name))

    def crash(self, _: str) -> None:
        self.record.excuse(AFTERMATH, "a crash")
        self.request("/crash?7")

    def hang(self, _: str) -> None:
        self.record.excuse(TIMEOUT + 6, "a hang")
        self.request(f"/hang?{TIMEOUT + 30}")

    # --- what everybody is to survive

    def harmless_signal(self, name: str) -> None:
        self.send(self.victim(), getattr(signal, name))

    def block(self, seconds: str) -> None:
        self.request(f"/block?{seconds}")

    def stop(self, pid: int, seconds: str) -> None:
        self.send(pid, signal.SIGSTOP)
        time.sleep(float(seconds))
        self.send(pid, signal.SIGCONT)

    def stop_worker(self, seconds: str) -> None:
        self.stop(self.victim(), seconds)

    def stop_arbiter(self, seconds: str) -> None:
        self.stop(self.running.arbiter, seconds)

    def stop_monitor(self, seconds: str) -> None:
        self.stop(self.running.monitor(), seconds)

    def kill_monitor(self, _: str) -> None:
        self.send(self.running.monitor(), signal.SIGKILL)

    def limit(self, pid: int, what: int, count: int, seconds: float) -> None:
        """Limit what a process may have, for a while; its children, which inherit that, for no longer."""
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            before = resource.prlimit(pid, what)
            resource.prlimit(pid, what, (count, before[1]))
            time.sleep(seconds)
            for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(process.pid, what, before)

    def use_up_descriptors(self, pid: int, seconds: float = 1.5) -> None:
        with contextlib.suppress(psutil.Error):
            self.limit(pid, resource.RLIMIT_NOFILE, psutil.Process(pid).num_fds() + 2, seconds)

    def use_up_workers_descriptors(self, _: str) -> None:
        """A worker has no descriptor for another connection: new ones may be turned away."""
        self.record.excuse(1.5 + AFTERMATH, "EMFILE")
        self.use_up_descriptors(self.victim())

    def use_up_arbiters_descriptors(self, _: str) -> None:
        """The workers that it forks meanwhile have no more than it has."""
        self.record.excuse(1.5 + AFTERMATH, "EMFILE of the arbiter")
        self.use_up_descriptors(self.running.arbiter)

    def use_up_monitors_descriptors(self, _: str) -> None:
        self.use_up_descriptors(self.running.monitor())

    def use_up_memory(self, pid: int, seconds: float = 0.7) -> None:
        with contextlib.suppress(psutil.Error):
            self.limit(pid, resource.RLIMIT_AS, psutil.Process(pid).memory_info().vms, seconds)

    def use_up_workers_memory(self, _: str) -> None:
        self.record.excuse(0.7 + AFTERMATH, "ENOMEM")
        self.use_up_memory(self.victim())

    def use_up_arbiters_memory(self, _: str) -> None:
        """Who was forked meanwhile, and could import things in part, is not waited for."""
        self.record.excuse(0.7 + 2 * AFTERMATH, "ENOMEM of the arbiter")
        before = set(self.running.family())
        self.use_up_memory(self.running.arbiter)
        for pid in set(self.running.family()) - before:
            self.send(pid, signal.SIGKILL)

    def forbid_growth(self, _: str) -> None:
        """No file may grow: neither of the arbiter nor of a worker, where an upload may be refused then."""
        begin = time.monotonic()
        for pid in (self.running.arbiter, self.victim()):
            self.limit(pid, resource.RLIMIT_FSIZE, 0, 0.7)
        self.record.add(Excuse(begin, time.monotonic(), "EFBIG", client="uploading"))

    def use_up_disk(self, _: str) -> None:
        """The file system for temporary files is full: an upload may be refused, and nothing else."""
        if not self.running.temporary_is_small:
            return
        begin = time.monotonic()
        filler = self.running.temporary / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(65536)):
                pass
        time.sleep(1.0)
        filler.unlink()
        self.record.add(Excuse(begin, time.monotonic(), "ENOSPC", client="uploading"))

    # --- the arbiter's own end

    def kill_arbiter(self, _: str) -> None:
        """Its workers drain and end; then the server is started again."""
        family = self.running.family()
        begin = time.monotonic()
        self.send(self.running.arbiter, signal.SIGKILL)
        wait_for(lambda: all(map(gone, family)), "the end of the workers", GRACEFUL_TIMEOUT + 10)
        self.workers = WORKERS
        self.running.counts_from_zero = True
        self.running.start()
        self.record.add(Excuse(begin, time.monotonic(), "no arbiter", later_alone=True))
        self.record.add(Excuse(begin, time.monotonic(), "the end of an arbiter", client="websocket"))


FAULTS: dict[str, Callable[[Faults, str], None]] = {
    "reload": Faults.reload,
    "deploy": Faults.deploy,
    "deploy-slow": Faults.deploy_slowly,
    "deploy-broken": Faults.deploy_broken,
    "config": Faults.configure,
    "config-broken": Faults.configure_badly,
    "scale-up": Faults.scale_up,
    "scale-down": Faults.scale_down,
    "term-worker": Faults.terminate_worker,
    "leak": Faults.leak,
    "usr1": Faults.reopen_logs,
    "usr2-back": Faults.go_back,
    "usr2-forward": Faults.go_forward,
    "kill-worker": Faults.kill_worker,
    "signal-worker": Faults.signal_worker,
    "crash": Faults.crash,
    "hang": Faults.hang,
    "harmless-signal": Faults.harmless_signal,
    "block": Faults.block,
    "stop-worker": Faults.stop_worker,
    "stop-arbiter": Faults.stop_arbiter,
    "stop-monitor": Faults.stop_monitor,
    "kill-monitor": Faults.kill_monitor,
    "emfile": Faults.use_up_workers_descriptors,
    "emfile-arbiter": Faults.use_up_arbiters_descriptors,
    "emfile-monitor": Faults.use_up_monitors_descriptors,
    "enomem": Faults.use_up_workers_memory,
    "enomem-arbiter": Faults.use_up_arbiters_memory,
    "efbig": Faults.forbid_growth,
    "enospc": Faults.use_up_disk,
    "kill-arbiter": Faults.kill_arbiter,
}
