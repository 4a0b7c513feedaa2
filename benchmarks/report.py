"""What a benchmark prints: tables as they come, and rows for machines."""

import sys
from typing import Any


class Report:
    """Tables as they come, and every row for `--json`."""

    def __init__(self, *, as_json: bool) -> None:
        self.rows: list[dict[str, Any]] = []
        self._tables = sys.stderr if as_json else sys.stdout

    def line(self, text: str) -> None:
        """Print one line."""
        print(text, file=self._tables, flush=True)

    def table(self, title: str, *columns: str) -> None:
        """Begin a table."""
        self.line(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")

    def row(self, part: str, values: dict[str, Any], *cells: object) -> None:
        """Keep `values` as a row of `part`, and print the cells."""
        self.rows.append({"part": part, **values})
        self.line(f"| {' | '.join(map(str, cells))} |")
