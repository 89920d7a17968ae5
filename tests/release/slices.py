"""Small slices of the data of every recipe in `recipes/`, made up, in the very form in which its source comes."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

PIXELS = 28 * 28
WORDS = [
    *("mill", "river", "stone", "wheel", "grain", "flour", "water", "sluice", "gate", "beam", "sack", "cart", "winter"),
    *("miller", "daughter", "moon", "song", "bread", "oven", "fire"),
]
Data = dict[str, Any]
Slice = Callable[[Path, Data, np.random.Generator], None]
"""Writes files into a folder and names them in the recipe's data section."""

# -- images


def digits(folder: Path, data: Data, rng: np.random.Generator) -> None:
    """A gzipped CSV without header: pixels, then the label."""
    images, labels = drawn(240, rng)
    with gzip.open(folder / "digits.csv.gz", "wt") as file:
        pd.DataFrame(np.column_stack([images.reshape(-1, PIXELS), labels])).to_csv(file, index=False, header=False)
    data["source"] = str(folder / "digits.csv.gz")


def mnist(folder: Path, data: Data, rng: np.random.Generator) -> None:
    """Images and labels in IDX, for training and for testing."""
    for part, count in (("train", 240), ("test", 60)):
        images, labels = drawn(count, rng)
        paths = {"images": folder / f"{part}-images-idx3-ubyte", "labels": folder / f"{part}-labels-idx1-ubyte"}
        for path, values in ((paths["images"], images), (paths["labels"], labels)):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            path.write_bytes(head + values.tobytes())
        data["source"][part] = {what: str(path) for what, path in paths.items()}


def drawn(count: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images of 28 × 28 whose bright spot says the digit, and the digits."""
    labels = np.arange(count, dtype=np.uint8) % 10
    images = np.zeros((count, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = 4 + 10 * (label // 5), 2 + 5 * (label % 5)
        image[top : top + 8, left : left + 4] = rng.integers(150, 256, (8, 4))
    return images, labels


def emoji(folder: Path, data: Data, rng: np.random.Generator) -> None:
    """For each vendor an array of objects, some of whose fields are nested, and a folder of PNGs."""
    categories = ("Flags", "Food & Drink", "Symbols")
    rows = [
        {"image": f"{i:04x}.png", "unified": f"{i:04X}", "category": categories[i % 3], "texts": None, "skins": {"any": [i]}}
        for i in range(60)
    ]
    for vendor in data["source"]:
        (folder / vendor).mkdir()
        (folder / f"{vendor}.json").write_text(json.dumps(rows))
        for i, row in enumerate(rows):
            pixels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
            pixels[..., i % 3] += 150
            Image.fromarray(pixels).save(folder / vendor / row["image"])
        data["source"][vendor] = str(folder / f"{vendor}.json")
        data["image"]["files"][vendor] = str(folder / vendor)
    del data["image"]["sha256"]


# -- tables


def employment(folder: Path, data: Data, rng: np.random.Generator) -> None:
    """Rows of 2015 with the target, later ones without it, a table that has it, and a column `prediction` to leave out."""
    codes = {
        **{"SCHL": 24, "MAR": 5, "RELP": 17, "DIS": 2, "ESP": 8, "CIT": 5, "MIG": 3, "MIL": 4, "ANC": 4},
        **{"NATIVITY": 2, "DEAR": 2, "DEYE": 2, "DREM": 2, "SEX": 2, "RAC1P": 9},
    }
    rows = 400
    table = pd.DataFrame({"id": np.arange(rows), "AGEP": rng.integers(16, 90, rows).astype(float)})
    for name, highest in codes.items():
        table[name] = rng.integers(1, highest + 1, rows).astype(str)
    table["year"] = 2015 + np.arange(rows) // 100
    table["prediction"] = 0
    employed = ((table["AGEP"] < 53) ^ (rng.random(rows) < 0.1)).astype(int)
    first = table["year"] == 2015
    paths = [folder / f"employment_MA_{part}.pq" for part in ("reference", "analysis", "analysis_target")]
    table[first].assign(employed=employed[first]).to_parquet(paths[0], index=False)
    table[~first].to_parquet(paths[1], index=False)
    pd.DataFrame({"id": table["id"], "employed": employed})[~first].to_parquet(paths[2], index=False)
    data["source"] = [str(path) for path in paths[:2]]
    data["join"]["source"] = str(paths[2])


def flights(folder: Path, data: Data, rng: np.random.Generator) -> None:
    """A zipped CSV of five months, with columns that the recipe leaves out and flights that were cancelled."""
    rows = 400
    distance = rng.integers(200, 2600, rows)
    hour = rng.integers(5, 23, rows)
    table = pd.DataFrame(
        {
            "year": 2013,
            "month": 1 + np.arange(rows) // 80,
            "day": rng.integers(1, 29, rows),
            "dep_time": rng.integers(500, 2300, rows),
            "sched_dep_time": hour * 100 + 15,
            "sched_arr_time": (hour * 100 + 345) % 2400,
            "carrier": rng.choice(["UA", "AA", "B6"], rows),
            "tailnum": "N14228",
            "origin": rng.choice(["EWR", "JFK", "LGA"], rows),
            "dest": rng.choice(["IAH", "MIA", "BOS", "LAX"], rows),
            "air_time": np.where(rng.random(rows) < 0.05, np.nan, (distance / 8 + 12 + rng.normal(0, 4, rows)).round()),
            "distance": distance,
            "hour": hour,
        }
    )
    with zipfile.ZipFile(folder / "flights.csv.zip", "w") as packed:
        packed.writestr("flights.csv", table.to_csv(index=False))
    data["source"] = str(folder / "flights.csv.zip")


# -- texts


def topics(folder: Path, data: Data, rng: np.random.Generator) -> None:
    """Two tab-separated files, with the two lines below the names that Orange writes."""
    newsgroups = (
        "alt.atheism comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware comp.windows.x"
    )
    newsgroups += (
        " misc.forsale rec.autos rec.motorcycles rec.sport.baseball rec.sport.hockey sci.crypt sci.electronics sci.med"
    )
    newsgroups += (
        " sci.space soc.religion.christian talk.politics.guns talk.politics.mideast talk.politics.misc talk.religion.misc"
    )
    for part, each in (("train", 10), ("test", 4)):
        path = folder / f"20newsgroups-{part}.tab"
        named = [
            (group, f"{''.join(c for c in group if c.isalpha())} {sentence(9, rng)}") for group in newsgroups.split() * each
        ]
        lines = ["Category\tText", "d\tstring", "class\tmeta", *(f"{group}\t{text}" for group, text in named)]
        path.write_text("\n".join(lines) + "\n")
        data["source"][part] = str(path)


def sentiment(folder: Path, data: Data, rng: np.random.Generator) -> None:
    """A CSV in an encoding of its own."""
    moods = {"negative": "awful", "neutral": "plain", "positive": "lovely"}
    rows = [(f"A {moods[mood]} flight… {sentence(8, rng)}!", mood) for mood in [*moods] * 80]
    table = pd.DataFrame(rows, columns=["text", "sentiment"])
    table.to_csv(folder / "tweets.csv", index=False, encoding=data["encoding"])
    data["source"] = str(folder / "tweets.csv")


def shakespeare(folder: Path, data: Data, rng: np.random.Generator) -> None:
    """A folder with a work a file, and a file that is none."""
    for number in range(20):
        title = f"THE {rng.choice(WORDS).upper()} OF {rng.choice(WORDS).upper()}"
        verses = [f"{sentence(6, rng).capitalize()}," for _ in range(30)]
        text = "\n".join([title, "", "by William Shakespeare", "", "", *verses, "Exeunt."])
        (folder / f"work_{number:02}_gut.txt").write_text(text + "\n")
    (folder / "licence.txt").write_text("Project Gutenberg\n")
    data["source"] = str(folder / "*_gut.txt")


def summaries(folder: Path, data: Data, rng: np.random.Generator) -> None:
    """Two packages of Python source: a documented function has a summary and a body."""
    sources = []
    for package in ("grinding", "baking"):
        for number in range(16):
            path = folder / package / f"part_{number:02}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n\n".join(documented(f"{package}_{number}_{i}", rng) for i in range(5)))
        sources.append(str(folder / package / "*.py"))
    data["source"] = sources


def documented(name: str, rng: np.random.Generator) -> str:
    noun, other = rng.choice(WORDS, 2)
    summary = f"Grind the {noun} of {sentence(4, rng)}."
    body = f"The {noun} is ground {sentence(12, rng)}, and the {other} goes where the\n    {sentence(6, rng)} is."
    return f'def {name}():\n    """{summary}\n\n    {body}\n    """\n'


def sentence(words: int, rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, words))


# -- graphs


def cora(folder: Path, data: Data, rng: np.random.Generator) -> None:
    """Papers with their words as 0 and 1, and who cites whom: mostly papers of their own topic."""
    names = "Case_Based Genetic_Algorithms Neural_Networks Probabilistic_Methods Reinforcement_Learning Rule_Learning Theory"
    topics, papers = names.split(), 280
    topic = np.arange(papers) % len(topics)
    words = (rng.random((papers, 1433)) < 0.005 + 0.1 * (np.arange(1433) % len(topics) == topic[:, None])).astype(int)
    ids = 1000 + np.arange(papers) * 3
    content = [f"{i}\t{chr(9).join(map(str, row))}\t{topics[t]}" for i, row, t in zip(ids, words, topic, strict=True)]
    (folder / "cora.content").write_text("\n".join(content) + "\n")
    cited = rng.integers(0, papers, (papers, 6))
    cites = [(i, j) for i in range(papers) for j in cited[i] if i != j and (topic[i] == topic[j] or rng.random() < 0.1)]
    (folder / "cora.cites").write_text("".join(f"{ids[i]}\t{ids[j]}\n" for i, j in cites))
    data["source"], data["graph"]["edges"] = str(folder / "cora.content"), str(folder / "cora.cites")
    data["split"] = {"per_class": {"train": 8, "validation": 60, "test": 90}, "seed": 7}


def solubility(folder: Path, data: Data, rng: np.random.Generator) -> None:
    """Molecules as SDF, in parts: chains of carbon dissolve badly, those with more oxygen better."""
    labels = ("(A) low", "(B) medium", "(C) high")
    for part, count in (("train", 150), ("test", 45)):
        molecules = []
        for row in range(count):
            atoms = rng.choice(["C", "O"], int(rng.integers(4, 12)), p=[1 - row % 3 / 3, row % 3 / 3])
            lines = ["", "", "", f"{len(atoms):3d}{len(atoms) - 1:3d}  0  0  0  0            999 V2000"]
            lines += [f"{0:10.4f}{0:10.4f}{0:10.4f} {atom:<3} 0  0" for atom in atoms]
            lines += [f"{int(rng.integers(1, end)):3d}{end:3d}  1  0" for end in range(2, len(atoms) + 1)]
            molecules.append("\n".join([*lines, "M  END", "> <SOL_classification>", labels[row % 3], "", "$$$$", ""]))
        (folder / f"solubility.{part}.sdf").write_text("".join(molecules))
        data["source"][part] = str(folder / f"solubility.{part}.sdf")


SLICES: dict[str, Slice] = {
    "cora": cora,
    "digits": digits,
    "emoji": emoji,
    "employment": employment,
    "flights": flights,
    "mnist": mnist,
    "mnist-mlp": mnist,
    "sentiment": sentiment,
    "sentiment-minilm": sentiment,
    "shakespeare": shakespeare,
    "shakespeare-gpt": shakespeare,
    "solubility": solubility,
    "summaries": summaries,
    "topics": topics,
}
"""By the recipe's name."""
