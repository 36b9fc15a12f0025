"""Messages between processes: what arrives is a message with the right fields, or it is refused."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicore_server.ipc import messages
from multicore_server.ipc.channel import MonitorChannel, Unreadable, WorkerChannel
from multicore_server.ipc.messages import (
    MAX_MESSAGE,
    MAX_TRACE,
    MAX_WORDS,
    Answer,
    LastWords,
    Message,
    MessageError,
    ReloadCommand,
    RestartCommand,
    RetireRequest,
    ScaleCommand,
    StopCommand,
    WorkerReady,
    decode,
    encode,
)

EVERY = get_args(Message)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.parametrize(
    "message",
    [
        WorkerReady("wsgi"),
        RetireRequest("max_requests", draining=True),
        LastWords("no module named 'x'", "Traceback\n\x00\U0001f600"),
        RestartCommand(1, None),
        RestartCommand(2, [0, 3]),
        ScaleCommand(3, "+2"),
        ScaleCommand(4, 2),
        StopCommand(5, graceful=False),
        ReloadCommand(6, deadline=1234.5),
        Answer(6, True, "scaling", 4),
    ],
)
def test_what_is_sent_arrives(message: Message) -> None:
    assert decode(encode(message), *EVERY) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data, *EVERY)


@given(st.sampled_from([kind.__name__ for kind in EVERY]) | st.text(max_size=10), JSON)
def test_any_json_is_a_message_or_refused(name: str, fields: Any) -> None:
    try:
        message = decode(json.dumps([name, fields]).encode(), *EVERY)
    except MessageError:
        return
    assert decode(encode(message), *EVERY) == message


@given(st.data())
def test_fields_of_other_types_are_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(EVERY))
    fields = {name: data.draw(JSON) for name in messages.CHECKS[kind]}
    try:
        message = decode(json.dumps([kind.__name__, fields]).encode(), *EVERY)
    except MessageError:
        return
    assert all(fits(getattr(message, name)) for name, fits in messages.CHECKS[kind].items())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 60_000,
        b'["WorkerReady"]',
        b'["WorkerReady", {}]',
        b'["WorkerReady", {"interface": "wsgi", "more": 1}]',
        b'["WorkerReady", {"interface": 1}]',
        b'["WorkerReady", {"interface": "asgi4"}]',
        rb'["LastWords", {"words": "\ud83d", "trace": ""}]',
        rb'["LastWords", {"words": "", "trace": "\ude00\ud83d"}]',
        b'["LastWords", {"words": "", "trace": "\xed\xa0\x80"}]',
        b'["LastWords", {"words": "x", "words": 1, "trace": ""}]',
        b'["RetireRequest", {"reason": "boredom", "draining": true}]',
        b'["RetireRequest", {"reason": "cron", "draining": 1}]',
        b'["StopCommand", {"id": true, "graceful": true, "deadline": null}]',
        b'["StopCommand", {"id": 1e3, "graceful": true, "deadline": null}]',
        b'["StopCommand", {"id": NaN, "graceful": true, "deadline": null}]',
        b'["StopCommand", {"id": ' + b"9" * 5000 + b', "graceful": true, "deadline": null}]',
        b'["ReloadCommand", {"id": 1, "deadline": NaN}]',
        b'["ReloadCommand", {"id": 1, "deadline": -Infinity}]',
        b'["ReloadCommand", {"id": 1, "deadline": 1' + b"0" * 400 + b"}]",
        b'["ReloadCommand", {"id": 1, "deadline": "soon"}]',
        b'["ReloadCommand", {"id": 1}]',
        b'["RestartCommand", {"id": 1, "instances": [null], "deadline": null}]',
        b'[["WorkerReady"], {"interface": "wsgi"}]',
        encode(WorkerReady("wsgi")) + b" " * MAX_MESSAGE,
    ],
)
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError) as caught:
        decode(data, *EVERY)
    assert "\n" not in str(caught.value)


def test_only_what_is_accepted_here() -> None:
    with pytest.raises(MessageError, match="not a message that is accepted here"):
        decode(encode(StopCommand(1, graceful=True)), WorkerReady, LastWords)


def test_what_is_too_long_is_not_sent() -> None:
    with pytest.raises(ValueError, match=f"is longer than {MAX_MESSAGE}"):
        encode(LastWords("x" * MAX_MESSAGE, ""))


# --- channels ---


@pytest.mark.parametrize("letter", ["\U0001f600", "\x00", "\ud800", "x", "\u00e9"])
def test_last_words_always_fit(letter: str) -> None:
    """Nine thousand emoji ended the arbiter once: cut in the middle, they were no JSON."""
    channel = WorkerChannel()
    channel.last_words(letter * 9_000, letter * 90_000)
    (message,) = channel.received()
    channel.close()
    assert isinstance(message, LastWords)
    assert (len(message.words), len(message.trace)) == (MAX_WORDS, MAX_TRACE)


def test_what_cannot_be_read_is_told_once_and_costs_nothing_else() -> None:
    channel = WorkerChannel()
    for data in (b"{", b"\xff" * 70_000, encode(StopCommand(1, graceful=True))):
        channel.child_end.send(data)
    channel.ready("asgi3")
    found = list(channel.received())
    channel.close()
    assert found == [Unreadable("it is not a message"), WorkerReady("asgi3")]


def test_a_child_that_talks_without_end_does_not_keep_the_others_waiting() -> None:
    channel = WorkerChannel()
    for _ in range(5):
        channel.ready("wsgi")
    assert len(list(channel.received(3))) == 3
    assert len(list(channel.received(3))) == 2
    channel.close()


def test_a_child_that_is_gone() -> None:
    channel = MonitorChannel()
    channel.child_end.send(encode(ScaleCommand(1, 3)))
    channel.child_end.close()
    assert list(channel.received()) == [ScaleCommand(1, 3)]
    assert channel.ended
    channel.answer(Answer(1, True, "nobody hears it"))
    channel.close()
    assert list(channel.received()) == []


def test_nothing_that_is_sent_raises() -> None:
    worker, monitor = WorkerChannel(), MonitorChannel()
    monitor.answer(Answer(1, False, "\U0001f600" * 90_000))
    answer = decode(monitor.child_end.recv(MAX_MESSAGE), Answer)
    assert (answer.id, answer.ok, len(answer.text)) == (1, False, MAX_WORDS)
    for channel in (worker, monitor):
        channel.close()
    worker.ready("wsgi")
    worker.retire("cron")
    worker.last_words("x" * 90_000)
    monitor.answer(Answer(1, True, "nobody hears it"))
    assert [*worker.received(), *monitor.received()] == []


def test_a_channel_that_is_full_loses_what_is_sent_and_says_nothing() -> None:
    channel = WorkerChannel()
    for _ in range(3000):
        channel.retire("cron")
    assert RetireRequest("cron", draining=False) in channel.received()
    channel.close()
