"""``multicore-server``: the group of commands. The module of a command is loaded when the command is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

import multicore_server
from multicore_server import hosts
from multicore_server.cli.elsewhere import ALIASES, OTHERS, option_of_pm2

# "module:attribute" within this package, in the order of --help, with the line that --help shows: to list
# the commands imports none of them.
COMMANDS = {
    "run": ("run:run", "Serve an app on every CPU, with uvicorn's options."),
    "check": ("check:check", "Say what a start would refuse, and what would have no effect."),
    "start": ("start:start", "Start the servers of multicore.toml, or of an app, in the background."),
    "ps": ("verbs:ps", "List the workers of running servers."),
    "show": ("verbs:show", "Show all about one server."),
    "reload": ("verbs:reload", "Replace all workers, with new code and configuration."),
    "restart": ("verbs:restart", "Replace all workers, or some of them, one after the other."),
    "scale": ("verbs:scale", "Change the number of workers."),
    "stop": ("verbs:stop", "Stop a server after the requests in progress are answered."),
    "reset": ("verbs:reset", "Start errored workers again and set their counts to 0."),
    "trigger": ("trigger:trigger", "Call an action of the app in its workers."),
    "metrics": ("verbs:metrics", "Print a server's metrics."),
    "monit": ("verbs:monit", "Watch a server live in the terminal."),
    "requests": ("requests:requests", "List the requests in progress, the oldest first."),
    "stacks": ("stacks:stacks", "Show what the threads and tasks of all processes are doing."),
    "events": ("verbs:events", "Print what happened to a server's workers."),
    "logs": ("logs:logs", "Show what servers have written."),
    "startup": ("startup:startup", "Write systemd units, to start servers at boot."),
}


class LazyGroup(click.Group):
    """Finds its commands in `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = ALIASES.get(cmd_name, cmd_name)
        if cmd_name in OTHERS and not ctx.resilient_parsing:  # that is a shell's completion
            from multicore_server.cli.servers import Trouble

            raise Trouble(f"{cmd_name}: {OTHERS[cmd_name]}")
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in ("run", "check"):
            _check_hosts()
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found: Any = getattr(import_module(f"multicore_server.cli.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as exc:
            command = exc.ctx.info_name if exc.ctx else None
            if line := option_of_pm2(exc.option_name, command or ""):
                from multicore_server.cli.servers import Trouble

                raise Trouble(line) from None
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])
        with formatter.section("Also known as"):
            formatter.write_dl([("list, ls, status", "ps"), ("describe", "show"), ("delete, kill", "stop")])


def _check_hosts() -> None:
    try:
        hosts.check()
    except hosts.HostError as exc:
        raise click.ClickException(str(exc)) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(multicore_server.__version__, prog_name="multicore-server")
def main() -> None:
    """Run Python web apps on every CPU, and operate the running servers."""
