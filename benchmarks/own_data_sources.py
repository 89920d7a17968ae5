"""Ten kinds of data of a user, written as real files: what `python -m benchmarks.own_data` brings to Headrace.

Each is small, drawn with a seed, and learnable; twenty more rows that the model has not seen are its exam.
"""

from __future__ import annotations

import json
import sqlite3
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

EXAM = 20
"""Rows, pictures or texts that a served model is asked for, and that were not in its data."""
ROWS = 1200
PICTURES = 240
TEXTS = 400
TOLERANCE = 0.25
"""A predicted number is right if it differs from the true one by at most this share."""


@dataclass(frozen=True)
class Source:
    """One kind of data, as a user would name it."""

    name: str
    title: str
    data: str
    """`--data`, relative to the project."""
    target: str | None
    exam: str
    """File or folder with the rows of the exam, in a format of its own where the source is not a file."""
    truth: list[Any]
    ask: list[str]
    """Arguments of `headrace predict NAME` for the first row of the exam."""
    options: list[str] = field(default_factory=list)
    """More options of `headrace new`."""


Writer = Callable[[Path, int], Source]
"""Writes a source into a folder with a number of rows (or pictures, or texts), and describes it."""


def is_right(predicted: Any, true: Any) -> bool:
    """Whether an answer is right; a number within `TOLERANCE` of the true one."""
    if isinstance(true, bool | str):
        return str(predicted).lower() == str(true).lower()
    return predicted is not None and abs(float(predicted) - float(true)) <= TOLERANCE * abs(float(true))


# --- tables -----------------------------------------------------------------------------------------------------------


def comma_csv(folder: Path, rows: int) -> Source:
    """Customers: an id, numbers with gaps, a category, a date, and a label of two texts."""
    table, exam = _split(_customers(rows + EXAM, 1), rows)
    table.to_csv(folder / "customers.csv", index=False)
    return _table("churn", "comma CSV", folder, "customers.csv", "churned", exam, ["months", "calls", "plan", "spend", "since"])


def spreadsheet_csv(folder: Path, rows: int) -> Source:
    """Orders of a German spreadsheet: semicolons, cp1252, decimal commas, points between thousands, dates dd.mm.yyyy."""
    rng = np.random.default_rng(2)
    count = rows + EXAM
    amount, weight = rng.gamma(2, 700, count).round(2), rng.uniform(0.1, 30, count).round(2)
    size = rng.choice(["groß", "mittel", "klein"], count)
    score = amount / 700 - weight / 12 + (size == "groß") * 1.5 - 1.0
    orders = pd.DataFrame(
        {
            "Bestellnr": [f"{number:06d}" for number in range(1, count + 1)],
            "Verkauft am": _days(rng, count).strftime("%d.%m.%Y"),
            "Betrag": [_german(value) for value in amount],
            "Gewicht kg": [_german(value) for value in weight],
            "Größe": size,
            "Stück": rng.integers(1, 9, count),
            "zurückgeschickt": np.where(score + rng.normal(0, 0.2, count) > 0, "ja", "nein"),
        }
    )
    table, exam = _split(orders, rows)
    options: dict[str, Any] = {"sep": ";", "encoding": "cp1252", "index": False}
    table.to_csv(folder / "bestellungen.csv", **options)
    file = "new-bestellungen.csv"
    exam.drop(columns="zurückgeschickt").to_csv(folder / file, **options)
    first = {
        "Betrag": amount[rows],
        "Gewicht kg": weight[rows],
        **{name: exam[name].iloc[0] for name in ("Größe", "Stück", "Verkauft am")},
    }
    return Source(
        "orders",
        "semicolon CSV, cp1252, decimal commas, dates dd.mm.yyyy",
        f"{folder.name}/bestellungen.csv",
        "zurückgeschickt",
        f"{folder.name}/{file}",
        exam["zurückgeschickt"].tolist(),
        fields(first),
    )


def excel(folder: Path, rows: int) -> Source:
    """Flats: a workbook with numbers, a category, dates and a price to predict."""
    rng = np.random.default_rng(3)
    count = rows + EXAM
    area, rooms = rng.uniform(25, 180, count).round(1), rng.integers(1, 6, count)
    district = rng.choice(["north", "south", "centre"], count)
    price = 2000 * area + 15000 * rooms + (district == "centre") * 90000 + rng.normal(0, 8000, count)
    flats = pd.DataFrame(
        {
            "area": area,
            "rooms": rooms,
            "district": district,
            "built": _days(rng, count),
            "lift": rng.random(count) < 0.5,
            "price": price.round(-2),
        }
    )
    table, exam = _split(flats, rows)
    write_workbook(folder / "flats.xlsx", "Flats", table)
    columns = ["area", "rooms", "district", "built", "lift"]
    return _table("flats", "Excel workbook, a number to predict", folder, "flats.xlsx", "price", exam, columns)


def partitions(folder: Path, rows: int) -> Source:
    """Flights: a Parquet folder with a partition for each month and a label of true and false."""
    rng = np.random.default_rng(4)
    count = rows + EXAM
    wind, distance = rng.normal(0, 10, count), rng.uniform(100, 3000, count)
    month = rng.integers(1, 5, count)
    flights = pd.DataFrame(
        {
            "wind": wind,
            "distance": distance,
            "carrier": pd.Categorical(rng.choice(["AA", "BB", "CC"], count)),
            "departs": pd.to_datetime("2024-01-01") + pd.to_timedelta(rng.integers(0, 10**6, count), unit="min"),
            "month": month,
            "late": wind / 10 + distance / 1500 - 1 + (month == 1) * 0.8 + rng.normal(0, 0.15, count) > 0,
        }
    )
    table, exam = _split(flights, rows)
    for number, part in table.groupby("month"):
        place = folder / "flights" / f"month={number}"
        place.mkdir(parents=True)
        part.drop(columns="month").to_parquet(place / "part-0.parquet", index=False)
    exam.drop(columns="late").to_parquet(folder / "new-flights.parquet", index=False)
    return Source(
        "delays",
        "Parquet folder with partitions",
        f"{folder.name}/flights",
        "late",
        f"{folder.name}/new-flights.parquet",
        exam["late"].tolist(),
        fields(exam[["wind", "distance", "carrier", "departs", "month"]].iloc[0].to_dict()),
    )


def json_lines(folder: Path, rows: int) -> Source:
    """Events: JSON lines with true and false, fields that are missing in some lines, and three labels."""
    rng = np.random.default_rng(5)
    count = rows + EXAM
    size, speed = rng.normal(0, 1, count), rng.normal(0, 1, count)
    labels = np.select([size > 0.4, speed > 0.2], ["truck", "car"], "bicycle")
    events = [
        {
            "size": round(float(size[i]), 3),
            "speed": round(float(speed[i]), 3),
            "wet": bool(rng.random() < 0.3),
            "sensor": str(rng.choice(["north", "south"])),
            **({"note": {"checked": True}} if i % 40 == 0 else {}),
            **({"lane": int(rng.integers(1, 4))} if rng.random() > 0.1 else {}),
            "vehicle": str(labels[i]),
        }
        for i in range(count)
    ]
    lines = [json.dumps(event) for event in events]
    (folder / "events.jsonl").write_text("\n".join(lines[:rows]) + "\n")
    (folder / "new-events.jsonl").write_text("\n".join(lines[rows:]) + "\n")
    known = {name: value for name, value in events[rows].items() if name not in ("vehicle", "note")}
    truth = [event["vehicle"] for event in events[rows:]]
    where = f"{folder.name}/new-events.jsonl"
    return Source("traffic", "JSON lines", f"{folder.name}/events.jsonl", "vehicle", where, truth, fields(known))


def sqlite_query(folder: Path, rows: int) -> Source:
    """A query that joins two tables of an SQLite file."""
    people, loans, exam, query = _loans(rows)
    with sqlite3.connect(folder / "bank.db") as connection:
        people.to_sql("people", connection, index=False)
        loans.to_sql("loans", connection, index=False)
    address = f"sqlite:///{folder.name}/bank.db"
    return _query("a query of SQLite", folder, address, query, exam)


def postgres_query(folder: Path, rows: int, address: str, password: str) -> Source:
    """The same query of a PostgreSQL server; `PGPASSWORD` has to be set for the commands."""
    from sqlalchemy import create_engine, make_url

    people, loans, exam, query = _loans(rows)
    engine = create_engine(make_url(address).set(drivername="postgresql+psycopg", password=password))
    with engine.begin() as connection:
        people.to_sql("people", connection, index=False)
        loans.to_sql("loans", connection, index=False)
    engine.dispose()
    return _query("a query of PostgreSQL", folder, address, query, exam)


def _query(title: str, folder: Path, address: str, query: str, exam: pd.DataFrame) -> Source:
    exam.drop(columns="defaulted").to_csv(folder / "new-loans.csv", index=False)
    ask, truth = fields(exam[["income", "job", "amount"]].iloc[0].to_dict()), exam["defaulted"].tolist()
    return Source("loans", title, address, "defaulted", f"{folder.name}/new-loans.csv", truth, ask, ["--query", query])


def _loans(rows: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, str]:
    """Returns two tables, the rows of the exam, and the query that joins the tables."""
    rng = np.random.default_rng(6)
    count = rows + EXAM
    income, amount = rng.gamma(4, 900, count).round(2), rng.gamma(3, 4000, count).round(2)
    job = rng.choice(["clerk", "nurse", "driver", "none"], count)
    score = amount / 6000 - income / 2500 + (job == "none") * 1.2 + rng.normal(0, 0.15, count)
    people = pd.DataFrame({"id": range(count), "income": income, "job": job, "born": _days(rng, count).date})
    loans = pd.DataFrame({"person": range(count), "amount": amount, "defaulted": (score > 0).astype(int)})
    exam = people.join(loans[["amount", "defaulted"]]).iloc[rows:].drop(columns="born")
    query = (
        "SELECT p.id, p.income, p.job, l.amount, l.defaulted FROM people p JOIN loans l ON l.person = p.id "
        f"WHERE p.id < {rows} ORDER BY p.id"
    )
    return people, loans, exam, query


def text_table(folder: Path, rows: int) -> Source:
    """Tickets: an id, a column of sentences with commas and quotes, and a label."""
    texts, labels = sentences(rows + EXAM, 10)
    tickets = pd.DataFrame({"ticket": np.arange(rows + EXAM) + 1000, "message": texts, "topic": labels})
    table, exam = _split(tickets, rows)
    table.to_csv(folder / "tickets.csv", index=False)
    exam.drop(columns="topic").to_csv(folder / "new-tickets.csv", index=False)
    where, truth = f"{folder.name}/new-tickets.csv", exam["topic"].tolist()
    ask = ["--text", str(exam["message"].iloc[0])]
    return Source("tickets", "table with a text column", f"{folder.name}/tickets.csv", "topic", where, truth, ask)


def _customers(count: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    months, calls = rng.integers(1, 72, count), rng.poisson(2, count)
    plan = rng.choice(["basic", "family", "business"], count)
    score = calls - months / 24 + (plan == "basic") * 1.5 - 1 + rng.normal(0, 0.3, count)
    spend = pd.Series(rng.gamma(3, 12, count).round(2))
    return pd.DataFrame(
        {
            "customer_id": [f"C{number:05d}" for number in range(count)],
            "months": months,
            "calls": calls,
            "plan": plan,
            "spend": spend.where(rng.random(count) > 0.03),
            "since": _days(rng, count).strftime("%Y-%m-%d"),
            "churned": np.where(score > 0, "yes", "no"),
        }
    )


def _table(name: str, title: str, folder: Path, file: str, target: str, exam: pd.DataFrame, asked: Sequence[str]) -> Source:
    """Writes the exam as CSV, and returns the source; `asked` are the columns that the model has to know."""
    place = (folder / f"new-{file}").with_suffix(".csv")
    exam.drop(columns=target).to_csv(place, index=False)
    ask, truth = fields(exam[list(asked)].iloc[0].to_dict()), exam[target].tolist()
    return Source(name, title, f"{folder.name}/{file}", target, f"{folder.name}/{place.name}", truth, ask)


def _split(table: pd.DataFrame, rows: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    return table.iloc[:rows], table.iloc[rows:]


def fields(values: dict[Any, Any]) -> list[str]:
    """Returns `name=value` arguments, as a user would type them; a missing value is an empty text."""
    return [f"{name}={_typed(value)}" for name, value in values.items()]


def _typed(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    return "" if pd.isna(value) else str(value)


def _days(rng: np.random.Generator, count: int) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(pd.to_datetime("2022-01-01") + pd.to_timedelta(rng.integers(0, 900, count), unit="D"))


def _german(value: float) -> str:
    return f"{value:,.2f}".replace(",", " ").replace(".", ",").replace(" ", ".")


def write_workbook(path: Path, sheet: str, table: pd.DataFrame) -> None:
    """Writes an xlsx with one sheet, as spreadsheets do: dates are numbers with a format."""
    kind, base = "application/vnd.openxmlformats-officedocument.spreadsheetml", "http://schemas.openxmlformats.org"
    main, office = f"{base}/spreadsheetml/2006/main", f"{base}/officeDocument/2006/relationships"
    head = "<?xml version='1.0' encoding='UTF-8'?>"
    cells = [list(table.columns), *table.astype(object).to_numpy().tolist()]
    body = "".join(f"<row>{''.join(map(_cell, row))}</row>" for row in cells)
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{base}/package/2006/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>'
        f'<Override PartName="/xl/styles.xml" ContentType="{kind}.styles+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{kind}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{base}/package/2006/relationships"><Relationship Id="r1" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="{sheet}" sheetId="1" '
        'r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{base}/package/2006/relationships"><Relationship Id="r1" '
        f'Type="{office}/worksheet" Target="worksheets/sheet1.xml"/><Relationship Id="r2" Type="{office}/styles" '
        'Target="styles.xml"/></Relationships>',
        "xl/styles.xml": f'<styleSheet xmlns="{main}"><fonts count="1"><font/></fonts><fills count="1"><fill/></fills>'
        '<borders count="1"><border/></borders><cellStyleXfs count="1"><xf/></cellStyleXfs>'
        '<cellXfs count="2"><xf/><xf numFmtId="14" applyNumberFormat="1"/></cellXfs></styleSheet>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, head + text)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return f'<c t="b"><v>{int(value)}</v></c>'
    if isinstance(value, pd.Timestamp):
        return f'<c s="1"><v>{(value - pd.Timestamp("1899-12-30")).days}</v></c>'
    if isinstance(value, str):
        return f'<c t="inlineStr"><is><t>{value}</t></is></c>'
    return f"<c><v>{value}</v></c>"


# --- pictures and texts -----------------------------------------------------------------------------------------------

FRUITS = {"apple": (200, 30, 40), "lime": (60, 190, 50), "plum": (110, 40, 160)}
MARKS = {"circle": "circle", "square": "square", "cross": "cross"}


def picture_folder(folder: Path, count: int) -> Source:
    """A folder of colour pictures of mixed sizes and formats, with a folder for each class."""
    rng = np.random.default_rng(7)
    labels = [list(FRUITS)[i % len(FRUITS)] for i in range(count + EXAM)]
    truth: dict[str, str] = {}
    for i, label in enumerate(labels):
        ending = ("jpg", "jpeg", "png", "webp")[i % 4]
        place = folder / "fruits" / label if i < count else folder / "new-fruits"
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{i:04d}.{ending}"
        path.write_bytes(_drawn(rng, "circle", FRUITS[label], ending))
        if i >= count:
            truth[path.name] = label
    ask = ["--file", f"{folder.name}/new-fruits/{next(iter(truth))}"]
    where = f"{folder.name}/new-fruits"
    return Source("fruits", "folder of colour pictures", f"{folder.name}/fruits", None, where, list(truth.values()), ask)


def picture_archive(folder: Path, count: int) -> Source:
    """A zip of pictures, whose labels are in a table beside them."""
    rng = np.random.default_rng(8)
    lines, exam = ["file,shape,camera"], dict[str, bytes]()
    truth = []
    with zipfile.ZipFile(folder / "shapes.zip", "w") as archive:
        for i in range(count + EXAM):
            label = list(MARKS)[i % len(MARKS)]
            colour = tuple(int(part) for part in rng.integers(120, 256, 3))
            raw = _drawn(rng, MARKS[label], colour, "jpg")
            if i >= count:
                exam[f"{i:04d}.jpg"] = raw
                truth.append(label)
                continue
            archive.writestr(f"images/{i:04d}.jpg", raw)
            lines.append(f"images/{i:04d}.jpg,{label},{'left' if i % 5 else 'right'}")
        archive.writestr("labels.csv", "\n".join(lines) + "\n")
    with zipfile.ZipFile(folder / "new-shapes.zip", "w") as archive:
        for name, raw in exam.items():
            archive.writestr(name, raw)
    first = folder / next(iter(exam))
    first.write_bytes(next(iter(exam.values())))
    ask, data = ["--file", f"{folder.name}/{first.name}"], f"{folder.name}/shapes.zip"
    title = "zip of pictures with a table of paths and labels"
    return Source("shapes", title, data, "shape", f"{folder.name}/new-shapes.zip", truth, ask)


def _drawn(rng: np.random.Generator, shape: str, colour: tuple[int, ...], ending: str) -> bytes:
    """Returns a file with a shape in a colour, on a noisy background."""
    width, height = (int(side) for side in rng.integers(40, 90, 2))
    picture = Image.fromarray(rng.integers(0, 90, (height, width, 3)).astype(np.uint8))
    side = int(min(width, height) * rng.uniform(0.6, 0.85))
    left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
    box, pen = (left, top, left + side, top + side), ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.line(box, fill=colour, width=max(3, side // 5))
        pen.line((left, top + side, left + side, top), fill=colour, width=max(3, side // 5))
    buffer = BytesIO()
    picture.save(buffer, {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}[ending])
    return buffer.getvalue()


TOPICS: dict[str, Sequence[str]] = {
    "billing": ("invoice", "refund", "charged twice", "payment", "credit card", "price"),
    "delivery": ("parcel", "courier", "late", "address", "tracking number", "doorstep"),
    "technical": ("crash", "error message", "login", "password", "update", "screen"),
}
COMMON = (
    "Hello,",
    "please help:",
    "my",
    "the",
    "was",
    "again",
    "since Monday",
    "about",
    'they said "sorry"',
    "and",
    "thanks.",
)


def sentences(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Returns texts of about fifteen words, and their topics."""
    rng = np.random.default_rng(seed)
    labels = [list(TOPICS)[i % len(TOPICS)] for i in range(count)]
    texts = []
    for label in labels:
        words = [*rng.choice(COMMON, 9), *rng.choice(TOPICS[label], 3)]
        rng.shuffle(words)
        texts.append(" ".join(words))
    return texts, labels


def text_folder(folder: Path, count: int) -> Source:
    """A folder of text files with a folder for each class."""
    texts, labels = sentences(count + EXAM, 9)
    for i, (text, label) in enumerate(zip(texts[:count], labels, strict=False)):
        place = folder / "letters" / label
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:04d}.txt").write_text(f"{text}\n", encoding="utf-8")
    pd.DataFrame({"text": texts[count:]}).to_csv(folder / "new-letters.csv", index=False)
    where, truth, ask = f"{folder.name}/new-letters.csv", labels[count:], ["--text", texts[count]]
    return Source("letters", "folder of text files", f"{folder.name}/letters", None, where, truth, ask)


KINDS: dict[Writer, int] = {
    comma_csv: ROWS,
    spreadsheet_csv: ROWS,
    excel: ROWS,
    partitions: ROWS,
    json_lines: ROWS,
    sqlite_query: ROWS,
    picture_folder: PICTURES,
    picture_archive: PICTURES,
    text_folder: TEXTS,
    text_table: TEXTS,
}
"""Every kind, with its number of rows, pictures or texts."""
