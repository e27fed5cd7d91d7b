"""The signals of the process: received by the main thread with sigwait, never handled.

`threading.Event.set()` in a signal handler can deadlock a thread that waits on the event. Signals that are
blocked before any thread starts have no such window, and work for PID 1 of a container.
"""

from __future__ import annotations

import signal

STOP = {signal.SIGINT, signal.SIGTERM}
WORKER_ENDED = signal.SIGUSR1
METRICS_DUE = signal.SIGALRM
RELOAD = signal.SIGHUP
RECEIVED = {*STOP, WORKER_ENDED, METRICS_DUE, RELOAD}


def stop_pending() -> bool:
    """Whether a stop waits to be received; for what takes long before anybody waits for signals."""
    return not STOP.isdisjoint(signal.sigpending())


def block() -> None:
    """Keep the signals pending for sigwait, in this thread and all that it will start."""
    signal.pthread_sigmask(signal.SIG_BLOCK, RECEIVED)
