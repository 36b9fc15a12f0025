"""The plans of the driver of faults: the same seed makes the same plan, and each fault can be done."""

from __future__ import annotations

from tests.chaos.faults import FAULTS
from tests.chaos.plan import WEIGHTS, make_plan


def test_a_seed_makes_the_same_plan_again() -> None:
    assert make_plan(7, 20) == make_plan(7, 20) != make_plan(8, 20)


def test_what_is_fixed_changes_nothing_else() -> None:
    free, fixed = make_plan(7, 20), make_plan(7, 20, transport="tls", kind="wsgi")
    assert (fixed.setup.transport, fixed.setup.kind) == ("tls", "wsgi")
    assert fixed.actions == free.actions


def test_every_fault_of_a_plan_can_be_done() -> None:
    assert FAULTS.keys() == WEIGHTS.keys() | {"kill-arbiter"}


def test_faults_come_in_order_and_in_time() -> None:
    for seed in range(50):
        times = [action.at for action in make_plan(seed, 20).actions]
        assert times == sorted(times)
        assert 0 < times[0] <= times[-1] <= 20


def test_only_asgi_apps_have_websockets() -> None:
    assert "websocket" in make_plan(7, 20, kind="asgi").clients
    assert "websocket" not in make_plan(7, 20, kind="threads").clients
