"""The recipes of the fixture, their data, and the requests whose answers tests expect.

The data is made with Python's own random numbers, which are the same everywhere.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

RECIPES = {
    # -- a table, released twice
    "small": """
task: classification
data:
  source: sources/small.csv
  target: kind
  split: {test: 0.3, validation: 0.2, seed: 7}
expect:
  - {type: expect_column_values_to_be_between, column: length, min_value: -50, max_value: 50}
model: {name: mlp, hidden: [16]}
train: {epochs: 3, batch_size: 32, learning_rate: 0.02, seed: 7, device: cpu, compile: "off"}
gate: {require: {accuracy: ">= 0.5"}}
serve: {replicas: 1}
""",
    # -- nodes of a graph: bentos.graph:NodeModel
    "clubs": """
task: node-classification
data:
  source: sources/clubs.csv
  target: club
  graph: {node: name, edges: sources/friends.txt, pack: likes}
  split: {per_class: {train: 4, validation: 12, test: 20}, seed: 7}
expect: []
model: {name: gcn, hidden: [8], dropout: 0.2}
train: {epochs: 5, batch_size: 64, optimizer: adam, learning_rate: 0.05, schedule: constant, device: cpu, compile: "off"}
gate: {require: {accuracy: ">= 0"}}
serve: {replicas: 1}
""",
    # -- whole graphs: bentos.graphs:GraphModel
    "shapes": """
task: graph-classification
data:
  source: sources/shapes.jsonl
  target: shape
  split: {test: 0.3, validation: 0.2, seed: 7}
expect: []
model: {name: gcn, hidden: [8], dropout: 0.0, pooling: max}
train: {epochs: 5, batch_size: 16, optimizer: adam, learning_rate: 0.02, schedule: constant, device: cpu, compile: "off"}
gate: {require: {accuracy: ">= 0"}}
serve: {replicas: 1}
""",
    # -- texts: bentos.text:TextModel
    "moods": """
task: text-classification
data:
  source: sources/moods.csv
  target: mood
  text: {column: body, tokens: words, vocabulary: 64, length: 9}
  split: {test: 0.3, validation: 0.2, seed: 7}
expect: []
model: {name: recurrent, cell: gru, embedding: 6, hidden: 5}
train: {epochs: 3, batch_size: 16, learning_rate: 0.02, device: cpu, compile: "off"}
gate: {require: {accuracy: ">= 0"}}
serve: {replicas: 1}
""",
    # -- generation: bentos.generation:GenerationModel
    "rhymes": """
task: text-generation
data:
  source: sources/rhymes.csv
  target: text
  text: {column: text, tokens: characters, length: 24, lowercase: false}
  split: {test: 0.3, validation: 0.2, seed: 7}
expect: []
model: {name: gpt, width: 16, heads: 2, layers: 1, dropout: 0.0}
train: {epochs: 3, batch_size: 8, learning_rate: 0.01, device: cpu, compile: "off"}
gate: {require: {bits_per_character: "< 100"}}
serve: {replicas: 1}
""",
    # -- summaries: bentos.summaries:SummaryModel
    "lines": """
task: summarisation
data:
  source: sources/lines.csv
  target: summary
  text: {column: body, vocabulary: 300, length: 12}
  split: {test: 0.2, validation: 0.1, seed: 7}
expect: []
model: {name: seq2seq, width: 8, heads: 2, encoder_layers: 1, decoder_layers: 1, beams: 2, dropout: 0.0}
train: {epochs: 6, batch_size: 16, learning_rate: 0.02, device: cpu, compile: "off"}
gate: {require: {rouge_l: ">= 0"}}
serve: {replicas: 1}
""",
    # -- a custom task type, model and served class: served_signals:SignalModel derives from bentos.model:ServedModel
    "waves": """
task: signals:SignalClassification
data:
  source: sources/waves.csv
  target: kind
  split: {test: 0.3, validation: 0.2, seed: 7}
expect: []
model: {name: "gated:GatedMLP", width: 8}
train: {epochs: 3, batch_size: 32, learning_rate: 0.02, device: cpu, compile: "off"}
gate: {require: {accuracy: ">= 0"}}
serve: {replicas: 1}
""",
}
INSTANCES: dict[str, list[dict[str, object]]] = {
    "small": [{"length": 30.0, "width": 1.0, "colour": "red"}, {"length": -4.5, "width": 0.1, "colour": "green"}],
    "clubs": [{"node": "m3"}, {"node": "m10"}],
    "shapes": [{"nodes": [[0.1, 2], [0.2, 2], [0.3, 2]], "edges": [[0, 1], [1, 2], [2, 0]]}],
    "moods": [{"text": "the seat was lovely"}, {"text": "my bag was late"}],
    "rhymes": [{"prompt": "the mill ", "max_tokens": 12, "temperature": 0.0}, {"prompt": "water", "max_tokens": 12, "seed": 7}],
    "lines": [{"text": "with an optional table of the median in rows"}],
    "waves": [{"signal": "0.1,0.95"}, {"signal": "0.1,-0.8"}],
}


def write_sources(folder: Path) -> None:
    folder.mkdir()
    _table(folder / "small.csv", "length,width,colour,kind", _small())
    _table(folder / "moods.csv", "body,mood", _moods())
    _table(folder / "rhymes.csv", "title,text", _rhymes())
    _table(folder / "lines.csv", "name,body,summary", _lines())
    _table(folder / "waves.csv", "signal,kind", _waves())
    _clubs(folder)
    (folder / "shapes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _shapes()))


def _table(path: Path, head: str, rows: list[tuple[object, ...]]) -> None:
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")


def _small() -> list[tuple[object, ...]]:
    draw, rows = random.Random(1), []
    for _ in range(300):
        length, width, colour = round(draw.gauss(0, 10), 3), round(draw.gauss(0, 1), 4), draw.choice(["red", "green", "blue"])
        big = (length / 10 + width + (colour == "red") > 0.3) != (draw.random() < 0.1)
        rows.append((max(-50.0, min(50.0, length)), width, colour, "big" if big else "small"))
    return rows


def _clubs(folder: Path, members: int = 80, likes: int = 6) -> None:
    draw, club = random.Random(2), [i % 2 for i in range(80)]
    rows = [[int(draw.random() < 0.25 + 0.3 * (like % 2 == club[i])) for like in range(likes)] for i in range(members)]
    head = ",".join(["name", *(f"like_{i}" for i in range(likes)), "club"])
    _table(folder / "clubs.csv", head, [(f"m{i}", *row, ("chess", "tennis")[club[i]]) for i, row in enumerate(rows)])
    pairs = [(i, draw.randrange(1, members)) for i in range(1, members) for _ in range(4)]
    near = [(i, j) for i, j in pairs if i != j and (club[i] == club[j] or draw.random() < 0.05)]
    (folder / "friends.txt").write_text("".join(f"m{i} m{j}\n" for i, j in near))


def _shapes() -> list[dict[str, object]]:
    draw, rows = random.Random(3), []
    for row in range(80):
        size = draw.randrange(4, 9)
        edges = [[i, (i + 1) % size] for i in range(size)] if row % 2 else [[0, i] for i in range(1, size)]
        degree = [sum(i in edge for edge in edges) for i in range(size)]
        nodes = [[round(draw.gauss(0, 1), 3), count] for count in degree]
        rows.append({"nodes": nodes, "edges": edges, "shape": "ring" if row % 2 else "star"})
    return rows


def _moods() -> list[tuple[object, ...]]:
    draw, rows = random.Random(4), []
    for _ in range(160):
        mood = draw.choice(["bad", "good"])
        words = [draw.choice(["the", "plane", "seat", "was", "a", "bag", "my"]) for _ in range(draw.randrange(12))]
        telling = {"good": ["fine", "lovely", "great"], "bad": ["awful", "broken", "late"]}[mood]
        words.insert(draw.randrange(len(words) + 1), draw.choice(telling))
        rows.append((" ".join(words), mood))
    return rows


def _rhymes() -> list[tuple[object, ...]]:
    draw = random.Random(5)
    verses = [" ".join(draw.choice(["the", "mill", "turns", "water", "runs"]) for _ in range(6)) for _ in range(40)]
    return [(f"No. {i}", f"{verse}; and so on.") for i, verse in enumerate(verses)]


def _waves() -> list[tuple[object, ...]]:
    starts = [(i, i % 7 / 10) for i in range(200)]
    return [(f'"{start},{start + (0.9 if i % 2 else -0.9):.1f}"', ("down", "up")[i % 2]) for i, start in starts]


def _lines() -> list[tuple[object, ...]]:
    draw, rows = random.Random(6), []
    for _ in range(100):
        noun = draw.choice(["mean", "sum", "rank", "median", "count", "name", "shape", "index"])
        words = [
            draw.choice(["of", "rows", "in", "axis", "with", "an", "optional", "table", "by"])
            for _ in range(draw.randrange(2, 8))
        ]
        words.insert(draw.randrange(len(words) + 1), noun)
        rows.append(("f", " ".join(words), f"Compute the {noun}."))
    return rows
