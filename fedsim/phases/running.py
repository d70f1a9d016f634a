"""Phases from the first that has not finished to the last: a kill at any moment leaves a folder that goes on."""

from __future__ import annotations

from collections.abc import Callable

from fedsim.phases import rendering
from fedsim.phases.folder import Entry, PhasesFolder
from fedsim.recording.folder_lock import FolderLock
from fedsim.recording.run_folder import RunFolder


def run(folder: PhasesFolder, complete: Callable[[Entry, RunFolder], None]) -> None:
    """Run the phases that have not finished, in order; the index of all is written after each.

    Args:
        folder: of the phases.
        complete: trains, audits and reports the run of a phase, from where its folder ends.

    Raises:
        RunFolderError: another process works on the phases, or the manifest is damaged.
        FedsimError: a phase cannot go on; those behind it have not begun.
    """
    with FolderLock(folder.path).held():
        manifest = folder.read()
        for index, entry in enumerate(manifest.phases):
            # One whose run folder is gone is run again.
            if entry.status == "finished" and folder.has_begun(entry):
                continue
            complete(entry, folder.open(manifest, index))
            phases = list(manifest.phases)
            phases[index] = entry.model_copy(update={"status": "finished"})
            manifest = manifest.model_copy(update={"phases": tuple(phases)})
            folder.write(manifest)
            rendering.render(folder)
