"""A real systemd, as PID 1 of namespaces of its own, with the units of examples/systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx

from tests.support.namespaces import (
    GROUPS,
    INTERPRETER,
    Namespaces,
    need_namespaces,
    remove_groups,
    root_script,
    unable,
)
from tests.support.waiting import PATIENCE, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples" / "systemd"
PROGRAM = Path("/usr/lib/systemd/systemd")
# What units depend on, without anything in it: of this machine's services, none is started.
TARGETS = ("sysinit", "basic", "shutdown", "sockets", "multi-user", "network-online")
INSIDE = """
mount -t sysfs -o ro sysfs {root}/sys
mount -t cgroup2 cgroup2 {root}/sys/fs/cgroup
mount -t tmpfs -o mode=755 dev {root}/dev
for device in null zero full random urandom tty; do
    touch {root}/dev/$device
    mount --bind /dev/$device {root}/dev/$device
done
mkdir -p {root}/dev/shm {root}/dev/pts {root}/units {root}/srv/api {root}/var/tmp {root}/outer
mount -t tmpfs -o mode=1777 shm {root}/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts {root}/dev/pts
ln -s pts/ptmx {root}/dev/ptmx
mount -t tmpfs -o mode=755 run {root}/run
mount --bind {units} {root}/units
mount --bind {app} {root}/srv/api
cd {root}
pivot_root . outer
umount -l /outer
exec env -i container=test SYSTEMD_UNIT_PATH=/units PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    {program} --unit=basic.target
"""
# The interpreter may be in a home directory or in /tmp, users are the machine's, and there is no journal.
DROP_IN = """
[Service]
ProtectHome=tmpfs
BindReadOnlyPaths={interpreter}
User=nobody
Group=nogroup
StandardOutput=append:/srv/api/server.log
StandardError=append:/srv/api/server.log
"""


class Machine:
    """Its services and those of examples/systemd alone. ``/srv/api`` is ``directory``."""

    def __init__(self, directory: Path, base: Path) -> None:
        need_namespaces()
        if not PROGRAM.exists():
            unable("there is no systemd here: install Debian's package systemd")
        self.directory = directory
        self.units = base / "units"
        self._write_units()
        directory.chmod(0o755)
        (directory / "venv").symlink_to(sys.prefix)
        root = base / "root"
        root.mkdir()
        unified = GROUPS if (GROUPS / "cgroup.controllers").exists() else GROUPS / "unified"
        self._group = unified / f"multicore-test-{os.getpid()}"
        try:
            self._group.mkdir()
        except OSError as exc:
            unable(f"may not make a control group: {exc}")
        self._log = base / "systemd.log"
        inside = INSIDE.format(root=root, units=self.units, app=directory, program=PROGRAM)
        mounts = f"mount -t tmpfs -o mode=1777 tmp {root}/tmp"
        self._namespaces = Namespaces(root_script(root, mounts) + inside, self._log, [self._group])
        wait_for(lambda: self.systemctl("is-active", "basic.target").returncode == 0, "systemd has started")

    def _write_units(self) -> None:
        self.units.mkdir()
        for name in TARGETS:
            (self.units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        for name in ("api.service", "api.socket"):
            shutil.copy(EXAMPLES / name, self.units)
        self.drop_in("test", DROP_IN.format(interpreter=" ".join(INTERPRETER)))

    def drop_in(self, name: str, text: str) -> None:
        """Change the service; it counts after a ``daemon-reload``."""
        directory = self.units / "api.service.d"
        directory.mkdir(exist_ok=True)
        (directory / f"{name}.conf").write_text(text)

    def systemctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._namespaces.execute("systemctl", *arguments)

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.systemctl("show", "--property", name, "--value", "api.service").stdout.strip()

    def kill(self, name: str) -> None:
        """Signal the main process."""
        done = self._namespaces.execute("kill", f"-{name}", self.show("MainPID"))
        assert done.returncode == 0, done.stderr

    def client(self) -> httpx.Client:
        """Whoever asks at the socket unit's address."""
        path = f"/proc/{self._namespaces.pid()}/root/run/api.sock"
        return httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://api", timeout=PATIENCE)

    def close(self) -> None:
        self._namespaces.close()
        remove_groups([self._group])
        print(f"--- {self._log} ---\n{self._log.read_text()}")
