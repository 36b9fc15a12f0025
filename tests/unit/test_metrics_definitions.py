"""The table of metrics: all of the design's, named by Prometheus' rules, and in the docs as they are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from multicore_server.metrics import definitions
from multicore_server.metrics.definitions import TABLE, TAKEN, sample_names
from multicore_server.metrics.exposition import text
from multicore_server.metrics.family import Sample, labels

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
REASONS = {
    "exit", "signal", "oom", "timeout", "boot", "memory",
    "max_requests", "lifetime", "cron", "reload", "manual",
}  # fmt: skip
# Part 1 of the design: name, kind, labels.
DESIGN = {
    "multicore_workers": ("gauge", "state"),
    "multicore_workers_configured": ("gauge", ""),
    "multicore_worker_restarts_total": ("counter", "reason"),
    "multicore_worker_start_time_seconds": ("gauge", "worker"),
    "multicore_worker_resident_memory_bytes": ("gauge", "worker"),
    "multicore_worker_unique_memory_bytes": ("gauge", "worker"),
    "multicore_worker_memory_limit_bytes": ("gauge", ""),
    "multicore_worker_cpu_seconds_total": ("counter", "worker"),
    "multicore_connections": ("gauge", "worker"),
    "multicore_connections_accepted_total": ("counter", "worker"),
    "multicore_connections_handed_over_total": ("counter", ""),
    "multicore_connections_migrated_total": ("counter", ""),
    "multicore_requests_in_progress": ("gauge", "worker"),
    "multicore_http_requests_total": ("counter", "method code"),
    "multicore_http_request_duration_seconds": ("histogram", ""),
    "multicore_websockets": ("gauge", "worker"),
    "multicore_event_loop_lag_seconds": ("gauge", "worker"),
    "multicore_listen_backlog": ("gauge", ""),
    "multicore_reloads_total": ("counter", "result"),
    "multicore_build_info": ("gauge", "version python gunicorn uvicorn"),
    "process_cpu_seconds_total": ("counter", ""),
    "process_resident_memory_bytes": ("gauge", ""),
    "process_virtual_memory_bytes": ("gauge", ""),
    "process_start_time_seconds": ("gauge", ""),
    "process_open_fds": ("gauge", ""),
    "process_max_fds": ("gauge", ""),
}
OURS = {
    "multicore_http_request_queue_seconds": ("histogram", ""),
    "multicore_event_loop_blocked_total": ("counter", "worker"),
    "multicore_event_loop_blocked_seconds_total": ("counter", "worker"),
    "multicore_request_timeouts_total": ("counter", "worker"),
    "multicore_app_metrics_left_out": ("gauge", "reason"),
    "multicore_messages_sent_total": ("counter", "worker"),
    "multicore_messages_received_total": ("counter", "worker"),
    "multicore_messages_not_delivered_total": ("counter", "worker"),
    "multicore_message_bytes_total": ("counter", ""),
    "multicore_message_handler_seconds_total": ("counter", "worker"),
    "multicore_primary_changes_total": ("counter", ""),
    "multicore_server_info": ("gauge", "name host"),
}


def test_every_metric_of_the_design_is_in_the_table() -> None:
    found = {name: (metric.kind, " ".join(metric.labels)) for name, metric in TABLE.items()}
    assert found == DESIGN | OURS


def test_known_label_values_are_the_design_s() -> None:
    known = {
        (name, label): values for name, it in TABLE.items() for label, values in it.labels.items() if values
    }
    assert {key: set(values) for key, values in known.items()} == {
        ("multicore_workers", "state"): {"starting", "ready", "draining", "backoff", "stopped", "errored"},
        ("multicore_worker_restarts_total", "reason"): REASONS,
        ("multicore_reloads_total", "result"): {"ok", "rolled_back", "failed"},
        ("multicore_app_metrics_left_out", "reason"): {"file", "collision"},
        ("multicore_http_requests_total", "code"): {"1xx", "2xx", "3xx", "4xx", "5xx", "499"},
        ("multicore_http_requests_total", "method"): {
            "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE", "other",
        },
    }  # fmt: skip


def test_units_are_the_last_part_of_the_name() -> None:
    units = {name: metric.unit for name, metric in TABLE.items() if metric.unit}
    assert units == {
        name: unit
        for name in TABLE
        for unit in ("seconds", "bytes")
        if f"_{unit}" in name.removesuffix("_total")
    }


@pytest.mark.parametrize("name", TABLE)
def test_a_help_text_is_a_short_sentence(name: str) -> None:
    words = TABLE[name].help
    assert words.endswith(".")
    assert len(words) < 110
    assert not set(words) & set('|\\"\n')  # the docs are a Markdown table


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's prometheus) is missing")
def test_promtool_has_nothing_to_say() -> None:
    suffix = {"counter": "_total", "gauge": "", "histogram": "_count"}
    families = [
        metric.family(
            [Sample(suffix[metric.kind], labels((name, "1") for name in sorted(metric.labels)), 1.0)]
        )
        for metric in TABLE.values()
    ]
    done = subprocess.run(
        ["promtool", "check", "metrics", "--extended"], input=text(families), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert {line.split()[0].decode() for line in done.stdout.splitlines()[1:]} == {*TABLE, "Total"}


def test_names_that_are_taken() -> None:
    assert sample_names("a", "histogram") == {"a", "a_bucket", "a_count", "a_sum"}
    assert sample_names("a", "counter") == {"a", "a_total"}
    assert sample_names("a", "gauge") == {"a"}
    assert set(TABLE) < TAKEN
    assert "multicore_http_request_duration_seconds_sum" in TAKEN


def test_the_docs_hold_the_table() -> None:
    marked = "<!-- metrics: multicore_server.metrics.definitions.reference() -->\n"
    before, _, rest = DOCS.read_text().partition(marked)
    block, _, _ = rest.partition("\n<!-- end of metrics -->")
    assert before
    assert block == definitions.reference()


QUERIES = re.findall(r"```promql\n(.*?)\n```", DOCS.read_text(), re.DOTALL)


def test_the_docs_queries_are_about_metrics_that_exist() -> None:
    named = set(re.findall(r"\b(?:multicore|process)_\w+", " ".join(QUERIES)))
    assert named
    assert named <= TAKEN


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's prometheus) is missing")
def test_promtool_can_read_the_docs_queries(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(QUERIES)]
    file = tmp_path / "rules.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "docs", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(QUERIES)} rules found" in done.stdout
