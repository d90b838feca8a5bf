"""One HTML page that stands alone: text, tables, pictures inside the file, videos linked.

It does not know what is reported: a job hands it parts in reading order.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jinja2

Mark = Literal["good", "bad", ""]
Cell = str | int | float


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph, or with `kind="code"` a block that keeps its line breaks."""

    text: str
    heading: str = ""
    kind: Literal["text", "code"] = "text"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a header; `marks` colours one row each and is as long as `rows`, or empty."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    heading: str = ""
    marks: Sequence[Mark] = ()
    kind: Literal["table"] = "table"

    def __post_init__(self) -> None:
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(
                f"table {self.heading!r}: every row needs {len(self.header)} cells, "
                f"got {sorted({len(row) for row in self.rows})}"
            )
        if self.marks and len(self.marks) != len(self.rows):
            raise ValueError(
                f"table {self.heading!r}: {len(self.marks)} marks for {len(self.rows)} rows"
            )

    @property
    def markdown(self) -> str:
        """The table for a README."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG, stored in the page."""

    png: bytes
    heading: str = ""
    kind: Literal["picture"] = "picture"

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video file, by its address relative to the page."""

    source: str
    heading: str = ""
    kind: Literal["video"] = "video"


Part = Text | Table | Picture | Video


def decimal(value: float | None) -> str:
    """Write a figure that may be missing."""
    return "" if value is None else f"{value:.3f}"


def write_report(path: Path, title: str, parts: Sequence[Part]) -> None:
    """Write the page to `path`; everything in it is escaped."""
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template).render(title=title, parts=parts)
    path.write_text(page, encoding="utf-8")
