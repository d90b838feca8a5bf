"""`drive inspect`: what is in recordings, in figures, plots and pictures, on one page.

The pictures show the recorded path drawn on the road, so that wrong poses, cameras or mounts are
seen before anything is trained on them.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table as RichTable

from cluster.contact_sheet import frame_with_path, photometry_samples, sheet
from cluster.drive_plots import draw_statistics
from cluster.drive_statistics import Statistics, statistics_of, summary
from cluster.progress import CONSOLE, track
from cluster.report import Part, Picture, Table, Text, write_report
from drive_envs.photometry import PhotometryConfig
from drive_envs.segment import Segment
from drive_envs.segments import SegmentDataset, open_dataset, sample_path

HEADINGS = {
    "segments": "segments",
    "minutes": "minutes",
    "km": "km",
    "mean_speed": "mean m/s",
    "max_speed": "max m/s",
    "median_abs_curvature": "median |1/m|",
    "p95_abs_curvature": "95 % |1/m|",
    "lane_changes": "lane changes",
    "share_with_depth": "with depth",
}


@dataclass(frozen=True, kw_only=True)
class InspectRun:
    """Which recordings to look at, and how much of them to draw.

    data: a Parquet file, a folder of them, or `sample`. num_frames of the contact sheet; num_looks
    of the photometric randomisation, which is `photometry`. seed: of both.
    """

    data: str = "sample"
    num_frames: int = 12
    num_looks: int = 5
    photometry: PhotometryConfig = field(
        default_factory=lambda: PhotometryConfig(
            exposure=(0.85, 1.15), white_balance=0.05, blur=(0.0, 0.6), noise=(0.0, 4.0)
        )
    )
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.num_looks < 1:
            raise ValueError(
                f"num_frames is {self.num_frames} and num_looks {self.num_looks}; at least 1"
            )


def run(config: InspectRun, output: Path) -> dict[str, Any]:
    """Look at every segment once, write `report.html` and return the figures."""
    path = sample_path() if config.data == "sample" else Path(config.data)
    dataset = open_dataset(path)
    dataset.leave_out_damaged(lambda segments: track(segments, "reading segments"))
    found, sources = [], {}
    for segment in track((dataset[i] for i in range(len(dataset))), "segments", len(dataset)):
        found.append(statistics_of(segment))
        sources[segment.name] = segment.source
    by_split: dict[str, list[Statistics]] = defaultdict(list)
    for one in found:
        by_split[one.split].append(one)
    figures = {"all": summary(found)} | {name: summary(of) for name, of in by_split.items()}
    CONSOLE.print(table_of(figures, str(path)))
    rng = np.random.default_rng(config.seed)
    frames, looks = pictures_of(dataset, config, rng)
    parts: list[Part] = [
        Text(text=about(path, dataset, sources)),
        Table(header=("", *HEADINGS.values()), rows=rows_of(figures), heading="Figures"),
        Picture(png=draw_statistics(found), heading="Speed, curvature, paths"),
        Picture(png=frames, heading="Frames, with the path that was driven"),
        Picture(png=looks, heading="One frame as random cameras show it (photometry)"),
        Table(
            header=("segment", "split", "frames", "mean m/s", "lane changes", "with depth"),
            rows=[
                [
                    one.name,
                    one.split,
                    one.num_rows,
                    float(one.speed.mean()) if len(one.speed) else 0.0,
                    one.left_changes + one.right_changes,
                    one.num_with_depth / one.num_rows,
                ]
                for one in found
            ],
            heading="Segments",
        ),
    ]
    (output / "frames.png").write_bytes(frames)
    (output / "photometry.png").write_bytes(looks)
    write_report(output / "report.html", f"Recordings: {path.name}", parts)
    return {
        "data": str(path),
        **figures["all"],
        "held_out": len(by_split.get("held_out", [])),
        "skipped": dict(dataset.skipped),
        "report": str(output / "report.html"),
    }


def pictures_of(
    dataset: SegmentDataset, config: InspectRun, rng: np.random.Generator
) -> tuple[bytes, bytes]:
    """Draw the contact sheet, frames spread over segments and rows, and the random looks."""
    segments = np.linspace(0, len(dataset) - 1, config.num_frames).round().astype(int)
    frames = []
    segment: Segment = dataset[0]
    for place, index in enumerate(segments.tolist()):
        segment = dataset[index]
        # Golden steps, so that frames of one segment lie apart.
        row = int((0.3 + 0.618 * place) % 1 * (len(segment) - 1) * 0.85)
        frames.append(frame_with_path(segment, row))
    middle = len(segment) // 2
    looks = photometry_samples(segment, middle, config.photometry, rng, config.num_looks)
    return sheet(frames, 2), sheet(looks, 2)


def rows_of(figures: Mapping[str, Mapping[str, Any]]) -> list[list[str | int | float]]:
    """Return a row a split, in the order of `HEADINGS`."""
    return [
        [split, *("" if of[key] is None else of[key] for key in HEADINGS)]
        for split, of in figures.items()
    ]


def table_of(figures: Mapping[str, Mapping[str, Any]], title: str) -> RichTable:
    """Return the table for the terminal, a column a split."""
    table = RichTable(title=title)
    table.add_column("")
    for split in figures:
        table.add_column(split, justify="right")
    for key, name in HEADINGS.items():
        cells = ("" if of[key] is None else str(of[key]) for of in figures.values())
        table.add_row(name, *cells)
    return table


def about(path: Path, dataset: SegmentDataset, sources: Mapping[str, str]) -> str:
    """Say in a sentence or two what the file is and what of it could not be read."""
    kinds: Sequence[str] = sorted({kind_of(source) for source in sources.values()})
    words = f"{path}: {len(dataset)} segments from {', '.join(kinds)}."
    return f"{words} Left out: {dataset.left_out}." if dataset.left_out else words


def kind_of(source: str) -> str:
    """Say what a segment was recorded by."""
    try:
        known = json.loads(source)
    except ValueError:
        return "an unknown source"
    return known.get("simulator") or known.get("from") or "an unknown source"
