"""For unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

# These files are about decisions, counts, words and names: nothing in them meets the operating system, a loop
# or a thread. `tox -e full` runs them, the oldest and the newest interpreter do not.
PURE = frozenset(
    {
        "test_benchmark_counts", "test_chaos_plan", "test_cli_docs", "test_cli_figures", "test_cli_health",
        "test_cli_keys", "test_cli_monit_view", "test_cli_table", "test_cli_text", "test_design_docs",
        "test_fleet", "test_fleet_health", "test_fleet_machine", "test_fleet_order", "test_fleet_reload",
        "test_fleet_replacement", "test_fleet_scale", "test_fleet_shutdown", "test_fleet_slots",
        "test_fleet_trial", "test_hosts", "test_interpreters", "test_layers", "test_metrics_definitions",
        "test_metrics_exposition", "test_metrics_monotonic", "test_peers", "test_placement", "test_policy",
        "test_quantities", "test_switching_docs",
    }
)  # fmt: skip


# The shell: what forks, signals, binds and waits, in the arbiter and in a worker. The interpreters between
# the oldest and the newest run these, and a smoke test.
SHELL = frozenset({"acceptor", "arbiter_itself", "arbiter_monitor", "worker", "worker_server"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    assert all((here / f"{name}.py").exists() for name in PURE)
    for item in items:
        if item.path.parent == here and item.path.stem in PURE:
            item.add_marker(pytest.mark.pure)
        if item.path.parent.name in SHELL or item.path.stem.startswith("test_arbiter_"):
            item.add_marker(pytest.mark.shell)
