"""Reads queries and tables of databases, in bounded memory, into Parquet files."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.sources.addresses import DATABASES, redacted, scheme_of, with_lower_scheme
from headrace.errors import SourceError, SourceUnreachable, near_miss
from headrace.recipe.read import ReadConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from sqlalchemy import URL, Connection, Engine

CHUNK_ROWS = 20_000
CONNECT_SECONDS = 20
DRIVERS = {"postgresql": ("psycopg", "postgres"), "mysql": ("pymysql", "mysql")}
"""The driver of a database, and the extra of Headrace that installs it."""
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
PASSWORDS = {"postgresql": "PGPASSWORD", "mysql": "MYSQL_PWD"}
"""Environment variables with a password that the address does not have."""


def is_database(uri: str) -> bool:
    return scheme_of(uri) in DATABASES


def export(uri: str, read: ReadConfig | None, to: Path, project_root: Path, most: int | None = None) -> bool:
    """Writes the rows of a query, or of a table, to a Parquet file, in bounded memory. The connection is read-only.

    Args:
        uri: `postgresql://…`, `mysql://…` or `sqlite:///FILE` (relative to `project_root`); `${NAME}` in it stands for an
            environment variable.
        read: its `query` or `table` says what to read.
        most: number of rows after which to stop.

    Returns:
        whether these are all rows.

    Raises:
        SourceError: a variable or a driver is missing, or the database refuses the query.
        SourceUnreachable: the database does not answer.
    """
    with _connected(uri, project_root) as connection, tempfile.TemporaryDirectory(dir=to.parent) as folder:
        result = connection.execution_options(stream_results=True, yield_per=CHUNK_ROWS).execute(
            _statement(connection, uri, read)
        )
        names, chunks, done = list(result.keys()), list[Path](), 0
        schema = None
        for rows in result.partitions(CHUNK_ROWS):
            table = _table(names, rows)
            schema = table.schema if schema is None else _promoted(schema, table.schema)
            chunks.append(_spool(table, Path(folder) / f"{len(chunks)}.arrow"))
            done += len(rows)
            if most is not None and done >= most:
                break
        is_whole = most is None or done < most
        _write(chunks, schema if schema is not None else _table(names, []).schema, to)
    return is_whole


def without_password(uri: str) -> tuple[str, str | None]:
    """Returns an address for a recipe, and how its password is given: it has no password itself."""
    if re.search(r"[?&]password=", uri):
        raise SourceError(
            f"{redacted(uri)}: a password does not belong behind a question mark",
            where="data.source",
            hint="leave it out, and set PGPASSWORD or MYSQL_PWD",
        )
    found = re.match(r"(?P<head>[A-Za-z0-9+.-]+://[^/@:]*):(?P<password>[^?]*)@", uri)
    if found is None or VARIABLE.fullmatch(found["password"]):
        return uri, None
    name = PASSWORDS["mysql" if scheme_of(uri) in ("mysql", "mariadb") else "postgresql"]
    return f"{found['head']}:${{{name}}}@{uri[found.end() :]}", name


@contextmanager
def _connected(uri: str, project_root: Path) -> Iterator[Connection]:
    import sqlalchemy as sa
    from sqlalchemy.exc import DBAPIError, NoSuchTableError, SQLAlchemyError

    url = _url(with_lower_scheme(uri), project_root)
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            if url.get_backend_name() == "postgresql":
                connection = connection.execution_options(postgresql_readonly=True)
            elif url.get_backend_name() == "mysql":
                connection.execute(sa.text("SET SESSION TRANSACTION READ ONLY"))
                connection.rollback()
            yield connection
    except NoSuchTableError as error:
        raise SourceError(f"{redacted(uri)} has no table {error}", where="data.read.table", hint="correct it") from None
    except DBAPIError as error:
        raise _refused(uri, url, error) from None
    except SQLAlchemyError as error:
        raise SourceError(
            f"{redacted(uri)}: {_safe(str(error), url)}", where="data.source", hint="correct data.source or data.read.query"
        ) from None
    finally:
        engine.dispose()


def _refused(uri: str, url: URL, error: Any) -> SourceError:
    from sqlalchemy.exc import InterfaceError, OperationalError

    said = _safe(str(error.orig), url)
    lost = isinstance(error, OperationalError | InterfaceError) and url.get_backend_name() != "sqlite"
    if lost and error.statement is None:
        return SourceUnreachable(
            f"{redacted(uri)} cannot be reached: {said}",
            where="data.source",
            hint="check that the server runs, and the user and password in the environment (PGUSER, PGPASSWORD, or ${NAME})",
        )
    return SourceError(f"{redacted(uri)} refuses: {said}", where="data.read.query", hint="correct data.read.query or table")


def _url(uri: str, project_root: Path) -> URL:
    import sqlalchemy as sa

    def value(match: re.Match[str]) -> str:
        from urllib.parse import quote

        if match[1] not in os.environ:
            raise SourceError(
                f"{redacted(uri)} needs the environment variable {match[1]}, which is not set",
                where="data.source",
                hint=f"export {match[1]}=… and run the command again",
            )
        return quote(os.environ[match[1]], safe="")

    try:
        url = sa.make_url(VARIABLE.sub(value, uri))
    except (sa.exc.ArgumentError, ValueError):
        raise SourceError(
            f"{redacted(uri)} is not a valid address",
            where="data.source",
            hint="write postgresql://USER@HOST:PORT/DATABASE, mysql://… or sqlite:///FILE",
        ) from None
    kind = {"postgres": "postgresql", "mariadb": "mysql"}.get(url.drivername, url.drivername)
    if kind == "sqlite":
        path = (project_root / (url.database or "")).expanduser()
        if not path.is_file():
            raise SourceError(f"no such file: {path}", where="data.source", hint="correct data.source in the recipe")
        return sa.URL.create("sqlite", database=f"file:{path}", query={"mode": "ro", "uri": "true"})
    if kind == "mysql" and url.password is None and (password := os.environ.get(PASSWORDS["mysql"])):
        url = url.set(password=password)
    return url.set(drivername=f"{kind}+{DRIVERS[kind][0]}")


def _engine(url: URL) -> Engine:
    import sqlalchemy as sa

    kind = url.get_backend_name()
    arguments = {} if kind == "sqlite" else {"connect_timeout": CONNECT_SECONDS}
    try:
        return sa.create_engine(url, connect_args=arguments)
    except ImportError:
        driver, extra = DRIVERS[kind]
        raise SourceError(
            f"{kind}:// needs the package {driver}", where="data.source", hint=f"pip install 'headrace[{extra}]'"
        ) from None


def _safe(message: str, url: URL) -> str:
    """Returns the first lines of a message, without the password."""
    text = " ".join(message.split())[:300]
    return text.replace(str(url.password), "***") if url.password else text


def _statement(connection: Connection, uri: str, read: ReadConfig | None) -> Any:
    import sqlalchemy as sa

    if read is not None and read.query is not None:
        return sa.text(read.query.replace(":", r"\:"))  # a colon is not a parameter
    known = sa.inspect(connection).get_table_names() + sa.inspect(connection).get_view_names()
    if read is None or read.table is None:
        raise SourceError(
            f"{redacted(uri)} needs a query or a table; {near_miss('', known)}",
            where="data.read",
            hint="set data.read.query or data.read.table (headrace new: --query SQL or --table NAME)",
        )
    schema, _, name = read.table.rpartition(".")
    if not schema and name not in known:
        raise SourceError(
            f"{redacted(uri)} has no table {name!r}; {near_miss(name, known)}", where="data.read.table", hint="correct it"
        )
    return sa.select(sa.text("*")).select_from(sa.table(name, schema=schema or None))


def _table(names: Sequence[str], rows: Sequence[Any]) -> pa.Table:
    import pyarrow as pa

    return pa.table([_array([row[i] for row in rows]) for i in range(len(names))], names=list(names))


def _array(values: list[Any]) -> pa.Array:
    """Returns a column with the type of its values; of different types they become texts."""
    import pyarrow as pa

    plain = [_plain(value) for value in values]
    kinds = {type(value) for value in plain if value is not None}
    if kinds == {int, float}:
        return pa.array([None if v is None else float(v) for v in plain], pa.float64())
    if len(kinds) > 1:
        return pa.array([None if v is None else str(v) for v in plain], pa.string())
    if kinds == {datetime.datetime}:
        zone = next(v.tzinfo for v in plain if v is not None)
        return pa.array(plain, pa.timestamp("us", tz="UTC" if zone is not None else None))
    try:
        return pa.array(plain)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if v is None else float(v) for v in plain], pa.float64())  # whole numbers beyond 64 bits


def _plain(value: Any) -> Any:
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return datetime.datetime(value.year, value.month, value.day)
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    if isinstance(value, uuid.UUID | datetime.time | datetime.timedelta):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str | bytes | datetime.datetime) else str(value)


def _promoted(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    import pyarrow as pa

    fields = []
    for one, two in zip(schema, other, strict=True):
        kinds = {one.type, two.type} - {pa.null()}
        if len(kinds) > 1:
            is_number = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds)
            kinds = {pa.float64() if is_number else pa.string()}
        fields.append(pa.field(one.name, kinds.pop() if kinds else pa.null()))
    return pa.schema(fields)


def _spool(table: pa.Table, path: Path) -> Path:
    import pyarrow as pa

    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    return path


def _write(chunks: list[Path], schema: pa.Schema, to: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(to, schema) as writer:
        for path in chunks:
            with pa.memory_map(str(path)) as source:
                writer.write_table(pa.ipc.open_file(source).read_all().cast(schema))
            path.unlink()
