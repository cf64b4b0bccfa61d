"""Other members' notifications, received in a thread of its own on a connection of its own.

A notification only shortens the wait for the next turn, so a lost one costs at most that wait.
https://www.postgresql.org/docs/current/sql-notify.html
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import psycopg

from tunnelmgr.store.database import CHANNEL, Connection, connect

PATIENCE: Final = 1.0
"""Seconds of one wait, after which the thread looks whether it should end; also the pause after a lost connection."""


class Notifications:
    """Calls back for each notification of a member other than `me`."""

    def __init__(self, url: str, me: str, password_file: Path | None = None) -> None:
        self._url = url
        self._me = me
        self._password_file = password_file
        self._stopped = threading.Event()

    def start(self, notify: Callable[[], object]) -> None:
        """Begin to listen; `notify` is called in the thread."""
        threading.Thread(target=self._run, args=(notify,), name="notifications", daemon=True).start()

    def stop(self) -> None:
        """Listen no more; does not wait for the thread."""
        self._stopped.set()

    def _run(self, notify: Callable[[], object]) -> None:
        while not self._stopped.is_set():
            with suppress(psycopg.Error, OSError), connect(self._url, self._password_file) as connection:
                self._listen(connection, notify)
            self._stopped.wait(PATIENCE)

    def _listen(self, connection: Connection, notify: Callable[[], object]) -> None:
        connection.execute(f"LISTEN {CHANNEL}".encode())
        while not self._stopped.is_set():
            for notification in connection.notifies(timeout=PATIENCE, stop_after=1):
                if notification.payload != self._me and not self._stopped.is_set():
                    with suppress(RuntimeError):  # the loop has been closed meanwhile
                        notify()
