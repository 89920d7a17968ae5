"""Serves a bento that was built before replicas listened on Unix sockets: `python -P serve_older_bento.py SOCKET BENTO`.

A bento is served by the code that it was built with, and that code binds a host and a port. The standard library alone, since
`headrace` is the bento's own here. In a container this file has `unix_socket.py` beside it, and the argument `--in-container`.
"""

from __future__ import annotations

import socket
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
BIND = next(path for path in (HERE / "unix_socket.py", HERE.parents[1] / "runtime" / "unix_socket.py") if path.exists())


def main(path: str, bento: str, *options: str) -> None:
    unix_socket = _load(BIND)

    def listen(host: str, port: int) -> socket.socket:
        try:
            bound: socket.socket = unix_socket.bind(Path(path), in_container="--in-container" in options)
        except OSError as error:
            sys.exit(str(error))
        return bound

    from bentos import serve

    serve._bind = listen
    serve.main([bento])


def _load(path: Path) -> ModuleType:
    """Imports a file that is in no package here."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(*sys.argv[1:])
