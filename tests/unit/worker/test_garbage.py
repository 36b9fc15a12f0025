"""How often the garbage collector looks in a worker, and at what."""

from __future__ import annotations

import gc
import weakref

import pytest

from multicore_server.worker import garbage


@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [
        ((700, 10, 10), 10_000, (10_000, 10, 10)),
        ((2000, 10, 10), 10_000, (10_000, 10, 10)),
        ((700, 10, 10), None, (700, 10, 10)),
        ((50_000, 5, 5), 10_000, (50_000, 5, 5)),  # a hook's, or a preloaded app's
        ((0, 10, 10), 10_000, (0, 10, 10)),  # it is off
    ],
)
def test_the_threshold(before: tuple[int, int, int], asked: int | None, after: tuple[int, int, int]) -> None:
    gc.set_threshold(*before)
    garbage.collect_less_often(asked)
    assert gc.get_threshold() == after


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_what_is_there_is_frozen_and_garbage_goes_before() -> None:
    stays, goes = Node(), Node()
    gone = weakref.ref(goes)
    del goes
    garbage.freeze()
    assert gone() is None
    assert all(found is not stays for found in gc.get_objects())
    later = weakref.ref(Node())
    gc.collect()
    assert later() is None


def test_where_the_collector_is_disabled_nothing_is_frozen() -> None:
    before = gc.get_freeze_count()
    gc.disable()
    try:
        garbage.freeze()
    finally:
        gc.enable()
    assert gc.get_freeze_count() == before
