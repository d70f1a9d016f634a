"""The comparison of runs and sweeps, a pure function of their folders: compare.html, compare.csv, compare.json, compare.tex."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.comparing.rendering import Compared

__all__ = ["compare", "default_folder"]


def default_folder(folders: Sequence[Path]) -> Path:
    """Return where a comparison is written: into the folder of a single sweep, else comparison/."""
    from fedsim.sweeping.manifest import SweepFolder

    return folders[0] if len(folders) == 1 and SweepFolder(folders[0]).is_sweep() else Path("comparison")


def compare(folders: Sequence[Path], out: Path, margin: float, baseline: str | None = None) -> Compared:
    """Compare runs and sweeps; see `fedsim.comparing.rendering.render`."""
    # The plots take a second to import.
    from fedsim.comparing.rendering import render

    return render(folders, out, margin, baseline)
