"""The page of the benchmark of compressed models."""

from __future__ import annotations

from benchmarks.compress import Convolutions, page
from headrace.compression.measure import Measured
from headrace.pipeline.variants_table import ORIGINAL, Variant, Variants


def test_the_page_has_a_row_for_each_variant_also_for_one_that_was_not_made() -> None:
    cost = Measured(latency_ms={1: 0.5, 32: 4.0}, memory_mb=80.0, threads=1)
    made = {"latency_ms": cost.latency_ms, "memory_mb": cost.memory_mb, "bytes": 200_000, "metric": 0.9}
    variants = [
        Variant(method=ORIGINAL, folder="a", interval=(0.88, 0.92), **made),
        Variant(method="float16", folder="b", verdict="unchanged", sentences=["nothing"], **made),
        Variant(method="int8-static", folder="c", verdict="not made", sentences=["too few rows"]),
    ]
    table = Variants(
        recipe="tiny", metric="accuracy", max_loss=0.005, confidence=0.95, rows=100, threads=1, variants=variants, picture="p"
    )
    text = page([table], Convolutions(cost, cost), 3.2)
    assert "| original | 200 kB | 0.5 | 4 | 80 MB | 0.9000 (0.8800 to 0.9200) |  |  |" in text
    assert "| float16 | 200 kB | 0.5 | 4 | 80 MB | 0.9000 |  | unchanged |" in text
    assert "| int8-static |  |  |  |  |  |  | not made: too few rows |" in text
    assert "in 3 minutes on" in text and "| convolutions int8-dynamic | 0.5 | 4 |" in text
