"""A PostgreSQL server of Debian's package, for the tests of databases."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

PASSWORD = "s3cret-word"


def programs() -> Path | None:
    """The folder with initdb and pg_ctl, which is not on PATH in Debian."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def server() -> Iterator[str]:
    """Yields the address of a server, whose user `ann` has the password `PASSWORD`. It refuses to run as root."""
    folder = programs()
    assert folder is not None
    home = Path(tempfile.mkdtemp(prefix="postgres-"))
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(home, user)
    port = free_port()
    (password := home / "password").write_text(PASSWORD)
    password.chmod(0o644)

    def run(*command: str) -> None:
        subprocess.run(command, check=True, user=user, cwd=home, stdout=subprocess.DEVNULL, timeout=120)

    data = str(home / "data")
    run(str(folder / "initdb"), "-D", data, "-U", "ann", "-A", "scram-sha-256", f"--pwfile={password}", "-N")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={home} -c fsync=off"
    run(str(folder / "pg_ctl"), "-D", data, "-w", "-o", options, "-l", str(home / "log"), "start")
    try:
        yield f"postgresql://ann@127.0.0.1:{port}/postgres"
    finally:
        run(str(folder / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(home, ignore_errors=True)
