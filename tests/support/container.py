"""A container without an engine: a command as PID 1 of namespaces of its own, in a read-only root, as nobody.

It needs root; without the right to make namespaces, the test is skipped. Its network has a loopback interface
alone.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

import multicore_server
from tests.support.dockerfile import Stage
from tests.support.server import Server
from tests.support.waiting import wait_for

UNSHARE = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child"]
GROUPS = Path("/sys/fs/cgroup")
PACKAGE = Path(multicore_server.__file__).parent
# Where the interpreter is and what it has: the image's /usr and /venv.
SEEN = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", sys.base_prefix, sys.prefix, str(PACKAGE)]

INSIDE = """
set -e
mount -t tmpfs -o mode=755 root {root}
mkdir -p {root}/proc {root}/dev {root}/sys/fs/cgroup {root}/tmp {root}{directory}
{mounts}
for path in {seen}; do
    if [ -e {root}$path ] || [ ! -e $path ]; then continue; fi
    if [ -L $path ]; then cp -P $path {root}$path; continue; fi
    mkdir -p {root}$path
    mount --bind $path {root}$path
    mount -o remount,bind,ro {root}$path
done
mount -t proc proc {root}/proc
mount --rbind /dev {root}/dev
mount -t tmpfs -o mode=1777 shm {root}/dev/shm
mount --bind {app} {root}{directory}
mount -o remount,bind,ro {root}{directory}
ip link set lo up
mount -o remount,bind,ro {root}
exec chroot {root} {nobody} env -i -C {directory} {environment} {command}
"""


def nobody(user: str) -> list[str]:
    """What makes a process this user, with no way back."""
    uid, _, gid = user.partition(":")
    options = f"--reuid={uid} --regid={gid} --clear-groups --no-new-privs --bounding-set=-all"
    return ["setpriv", *options.split()]


class Container:
    """What a stage of a Dockerfile describes, with the app of ``server``, whose log it has."""

    def __init__(self, stage: Stage, server: Server, *, tmp: bool = True, **environment: str) -> None:
        self.server = server
        self._stage = stage
        self._environment = {
            **stage.environment,
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            **environment,
        }
        self._mounts = ["mount -t tmpfs -o mode=1777 tmp {root}/tmp"] if tmp else []
        self._groups: list[Path] = []

    # --- limits

    def limit(self, cpus: float, memory: int) -> None:
        """Give it a control group with so many CPUs and bytes; the test is skipped where there is none."""
        unified = (GROUPS / "cgroup.controllers").exists()
        try:
            if unified:
                self._unified(cpus, memory)
            else:
                self._legacy(cpus, memory)
        except OSError as exc:
            unable(f"may not limit a control group: {exc}")

    @property
    def unified(self) -> Path | None:
        """Its directory in a hierarchy of version 2 with the memory controller."""
        return next((group for group in self._groups if (group / "memory.oom.group").exists()), None)

    def _unified(self, cpus: float, memory: int) -> None:
        (GROUPS / "cgroup.subtree_control").write_text("+cpu +memory")
        group = self._group(GROUPS)
        (group / "cpu.max").write_text(f"{cpus * 100_000:.0f} 100000")
        (group / "memory.max").write_text(str(memory))
        self._mounts.append("mount -t cgroup2 -o ro cgroup2 {root}/sys/fs/cgroup")

    def _legacy(self, cpus: float, memory: int) -> None:
        (self._group(GROUPS / "cpu") / "cpu.cfs_quota_us").write_text(f"{cpus * 100_000:.0f}")
        (self._group(GROUPS / "memory") / "memory.limit_in_bytes").write_text(str(memory))
        self._mounts.append("mount -t tmpfs -o mode=755 cgroup {root}/sys/fs/cgroup")
        for controller in ("cpu", "memory"):
            place = f"{{root}}/sys/fs/cgroup/{controller}"
            self._mounts.append(f"mkdir {place} && mount -t cgroup -o ro,{controller} cgroup {place}")

    def _group(self, parent: Path) -> Path:
        group = parent / f"multicore-test-{os.getpid()}"
        group.mkdir()
        self._groups.append(group)
        return group

    # --- life

    def start(self) -> Container:
        """Run its command. The server's process is unshare, whose status is the command's."""
        directory = self.server.directory
        directory.chmod(0o755)
        root = directory.parent / f"{directory.name}.root"
        root.mkdir()
        words = {
            "root": str(root), "app": str(directory), "directory": self._stage.directory,
            "seen": shlex.join(SEEN), "nobody": shlex.join(nobody(self._stage.user)),
            "environment": shlex.join(f"{name}={value}" for name, value in self._environment.items()),
            "command": shlex.join(self._stage.command),
        }  # fmt: skip
        script = INSIDE.format(**words, mounts="\n".join(self._mounts).format(**words))
        joined = "".join(f"echo 0 > {group}/cgroup.procs && " for group in self._groups)
        outside = f"{joined} exec {shlex.join([*UNSHARE, 'sh', '-c', script])}"
        with self.server.log_path.open("ab") as log:
            self.server.process = subprocess.Popen(
                ["sh", "-c", outside], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def pid(self) -> int:
        """The machine's number of its PID 1."""

        def found() -> list[psutil.Process]:
            assert self.server.process is not None
            assert self.server.process.poll() is None
            return psutil.Process(self.server.pid).children()

        return wait_for(found, "PID 1")[0].pid

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """As ``docker exec``: another process of the same user in it."""
        enter = ["nsenter", "--target", str(self.pid()), "--mount", "--pid", "--net", "--ipc", "--root"]
        environment = [f"{name}={value}" for name, value in self._environment.items()]
        inside = ["env", "-i", "-C", self._stage.directory, *environment]
        return subprocess.run(
            [*enter, *nobody(self._stage.user), *inside, *command],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip

    def healthy(self) -> bool:
        """Whether its HEALTHCHECK says so."""
        return self.execute(*self._stage.check).returncode == 0

    def get(self, path: str = "/") -> str:
        """The body of a response, asked for in it."""
        code = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000{path}').read().decode())"
        done = self.execute("python", "-c", code)
        return done.stdout.strip() or done.stderr

    def close(self) -> None:
        """End it and remove its control groups."""
        if self.server.process is not None and self.server.process.poll() is None:
            os.kill(self.pid(), signal.SIGKILL)  # unshare is deaf
            self.server.process.wait(10)
        for group in self._groups:
            with contextlib.suppress(AssertionError):
                wait_for(lambda group=group: not (group / "cgroup.procs").read_text(), "an empty group")  # type: ignore[misc]
            group.rmdir()


def unable(reason: str) -> None:
    """Skip the test; in CI, root must be able to run it."""
    assert not (os.environ.get("CI") and os.geteuid() == 0), f"in CI, root must be able to: {reason}"
    pytest.skip(reason)


def need_namespaces(command: Sequence[str] = UNSHARE) -> None:
    """Skip the test without the right to make them, or without what makes them."""
    missing = [name for name in ("unshare", "nsenter", "setpriv", "ip") if shutil.which(name) is None]
    if missing:
        unable(f"there is no {' and no '.join(missing)} here")
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        unable("may not make namespaces")
