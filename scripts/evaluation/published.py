"""Figures that papers and authors have published, as data files with their source, to set beside one's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pairs import EvaluateError

TABLES = Path(__file__).parent / "tables"
NOT_HERE = "not_here.json"
"""Tables whose figures are not part of the repository."""


@dataclass(frozen=True)
class PublishedTable:
    """A table, or the part of it that is known here."""

    name: str
    title: str
    source: str
    test_set: str
    protocol: str
    """Which of our protocols comes to these figures, or "" where that is not known."""
    incomplete: str
    """What of the printed table is not here; "" where all is."""
    rows: tuple[tuple[str, Mapping[str, float]], ...]
    """(method, figures by metric)."""


def table_names() -> list[str]:
    return sorted(path.stem for path in TABLES.glob("*.json") if path.name != NOT_HERE)


def read_table(name: str) -> PublishedTable:
    """A table of this repository by name, or of a file of the same form. Raises EvaluateError where there is none."""
    path = Path(name) if name.endswith(".json") else TABLES / f"{name}.json"
    if not path.is_file() or path.name == NOT_HERE:
        missing: dict[str, str] = json.loads((TABLES / NOT_HERE).read_text(encoding="utf-8"))
        if name in missing:
            raise EvaluateError(
                f"the figures of {name} ({missing[name]}) are not part of this repository. Write them into a file of "
                f"the form of {TABLES / table_names()[0]}.json and pass its path."
            )
        raise EvaluateError(f"there is no table '{name}'; there are: {', '.join(table_names())}, or pass a .json file")
    try:
        return parse_table(path.stem, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluateError(f"{path} is no table of figures: {type(error).__name__}: {error}") from error


def parse_table(name: str, data: Mapping[str, Any]) -> PublishedTable:
    rows = tuple(
        (str(row["method"]), {str(metric): float(value) for metric, value in row["values"].items()})
        for row in data["rows"]
    )
    return PublishedTable(
        name,
        str(data["title"]),
        str(data["source"]),
        str(data.get("test_set", "")),
        str(data.get("protocol", "")),
        str(data.get("incomplete", "")),
        rows,
    )
