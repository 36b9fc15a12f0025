"""The messages between the processes, and the one codec for them.

Pure: the standard library alone. A message is a small dataclass. It is sent as JSON: the name of its class
and its fields. The reader names the classes that it accepts. It gets an instance of one of them, with fields
of the right types, or a `MessageError`. A worker runs other people's code, perhaps as another user, so the
arbiter checks everything that it sends.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from multicore_server.ipc.names import Interface, Reason

MAX_MESSAGE = 64 * 1024 + 256  # bytes: the largest message of an app, in its envelope
MAX_WORDS = 2000  # characters of the last words, and of an answer
MAX_TRACE = 8000  # characters of a traceback: JSON may take six bytes for one


class MessageError(ValueError):
    """The data is not a message that is accepted here. The text is one line."""


# --- from a worker to the arbiter ---


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The worker serves; ``interface`` is how its app is called."""

    interface: Interface


@dataclass(frozen=True, slots=True)
class RetireRequest:
    """The worker wants to be replaced; ``draining`` if it has already stopped taking connections."""

    reason: Reason
    draining: bool


@dataclass(frozen=True, slots=True)
class LastWords:
    """Why the worker could not boot: one line, and the traceback of the app's code, which may be empty."""

    words: str
    trace: str


@dataclass(frozen=True, slots=True)
class AppMessage:
    """What the app has sent to the arbiter's hooks: anything that JSON can say."""

    value: object


WorkerMessage = WorkerReady | RetireRequest | LastWords | AppMessage


# --- from the arbiter to a worker ---


@dataclass(frozen=True, slots=True)
class EndOrder:
    """The worker is to end: with the requests in progress answered, or ``quick``, without."""

    quick: bool


# --- from the monitor to the arbiter, and back ---


@dataclass(frozen=True, slots=True)
class _Command:
    """``deadline``: the command is not begun later than that: nobody waits for its answer then, and it
    may have been sent again. In seconds of CLOCK_MONOTONIC, which all processes of a machine share; None:
    there is none."""

    id: int
    deadline: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class ReloadCommand(_Command):
    pass


@dataclass(frozen=True, slots=True)
class RestartCommand(_Command):
    """``instances``: None for all."""

    instances: list[int] | None


@dataclass(frozen=True, slots=True)
class ScaleCommand(_Command):
    """``workers``: a number, a change such as ``+2``, or ``max``."""

    workers: int | str


@dataclass(frozen=True, slots=True)
class StopCommand(_Command):
    """``graceful``: with the requests in progress answered."""

    graceful: bool


@dataclass(frozen=True, slots=True)
class ResetCommand(_Command):
    pass


Command = ReloadCommand | RestartCommand | ScaleCommand | StopCommand | ResetCommand


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the command with this ``id``: whether it has begun, and one line about it. ``workers`` is
    the new number of workers, if the command changes it."""

    id: int
    ok: bool
    text: str
    workers: int | None = None


Message = WorkerMessage | EndOrder | Command | Answer
M = TypeVar("M", bound=Message)


# --- the codec ---


def encode(message: Message) -> bytes:
    """Return the message as bytes. Half a surrogate pair becomes a question mark.

    Raises ValueError where it is longer than `MAX_MESSAGE`.
    """
    text = json.dumps([type(message).__name__, asdict(message)], ensure_ascii=False)
    data = text.encode(errors="replace")
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(data)} bytes is longer than {MAX_MESSAGE}")
    return data


def encode_app_message(body: bytes) -> bytes:
    """An `AppMessage` whose value is JSON already."""
    return b'["%s",{"value":%s}]' % (AppMessage.__name__.encode(), body)


def decode(data: bytes, *accepted: type[M]) -> M:
    """Return the message in ``data``, an instance of one of the ``accepted`` classes. Raises MessageError."""
    if len(data) > MAX_MESSAGE:
        raise MessageError(f"it is longer than {MAX_MESSAGE} bytes")
    try:
        name, fields = json.loads(data)
    except (ValueError, TypeError, RecursionError):  # ValueError: also for what is not UTF-8, or a pair
        raise MessageError("it is not a message") from None
    kind = next((kind for kind in accepted if kind.__name__ == name), None)
    if kind is None:
        raise MessageError("it is not a message that is accepted here")
    checks = CHECKS[kind]
    if not isinstance(fields, dict) or fields.keys() != checks.keys():
        raise MessageError(f"a {kind.__name__} has other fields")
    for key, fits in checks.items():
        if not fits(fields[key]):
            raise MessageError(f"a {kind.__name__} cannot have this {key}")
    return kind(**fields)


def _check(annotation: Any) -> Callable[[object], bool]:
    """Return a check of whether a value from JSON has this type. A bool is not an int here."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in inner
    if origin in (Union, UnionType):
        checks = [_check(each) for each in inner]
        return lambda value: any(fits(value) for fits in checks)
    if origin is list:
        each = _check(inner[0])
        return lambda value: isinstance(value, list) and all(map(each, value))
    if annotation is object:
        return lambda _: True
    if annotation is int:
        return lambda value: type(value) is int and abs(value) < 2**63
    if annotation is float:  # and no NaN
        return lambda value: type(value) in (int, float) and abs(cast("float", value)) < 2**63
    if annotation is str:
        return _is_text
    if annotation in (bool, NoneType):
        return lambda value: type(value) is annotation
    raise TypeError(f"messages have no fields of type {annotation}")


def _is_text(value: object) -> bool:
    """Whether it is text without half a surrogate pair: JSON can have one, and no log file can."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


# For each class of messages, the check of each of its fields.
CHECKS: dict[type, dict[str, Callable[[object], bool]]] = {
    kind: {name: _check(annotation) for name, annotation in get_type_hints(kind).items()}
    for kind in get_args(Message)
}
