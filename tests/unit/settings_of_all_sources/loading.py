"""gunicorn's configuration, loaded as a user's command line and file would have it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication

from multicore_server.settings.quantities import Jitter, Size
from multicore_server.settings.sources import resolve
from multicore_server.settings.table import Settings

Load = Callable[..., Any]


CPUS = 6


MB = 2**20


DOCS = Path(__file__).parents[3] / "docs" / "settings.md"


DEFAULTS = Settings(
    workers=CPUS, gc_threshold=10_000, autorestart="true", min_uptime=1.0, max_restarts=16, restart_delay=0.0,
    exp_backoff_restart_delay=0.1, max_restart_delay=15.0, backoff_reset=30.0, stop_exit_codes=frozenset(),
    max_memory_restart=None, max_memory_kill=None, memory_metric="uss", memory_check_interval=1.0,
    max_lifetime=None, max_lifetime_jitter=Jitter(10, percent=True), cron_restart=None, listen_timeout=60.0,
    wait_ready=False, reload_surge=1, draining_limit=3, shutdown_delay=0.0,
    block_warning=1.0, slow_request=None, scheduling="least",
    metrics_bind="127.0.0.1:9464", metrics_hosts=frozenset(),
    metrics_path=None, instance_var="MULTICORE_INSTANCE",
    limit_request_body=None, header_timeout=30.0, body_timeout=60.0, send_timeout=60.0, request_timeout=None,
    log_format="text", access_log_skip=frozenset(), log_max_size=None, log_keep=5, app_metrics=True,
)  # fmt: skip


# Text as the environment has it, the same for a config file or run(), what comes of both; then bad values.
EXAMPLES: dict[str, tuple[str, object, object, tuple[object, ...]]] = {
    "workers": ("3", 3, 3, ("many", "-2", "1.5")),
    "gc_threshold": ("50000", 50_000, 50_000, ("0", "-1", "some", True)),
    "autorestart": ("on-failure", "on-failure", "on-failure", ("always", 2)),
    "min_uptime": ("500ms", 0.5, 0.5, ("-1", True, "soon", None)),
    "max_restarts": ("0", 0, 0, ("-1", 1.5, True)),
    "restart_delay": ("2s", 2, 2.0, ("-2s", math.nan)),
    "exp_backoff_restart_delay": ("250ms", 0.25, 0.25, ("none", "1x")),
    "max_restart_delay": ("1m", 60, 60.0, ("inf", math.inf)),
    "backoff_reset": ("10m", 600, 600.0, ("10 minutes", False)),
    "stop_exit_codes": ("0,143", [0, 143], frozenset({0, 143}), ("256", "a", [-1])),
    "max_memory_restart": ("300M", 300 * MB, Size(300 * MB), ("300X", "0", "101%")),
    "max_memory_kill": ("80%", "80%", Size(80, percent=True), ("-1", "0%", True)),
    "memory_metric": ("rss", "rss", "rss", ("pss", None)),
    "memory_check_interval": ("2s", 2.0, 2.0, ("0", "none")),
    "max_lifetime": ("24h", 86400, 86400.0, ("0", "-1h")),
    "max_lifetime_jitter": ("5%", "5%", Jitter(5, percent=True), ("101%", "x")),
    "cron_restart": ("0 4 * * *", "0 4 * * *", "0 4 * * *", ("daily", "0 0 30 2 *")),
    "listen_timeout": ("90", 90, 90.0, (-1, "soon", "none", None)),
    "wait_ready": ("yes", True, True, ("perhaps", None, 2)),
    "reload_surge": ("2", 2, 2, ("0", -1)),
    "draining_limit": ("2", 2, 2, ("0", 4, -1)),
    "shutdown_delay": ("5s", 5, 5.0, ("-5s", "x")),
    "block_warning": ("500ms", 0.5, 0.5, ("0", "-1", "soon")),
    "slow_request": ("5s", 5, 5.0, ("0", "-1", "soon")),
    "scheduling": ("shared", "shared", "shared", ("random", True)),
    "metrics_bind": ("unix:/run/m", "unix:/run/m", "unix:/run/m", ("9464", 9464, "localhost:99999")),
    "metrics_hosts": (
        "Metrics.example.com, *.example.org", ["metrics.example.com", "*.example.org"],
        frozenset({"metrics.example.com", "*.example.org"}), ("a b", "http://x", "x:1", "**", "a.*", ",", 7),
    ),
    "metrics_path": ("/metrics", "/metrics", "/metrics", ("metrics", "/a b")),
    "instance_var": ("APP_ID", "APP_ID", "APP_ID", ("", "A-B", "MULTICORE_WORKERS")),
    "limit_request_body": ("10M", 10 * 2**20, 10 * 2**20, ("50%", "0", "big")),
    "header_timeout": ("10s", 10.0, 10, ("soon", -1)),
    "body_timeout": ("2m", 120.0, 120, ("soon", -1)),
    "send_timeout": ("0", 0.0, 0, ("soon", -1)),
    "request_timeout": ("1m", 60, 60.0, ("0", "-1", "soon")),
    "log_format": ("JSON", "json", "json", ("yaml", None)),
    "access_log_skip": (
        "/healthz, /static/*", ["/healthz", "/static/*"], frozenset({"/healthz", "/static/*"}),
        ("healthz", "/a b", "/*/b", "/a,", 7, [1]),
    ),
    "log_max_size": ("10M", 10 * MB, 10 * MB, ("80%", "big", "-1")),
    "log_keep": ("3", 3, 3, ("0", "few")),
    "app_metrics": ("off", False, False, ("", 3)),
}  # fmt: skip


class Embedded(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    """An application that sets gunicorn up from code and parses no argv."""

    def __init__(self, **options: object) -> None:
        self.options = options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self.options.items():
            self.cfg.set(name, value)


def settings(
    cfg: Any = None,
    options: dict[str, Any] | None = None,
    *,
    environ: dict[str, str] | None = None,
    argv: list[str] | None = None,
) -> Settings:
    return resolve(
        Embedded().cfg if cfg is None else cfg, options, cpus=lambda: CPUS, environ=environ or {}, argv=argv
    )
