"""``multicore-server stacks``: shows what the threads and tasks of a server's processes are doing now."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal, TypedDict

import click

from multicore_server.cli.arguments import (
    answer_timeout,
    check_instances,
    choosing,
    server_and_instances,
)
from multicore_server.cli.servers import RunningServer, Trouble, choose
from multicore_server.cli.text import plain
from multicore_server.ipc.report import ActionAnswer, Status
from multicore_server.ipc.stack_dumps import NoStackError, dump


class ProcessStacks(TypedDict):
    """``value`` is the answer of the action ``stacks``. ``by_signal``: the stacks come from the process's
    signal handler, so tasks and source lines are not known."""

    process: Literal["arbiter", "monitor", "worker"]
    instance: int | None
    pid: int | None
    ok: bool
    by_signal: bool
    value: Any
    error: str


@click.command()
@click.argument("arguments", nargs=-1, metavar="[SERVER] [INSTANCE]...")
@click.option("-s", "--server", help="Name, port or pid of the server; all arguments are then instances.")
@click.option(
    "--tasks", is_flag=True, help="Also show each asyncio task of the workers and what it waits for."
)
@click.option(
    "--timeout", metavar="TIME", default="3", help="Time for each process to answer; 3 s by default."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stacks(arguments: tuple[str, ...], server: str | None, tasks: bool, timeout: str, as_json: bool) -> None:
    """Show the stack of every thread of arbiter, monitor and workers, the innermost line last.

    With instances, only those workers are shown. All processes keep running. A worker whose event loop is
    blocked answers too. A worker that runs C code which holds the GIL is asked by a signal after --timeout.
    The exit status is 1 if a process shows no stack.
    """
    server, numbers = server_and_instances("stacks", arguments, server)
    with choosing(numbers):
        chosen = choose(server)
    found = _all_stacks(chosen, numbers, answer_timeout(timeout), tasks=tasks)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        for each in found:
            _print(each, tasks=tasks)
    if not any(it["process"] == "worker" for it in found):
        raise Trouble("stacks: no worker is running")
    if not all(it["ok"] for it in found):
        sys.exit(1)


def _all_stacks(
    server: RunningServer, numbers: list[int] | None, seconds: float, *, tasks: bool
) -> list[ProcessStacks]:
    status = server.status()
    check_instances("stacks", numbers, status)
    found = []
    if numbers is None:
        found.append(_by_signal(_unknown("arbiter", status["arbiter"]["pid"]), seconds))
        found.append(_by_signal(_unknown("monitor", status["monitor"]["pid"]), seconds))
    for answer in server.act("stacks", numbers, {"tasks": tasks}, seconds):
        worker = _of_worker(answer, status)
        found.append(worker if worker["ok"] or worker["pid"] is None else _by_signal(worker, seconds))
    return found


def _unknown(process: Literal["arbiter", "monitor"], pid: int) -> ProcessStacks:
    return {
        "process": process,
        "instance": None,
        "pid": pid,
        "ok": False,
        "by_signal": False,
        "value": None,
        "error": "",
    }


def _of_worker(answer: ActionAnswer, status: Status) -> ProcessStacks:
    pids = {it["instance"]: it["pid"] for it in status["workers"]}
    return {"process": "worker", "pid": pids.get(answer["instance"]), "by_signal": False, **answer}


def _by_signal(asked: ProcessStacks, seconds: float) -> ProcessStacks:
    """Return ``asked`` with the stacks that the process shows when it gets a signal."""
    pid = asked["pid"]
    assert pid is not None
    try:
        threads = [{"name": name, "lines": lines} for name, lines in dump(pid, seconds).items()]
    except NoStackError as exc:
        return {**asked, "error": "; by a signal: ".join(filter(None, (asked["error"], str(exc))))}
    return {**asked, "ok": True, "by_signal": True, "value": {"threads": threads}, "error": ""}


def _print(found: ProcessStacks, *, tasks: bool) -> None:
    is_worker = found["process"] == "worker"
    who, value = f"instance {found['instance']}" if is_worker else found["process"], found["value"]
    if not found["ok"] or not isinstance(value, dict):
        click.echo(f"{who}: {plain(found['error'])}", err=True)
        return
    if is_worker and found["by_signal"] and tasks:
        click.echo(f"{who}: it did not answer, so its tasks are not known", err=True)
    for kind in ("threads", "tasks"):
        for stack in value.get(kind) or ():
            click.echo(f"{who}, {kind[:-1]} {plain(stack['name'])}")
            for line in stack["lines"]:
                click.echo(f"  {plain(line)}")
    if value.get("left_out"):
        click.echo(f"{who}: {value['left_out']} more")
