"""Commands of PM2, gunicorn's gunicornc and Puma's pumactl: maps them to ours, or says what to type.

Pure.
"""

from __future__ import annotations

ALIASES = {
    "list": "ps", "ls": "ps", "l": "ps", "status": "ps",
    "describe": "show", "desc": "show", "info": "show",
    "delete": "stop", "del": "stop", "kill": "stop",
    "dashboard": "monit", "dash": "monit", "imonit": "monit",
    "thread-backtraces": "stacks",
    "phased-restart": "reload",
}  # fmt: skip

_LIKE_JSON = "`ps --json` prints all servers as JSON"
_UNITS = "`startup --install` lets systemd start the servers at boot; multicore.toml is what is to be started"
_MODULES = "there are no modules; install packages with pip"
_OTEL = "the app itself sets OpenTelemetry up; install its packages with pip"
_SERVICE = "there is no hosted service; `metrics`, the live page and examples/grafana show the servers"
_DEPLOY = "deploy by git or rsync, then `reload SERVER`"
_PROFILE = "`trigger memory`, `trigger tracemalloc` and `stacks` look into the workers"
_GC = "`trigger gc` collects garbage in the workers, and says what it found"
_ONE_UP, _ONE_DOWN = "`scale +1` adds a worker", "`scale -1` removes a worker"
_LOGS = "`kill -USR1 PID` reopens the log files; `ps` shows the pid"
_BOTH = "`start FILE` starts what does not run yet, `reload FILE` loads new code into what runs"
_STOP = "`stop` answers the requests in progress, `stop --now` does not"
_CONFIG = "settings are in multicore.toml and in gunicorn's config file; `show` lists those in force"
_DAEMON = "there is no daemon to be updated; `reload` loads new code, and `kill -USR2 PID` new versions"

OTHERS = {
    # PM2's
    "jlist": _LIKE_JSON, "prettylist": _LIKE_JSON, "slist": _LIKE_JSON, "sysinfos": _LIKE_JSON,
    "save": _UNITS, "dump": _UNITS, "resurrect": _UNITS, "cleardump": _UNITS,
    "unstartup": "`systemctl --user disable multicore-NAME` undoes what `startup --install` does",
    "flush": "logs are rotated by their size (`log` in multicore.toml); `: > FILE` empties one",
    "logrotate": "logs are rotated by their size: `log` in multicore.toml, or --log-max-size of `run`",
    "reloadLogs": _LOGS, "reloadLogsSilently": _LOGS,
    "id": "`ps` shows the pids", "pid": "`ps` shows the pids; --pid of `run` writes a file",
    "ping": "there is no daemon; `ps` lists the servers, and /healthz and /readyz answer for each",
    "sendSignal": "`kill -SIGNAL PID`; `ps` shows the pids, docs/exit-status.md lists the signals",
    "send": "`trigger` calls an action of the app; a server reads no stdin",
    "attach": "`logs -f` shows what a server writes; it reads no stdin",
    "env": "a server's environment is not shown; it is in multicore.toml (`env`), and in /proc/PID/environ",
    "inspect": _PROFILE, "profile:cpu": _PROFILE, "profile:mem": _PROFILE,
    "startOrReload": _BOTH, "startOrRestart": _BOTH, "startOrGracefulReload": _BOTH,
    "help": "`--help` lists the commands, `COMMAND --help` explains one",
    "create": "`start module:app` starts a server",
    "ecosystem": "write multicore.toml: [NAME], and app = \"module:app\"; docs/ecosystem.md has the rest",
    "init": "write multicore.toml: [NAME], and app = \"module:app\"; docs/ecosystem.md has the rest",
    "examples": "`--help`, and docs/operating.md",
    "report": "`show` prints the versions and the state of a server",
    "sysmonit": "`monit`, and the metrics at /metrics",
    "serve": "a web server serves files: nginx, or `python -m http.server`",
    "expose": "a web server serves files: nginx, or `python -m http.server`",
    "set": _CONFIG, "multiset": _CONFIG, "get": _CONFIG, "unset": _CONFIG, "conf": _CONFIG, "config": _CONFIG,
    "update": _DAEMON, "updatePM2": _DAEMON, "deepUpdate": _DAEMON,
    "deploy": _DEPLOY, "pull": _DEPLOY, "forward": _DEPLOY, "backward": _DEPLOY,
    "install-otel": _OTEL, "uninstall-otel": _OTEL,
    "install": _MODULES, "uninstall": _MODULES, "package": _MODULES, "publish": _MODULES,
    "autoinstall": _MODULES, "module:install": _MODULES, "module:update": _MODULES,
    "module:generate": _MODULES, "module:uninstall": _MODULES, "module:package": _MODULES,
    "module:publish": _MODULES,
    "link": _SERVICE, "unlink": _SERVICE, "monitor": _SERVICE, "unmonitor": _SERVICE, "open": _SERVICE,
    "plus": _SERVICE, "register": _SERVICE, "login": _SERVICE, "logout": _SERVICE,
    # gunicornc's
    "worker": f"{_ONE_UP}, {_ONE_DOWN}, `restart INSTANCE` replaces one",
    "dirty": "gunicorn's dirty workers are its own: gunicornc, where control_socket is set",
    "reopen": _LOGS,
    "shutdown": _STOP,
    # pumactl's
    "halt": _STOP,
    "refork": "`reload` replaces every worker; with preload_app they share the app's memory",
    "reload-worker-directory": "`reload` loads the configuration again, with its directory",
    "reopen-log": _LOGS,
    "gc": _GC, "gc-stats": _GC,
    "stats": "`ps`, `show` and `metrics` show the figures of the workers",
    "worker-count-up": _ONE_UP, "worker-count-down": _ONE_DOWN,
}  # fmt: skip

# What gunicornc shows besides a server.
SHOWN = {
    "workers": "`ps` lists the workers",
    "all": "`ps` lists the servers and their workers",
    "stats": "`show` and `metrics` have the figures",
    "config": "`show` lists the settings in force",
    "listeners": "`ps` lists the addresses",
    "dirty": OTHERS["dirty"],
}

# Options of `pm2 start` that `run` has by another name, or not at all.
_LOG = "here it is --error-logfile, or log in multicore.toml"
_TABLES = "here `start shop` starts a table of multicore.toml"
OPTIONS = {
    "-i": "here it is --workers", "--instances": "here it is --workers",
    "--watch": "here it is --reload",
    "--cron": "here it is --cron-restart",
    "--no-autorestart": "here it is --autorestart false",
    "--kill-timeout": "here it is --graceful-timeout",
    "--shutdown-with-message": "here the app's lifespan ends, or its handlers of cluster.on_shutdown",
    **dict.fromkeys(("-l", "--log", "-o", "--output", "-e", "--error"), _LOG),
    "--interpreter": "here it is python in multicore.toml",
    "--cwd": "here it is --chdir, or cwd in multicore.toml",
    "--no-daemon": "here `run` stays in the foreground",
    "--time": "here the log has the time",
    "--only": _TABLES, "--namespace": _TABLES,
    "-f": "here a second server needs another --name", "--force": "here a second server needs another --name",
    "--attach": "here `logs -f` shows what it writes",
}  # fmt: skip

_ENVIRONMENT = {"--update-env": "here a new environment takes effect with `stop` and `start`"}
_TIMES = "here the log has the times"
_ONE_FILE = "here one file has everything; the lines of the error log have their level"
# Options of PM2's other commands, by the names of ours.
OPTIONS_OF = {
    "start": OPTIONS | {"--env": "here it is env in multicore.toml, or --env-file"},
    "run": OPTIONS,
    "reload": _ENVIRONMENT,
    "restart": _ENVIRONMENT,
    "logs": {
        "--nostream": "here `logs` shows past lines, and `logs -f` new ones too",
        "--err": _ONE_FILE, "--out": _ONE_FILE,
        "--raw": "here lines are as they are in the file",
        "--timestamp": _TIMES, "--format": _TIMES,
        "--json": "here it is log_format = json, a setting of the server",
        "--highlight": "here it is `logs -f | grep --color`",
    },
}  # fmt: skip


def option_of_pm2(option: str, command: str) -> str:
    """Return the line that says what an option of PM2's is here, or nothing."""
    ours = OPTIONS_OF.get(command, {}).get(option)
    return f"{option} is PM2's; {ours}" if ours else ""
