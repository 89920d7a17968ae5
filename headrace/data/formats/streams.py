"""Tables in files as streams: the types of all columns are known first, then the rows come block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 16 << 20
"""Size of a block of text. A row has to fit into one."""


@dataclass(frozen=True)
class TableStream:
    """A table that is read block by block, as often as asked for."""

    schema: pa.Schema
    """Names and types of the columns, in the file's order."""
    rows: int
    blocks: Callable[[], Iterator[pa.Table]]
    """Yields the rows in order, with these columns and types."""

    def table(self) -> pa.Table:
        """Returns all rows."""
        import pyarrow as pa

        return pa.concat_tables([self.schema.empty_table(), *self.blocks()])
