"""The demo's HTML page: one file, pictures inside, all numbers as measured."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlatool.artifacts.run_dir import RunDir, read_metrics
from vlatool.episode import Episode
from vlatool.sources.spartan.config import SpartanConfig
from vlatool.sources.spartan.reader import SpartanReader
from vlatool.storage.atomic import write_text

_STRIP_FRAMES = 8
_STRIP_PX = 112
_CHART = (640, 200)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fbfbf9; margin: 0; }
main { max-width: 1000px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { max-width: 46rem; } .quiet { color: #666; }
table { border-collapse: collapse; } td, th { padding: .3rem 1.2rem .3rem 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr + tr td { border-top: 1px solid #e4e4de; }
.bar { background: #e4e4de; width: 14rem; height: .7rem; border-radius: .35rem; overflow: hidden; }
.bar div { background: #2e7d32; height: 100%; }
img { max-width: 100%; border: 1px solid #e4e4de; border-radius: 4px; background: #fff; }
svg { background: #fff; border: 1px solid #e4e4de; border-radius: 4px; max-width: 100%; }
code { background: #efefe9; padding: .1rem .3rem; border-radius: 3px; font-size: .9em; }
"""


def write_demo_report(
    path: Path, result: Mapping[str, Any], raw: Path, run: Path, sheets: Mapping[str, Path]
) -> None:
    """Writes the page.

    Args:
        path: HTML file.
        result: Document of the demo's result.
        raw: Folder with the recorded episodes.
        run: Run folder.
        sheets: Contact sheets `policy` and `wrong`.
    """
    sections = [
        _headline(result),
        _section("How often it works", _success_table(result)),
        _section("What it does", _picture(sheets["policy"], "rollouts of the trained policy")),
        _section(
            "Does it listen?",
            _listening(result) + _picture(sheets["wrong"], "rollouts with another instruction"),
        ),
        _section("What it learned from", _recording(raw)),
        _section("How it learned", _loss_chart(read_metrics(RunDir(run).metrics)) + _facts(result)),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>vlatool demo</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )
    write_text(path, page)


def _headline(result: Mapping[str, Any]) -> str:
    return (
        "<h1>vlatool demo</h1>"
        f"<p>A policy trained on {result['episodes']} recorded episodes, from pictures, the hand's "
        "pose and a sentence, puts the named block into the bin in "
        f"<strong>{100 * result['success_rate']:.0f} %</strong> of {result['rollouts']} starts "
        f"it has never seen. Everything took {result['seconds']:.0f} seconds.</p>"
    )


def _success_table(result: Mapping[str, Any]) -> str:
    low, high = result["confidence_95"]
    rows = [
        ("Trained policy", result["success_rate"], f"95 % interval {low:.0%} to {high:.0%}"),
        *(
            (f"&emsp;{html.escape(told)}", one["success_rate"], f"{one['episodes']} starts")
            for told, one in result["per_instruction"].items()
        ),
        ("Random actions", result["baselines"]["random"], "same starts"),
        ("Doing nothing", result["baselines"]["do_nothing"], "same starts"),
    ]
    return _rate_table(rows)


def _listening(result: Mapping[str, Any]) -> str:
    text = (
        "<p>The same starts, but the policy is told of another block than the one that counts. "
        "A policy that listens fails the true goal and puts the block it was told of into the "
        "bin.</p>"
    )
    rows = [
        ("The block it was told of", result["obeyed_wrong_instruction_rate"], "ends the episode"),
        ("The block that counts", result["wrong_instruction_success_rate"], "at any time"),
    ]
    return text + _rate_table(rows)


def _rate_table(rows: Sequence[tuple[str, float, str]]) -> str:
    cells = "".join(
        f"<tr><td>{label}</td><td class='number'>{100 * rate:.0f} %</td>"
        f"<td><div class='bar'><div style='width:{100 * rate:.0f}%'></div></div></td>"
        f"<td class='quiet'>{note}</td></tr>"
        for label, rate, note in rows
    )
    return f"<table>{cells}</table>"


def _recording(raw: Path) -> str:
    """A strip of pictures of each camera of the first recorded episode."""
    reader = SpartanReader(SpartanConfig())
    episode = reader.read(next(iter(reader.discover([raw]))))
    sentence = html.escape(episode.language["original"][0])
    strips = "".join(
        f"<p class='quiet'>{html.escape(name)}</p>{_strip(episode, name)}"
        for name in episode.cameras
    )
    text = f"“{sentence}”, {episode.num_frames} frames at {episode.fps:.0f} per second"
    return f"<p>The first recording: {text}.</p>{strips}"


def _strip(episode: Episode, camera: str) -> str:
    last = episode.num_frames - 1
    frames = [round(i * last / (_STRIP_FRAMES - 1)) for i in range(_STRIP_FRAMES)]
    strip = Image.new("RGB", (_STRIP_FRAMES * (_STRIP_PX + 4) - 4, _STRIP_PX), "white")
    for position, picture in enumerate(episode.cameras[camera].read(frames)):
        tile = Image.fromarray(picture).resize((_STRIP_PX, _STRIP_PX), Image.Resampling.BICUBIC)
        strip.paste(tile, (position * (_STRIP_PX + 4), 0))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG", optimize=True)
    return _image(buffer.getvalue(), f"pictures of {camera}")


def _loss_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """The training loss on a logarithmic scale, as inline SVG."""
    import math

    points = [(float(row["step"]), math.log10(max(float(row["loss"]), 1e-9))) for row in rows]
    if len(points) < 2:
        return ""
    width, height = _CHART
    top = max(y for _, y in points)
    bottom = min(y for _, y in points)
    span = max(top - bottom, 1e-6)
    last = points[-1][0]
    path = " ".join(
        f"{50 + (width - 70) * x / last:.1f},{15 + (height - 50) * (top - y) / span:.1f}"
        for x, y in points
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="loss">'
        f'<polyline fill="none" stroke="#1565c0" stroke-width="1.5" points="{path}"/>'
        f'<g font-size="12" fill="#666"><text x="8" y="20">{10**top:.2g}</text>'
        f'<text x="8" y="{height - 32}">{10**bottom:.2g}</text>'
        f'<text x="50" y="{height - 10}">loss over {last:.0f} steps (logarithmic)</text></g></svg>'
    )


def _facts(result: Mapping[str, Any]) -> str:
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["stages"].items())
    return (
        f"<p>{result['parameters'] / 1e6:.2f} million parameters, {result['steps']} steps over "
        f"{result['samples']} samples. Time: {html.escape(stages)}.</p>"
        "<p class='quiet'>Each stage is a command; <code>vlatool demo</code> prints them.</p>"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _picture(path: Path, description: str) -> str:
    return _image(path.read_bytes(), description)


def _image(data: bytes, description: str) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{encoded}">'
