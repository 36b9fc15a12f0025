"""The closed sets of names that messages, metrics, events and /status use.

Pure.
"""

from __future__ import annotations

from typing import Literal

# How an app is called.
Interface = Literal["asgi3", "asgi2", "wsgi"]
# Why a worker ended or is replaced: the values of the metric label `reason`.
Reason = Literal[
    "exit", "signal", "oom", "timeout", "boot", "memory",
    "max_requests", "lifetime", "cron", "reload", "manual",
]  # fmt: skip
ReloadResult = Literal["ok", "rolled_back", "failed"]
Level = Literal["info", "warning", "error", "critical"]
StateName = Literal["starting", "ready", "draining", "backoff", "stopped", "errored"]

# What an event is about. docs/monitoring.md has this table too.
EventKind = Literal[
    "started", "ready", "draining", "gone", "exited", "boot", "timeout", "killed", "ended_early", "memory",
    "reload", "reload_queued", "refused", "stopping",
]  # fmt: skip
EVENT_KINDS: dict[EventKind, str] = {
    "started": "a worker process was forked",
    "ready": "a worker is ready for requests",
    "draining": "a worker takes no more connections and finishes its requests in progress",
    "gone": "a worker has drained and exited",
    "exited": "a worker crashed or exited by itself; the text says what follows",
    "boot": "a worker exited before it was ready; the text says why and what follows",
    "timeout": "a worker hangs or was not ready in time, and is aborted",
    "killed": "a worker did not exit in time and gets SIGKILL",
    "ended_early": "a draining worker ends early, because too many old workers of its instance drain",
    "memory": "a worker uses more memory than its limit",
    "reload": "a reload has ended; `reason` is its result: `ok`, `rolled_back` or `failed`",
    "reload_queued": "a reload was requested while another one is in progress, and follows it",
    "refused": "more workers were requested than there is room for",
    "stopping": "the server keeps answering for `shutdown_delay` before it stops",
}


def event_kinds() -> str:
    """The table of event kinds in Markdown, for the docs."""
    rows = [f"| `{kind}` | {meaning} |" for kind, meaning in EVENT_KINDS.items()]
    return "\n".join(["| kind | meaning |", "| --- | --- |", *rows])
