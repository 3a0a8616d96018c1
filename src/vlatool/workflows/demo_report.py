"""HTML page of the demo: one file that includes its images."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlatool.artifacts.run.format import RunDir, read_metrics
from vlatool.episode import Episode
from vlatool.pages.layout import Html, Section, escape, page, table
from vlatool.sources.spartan.config import SpartanConfig
from vlatool.sources.spartan.reader import SpartanReader
from vlatool.storage.atomic import write_text

_STRIP_FRAMES = 8
_STRIP_PX = 112
_CHART = (640, 200)
_BAR = (
    '<div style="background:var(--line);width:14rem;height:.7rem;border-radius:.35rem">'
    '<div style="background:var(--c2);height:100%;border-radius:.35rem;width:{:.0f}%"></div></div>'
)


def write_demo_report(
    path: Path, result: Mapping[str, Any], raw: Path, run: Path, sheets: Mapping[str, Path]
) -> None:
    """Writes the page."""
    sections = [
        Section("Success rate", _success_table(result)),
        Section("Rollouts", _image_file(sheets["policy"], "rollouts of the trained policy")),
        Section(
            "Wrong instruction",
            _wrong_instruction(result)
            + _image_file(sheets["wrong"], "rollouts with a wrong instruction"),
        ),
        Section("Training data", _first_episode(raw)),
        Section("Training", _loss_chart(read_metrics(RunDir(run).metrics)) + _info(result)),
    ]
    write_text(path, page("vlatool demo", _headline(result), sections, generator="vlatool demo"))


def _headline(result: Mapping[str, Any]) -> str:
    return (
        f"A policy trained on {result['episodes']} episodes gets images, the pose of the hand and "
        "an instruction. It puts the block of the instruction into the bin in "
        f"{100 * result['success_rate']:.0f} % of {result['rollouts']} episodes with new initial "
        f"states. The whole demo took {result['seconds']:.0f} seconds."
    )


def _success_table(result: Mapping[str, Any]) -> str:
    low, high = result["confidence_95"]
    rows = [
        ("Trained policy", result["success_rate"], f"95 % interval {low:.0%} to {high:.0%}"),
        *(
            (f"\N{EM SPACE}{instruction}", report["success_rate"], f"{report['episodes']} episodes")
            for instruction, report in result["per_instruction"].items()
        ),
        ("Random actions", result["baselines"]["random"], "same initial states"),
        ("No motion", result["baselines"]["do_nothing"], "same initial states"),
    ]
    note = f"Seed {result['seed']}; results of other seeds differ: "
    command = f"<code>{escape(result['command'])}</code>"
    return _rate_table(rows) + f"<p class='quiet'>{note}{command}</p>"


def _wrong_instruction(result: Mapping[str, Any]) -> str:
    text = (
        "<p>The initial states are the same, but the instruction names another block than the "
        "goal of the environment. A policy that follows its instruction puts the block of the "
        "instruction into the bin and so fails the goal.</p>"
    )
    rows = [
        ("Block of the instruction", result["obeyed_wrong_instruction_rate"], "ends the episode"),
        ("Block of the goal", result["wrong_instruction_success_rate"], "at any time"),
    ]
    return text + _rate_table(rows)


def _rate_table(rows: Sequence[tuple[str, float, str]]) -> str:
    cells = [
        (label, f"{100 * rate:.0f} %", Html(_BAR.format(100 * rate)), note)
        for label, rate, note in rows
    ]
    return table((), cells, numbers=(1,))


def _first_episode(raw: Path) -> str:
    """Strips of images of the cameras of the first raw episode."""
    reader = SpartanReader(SpartanConfig())
    episode = reader.read(next(iter(reader.discover([raw]))))
    sentence = escape(episode.language["original"][0])
    strips = "".join(
        f"<p class='quiet'>{escape(name)}</p>{_strip(episode, name)}" for name in episode.cameras
    )
    text = f"“{sentence}”, {episode.num_frames} frames at {episode.fps:.0f} per second"
    return f"<p>First episode: {text}.</p>{strips}"


def _strip(episode: Episode, camera: str) -> str:
    last = episode.num_frames - 1
    frames = [round(i * last / (_STRIP_FRAMES - 1)) for i in range(_STRIP_FRAMES)]
    strip = Image.new("RGB", (_STRIP_FRAMES * (_STRIP_PX + 4) - 4, _STRIP_PX), "white")
    for position, image in enumerate(episode.cameras[camera].read(frames)):
        tile = Image.fromarray(image).resize((_STRIP_PX, _STRIP_PX), Image.Resampling.BICUBIC)
        strip.paste(tile, (position * (_STRIP_PX + 4), 0))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG", optimize=True)
    return _image(buffer.getvalue(), f"images of {camera}")


def _loss_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Training loss on a logarithmic scale, as inline SVG."""
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


def _info(result: Mapping[str, Any]) -> str:
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["stages"].items())
    return (
        f"<p>{result['parameters'] / 1e6:.2f} million parameters, {result['steps']} steps over "
        f"{result['samples']} samples. Time: {escape(stages)}.</p>"
        "<p class='quiet'>Each stage is a command; <code>vlatool demo</code> prints them.</p>"
    )


def _image_file(path: Path, description: str) -> str:
    return _image(path.read_bytes(), description)


def _image(data: bytes, description: str) -> str:
    encoded = base64.b64encode(data).decode()
    source = f"data:image/png;base64,{encoded}"
    return f'<img style="max-width:100%" alt="{escape(description)}" src="{source}">'
