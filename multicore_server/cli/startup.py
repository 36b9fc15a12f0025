"""``multicore-server startup``: makes systemd units for servers in an ecosystem file, or for running ones."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import click
import psutil

from multicore_server.cli import ecosystem, log_places
from multicore_server.cli.ecosystem import App
from multicore_server.cli.servers import FailedError, RunningServer, Trouble, ask_all, running
from multicore_server.cli.start import apps_of
from multicore_server.cli.units import Service
from multicore_server.ipc.report import Status

SYSTEM = Path("/etc/systemd/system")
LINGER = Path("/var/lib/systemd/linger")
DAEMON = ("--daemon", "-D")  # systemd keeps it in the foreground
GRACEFUL = 30.0  # seconds: graceful_timeout, unless it is given


@click.command()
@click.argument("arguments", nargs=-1, metavar="[FILE] [NAME]...")
@click.option("--install", is_flag=True, help="Write the units and enable them.")
@click.option("--system", is_flag=True, help="Units of the machine, not of your user.")
@click.option(
    "--run-as", metavar="USER", help="With --system: the user that the servers run as; you, by default."
)
def startup(arguments: tuple[str, ...], install: bool, system: bool, run_as: str | None) -> None:
    """Print systemd units that start servers at boot, or install them.

    The units are for the apps of FILE (see `start`), or for the NAMEs in it. If there is no such file here,
    they are for the servers that run. Without --system, they are units of your user.
    """
    user = (run_as or _login()) if system else ""
    services = _services(arguments, "" if user == "root" else user, make_logs=install and not system)
    directory = SYSTEM if system else _user_directory()
    if install:
        _install(services, directory, system=system)
        return
    for service in services:
        click.echo(f"# {directory / service.unit}\n{service.text(system=system)}")


def _login() -> str:
    with contextlib.suppress(KeyError):  # a user without an entry
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


def _user_directory() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(home) if os.path.isabs(home) else log_places.home() / ".config") / "systemd/user"  # noqa: PTH117


# --- which ones


def _services(arguments: tuple[str, ...], user: str, *, make_logs: bool) -> list[Service]:
    """Raises Trouble."""
    if arguments or ecosystem.find(Path.cwd()):
        apps = apps_of(arguments)
        for app in apps:
            if make_logs and app.log and app.log_given:
                log_places.make_directory(app.log.file)
        return [_of_app(app, user) for app in apps]
    found = ask_all(running())
    services = [
        _of_running(it, status, user) for it, status in found.items() if not isinstance(status, Trouble)
    ]
    if not services:
        raise Trouble(f"no server of this user is running, and there is no {ecosystem.FILE} here")
    return services


def _of_app(app: App, user: str) -> Service:
    """Its output is the journal's, unless its table names a file."""
    from multicore_server.settings.quantities import duration

    params = _params(app)
    graceful = params["graceful_timeout"] or params["timeout_graceful_shutdown"] or GRACEFUL
    ends_within = graceful + duration(params["shutdown_delay"] or 0)
    link = {"PWD": str(app.cwd)} if app.cwd.resolve() != app.cwd else {}  # a reload follows it
    return Service(app.name, app.command(logs=app.log_given), app.cwd, ends_within, {**link, **app.env}, user)


def _params(app: App) -> dict[str, Any]:
    """Of its options. Their paths are relative to the directory that it runs in. Raises Trouble."""
    from multicore_server.cli.run import run

    here = Path.cwd()
    try:
        os.chdir(app.cwd)
        return run.make_context("run", [app.app, *app.options]).params
    except click.UsageError as exc:
        raise Trouble(f"{app.name}: {exc.format_message()}") from None
    except OSError as exc:
        raise Trouble(f"{app.name}: {exc.filename}: {exc.strerror}") from None
    finally:
        os.chdir(here)


def _of_running(server: RunningServer, status: Status, user: str) -> Service:
    """Without its environment: that may hold secrets, and everybody may read a unit."""
    from multicore_server.settings.quantities import duration

    name = status["name"]
    try:
        process = psutil.Process(server.pid)
        words, directory = process.cmdline(), Path(process.cwd())
    except psutil.Error as exc:
        raise Trouble(f"{name}: its command line cannot be read: {exc}") from None
    if len(words) < 2 or re.match(r"gunicorn: ", words[0]):
        raise Trouble(f"{name}: its title hides its command line (setproctitle); write {ecosystem.FILE}")
    words[0] = which(words[0], path=os.defpath) or process.exe() if "/" not in words[0] else words[0]
    command = [str(directory / words[0]), *(word for word in words[1:] if word not in DAEMON)]
    ends_within = status["graceful_timeout"] + duration(status["settings"]["shutdown_delay"])
    return Service(name, command, directory, ends_within, user=user)


# --- installing


def _install(services: list[Service], directory: Path, *, system: bool) -> None:
    if which("systemctl") is None:
        raise Trouble("there is no systemctl here; without --install, `startup` prints the units")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for service in services:
            (directory / service.unit).write_text(service.text(system=system))
            click.echo(f"wrote {directory / service.unit}")
    except OSError as exc:
        raise Trouble(f"{exc.filename} cannot be written: {exc.strerror}") from None
    scope = [] if system else ["--user"]
    units = [service.unit for service in services]
    _systemctl(*scope, "daemon-reload")
    _systemctl(*scope, "enable", *units)
    click.echo(f"enabled; to start now what does not run: {' '.join(['systemctl', *scope, 'start', *units])}")
    if system:
        click.echo("`XDG_RUNTIME_DIR= multicore-server ps` lists them, as the user that they run as")
    elif not (LINGER / _login()).exists():
        click.echo("they start when you log in; to start them at boot: loginctl enable-linger")


def _systemctl(*arguments: str) -> None:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise FailedError(f"the units are written; systemctl {' '.join(arguments)}: {said[-1]}")
