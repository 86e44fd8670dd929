"""Ctrl-C and SIGTERM at places of our choosing.

Python raises KeyboardInterrupt between any two instructions of the main thread. Inside a thread pool's own
code that can leave a lock half released, or be lost in a callback; so while a pool works, signals are only
noted, and acted on after the next chunk of work.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Gives a function that lets a signal that has come take its usual effect; the end of the block does too.

    Without effect outside the main thread, where no signal is ever delivered.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    noted: list[int] = []
    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if callable(handler := signal.getsignal(number))
    }
    for number in handlers:
        signal.signal(number, lambda number, frame: noted.append(number))

    def act() -> None:
        if noted:
            restore()
            signal.raise_signal(noted.pop())

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    try:
        yield act
    finally:
        restore()
    act()
