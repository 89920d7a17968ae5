"""`headrace new`: what it recognises, says, and writes into a recipe that ingests."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner

from headrace.cli.main import cli
from headrace.data.batches import add_batch
from headrace.data.formats.partitions import text_partitions, with_partitions
from headrace.data.ingest import ingest
from headrace.data.tables import read_batches
from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from tests.workbooks import xlsx

ROWS = 120


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    (tmp_path / "shop" / "recipes").mkdir(parents=True)
    (tmp_path / "shop" / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setenv("HEADRACE_ROOT", str(tmp_path / "shop"))
    monkeypatch.chdir(tmp_path / "shop")
    return Project(tmp_path / "shop")


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    spend = rng.normal(50, 9, ROWS).round(2)
    columns = {"age": rng.integers(18, 80, ROWS), "spend": spend, "plan": rng.choice(["bäsic", "pro"], ROWS)}
    return pd.DataFrame({**columns, "left": np.where(spend > 50, "yes", "no")})


def new(project: Project, data: str, *options: str, target: str | None = "left", code: int = 0) -> str:
    wanted = [] if target is None else ["--target", target]
    for old in project.recipes.glob("shop.yaml"):
        old.unlink()
    done = CliRunner().invoke(cli, ["new", "shop", "--data", data, *wanted, *options])
    if code:  # the program prints an error with its hint; here it is raised
        assert isinstance(done.exception, HeadraceError) and done.exception.exit_code == code, done.output
        return f"{done.output}{done.exception}"
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def stored(project: Project) -> tuple[Recipe, pd.DataFrame]:
    recipe = load_recipe("shop", project)
    ingest(recipe, project, lambda line: None)
    return recipe, read_batches(project, recipe)


DIALECTS: list[tuple[str, dict[str, Any], str, str]] = [
    ("plain.csv", {}, "separated by commas", "utf-8"),
    ("eu.csv", {"sep": ";", "decimal": ","}, "decimal sign ','", "cp1252"),
    ("tabs.txt", {"sep": "\t"}, "separated by tabs", "utf-16"),
    ("pipe.dat", {"sep": "|", "quotechar": "'"}, "separated by pipes", "utf-8-sig"),
    ("packed.csv.xz", {"sep": ";"}, "separated by semicolons", "utf-8"),
    ("packed.csv.zip", {"sep": ";"}, "separated by semicolons", "utf-8"),
]


@pytest.mark.parametrize(("name", "how", "said", "encoding"), DIALECTS)
def test_any_dialect_is_recognised_said_and_read_by_the_recipe(
    project: Project, table: pd.DataFrame, name: str, how: dict[str, Any], said: str, encoding: str
) -> None:
    table.to_csv(name, index=False, encoding=encoding, **how)
    assert said in new(project, name)
    recipe, frame = stored(project)
    pd.testing.assert_frame_equal(frame, table.astype(frame.dtypes.to_dict()))
    table.head(9).to_csv(f"later-{name}", index=False, encoding=encoding, **how)
    assert add_batch(recipe, Path(f"later-{name}"), project, lambda line: None).rows == ROWS + 9


def test_a_wrong_guess_is_corrected_by_an_option(project: Project, table: pd.DataFrame) -> None:
    text = "Report; of\n" + table.to_csv(index=False, sep=";", decimal=",") + "Total;1\n"
    Path("odd.csv").write_text(text, encoding="cp1250")
    options = [
        "--separator",
        ";",
        "--decimal",
        ",",
        "--encoding",
        "cp1250",
        "--skip-lines",
        "1",
        "--skip-last",
        "1",
        "--header",
    ]
    new(project, "odd.csv", *options)
    pd.testing.assert_frame_equal(stored(project)[1], table, check_dtype=False)
    assert "expected one ASCII character" in new(project, "odd.csv", "--separator", "::", code=2)


def test_a_file_without_header_gets_names_and_can_leave_columns_out(project: Project, table: pd.DataFrame) -> None:
    table.assign(one=1).to_csv("rows.data", index=False, header=False)
    said = new(project, "rows.data", target="column_4")
    assert "no header" in said and "column_5" in said
    recipe, frame = stored(project)
    assert list(frame.columns) == ["column_1", "column_2", "column_3", "column_4"] and len(frame) == ROWS
    assert recipe.data.read is not None and len(recipe.data.read.names or []) == 5


@pytest.mark.parametrize("name", ["index.csv", "index.parquet"])
def test_index_nested_binary_and_duplicate_columns_are_left_out_and_said(
    project: Project, table: pd.DataFrame, name: str
) -> None:
    mixed = table.sample(frac=1, random_state=1)
    if name.endswith("csv"):
        mixed.assign(x=1.5, last="").rename(columns={"x": "age", "last": ""}).to_csv(name)
        reasons = ["column 1", "has no name", "age (column 6)", "has the name of an earlier column"]
    else:
        mixed = mixed.assign(emb=[[1.0]] * ROWS, raw=[b"x"] * ROWS, took=pd.Timedelta(1, "s"))
        mixed.to_parquet(name)
        reasons = ["emb", "holds lists", "raw", "holds bytes", "took", "duration"]
    said = new(project, name)
    assert all(reason in said for reason in reasons), said
    assert list(stored(project)[1].columns) == ["age", "spend", "plan", "left"]
    shown = json.loads(new(project, name, "--json"))
    assert {column["role"] for column in shown["columns"]} == {"feature", "target", "left out"}


def test_codes_keep_their_zeros_in_the_file_and_in_later_batches(project: Project, table: pd.DataFrame) -> None:
    table["zip"] = np.resize(["01234", "02345", "10115", "00501"], ROWS)
    table.to_csv("zip.csv", index=False)
    assert "leading zeros" in new(project, "zip.csv")
    recipe, frame = stored(project)
    assert set(frame["zip"]) == {"01234", "02345", "10115", "00501"} and "zip" in (recipe.data.categorical or [])
    table.head(5).to_csv("more.csv", index=False)
    add_batch(recipe, Path("more.csv"), project, lambda line: None)
    assert set(read_batches(project, recipe)["zip"]) == {"01234", "02345", "10115", "00501"}


def test_whole_numbers_that_a_model_would_round_are_left_out_and_named(project: Project, table: pd.DataFrame) -> None:
    table["ns"] = 1_700_000_000_000_000_001 + 7 * np.arange(ROWS)[::-1] ** 2
    table["even"] = 2**53 + 2 * np.arange(ROWS)[::-1]
    table.to_csv("t.csv", index=False)
    said = new(project, "t.csv")
    assert "left out: holds whole numbers beyond 2^53" in said and "--categorical 'ns'" in said
    assert {"even"} <= set(load_recipe("shop", project).data.columns or []) and "ns" not in stored(project)[1]


def test_categorical_reaches_the_reader_without_a_section_read(project: Project, table: pd.DataFrame) -> None:
    table["zip"] = np.resize(["01234", "10115"], ROWS)
    table["store"] = np.resize([3, 17], ROWS)
    table.to_csv("zip.csv", index=False)
    new(project, "zip.csv")
    path = project.recipes / "shop.yaml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("  read:", "  - "))]
    path.write_text(
        "\n".join(lines).replace("expect:", "expect: []").replace("categorical: [plan, zip]", "categorical: [zip, store]")
    )
    frame = stored(project)[1]
    assert set(frame["zip"]) == {"01234", "10115"} and set(frame["store"]) == {3, 17}


def test_numbers_and_dates_in_other_formats_are_read_by_a_rule_and_said(project: Project, table: pd.DataFrame) -> None:
    rng = np.random.default_rng(1)
    dressed = table.assign(
        price=[f"{x:.2f}".replace(".", ",") for x in rng.normal(50, 9, ROWS)],
        cost=[f"${x:,.2f}" for x in rng.normal(2000, 300, ROWS)],
        pct=[f"{x} %" for x in rng.integers(0, 99, ROWS)],
        weight=[f"{x} kg" for x in rng.integers(1, 99, ROWS)],
        n=["n.a." if i == 5 else str(i % 9) for i in range(ROWS)],
        day=pd.date_range("2024-01-01", periods=ROWS).strftime("%d/%m/%Y"),
        mixed=["500 g" if i == 3 else f"{i} kg" for i in range(ROWS)],
        code=[f"A{i}" for i in rng.integers(0, 9, ROWS)],
        active=rng.choice(["true", "false"], ROWS),
        kind=rng.choice([" a", "b "], ROWS),
    )
    dressed.to_csv("dressed.csv", index=False)
    said = new(project, "dressed.csv", "--time", "day")
    assert "day" in said and "read as numbers, as in '$" in said and "'n.a.' means a missing value" in said
    recipe, frame = stored(project)
    assert all(pd.api.types.is_numeric_dtype(frame[name]) for name in ("price", "cost", "pct", "weight", "n"))
    assert frame["n"].isna().sum() == 1 and frame["day"].max() == pd.Timestamp("2024-04-29")
    assert recipe.data.parse["price"].decimal == "," and recipe.data.missing is not None and "n.a." in recipe.data.missing
    assert frame["active"].dtype == bool and set(frame["kind"]) == {"a", "b"} and recipe.data.trim
    assert recipe.data.split.time is not None and "mixed" not in frame and frame["code"].iloc[0].startswith("A")


def test_ambiguous_dates_and_nearly_numeric_columns_are_named_with_what_would_read_them(
    project: Project, table: pd.DataFrame
) -> None:
    odd = table.assign(
        day=[f"0{1 + i % 9}/0{1 + i % 8}/2024" for i in range(ROWS)],
        n=["oops", "1.5x", "oops", *map(str, range(3, ROWS))],
    )
    odd.to_csv("odd.csv", index=False)
    said = new(project, "odd.csv")
    assert "day and month cannot be distinguished" in said and 'times: {day: {format: "%d/%m/%Y"}}' in said
    assert "is numeric but for 3 cells (row 2: 'oops'" in said and "data.missing" in said


def test_a_table_of_a_text_and_a_label_is_text_classification(project: Project) -> None:
    texts = [f"I {'love' if i % 2 else 'hate'} the thing number {i}" for i in range(ROWS)]
    frame = pd.DataFrame({"text": texts, "stars": np.resize(["bad", "good"], ROWS)})
    frame.to_csv("reviews.csv", index=False)
    assert "text-classification of stars" in new(project, "reviews.csv", target="stars")
    recipe, rows = stored(project)
    assert recipe.data.text is not None and recipe.data.text.column == "text" and len(rows) == ROWS
    frame.assign(n=np.arange(ROWS) % 7).to_csv("both.csv", index=False)
    new(project, "both.csv", "--task", "text-classification", target="stars")
    assert load_recipe("shop", project).task == "text-classification"


def test_dates_of_a_database_are_times_and_a_query_without_rows_is_refused(project: Project, table: pd.DataFrame) -> None:
    import sqlite3

    dated = table.assign(
        day=pd.date_range("2024-01-01", periods=ROWS).strftime("%Y-%m-%d"), left=np.resize([True, False], ROWS)
    )
    with sqlite3.connect("shop.db") as connection:
        dated.to_sql("customers", connection, index=False)
    dated.to_parquet("customers.parquet")
    said = new(project, "sqlite:///shop.db", "--table", "customers")
    assert "read as times, as in '2024-01-01'" in said
    assert load_recipe("shop", project).data.times["day"].format is None
    assert stored(project)[1]["day"].max() == pd.Timestamp("2024-04-29")
    assert "left is true or false" in new(project, "customers.parquet")
    empty = "SELECT * FROM customers WHERE age > 200"
    assert "there are no rows" in new(project, "sqlite:///shop.db", "--query", empty, code=3)


def test_a_first_column_with_hashes_loses_no_row(project: Project, table: pd.DataFrame) -> None:
    table.insert(0, "seat", np.resize(["#1", "#2", "3"], ROWS))
    table.to_csv("seats.csv", index=False)
    new(project, "seats.csv")
    assert len(stored(project)[1]) == ROWS


def test_english_thousands_are_no_decimals(project: Project, table: pd.DataFrame) -> None:
    amounts = [987 + 137 * i for i in range(ROWS)]
    table.assign(paid=[f"{amount:,}" for amount in amounts]).to_csv("paid.csv", index=False)
    new(project, "paid.csv")
    assert stored(project)[1]["paid"].tolist() == amounts


def test_a_word_for_a_gap_in_one_column_deletes_no_class_of_another(project: Project, table: pd.DataFrame) -> None:
    ages = ["unknown" if i % 9 == 0 else str(20 + i % 50) for i in range(ROWS)]
    table.assign(age=ages, left=np.resize(["unknown", "mild", "severe"], ROWS)).to_csv("sick.csv", index=False)
    said = new(project, "sick.csv")
    assert "has 'unknown' for a missing value, which is a value of left (--missing 'unknown'" in said
    assert set(stored(project)[1]["left"]) == {"unknown", "mild", "severe"}


def test_gaps_that_are_written_as_two_quotes_fit_every_rule(project: Project, table: pd.DataFrame) -> None:
    import csv

    prices = ["" if i % 10 == 0 else f"${i}.50" for i in range(ROWS)]
    days = ["" if i % 7 == 0 else f"{1 + i % 28:02d}.03.2024" for i in range(ROWS)]
    table.assign(price=prices, day=days).to_csv("quoted.csv", index=False, quoting=csv.QUOTE_ALL)
    new(project, "quoted.csv")
    frame = stored(project)[1]
    assert frame["price"].isna().sum() == 12 and frame["day"].max() == pd.Timestamp("2024-03-28")


def test_ids_as_text_are_no_feature_and_multiples_no_numbers(project: Project, table: pd.DataFrame) -> None:
    text = table.assign(id=[str(10_000 + i) for i in range(ROWS)], size=np.resize(["500", "1M", "2M"], ROWS))
    text.to_parquet("ids.parquet")
    assert "id " in new(project, "ids.parquet") and "numbers the rows" in new(project, "ids.parquet")
    assert stored(project)[1]["size"].iloc[1] == "1M"


def test_a_json_array_and_an_unknown_format_are_said(project: Project, table: pd.DataFrame) -> None:
    table.to_json("rows.json", orient="records")
    assert "one object per line is needed" in new(project, "rows.json", code=3)
    assert "unknown format 'xlsx'" in new(project, "rows.json", "--format", "xlsx", code=2)


@pytest.mark.parametrize("address", ["postgresql://ann:pa/ss@db/shop", "postgresql://db/shop?user=ann&password=secret"])
def test_no_form_of_a_password_is_written_or_printed(project: Project, address: str) -> None:
    said = new(project, address, "--table", "t", code=3)
    assert "pa/ss" not in said and "secret" not in said


def test_a_text_beside_other_columns_is_learned_with_them(project: Project) -> None:
    texts = [f"I {'love' if i % 2 else 'hate'} the thing number {i}" for i in range(ROWS)]
    frame = pd.DataFrame({"text": texts, "n": np.arange(ROWS) % 7, "stars": np.resize(["bad", "good"], ROWS)})
    frame.to_csv("both.csv", index=False)
    assert "learned beside the other columns" in new(project, "both.csv", target="stars")
    recipe, rows = stored(project)
    assert recipe.task == "classification" and recipe.data.text is not None and {"text", "n"} <= set(rows)
    new(project, "both.csv", "--drop", "text", target="stars")
    assert load_recipe("shop", project).data.text is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.head(8), "8 rows with a target are too few"),
        (lambda t: t.assign(left="yes"), "1 distinct value(s); there is nothing to predict"),
        (lambda t: t.assign(left=[f"r{i}" for i in range(ROWS)]), "too many for classes"),
        (
            lambda t: t.assign(left=["yes"] * (ROWS - 3) + ["a", "b", "b"]),
            "labels of 'left' have fewer than 5 rows: 'b' (2), 'a' (1)",
        ),
        (lambda t: t[["left"]].assign(id=range(ROWS)), "no column except 'left' is useful to a model: id numbers the rows"),
    ],
)
def test_what_cannot_be_learned_from_is_said_now(project: Project, table: pd.DataFrame, change: Any, said: str) -> None:
    change(table).to_csv("t.csv", index=False)
    assert said in new(project, "t.csv", code=2)
    assert not (project.recipes / "shop.yaml").exists()


def test_labels_with_too_few_rows_are_left_out_and_named(project: Project, table: pd.DataFrame) -> None:
    table.loc[:7, "left"] = [f"r{i}" for i in range(8)]
    table.loc[9:11, "left"] = np.nan
    table.to_csv("rare.csv", index=False)
    said = new(project, "rare.csv")
    assert "8 rows are left out" in said and "'r0' (1)" in said and "3 rows have no left" in said
    assert set(stored(project)[1]["left"]) == {"yes", "no"}


def test_without_a_target_the_possible_ones_are_listed(project: Project, table: pd.DataFrame) -> None:
    table.assign(id=range(ROWS)).to_csv("t.csv", index=False)
    said = new(project, "t.csv", target=None, code=2)
    assert "--target left   classification" in said and "--target spend   regression" in said and "--target id " not in said
    shown = json.JSONDecoder().raw_decode(new(project, "t.csv", "--json", target=None, code=2))[0]
    assert shown["targets"]["plan"] == "classification"


def test_a_large_file_is_sampled_from_all_of_it(project: Project, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    import headrace.scaffold.sample as sample

    for name, size in {"HEAD_BYTES": 2000, "PIECE_BYTES": 400, "PIECES": 5, "SAMPLE_BYTES": 4000}.items():
        monkeypatch.setattr(sample, name, size)
    long = pd.concat([table.assign(left="no")] * 20 + [table.assign(left="yes", plan="rare")] * 20)
    long.to_csv("long.csv", index=False)
    said = new(project, "long.csv")
    assert ", a sample" in said
    assert set(stored(project)[1]["plan"]) == {"bäsic", "pro", "rare"}


def test_a_sheet_of_a_workbook(project: Project, table: pd.DataFrame) -> None:
    cells = [list(table.columns), *table.astype(object).values.tolist()]
    xlsx(Path("orders.xlsx"), [["Orders of 2024"], *cells])
    said = new(project, "orders.xlsx", "--sheet", "Orders", "--skip-lines", "1")
    assert "sheet 'Orders', not 'Notes' (--sheet)" in said
    pd.testing.assert_frame_equal(stored(project)[1], table, check_dtype=False)
    assert "no sheet 'Order'; did you mean 'Orders'?" in new(project, "orders.xlsx", "--sheet", "Order", code=3)


@pytest.mark.parametrize("data", ["sales", "sales/*.parquet"])
def test_a_folder_of_partitions_has_their_columns(project: Project, table: pd.DataFrame, data: str) -> None:
    for year in (2023, 2024):
        folder = Path("sales") / f"year={year}"
        folder.mkdir(parents=True)
        table.assign(spend=table["spend"] + year).to_parquet(folder / "part.parquet")
    assert "2 files" in new(project, data)
    recipe, frame = stored(project)
    assert len(frame) == 2 * ROWS and set(frame["year"]) == {2023, 2024}
    later = Path("sales/year=2025/part.parquet")
    later.parent.mkdir()
    table.head(5).to_parquet(later)
    path = project.recipes / "shop.yaml"
    path.write_text(
        "\n".join(line for line in path.read_text().splitlines() if "min_value" not in line and "in_set" not in line)
    )
    add_batch(load_recipe("shop", project), later, project, lambda line: None)
    assert set(read_batches(project, recipe)["year"]) == {2023, 2024, 2025}


@pytest.mark.parametrize("codes", [("02134", "10001"), ("10001", "02134"), ("10001", "N1")])
def test_codes_in_the_names_of_folders_stay_text(project: Project, table: pd.DataFrame, codes: tuple[str, str]) -> None:
    for code in codes:
        folder = Path("sales") / f"zip={code}"
        folder.mkdir(parents=True)
        table.assign(spend=table["spend"] + len(code)).to_parquet(folder / "part.parquet")
    new(project, "sales")
    recipe, frame = stored(project)
    assert set(frame["zip"]) == set(codes) and recipe.data.parse["zip"].type == "text"
    later = Path("sales/zip=10001/later.parquet")
    table.head(5).to_parquet(later)
    path = project.recipes / "shop.yaml"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "expect_" not in line or "match_set" in line))
    add_batch(load_recipe("shop", project), later, project, lambda line: None)
    assert set(read_batches(project, recipe)["zip"]) == set(codes)


def test_columns_of_paths_have_one_type_in_all_files() -> None:
    paths = [Path(f"s/zip={code}/month={month}/x.csv") for code, month in (("02134", "1"), ("10001", "12"))]
    assert text_partitions(paths) == {"zip"}
    assert text_partitions([Path("s/zip=__HIVE_DEFAULT_PARTITION__/x.csv"), Path("s/zip=7/x.csv")]) == set()
    one = pa.table({"x": [1]})
    assert with_partitions(one, paths[1], text={"zip"}).to_pylist() == [{"x": 1, "zip": "10001", "month": 12}]
    assert with_partitions(one, Path("month=07/x.csv"), numbers=["month"]).to_pylist() == [{"x": 1, "month": 7}]
    assert with_partitions(one, Path("month=07/x.csv")).to_pylist() == [{"x": 1, "month": "07"}]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.feather", "t.parquet"])
def test_tables_with_types(project: Project, table: pd.DataFrame, name: str) -> None:
    table["wage"] = [f"${1000 + 7 * i:,}" for i in range(ROWS)]
    if "jsonl" in name:
        table.to_json(name, orient="records", lines=True)
    else:
        table.to_feather(name) if name.endswith("feather") else table.to_parquet(name)
    assert "read as numbers, as in '$1,000'" in new(project, name)
    frame = stored(project)[1]
    assert frame["wage"].iloc[3] == 1021 and frame["plan"].equals(table["plan"].astype(frame["plan"].dtype))


def test_a_database_and_its_password(project: Project, table: pd.DataFrame) -> None:
    with sqlite3.connect("shop.db") as connection:
        table.to_sql("customers", connection, index=False)
    connection.close()
    assert "table customers" in new(project, "sqlite:///shop.db", "--table", "customers")
    assert "table customers" in new(project, "shop.db", "--table", "customers")  # the file itself
    assert len(stored(project)[1]) == ROWS
    assert "to the command: --target left" in new(project, "shop.db", "--table", "customers", target=None, code=2)
    assert "known: customers" in new(project, "sqlite:///shop.db", code=3)
    path = project.recipes / "shop.yaml"
    new(project, "sqlite:///shop.db", "--query", "SELECT * FROM customers WHERE age < 70")
    path.write_text(path.read_text().replace("sqlite:///shop.db", "postgresql://ann:secret@h/db"))
    with pytest.raises(HeadraceError, match="a password does not belong in a recipe") as caught:
        load_recipe("shop", project)
    assert "secret" not in str(caught.value)


def test_a_table_without_a_row_that_fits_is_refused(project: Project) -> None:
    Path("empty.csv").write_text("a,left\n")
    assert "no row could be read" in new(project, "empty.csv", code=3)
    Path("cell.csv").write_text('a,left\n1,"' + "x" * 40_000_000 + '"\n2,y\n')
    assert "no row could be read" in new(project, "cell.csv", code=3)
