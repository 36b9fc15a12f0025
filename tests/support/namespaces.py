"""Namespaces of a test's own: a root with this interpreter, a PID 1, a loopback interface.

They need root; without the right to make them, the test is skipped.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import multicore_server
from tests.support.waiting import wait_for

UNSHARE = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child"]
GROUPS = Path("/sys/fs/cgroup")
# Where the interpreter is and what it has: the environment, and the package where that is a checkout.
INTERPRETER = [sys.base_prefix, sys.prefix, str(Path(multicore_server.__file__).parent)]
SYSTEM = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc"]

# What is seen of the machine, read-only; {mounts} come before it, what is to be written to as well.
ROOT = """
set -e
mount -t tmpfs -o mode=755 root {root}
mkdir -p {root}/proc {root}/dev {root}/sys/fs/cgroup {root}/tmp {root}/run
{mounts}
for path in {seen}; do
    if [ -e {root}$path ] || [ ! -e $path ]; then continue; fi
    if [ -L $path ]; then cp -P $path {root}$path; continue; fi
    mkdir -p {root}$path
    mount --bind $path {root}$path
    mount -o remount,bind,ro {root}$path
done
mount -t proc proc {root}/proc
ip link set lo up
"""


def root_script(root: Path, mounts: str = "") -> str:
    """What makes a root there, as shell."""
    return ROOT.format(root=root, mounts=mounts, seen=shlex.join([*SYSTEM, *INTERPRETER]))


class Namespaces:
    """A process in namespaces of its own, which it enters by a script that ends in an ``exec``."""

    def __init__(self, script: str, log_path: Path, groups: Sequence[Path] = ()) -> None:
        """``groups`` are control groups that it joins first; what stands in their namespace is theirs."""
        joined = "".join(f"echo 0 > {group}/cgroup.procs && " for group in groups)
        outside = f"{joined} exec {shlex.join([*UNSHARE, 'sh', '-c', script])}"
        with log_path.open("ab") as log:
            # Its status is that of PID 1.
            self.process = subprocess.Popen(
                ["sh", "-c", outside], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def pid(self) -> int:
        """The machine's number of its PID 1."""

        def found() -> list[psutil.Process]:
            assert self.process.poll() is None
            return psutil.Process(self.process.pid).children()

        return wait_for(found, "PID 1")[0].pid

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run another process in them."""
        enter = ["nsenter", "--target", str(self.pid()), "--mount", "--pid", "--net", "--ipc", "--root"]
        return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=30, check=False)

    def network(self, threads: int = 1) -> ThreadPoolExecutor:
        """Threads of this process that are in its network."""
        network = Path(f"/proc/{self.pid()}/ns/net")

        def enter() -> None:
            with network.open() as file:
                failed = ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0)
            assert not failed, os.strerror(ctypes.get_errno())

        return ThreadPoolExecutor(threads, initializer=enter)

    def close(self) -> None:
        """End all of it."""
        if self.process.poll() is None:
            os.kill(self.pid(), signal.SIGKILL)  # unshare is deaf
            self.process.wait(10)


def remove_groups(groups: Sequence[Path]) -> None:
    """Remove control groups whose processes have been ended, and those below them."""
    for group in groups:
        for path, _, _ in [*os.walk(group)][::-1]:
            tasks = Path(path, "cgroup.procs")
            wait_for(lambda tasks=tasks: not tasks.read_text(), f"nothing in {path}")  # type: ignore[misc]
            Path(path).rmdir()


def unable(reason: str) -> None:
    """Skip the test; in CI, root must be able to run it."""
    assert not (os.environ.get("CI") and os.geteuid() == 0), f"in CI, root must be able to: {reason}"
    pytest.skip(reason)


def need_namespaces() -> None:
    """Skip the test without the right to make them, or without what makes them."""
    missing = [name for name in ("unshare", "nsenter", "setpriv", "ip") if shutil.which(name) is None]
    if missing:
        unable(f"there is no {' and no '.join(missing)} here")
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        unable("may not make namespaces")
