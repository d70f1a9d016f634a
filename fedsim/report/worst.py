"""The image that leaks most, for the first screen of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fedsim.findings.kinds import IMAGES
from fedsim.report.gallery import ORIGINAL, Display, Strip
from fedsim.report.overview import Entry, severity
from fedsim.verdicts.judge import ORDER, Verdict


class Worst(NamedTuple):
    """The worst case: where it is, and its strips, the original first where it is known."""

    client: int
    round: int
    defenses: str
    verdict: Verdict
    strips: tuple[Strip, ...]


def worst(lines: Sequence[Entry], displays: Sequence[Display]) -> Worst | None:
    """Return the image of the line that leaks most beyond a blind guess; None where the page shows none of any line.

    Args:
        lines: all of the first table.
        displays: the images that the page shows.
    """
    panels = {(display.client, panel.round): (display, panel) for display in displays for panel in display.panels}
    looking = [line for line in lines if line.kind == IMAGES.name and not line.summary.is_control and line.judge.peak]
    for line in sorted(looking, key=lambda line: (-ORDER.index(line.verdict), -severity(line.judge))):
        peak = line.judge.peak
        if peak is None or (peak.client, peak.round) not in panels:
            continue
        display, panel = panels[peak.client, peak.round]
        strips = tuple(strip for strip in panel.strips if strip.title in (ORIGINAL, line.summary.attack))
        if any(strip.title != ORIGINAL for strip in strips):
            return Worst(peak.client, peak.round, display.defenses, line.verdict, strips)
    return None
