"""Tells from a thread's frames what it is doing: whether it is within the app's code, and where.

Pure, except for reading the source of a line.
"""

from __future__ import annotations

import inspect
import linecache
import os
import site
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

OURS = f"{Path(__file__).parents[1]}{os.sep}"
# Parts of ours in which the loop's thread deals with connections itself.
OF_THE_LOOP = (
    f"{OURS}connections{os.sep}",
    *(f"{OURS}worker{os.sep}{name}.py" for name in ("server", "heart", "drain")),
)
# The loop's own code: what it calls is right above it.
CALLS = (
    "asyncio/runners.py",
    "asyncio/base_events.py",
    "asyncio/events.py",
    "uvloop/__init__.py",  # its run()
    "worker/loop.py",
)
LOOPS = (*CALLS, "selectors.py")  # on top where it waits
LATER = f"{OURS}wsgi{os.sep}direct.py"  # it has an inline WSGI app's requests called in a turn of their own
READS = ("asyncio/selector_events.py", "asyncio/sslproto.py")
SERVERS = frozenset({"multicore_server", "uvicorn", "gunicorn", "uvloop", "httptools", "h11"})
LONGEST = 60  # characters of a line of code
# The frame of a suspended coroutine, generator or asynchronous generator, and what it waits for.
SUSPENDED = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


class Place(NamedTuple):
    """A line of code: ``file`` as short as it can be said, ``call`` what it calls."""

    file: str
    line: int
    function: str
    call: str

    def __str__(self) -> str:
        call = f" ({self.call})" if self.call else ""
        return f"{self.file}:{self.line} in {self.function}{call}"


def frames(top: FrameType | None) -> Iterator[FrameType]:
    """The innermost first."""
    while top is not None:
        yield top
        top = top.f_back


def awaited(step: Any) -> Iterator[Any]:
    """The frames of a suspended coroutine and of what it waits for, the innermost last; after them what that
    waits for, where it has no frame: a future, say."""
    while step is not None:
        for its_frame, awaits in SUSPENDED:
            if hasattr(step, its_frame):
                frame, step = getattr(step, its_frame), getattr(step, awaits)
                if frame is not None:
                    yield frame
                break
        else:
            yield step
            return


def is_in_app(top: FrameType | None) -> bool:
    """Whether the loop's thread is in a call of the app's, and neither the loop nor we are at work below it:
    then the loop reads nothing before that call has returned, and nothing right after it."""
    if top is None or top.f_code.co_filename.endswith(LOOPS):
        return False
    names = [frame.f_code.co_filename for frame in frames(top)]
    if any(name.endswith(READS) or name.startswith(OF_THE_LOOP) for name in names):
        return False
    return _has_a_turn_of_its_own(top)


def _has_a_turn_of_its_own(top: FrameType) -> bool:
    """Whether the loop has called a step of a task, or what `wsgi.direct` gave it for later.

    Anything else may run in the middle of the loop's work. uvloop calls what waits for a descriptor, and code
    of the standard library, between two of the connections that epoll has reported: it reads the second one
    afterwards, whatever becomes of it meanwhile.
    """
    called = top
    for frame in frames(top.f_back):
        if frame.f_code.co_filename.endswith(CALLS):
            break
        called = frame
    return bool(called.f_code.co_flags & inspect.CO_COROUTINE) or called.f_code.co_filename == LATER


def place_of(top: FrameType | None) -> Place | None:
    """The innermost line of the app's own code; where there is none, of a library's."""
    found = _innermost(top, _is_apps) or _innermost(top, _is_a_librarys)
    if found is None:
        return None
    frame, below = found
    code = frame.f_code
    call = _name(below) if below is not None else _source(code.co_filename, frame.f_lineno)
    return Place(_short(code.co_filename), frame.f_lineno, code.co_name, call)


def _innermost(
    top: FrameType | None, wanted: Callable[[FrameType], bool]
) -> tuple[FrameType, FrameType | None] | None:
    below = None
    for frame in frames(top):
        if wanted(frame):
            return frame, below
        below = frame
    return None


# The standard library and what is installed. sysconfig knows them too, for 3 ms and a quarter of a MiB.
_ROOTS = tuple(f"{path}{os.sep}" for path in (Path(os.__file__).parent, *site.getsitepackages()))


def _is_apps(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return not (name.startswith(("<", *_ROOTS, OURS)) or "site-packages" in name)


def _is_a_librarys(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return module not in SERVERS and not frame.f_code.co_filename.startswith(OURS)


def _name(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_name}"


def _source(file: str, line: int) -> str:
    text = linecache.getline(file, line).strip()
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _short(file: str) -> str:
    """Below the directory that the server runs in, or the last parts of a library's path."""
    if file.startswith(f"{Path.cwd()}{os.sep}"):
        return os.path.relpath(file)
    for root in sorted(_ROOTS, key=len, reverse=True):
        if file.startswith(root):
            return file.removeprefix(root)
    return file
