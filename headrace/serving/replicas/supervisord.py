"""The supervisord of a project: `python -m headrace.serving.replicas.supervisord -c .headrace/supervisor/supervisord.conf`

It is supervisord with three differences:
- Its socket and the folders it needs are made again when something has removed them. The programs keep
  running meanwhile.
- It tries a program that failed to start again every minute, instead of never: the cause may have gone.
- Every path works: with glob characters and spaces, and longer than the address of a Unix socket may be.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supervisor import supervisord
from supervisor.medusa import asyncore_25 as asyncore
from supervisor.options import ServerOptions
from supervisor.states import ProcessStates, SupervisorStates

from headrace.errors import HeadraceError
from headrace.files import private_folder
from headrace.serving.replicas.programs import SOCKET

RETRY_SECONDS = 60.0


class Options(ServerOptions):  # type: ignore[misc]  # the package has no type hints
    """supervisord's options, with a socket that is reached by a relative path."""

    socket_file: tuple[int, int] | None = None
    """Device and inode of the socket that was opened last."""

    @property
    def runtime_folder(self) -> Path:
        return Path(self.pidfile).parent

    def read_config(self, fp: str) -> Any:
        """Reads the configuration. supervisord would treat its folder as a glob pattern, unless it is the working folder."""
        path = Path(fp)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"could not read config file {path}: {error}") from None
        with _working_in(path.parent):
            section = super().read_config(io.StringIO(text))
        for server in section.server_configs:
            server["file"] = Path(server["file"]).name  # relative, since an address of a socket is short
        return section

    def openhttpservers(self, daemon: Any) -> None:
        with _working_in(self.runtime_folder):
            super().openhttpservers(daemon)
        self.socket_file = self.find_socket()

    def cleanup(self) -> None:
        with contextlib.suppress(OSError), _working_in(self.runtime_folder):
            super().cleanup()

    def find_socket(self) -> tuple[int, int] | None:
        """Device and inode of the socket in the runtime folder, or None."""
        try:
            found = os.lstat(self.runtime_folder / SOCKET)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def open_socket_again(self, daemon: Any) -> None:
        """
        Raises:
            HeadraceError: the folder for the socket is not one that only this user can enter.
            OSError, ValueError: the socket cannot be opened.
        """
        private_folder(self.runtime_folder)
        self.close_httpservers()
        self.httpservers = ()
        with _working_in(self.runtime_folder):
            self.httpservers = self.make_http_servers(daemon)
        self.socket_file = self.find_socket()
        self.write_pidfile()
        self.logger.warn("the socket was removed; opened it again")


class Supervisor(supervisord.Supervisor):  # type: ignore[misc]  # the package has no type hints
    """supervisord, which repairs itself once a second."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._failed: dict[str, float] = {}
        self._last_error = ""

    def tick(self, now: float | None = None) -> None:
        """Called at least once a second while programs run."""
        super().tick(now)
        if self.options.mood == SupervisorStates.RUNNING and Path(self.options.configfile).exists():
            self._repair_folders()
            self._retry_failed()

    def _repair_folders(self) -> None:
        try:
            Path(self.options.logfile).parent.mkdir(parents=True, exist_ok=True)  # programs cannot start without it
            if self.options.socket_file is None or self.options.find_socket() != self.options.socket_file:
                self.options.open_socket_again(self)
            self._last_error = ""
        except (HeadraceError, OSError, ValueError) as error:
            if str(error) != self._last_error:
                self.options.logger.critical(f"cannot repair the runtime folder: {error}")
            self._last_error = str(error)

    def _retry_failed(self) -> None:
        now = time.monotonic()
        processes = [process for group in self.process_groups.values() for process in group.processes.values()]
        failed = {process.config.name: process for process in processes if process.get_state() == ProcessStates.FATAL}
        self._failed = {name: self._failed.get(name, now) for name in failed}
        for name, since in list(self._failed.items()):
            if now - since >= RETRY_SECONDS:
                self.options.logger.warn(f"{name} failed {RETRY_SECONDS:g} s ago; trying it again")
                del self._failed[name]
                failed[name].spawn()


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Makes `folder` the working folder; afterwards it is the root, which is never removed."""
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir("/")


def main() -> None:
    is_first, is_restarting = True, True
    while is_restarting:  # SIGHUP
        options = Options()
        options.realize(doc=__doc__)
        options.first, options.test = is_first, False
        with contextlib.suppress(asyncore.ExitNow):
            Supervisor(options).main()
        options.close_httpservers()
        options.close_logger()
        is_first, is_restarting = False, options.mood == SupervisorStates.RESTARTING


if __name__ == "__main__":
    main()
