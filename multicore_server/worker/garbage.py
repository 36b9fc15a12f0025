"""Python's garbage collector in a worker: it looks at what requests leave behind, and less often.

Reference counts free almost everything at once. The collector is for cycles alone, and looks for them after
every few hundred new objects; now and then it looks at every object of the process, which stops a worker with
a large app for tens of milliseconds.
"""

from __future__ import annotations

import gc

PYTHONS = (700, 2000)  # new objects: Python's own threshold, before and from 3.13 on


def collect_less_often(threshold: int | None) -> None:
    """To be called before the app is loaded. ``threshold``: `gc_threshold`. One that the user's code has set
    is left alone, and the app may set its own."""
    if threshold is not None and gc.get_threshold()[0] in PYTHONS:
        gc.set_threshold(threshold)


def freeze() -> None:
    """To be called when the app has started: no collection looks again at what is there by then. Who has
    disabled the collector has other plans."""
    if gc.isenabled():
        gc.collect()  # before the freeze: garbage would stay
        gc.freeze()
