"""Processes that end with the one that started them, however that ends.

A pool's processes would otherwise wait for work for ever, once their parent was killed.
"""

import ctypes
import multiprocessing
import os
import signal
import threading

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """In a process of `multiprocessing`: end when the one that started it does."""
    threading.Thread(target=_join_parent, daemon=True).start()


def _join_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def interrupt_with_parent() -> None:
    """In any other process: have the system interrupt it, as Ctrl-C does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
