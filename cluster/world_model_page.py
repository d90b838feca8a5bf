"""The report on a world model, as people read it. It does not know how the figures were found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.curve_plot import Panel, draw_curves
from cluster.report import Part, Picture, Table, Text, Video, write_report
from world_model.judge import KINDS, Deviation, Followed

UNITS = {
    "psnr": "PSNR, dB",
    "lpips_alex": "LPIPS (AlexNet)",
    "lpips_squeeze": "LPIPS (SqueezeNet)",
    "drift": "Frechet distance",
    "off_pose": "m off the pose",
    "off_heading": "rad off the heading",
}


def write_page(
    output: Path,
    about: str,
    report_frames: Sequence[int],
    figures: Mapping[str, Any],
    followed: Followed,
    deviations: Mapping[str, Sequence[Deviation]],
    recoveries: Mapping[str, Mapping[str, float]],
) -> None:
    """Write `report.html`, and its plots beside it."""
    plots = {
        "images.png": draw_curves(image_panels(followed)),
        "deviation.png": draw_curves(deviation_panels(deviations["recordings"])),
    }
    for name, png in plots.items():
        (output / name).write_bytes(png)
    rows = [[name, "none" if value is None else value] for name, value in figures.items()]
    parts: list[Part] = [
        Text(text=about),
        Table(header=("figure", "value"), rows=rows, heading="Figures"),
        Table(
            header=(
                "frame",
                *(f"{kind}: {UNITS[m]}" for kind in KINDS for m in followed.curves[kind]),
            ),
            rows=[
                [n, *(float(c[n - 1]) for kind in KINDS for c in followed.curves[kind].values())]
                for n in report_frames
            ],
            heading="By frame",
        ),
        Picture(png=plots["images.png"], heading="What it shows, frame by frame"),
        Video(source="rollout.mp4", heading="Recorded, and generated below it"),
        Table(
            header=(
                "where",
                "commanded peak, m",
                "realised share",
                "share that the pose net sees in truth",
                *deviations["recordings"][0].errors,
            ),
            rows=[
                [kind, d.peak, *d.shares, *d.errors.values()]
                for kind, found in deviations.items()
                for d in found
            ],
            heading="Commanded deviation; in MetaDrive against true pictures",
        ),
        Picture(png=plots["deviation.png"], heading="Metres beside the recording, mean of scenes"),
        *(
            Video(source=f"deviation_{d.peak:+g}_m.mp4", heading=f"{d.peak:+g} m commanded")
            for d in deviations["recordings"]
        ),
        *(
            [Video(source="metadrive.mp4", heading="In MetaDrive: true, and generated below it")]
            if "MetaDrive" in deviations
            else []
        ),
        Table(
            header=("plan", *recoveries["anchored"]),
            rows=[[name, *left.values()] for name, left in recoveries.items()],
            heading="What is left of an offset of 1 m along the plan, m",
        ),
    ]
    write_report(output / "report.html", "World model", parts)


def image_panels(followed: Followed) -> list[Panel]:
    """Return a panel a metric, a curve a kind."""
    metrics = followed.curves[KINDS[-1]]
    return [
        Panel(
            title=UNITS[metric],
            label="frame",
            curves={
                kind: followed.curves[kind][metric]
                for kind in KINDS
                if metric in followed.curves[kind]
            },
        )
        for metric in metrics
    ]


def deviation_panels(deviations: Sequence[Deviation]) -> list[Panel]:
    """Return a panel an excursion."""
    return [
        Panel(
            title=f"{d.peak:+g} m commanded",
            label="frame",
            curves={
                "commanded": d.commanded.mean(0).numpy(),
                "generated": d.seen.mean(0).numpy(),
                "true pictures": d.in_truth.mean(0).numpy(),
            },
        )
        for d in deviations
    ]
