"""From a seed to a plan: how the server runs, what its clients do, and which faults come when. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

KINDS = ("asgi", "wsgi", "threads")
TRANSPORTS = ("plain", "tls", "unix")
LOOPS = ("uvloop", "asyncio")
PROTOCOLS = ("httptools", "h11")
WORKERS = 3  # at the start, and again at the end
TIMEOUT = 6.0  # seconds until a worker without a heartbeat is aborted
GRACEFUL_TIMEOUT = 10.0  # seconds; longer than any request of the clients takes

# How often each of the faults comes, compared with the others. What each does: `tests.chaos.faults`.
WEIGHTS = {
    "reload": 6, "deploy": 6, "deploy-slow": 2, "deploy-broken": 3, "config": 3, "config-broken": 3,
    "scale-up": 4, "scale-down": 4, "term-worker": 5, "usr1": 2, "usr2-back": 1, "usr2-forward": 1,
    "kill-worker": 5, "signal-worker": 4, "harmless-signal": 3, "stop-worker": 4, "stop-arbiter": 2,
    "stop-monitor": 2, "kill-monitor": 3, "crash": 3, "block": 4, "hang": 1, "leak": 2,
    "emfile": 2, "emfile-arbiter": 1, "emfile-monitor": 1, "enomem": 1, "enomem-arbiter": 1, "efbig": 1,
    "enospc": 2,
}  # fmt: skip
DEADLY_SIGNALS = ("SIGABRT", "SIGSEGV", "SIGINT", "SIGQUIT", "SIGHUP", "SIGALRM", "SIGUSR2", "SIGILL")
HARMLESS_SIGNALS = ("SIGUSR1", "SIGWINCH", "SIGCHLD", "SIGCONT", "SIGURG", "SIGPIPE")
CLIENTS = (
    "kept_alive", "kept_alive", "closing", "closing", "pipelining", "halting", "slow_reader", "uploading",
    "uploading", "streaming", "leaving",
)  # fmt: skip
ASGI_CLIENTS = ("events", "websocket")


@dataclass(frozen=True, slots=True)
class Setup:
    kind: str
    transport: str
    loop: str
    http: str
    scheduling: str
    max_requests: int
    preload: bool


@dataclass(frozen=True, slots=True)
class Action:
    """A fault; ``at`` seconds after the start, or as soon as the one before it is over."""

    at: float
    fault: str
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.at:6.1f} s  {self.fault} {self.argument}".rstrip()


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    seconds: float
    setup: Setup
    actions: tuple[Action, ...]
    clients: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{number:3} {action}" for number, action in enumerate(self.actions)]
        head = f"seed {self.seed}, {self.seconds:g} s, {self.setup}\nclients {' '.join(self.clients)}"
        return "\n".join([head, *lines])


def make_plan(seed: int, seconds: float, **fixed: str) -> Plan:
    """The plan of this seed; ``fixed`` are fields of its setup (kind, transport, loop, http)."""
    dice = random.Random(seed)
    setup = _setup(dice, fixed)
    clients = CLIENTS + (ASGI_CLIENTS if setup.kind == "asgi" else ())
    return Plan(seed, seconds, setup, tuple(_actions(dice, seconds, setup)), clients)


def _setup(dice: random.Random, fixed: dict[str, str]) -> Setup:
    # Everything is thrown, also what is fixed: so the rest of the plan stays the same.
    thrown = {
        "kind": dice.choice(KINDS),
        "transport": dice.choice(TRANSPORTS),
        "loop": dice.choice(LOOPS),
        "http": dice.choice(PROTOCOLS),
        "scheduling": dice.choice(("least", "least", "shared")),
    }
    max_requests = dice.choice((0, 0, 300))
    preload = dice.random() < 0.2
    return Setup(**{**thrown, **fixed}, max_requests=max_requests, preload=preload)


def _actions(dice: random.Random, seconds: float, setup: Setup) -> list[Action]:
    actions: list[Action] = []
    at = 1.0
    while at < seconds:
        fault = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        actions.append(Action(round(at, 1), fault, _argument(dice, fault)))
        at += dice.choice((0.05, 0.2, 0.5, 1.0, 2.0))
    if dice.random() < 0.3:
        actions.append(Action(seconds, "kill-arbiter"))
    return [action for action in actions if _applies(action, setup)]


def _argument(dice: random.Random, fault: str) -> str:
    if fault == "signal-worker":
        return dice.choice(DEADLY_SIGNALS)
    if fault == "harmless-signal":
        return dice.choice(HARMLESS_SIGNALS)
    if fault.startswith("stop-") or fault == "block":
        return f"{dice.uniform(0.2, 2.0):.1f}"
    return ""


def _applies(action: Action, setup: Setup) -> bool:
    # With --preload the arbiter keeps the code that it has: a deploy changes nothing.
    return not (setup.preload and action.fault.startswith("deploy"))
