"""Image strips of a run: originals beside what the attacks made of them, and how they came to it."""

from __future__ import annotations

import base64
import io
import struct
import warnings
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from PIL import Image

from fedsim.errors import RunFolderError
from fedsim.findings.kinds import IMAGES
from fedsim.metrics.ratings import scale
from fedsim.recording import files
from fedsim.recording.records import Record, RecordedTrajectory
from fedsim.recording.run_data import RunData
from fedsim.report.naming import NO_DEFENSE, Naming
from fedsim.strips import GAP
from fedsim.verdicts.scores import scored

ORIGINAL = "Original"
"""Title of what the client holds, beside the names of attacks."""

NOT_KNOWN = "defenses not known"
"""Of the clients of an observed app, where the auditor states none."""

_PSNR = scale("psnr")
_SHOWN_SIDE = 96
_STORED_SIDE = 128
_TRAJECTORY_SIDE = 64
_MOST_EMBEDDED = 16_000_000  # characters of images in one page; a panel is shown whole or not at all
# What Pillow raises for a damaged PNG, or one so large that it may be an attack.
_DAMAGE = (
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    EOFError,
    IndexError,
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Strip:
    """Images side by side, ready for a page.

    Args:
        title: `Original`, or the name of the attack.
        score: the attack's score in words; empty for originals.
        skill: how far the score is beyond the best blind control; empty where that is not known.
        link: path of the file inside the run folder, quoted for a link.
        source: data URI of the image, reduced where it was larger than the page shows.
        count: number of images in the strip.
        width: of the whole strip on the page, in CSS pixels.
        height: of the whole strip on the page, in CSS pixels.
        is_small: whether the page enlarges the images, so that pixels must stay sharp.
    """

    title: str
    score: str
    skill: str
    link: str
    source: str
    count: int
    width: int
    height: int
    is_small: bool


@dataclass(frozen=True)
class Trajectory:
    """How one attack came to its images: a column per frame, a row per image, the originals last.

    Args:
        title: name of the attack.
        steps: iteration of each column; that of the originals is not among them.
        psnr: of each column, in words; drawn by the auditor afterwards.
        link: path of the file inside the run folder, quoted for a link.
        source: data URI of the image, reduced where it was larger than the page shows.
        width: on the page, in CSS pixels.
        height: on the page, in CSS pixels.
        is_small: whether the page enlarges it, so that pixels must stay sharp.
    """

    title: str
    steps: tuple[int, ...]
    psnr: tuple[str, ...]
    link: str
    source: str
    width: int
    height: int
    is_small: bool


@dataclass(frozen=True)
class Panel:
    """One client in one round: originals first, where they are known, then each attack; below them the trajectories."""

    round: int
    strips: tuple[Strip, ...]
    trajectories: tuple[Trajectory, ...] = ()

    @property
    def size(self) -> int:
        """Characters that its images add to a page."""
        sources = [*(strip.source for strip in self.strips), *(trajectory.source for trajectory in self.trajectories)]
        return sum(map(len, sources))


@dataclass(frozen=True)
class Display:
    """All panels of one client."""

    client: int
    defenses: str
    panels: tuple[Panel, ...]

    @property
    def is_wide(self) -> bool:
        """Whether its strips need the whole width of the page."""
        return any(panel.trajectories or any(strip.count > 2 for strip in panel.strips) for panel in self.panels)


class Gallery(NamedTuple):
    """The images of a page.

    Args:
        displays: by client.
        left_out: clients whose images, in some round or in all, would have made the page too large.
        notes: what is missing or damaged, one sentence each.
    """

    displays: list[Display]
    left_out: tuple[int, ...]
    notes: list[str]


def gallery(
    run: RunData, naming: Naming, deciding: Mapping[int, Collection[int]], ranked: Iterable[int] = ()
) -> Gallery:
    """Return the images of each client in its first and last audited round and those that decide.

    Args:
        run: what the run folder holds.
        naming: names of its attacks and defenses.
        deciding: client -> the rounds that decide its verdicts.
        ranked: clients whose images come first where there are too many for one page.
    """
    shown = {"originals", "reconstructions"} if run.is_observed else {"originals"}
    by_client: dict[int, dict[int, list[Record]]] = {}
    for record in run.records:
        if shown & record.artifacts.keys():
            by_client.setdefault(record.client, {}).setdefault(record.round, []).append(record)
    found, left_out, embedded = list[Display](), list[int](), 0
    notes: dict[int, list[str]] = {client: [] for client in sorted(by_client)}
    for client in dict.fromkeys([*(client for client in ranked if client in by_client), *notes]):
        own, panels = by_client[client], list[Panel]()
        rounds = sorted({min(own), max(own), *deciding.get(client, ())} & own.keys())
        while len(panels) < len(rounds) and embedded < _MOST_EMBEDDED:
            panels.append(_panel(run.folder, naming, own[rounds[len(panels)]], notes[client]))
            embedded += panels[-1].size
        if len(panels) < len(rounds):
            left_out.append(client)
        defenses = naming.defenses(own[min(own)][0])
        if run.is_observed and defenses == NO_DEFENSE:
            defenses = NOT_KNOWN
        if panels:
            found.append(Display(client, defenses, tuple(panels)))
    found.sort(key=lambda display: display.client)
    return Gallery(found, tuple(sorted(left_out)), list(dict.fromkeys(chain.from_iterable(notes.values()))))


def _panel(folder: Path, naming: Naming, records: Sequence[Record], notes: list[str]) -> Panel:
    originals = records[0].artifacts.get("originals")
    strips = [] if originals is None else [strip_of(folder, originals, ORIGINAL, ("", ""), notes)]
    trajectories = []
    for record in records:
        title = naming.attack(record)
        if "reconstructions" in record.artifacts:
            strips.append(strip_of(folder, record.artifacts["reconstructions"], title, _score(record), notes))
        if record.trajectory is not None and "film" in record.artifacts:
            trajectories.append(_trajectory(folder, record.artifacts["film"], title, record.trajectory, notes))
    return Panel(
        records[0].round,
        tuple(strip for strip in strips if strip is not None),
        tuple(trajectory for trajectory in trajectories if trajectory is not None),
    )


def _score(record: Record) -> tuple[str, str]:
    """Return the first image score of an attempt and its skill, both in words."""
    for metric in record.scores:
        if scale(metric).kind is IMAGES:
            for one in scored([record], metric):
                written = scale(metric)
                gained = "" if one.skill is None else written.write(one.skill, True)
                return f"{written.title} {written.write(one.value)}", gained
    return "", ""


def strip_of(folder: Path, relative: str, title: str, score: tuple[str, str], notes: list[str]) -> Strip | None:
    """Return a file of a run folder as a strip; None where it cannot be shown, and then a note says why.

    Args:
        folder: the run folder.
        relative: path in it.
        title: of the strip.
        score: of it and its skill, in words.
        notes: is added to.
    """
    picture = _opened(folder, relative, notes)
    if picture is None:
        return None
    side = picture.height
    count = max(1, round(picture.width / side))
    enlarged = max(1, round(_SHOWN_SIDE / side)) * side if side <= _STORED_SIDE else _STORED_SIDE
    if side > _STORED_SIDE:
        picture = _reduced(picture, count * _STORED_SIDE, _STORED_SIDE)
    return Strip(
        title=title,
        score=score[0],
        skill=score[1],
        link=quote(relative),
        source=_source(picture),
        count=count,
        width=count * enlarged,
        height=enlarged,
        is_small=enlarged > side,
    )


def _trajectory(
    folder: Path, relative: str, title: str, recorded: RecordedTrajectory, notes: list[str]
) -> Trajectory | None:
    picture, steps = _opened(folder, relative, notes), recorded.shown
    if picture is None:
        return None
    drawn = dict(zip(recorded.steps, recorded.psnr, strict=True))
    psnr = tuple("not known" if drawn.get(step) is None else _PSNR.write(drawn[step]) for step in steps)
    side = picture.width / (len(steps) + 1 + GAP)
    factor = max(1, round(_TRAJECTORY_SIDE / side)) if side <= _TRAJECTORY_SIDE else _TRAJECTORY_SIDE / side
    width, height = round(picture.width * factor), round(picture.height * factor)
    if factor < 1:
        picture = _reduced(picture, width, height)
    return Trajectory(title, steps, psnr, quote(relative), _source(picture), width, height, factor > 1)


def _opened(folder: Path, relative: str, notes: list[str]) -> Image.Image | None:
    path = folder / relative
    try:
        content = files.read(path, folder)
    except RunFolderError as error:
        notes.append(f"{relative}: {str(error).removeprefix(f'{path}: ').rstrip('.')}, not shown.")
        return None
    if content is None:
        notes.append(f"{relative}: no such file.")
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
                shown = picture.convert(picture.mode if picture.mode in ("L", "RGB") else "RGB")
                shown.info.clear()
                return shown
    except _DAMAGE:
        notes.append(f"{relative}: not readable as a PNG.")
    return None


def _reduced(picture: Image.Image, width: int, height: int) -> Image.Image:
    return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _source(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
