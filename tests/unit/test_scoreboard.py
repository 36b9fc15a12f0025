"""Shared memory: rows, and whose turn it is."""

from __future__ import annotations

import os

from multicore_server.ipc.scoreboard import (
    BUCKETS,
    MIN_SLOTS,
    ROW_SIZE,
    ROWS_PER_SLOT,
    Item,
    Scoreboard,
    slots_for,
)


def test_there_is_room_to_scale() -> None:
    assert [slots_for(workers) for workers in (1, 32, 33, 100)] == [MIN_SLOTS, MIN_SLOTS, 66, 200]


def test_rows_are_apart() -> None:
    board = Scoreboard(2)
    for number in range(2 * ROWS_PER_SLOT):
        for item in Item:
            board.row(number)[item] = number * 100 + item
    for number in range(2 * ROWS_PER_SLOT):
        assert [board.row(number)[item] for item in Item] == [number * 100 + item for item in Item]
    assert (board.changes, board.used_slots) == (0, 0)


def test_a_row_has_room_for_its_items_in_whole_cache_lines() -> None:
    assert Item.QUEUE + len(BUCKETS) + 1 == Item.QUEUE_SUM
    assert Item.DURATIONS + len(BUCKETS) + 1 == Item.DURATION_SUM
    assert len(Scoreboard(1).row(0)) > max(Item)
    assert ROW_SIZE % 64 == 0


def test_published_rows_serve() -> None:
    board = Scoreboard(4)
    board.publish(frozenset({0, ROWS_PER_SLOT + 1}))
    assert (board.serving(), board.changes, board.used_slots) == ([0, ROWS_PER_SLOT + 1], 1, 2)
    board.publish(frozenset({0, ROWS_PER_SLOT + 1}))
    assert board.changes == 1
    board.publish(frozenset({1}))
    assert (board.serving(), board.changes) == ([1], 2)
    assert board.used_slots == 2  # the second may still have something in its inbox


def test_a_childs_writing_is_seen() -> None:
    board = Scoreboard(1)
    child = os.fork()
    if child == 0:
        board.row(2)[Item.IN_HAND] = 7.5
        os._exit(0)
    os.waitpid(child, 0)
    assert board.row(2)[Item.IN_HAND] == 7.5
