"""Mistakes of the user's: one line that says what to do, the documented exit status, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme

from multicore_server.settings.table import TABLE
from tests.support.refused_start import BAD_SETTING, NO_BOOT, Refused
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

NONSENSE = "nonsense!"

PLAIN_GUNICORN = [sys.executable, "-m", "gunicorn"]


# --- settings


@pytest.mark.parametrize("part", [0, 1])
def test_every_setting(make_server: MakeServer, part: int) -> None:
    """Each from the environment or the config file (unit tests have all combinations), and all at
    once: each process takes most of its time to import gunicorn and uvicorn."""
    started: dict[str, Refused] = {}
    for name in sorted(set(TABLE) - {"workers"})[part::2]:  # gunicorn reads it too: its own tests
        server = make_server()
        if part:
            server.write("gunicorn.conf.py", f"{name} = {NONSENSE!r}")
            server.listens_for_scrapers = True
            started[name] = Refused(server)
        else:
            started[name] = Refused(server, env={TABLE[name].environment: NONSENSE})
    for name, refused in started.items():
        refused.check_settings(f"{name}: '{NONSENSE}' (from the ")
        assert refused.server.logged(r"\[ERROR\]")[0].endswith(f"; give {TABLE[name].accepted}")


def test_workers_in_the_environment(server: Server) -> None:
    before = set(server.directory.iterdir())
    server.start(bind="unix:s.sock", env={"MULTICORE_WORKERS": "many"})
    assert server.wait_exit() == BAD_SETTING
    assert server.logged(r"workers: 'many' \(from the environment, MULTICORE_WORKERS\)")
    assert set(server.directory.iterdir()) - before == {server.log_path}


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("UVICORN_WS", "nonsense", "'nonsense' (from the environment) is not known; give auto,"),
        ("UVICORN_HTTP", "nonsense", "'nonsense' (from the environment) is not known; give auto,"),
        ("UVICORN_LOOP", "nonsense", "'nonsense' (from the environment) is not known; give none,"),
        ("UVICORN_LIFESPAN", "nonsense", "'nonsense' is not one of 'auto', 'on', 'off'"),
        ("UVICORN_WS_MAX_SIZE", "big", "'big' is not a valid int"),
        ("UVICORN_HEADERS", "nonsense", "'nonsense' (from the environment) is not a header; give name:value"),
    ],
)
def test_uvicorns_variables(server: Server, variable: str, value: str, said: str) -> None:
    Refused(server, env={variable: value}).check_settings(f"{variable}: {said}")


def test_a_log_file_gets_the_line_and_so_does_the_terminal(server: Server) -> None:
    refused = Refused(server, "--error-logfile", "error.log", env={"MULTICORE_SCHEDULING": "best"})
    assert refused.server.wait_exit() == BAD_SETTING
    assert "scheduling: 'best'" in (server.directory / "error.log").read_text()
    assert server.log.startswith("Error: scheduling: 'best'")


def test_a_log_file_gets_what_preloading_said(server: Server) -> None:
    server.start("--preload", "--error-logfile", "error.log", app="nowhere:app")
    assert server.wait_exit() == NO_BOOT
    assert "no module named 'nowhere'" in (server.directory / "error.log").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workers = 'many'", "Invalid value for workers: many"),
        ("(", "SyntaxError: '(' was never closed"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("worker_class = 'nowhere.Worker'", "class uri 'nowhere.Worker' invalid or not found"),
    ],
)
def test_a_config_file_that_gunicorn_refuses(server: Server, text: str, said: str) -> None:
    server.write("conf.py", text)
    refused = Refused(server, "-c", "conf.py", command=PLAIN_GUNICORN if "worker_class" in text else None)
    assert server.wait_exit() == BAD_SETTING
    assert said in server.log
    assert refused.files() == refused.before


def test_an_unreadable_config_file(server: Server) -> None:
    Refused(server, "-c", "nowhere.py").check(BAD_SETTING, "'nowhere.py' doesn't exist")


# --- the app

APPS = {
    "no_module": ("nowhere:app", "no module named 'nowhere'; check 'nowhere:app', --chdir and --pythonpath"),
    "no_attribute": ("app:nowhere", "app:nowhere: Failed to find attribute 'nowhere' in 'app'"),
    "no_expression": ("app:a b", "Failed to parse 'a b' as an attribute name or function call"),
    "a_string": ("bad:text", "bad:text: Application object must be callable"),
    "an_int": ("bad:number", "bad:number: Application object must be callable"),
    "none": ("bad:nothing", "bad:nothing: Failed to find application object"),
    "unclear": ("bad:unclear", "set it by hand: UVICORN_INTERFACE=asgi3|asgi2|wsgi"),
    "exits": ("exits:app", "exits:app ended the process (sys.exit(4)) while it was loaded"),
}
TRACED = {
    "raises": ("raises:app", "raises:app could not be loaded: RuntimeError: boom"),
    "dependency": ("imports:app", "could not be loaded: ModuleNotFoundError: No module named 'dependency'"),
    "syntax": ("syntax:app", "syntax:app could not be loaded: SyntaxError: "),
}
MODULES = {
    "bad.py": "text, number, nothing = 'hello', 3, None\ndef unclear(*args): pass\n",
    "exits.py": "import sys\nsys.exit(4)\n",
    "raises.py": "def fail():\n    raise RuntimeError('boom')\nfail()\n",
    "imports.py": "import dependency\n",
    "syntax.py": "def (:\n",
}

preload = pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])


def refuse_app(server: Server, app: str, preload: tuple[str, ...]) -> Refused:
    for name, text in MODULES.items():
        server.write(name, text)
    return Refused(server, *preload, app=app)


@preload
@pytest.mark.parametrize("case", APPS)
def test_an_app_that_is_none(server: Server, case: str, preload: tuple[str, ...]) -> None:
    app, said = APPS[case]
    refused = refuse_app(server, app, preload)
    assert server.wait_exit() == NO_BOOT
    last = [line for line in server.log.splitlines() if line][-1]
    assert said in last
    assert "Traceback" not in server.log
    refused.check(NO_BOOT)


@preload
@pytest.mark.parametrize("case", TRACED)
def test_an_app_that_fails_shows_its_own_frames(server: Server, case: str, preload: tuple[str, ...]) -> None:
    app, said = TRACED[case]
    refused = refuse_app(server, app, preload)
    assert server.wait_exit() == NO_BOOT
    assert said in [line for line in server.log.splitlines() if line][-1]
    shown = [line for line in server.log.splitlines() if line.startswith("  File ")]
    assert shown
    assert all(f'"{server.directory}/' in line for line in shown)
    assert server.log.count(f'{app.partition(":")[0]}.py", line 1') <= 1  # once for all workers
    refused.check(NO_BOOT)


def test_an_app_whose_lifespan_fails(server: Server) -> None:
    server.write("app.py", "async def app(scope, receive, send):\n    await receive()\n    await send(1)\n")
    refused = Refused(server, env={"UVICORN_LIFESPAN": "on"})
    refused.check(NO_BOOT, "Reason: no worker could boot: the app's lifespan startup failed")


def test_an_app_that_raises_what_is_no_exception(server: Server) -> None:
    """The arbiter's own clean-up is not for a worker to run: it would remove the socket of them all."""
    server.write("app.py", "raise KeyboardInterrupt\n")
    refused = Refused(server)
    refused.check(NO_BOOT, "Reason: no worker could boot: app:app could not be loaded: KeyboardInterrupt")


# --- addresses


def test_addresses_in_use(make_server: MakeServer) -> None:
    """Also that of a unix socket, which could be taken away from the server that listens there."""
    by_port, by_path = make_server(), make_server()
    path = by_path.directory / "other.sock"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        addresses = ["{}:{}".format(*tcp.getsockname()), f"unix:{path}"]
        started = time.monotonic()
        both = [Refused(by_port, bind=addresses[0]), Refused(by_path, bind=addresses[1])]
        for refused, address in zip(both, addresses, strict=True):
            refused.check(
                BAD_SETTING, f"cannot listen on {address}: the address is in use (is another server"
            )
            assert len(refused.server.logged(r"\[ERROR\]")) == 1
        assert time.monotonic() - started < 8


def test_a_socket_that_a_killed_server_has_left(server: Server) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(server.directory / "s.sock"))
    server.start("-w", "1", bind="unix:s.sock", ready=1)


def test_a_port_that_becomes_free_in_time(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        server.port = other.getsockname()[1]
        server.start("-w", "1")
        server.wait_logged("Starting gunicorn")
    server.wait_ready(1)
    assert server.get().status_code == 200


def test_term_ends_the_wait_for_a_port(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        refused = Refused(server, bind="{}:{}".format(*other.getsockname()))
        wait_for((server.directory / "server.pid").exists, "the pidfile, written before the wait")
        wait_for(lambda: handles_term(server.pid), "the signal handler")
        server.signal(signal.SIGTERM)
        started = time.monotonic()
        refused.check(0)
        assert time.monotonic() - started < 2


def handles_term(pid: int) -> bool:
    caught = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & (1 << (signal.SIGTERM - 1)))


@pytest.mark.parametrize(
    ("bind", "said"),
    [
        ("192.0.2.1:8000", "cannot listen on 192.0.2.1:8000: this machine has no such address"),
        ("nowhere.invalid:8000", "cannot listen on nowhere.invalid:8000: "),
        ("127.0.0.1:99999", "cannot listen on 127.0.0.1:99999: bind(): port must be 0-65535"),
        ("unix:nowhere/s.sock", "cannot listen on unix:nowhere/s.sock: No such file or directory"),
        ("unix:app.py", "cannot listen on unix:app.py: 'app.py' is not a socket"),
        ("fd://77", "cannot listen on fd://77: Bad file descriptor; is it an open socket?"),
    ],
)
def test_an_impossible_address(server: Server, bind: str, said: str) -> None:
    # The first address is fine, and given up again.
    refused = Refused(server, "-b", "unix:other.sock", bind=bind)
    refused.check(BAD_SETTING, said)
    assert len(server.logged(r"\[ERROR\]")) == 1


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="takes a capability away from root"
)
@pytest.mark.skipif(
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip() != "1024",
    reason="allowed to all",
)
def test_a_port_below_1024_without_the_right(server: Server) -> None:
    drop = ["setpriv", "--inh-caps=-net_bind_service", "--bounding-set=-net_bind_service"]
    command = [*drop, sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"]
    refused = Refused(server, bind="127.0.0.1:843", command=command)
    refused.check(BAD_SETTING, "permission denied (a port below 1024 needs root or CAP_NET_BIND_SERVICE)")


# --- files


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--certfile", "nowhere.pem"], "certfile: 'nowhere.pem' does not exist or is not a file"),
        (["--certfile", "."], "certfile: '.' does not exist or is not a file"),
        (["--certfile", "app.py"], "certfile: 'app.py' cannot be used: "),
        (
            ["--certfile", "a.pem", "--keyfile", "b.key"],
            "certfile: 'a.pem' with keyfile 'b.key' cannot be used: ",
        ),
        (["--keyfile", "b.key"], "keyfile: 'b.key' is given without its certificate; give certfile too"),
        (
            ["--certfile", "a.pem", "--keyfile", "a.key", "--ca-certs", "app.py"],
            "ca_certs: 'app.py' cannot be used",
        ),
        (
            ["--certfile", "a.pem", "--keyfile", "a.key", "--ciphers", "NONE"],
            "ciphers: 'NONE' cannot be used: ",
        ),
        (["--worker-tmp-dir", "nowhere"], "worker_tmp_dir: 'nowhere' is not a directory; create it"),
    ],
)
def test_files(server: Server, options: list[str], said: str) -> None:
    authority = trustme.CA()
    for name in "ab":
        certificate = authority.issue_cert("localhost")
        certificate.cert_chain_pems[0].write_to_path(str(server.directory / f"{name}.pem"))
        certificate.private_key_pem.write_to_path(str(server.directory / f"{name}.key"))
    Refused(server, *options).check_settings(said)


def test_a_key_with_a_password_does_not_wait_for_a_terminal(server: Server) -> None:
    secret = ["-passout", "pass:secret", "-out", str(server.directory / "a.key")]
    subprocess.run(["openssl", "genrsa", "-aes128", *secret, "2048"], check=True, capture_output=True)
    certificate = [
        "-key",
        str(server.directory / "a.key"),
        "-passin",
        "pass:secret",
        "-subj",
        "/CN=localhost",
    ]
    output = ["-out", str(server.directory / "a.pem")]
    subprocess.run(["openssl", "req", "-x509", *certificate, *output], check=True, capture_output=True)
    refused = Refused(server, "--certfile", "a.pem", "--keyfile", "a.key")
    refused.check_settings("the key has a password, set UVICORN_SSL_KEYFILE_PASSWORD")


def test_the_pidfile_of_a_running_server(server: Server) -> None:
    server.write("server.pid", str(os.getpid()))
    Refused(server).check(BAD_SETTING, f"cannot start: Already running on PID {os.getpid()}")
    assert (server.directory / "server.pid").read_text() == str(os.getpid())


@pytest.mark.parametrize(
    ("pidfile", "said"),
    [("nowhere/server.pid", "nowhere doesn't exist. Can't create pidfile."), (".", "Is a directory: '.'")],
)
def test_an_impossible_pidfile(server: Server, pidfile: str, said: str) -> None:
    Refused(server, "-p", pidfile).check(BAD_SETTING, said)
    assert "Traceback" not in server.log
