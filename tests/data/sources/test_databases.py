"""Queries and tables of databases as sources."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from headrace.data.sources import databases
from headrace.data.sources.addresses import with_lower_scheme
from headrace.data.sources.databases import export, without_password
from headrace.errors import SourceError, SourceUnreachable
from headrace.recipe.read import ReadConfig
from tests import postgres

ROWS = 50


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("CREATE TABLE sales (id INTEGER, price REAL, item TEXT, day DATE, extra)")
        rows = [
            (i, None if i == 3 else i / 2, f"it's {i}", f"2024-01-{1 + i % 28:02d}", i if i < 40 else "x") for i in range(ROWS)
        ]
        connection.executemany("INSERT INTO sales VALUES (?, ?, ?, ?, ?)", rows)
    connection.close()
    return tmp_path


def test_a_table_and_a_query_of_sqlite(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "CHUNK_ROWS", 7)  # values of another type come in a later chunk
    assert export("sqlite:///shop.db", ReadConfig(table="sales"), shop / "t.parquet", shop)
    table = pq.read_table(shop / "t.parquet")
    assert [str(field.type) for field in table.schema] == ["int64", "double", "string", "string", "string"]
    assert table.num_rows == ROWS and table["price"].null_count == 1 and table["extra"].to_pylist()[-2:] == ["x", "x"]
    query = ReadConfig(query="SELECT id, item FROM sales WHERE item <> 'a:b' AND id % 2 = 0")
    assert export("sqlite:///shop.db", query, shop / "q.parquet", shop)
    assert pq.read_table(shop / "q.parquet").num_rows == ROWS // 2
    assert not export("sqlite:///shop.db", ReadConfig(table="sales"), shop / "few.parquet", shop, most=10)


@pytest.mark.parametrize(
    ("uri", "read", "message", "hint"),
    [
        ("sqlite:///shop.db", ReadConfig(table="sale"), "did you mean 'sales'", "correct"),
        ("sqlite:///shop.db", ReadConfig(), "needs a query or a table; known: sales", "--query"),
        ("sqlite:///shop.db", ReadConfig(query="SELECT nosuch FROM sales"), "no such column: nosuch", "query"),
        ("sqlite:///shop.db", ReadConfig(query="DELETE FROM sales"), "readonly", "query"),
        ("sqlite:///none.db", ReadConfig(table="sales"), "no such file", "source"),
        ("postgresql://ann:${NO_SUCH_NAME}@h/db", ReadConfig(table="t"), "NO_SUCH_NAME, which is not set", "export"),
    ],
)
def test_what_is_wrong_is_said(shop: Path, uri: str, read: ReadConfig, message: str, hint: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        export(uri, read, shop / "t.parquet", shop)
    assert hint in str(caught.value.hint) and not list(shop.glob("*.parquet"))


def test_a_scheme_in_upper_case_means_the_same(shop: Path) -> None:
    assert export("SQLITE:///shop.db", ReadConfig(table="sales"), shop / "t.parquet", shop)
    assert pq.read_table(shop / "t.parquet").num_rows == ROWS
    for scheme, driver in (("POSTGRESQL", "psycopg"), ("Postgres", "psycopg"), ("MySQL", "pymysql"), ("MARIADB", "pymysql")):
        assert databases._url(with_lower_scheme(f"{scheme}://Ann@Host/DB"), shop).get_driver_name() == driver
    assert without_password("MYSQL://Ann:pw@h/DB") == ("MYSQL://Ann:${MYSQL_PWD}@h/DB", "MYSQL_PWD")


@pytest.mark.parametrize("scheme", ["postgresql", "POSTGRESQL"])
def test_a_missing_driver_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(SourceError, match="needs the package psycopg") as caught:
        export(f"{scheme}://127.0.0.1:1/x", ReadConfig(table="t"), tmp_path / "t.parquet", tmp_path)
    assert caught.value.hint == "pip install 'headrace[postgres]'"


def test_a_password_is_replaced_by_a_variable() -> None:
    assert without_password("postgresql://ann:pw@h/db") == ("postgresql://ann:${PGPASSWORD}@h/db", "PGPASSWORD")
    assert without_password("mysql://ann:pw@h/db")[0] == "mysql://ann:${MYSQL_PWD}@h/db"
    assert without_password("postgresql://ann@h/db") == ("postgresql://ann@h/db", None)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    if postgres.programs() is None:
        pytest.skip("no PostgreSQL here")
    with postgres.server() as address:
        yield address


def test_postgresql_with_credentials_from_the_environment(
    postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    monkeypatch.setenv("PGPASSWORD", postgres.PASSWORD)
    with psycopg.connect(postgresql) as connection:
        connection.execute("DROP TABLE IF EXISTS sales")
        connection.execute("CREATE TABLE sales (id bigint, price numeric, sold timestamptz, day date, ok bool, tags jsonb)")
        connection.execute(
            "INSERT INTO sales SELECT i, CASE WHEN i > 1 THEN i / 4.0 END, now(), current_date, i % 2 = 0, '{\"a\": 1}' "
            "FROM generate_series(1, 30000) AS i"
        )
    assert export(postgresql, ReadConfig(table="sales"), tmp_path / "t.parquet", tmp_path)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.num_rows == 30000 and table["price"].null_count == 1
    kinds = [str(field.type) for field in table.schema]
    assert kinds == ["int64", "double", "timestamp[us, tz=UTC]", "timestamp[us]", "bool", "string"]
    monkeypatch.setenv("SHOP_PASSWORD", postgres.PASSWORD)
    monkeypatch.delenv("PGPASSWORD")
    named = postgresql.replace("ann@", "ann:${SHOP_PASSWORD}@")
    assert export(named, ReadConfig(query="SELECT id FROM sales LIMIT 5"), tmp_path / "q.parquet", tmp_path)
    for read in (ReadConfig(query="DELETE FROM sales"), ReadConfig(query="SELECT 1 FROM nowhere")):
        with pytest.raises(SourceError) as caught:
            export(named, read, tmp_path / "x.parquet", tmp_path)
        assert postgres.PASSWORD not in str(caught.value)
    monkeypatch.setenv("SHOP_PASSWORD", "wrong-word")
    with pytest.raises(SourceUnreachable, match="cannot be reached") as refused:
        export(named, ReadConfig(query="SELECT 1"), tmp_path / "x.parquet", tmp_path)
    assert "wrong-word" not in str(refused.value) and "SHOP_PASSWORD" not in refused.value.message
