"""Work of a test in a background thread."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def meanwhile(step: Callable[[], None], pause_seconds: float) -> Iterator[None]:
    """Call a function in a thread, again and again while the block runs."""
    over = threading.Event()

    def repeat() -> None:
        step()
        while not over.wait(pause_seconds):
            step()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
