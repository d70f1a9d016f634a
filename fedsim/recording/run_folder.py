"""The run folder: what capture, audit and report hand to one another.

    scenario.yaml            resolved scenario
    environment.json         versions, platform, where each package was imported from
    inputs.json              what the captures were made from: settings, digests of the data, and the run's name
    captures/index.jsonl     one line per file or failed client, with a SHA-256; one for the final weights too
    captures/round-0001/     global.safetensors and client-000.safetensors: the wire, verbatim; what the server refused
                             is in rejected-client-000.safetensors, what a client's defenses keep for its
                             next round in state-client-000.safetensors
    captures/removed.jsonl   updates that audit.keep_updates has removed after their audit
    rounds.jsonl             one line per round: accuracy, loss, participants, failures, epsilon
    artifacts/               findings (safetensors), image strips and trajectories (PNG)
    records.jsonl            one line per attempt: see `fedsim.audit.auditor`
    calibrations.jsonl       one line per round, attack and workload: see `fedsim.audit.calibration`
    evaluations.jsonl        one line per round and evaluator: see `fedsim.audit.evaluation`
    mechanisms.jsonl         one line per client and claimed budget: see `fedsim.audit.budgets`

Folders and files can be read by their owner alone. Files appear under their name only when complete (written aside,
flushed, renamed). A line counts only when it ends with a newline; a half-written last line is cut off. So a kill at any
moment, or a full disk, leaves a folder that resumes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from fedsim.errors import RunFolderError
from fedsim.exchange import View
from fedsim.recording import environment, files, records
from fedsim.recording.captures import Captures
from fedsim.recording.files import DamagedFileError, write_atomically
from fedsim.recording.folder_lock import LOCK, FolderLock
from fedsim.recording.json_lines import JsonLines
from fedsim.recording.records import AnyRecord, Calibration, EvaluationRecord, MechanismRecord, Round
from fedsim.scenario import Scenario, parse, yaml_loader

PHASES = "phases.json"
"""The manifest of a folder that holds several runs, one after the other: see `fedsim.phases`."""


class RunFolder(Captures):
    """Paths, atomic writes and checked reads of one run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.rounds = JsonLines(path / "rounds.jsonl")
        self.records = JsonLines(path / "records.jsonl")
        self.calibrations = JsonLines(path / "calibrations.jsonl", path)
        self.evaluations = JsonLines(path / "evaluations.jsonl", path)
        self.mechanisms = JsonLines(path / "mechanisms.jsonl", path)
        self._lock = FolderLock(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return an existing run folder; that of an observed app may have no scenario yet.

        Raises:
            RunFolderError: there is none at `path`.
        """
        is_folder = path.is_dir()
        has_scenario = is_folder and files.is_file(path / "scenario.yaml", path)
        if not has_scenario and not (is_folder and environment.is_observed(path)):
            if is_folder and files.is_file(path / PHASES, path):
                found = [str(one.parent) for one in sorted(path.glob("*/scenario.yaml"))] or ["none has begun"]
                raise RunFolderError(f"{path}: holds phases, each a run of its own. Name one: {', '.join(found)}.")
            began = is_folder and _is_empty(path)
            advice = " Start the run anew, with fedsim run SCENARIO --out and this folder." if began else ""
            raise RunFolderError(f"{path}: not a run folder, it has no scenario.yaml.{advice}")
        return cls(path)

    def check(self) -> None:
        """Refuse lines that no fedsim wrote, before anything is added to them, and links where fedsim would write.

        Raises:
            RunFolderError: a line is no JSON object, of another schema, or does not hold what it must; or a part of the
                folder is a link, a pipe or the like.
        """
        for name in ("artifacts", "captures", "figures", "tables"):
            files.is_folder(self.path / name, self.path)
        for name in ("environment.json", "inputs.json", "truth.json", "report.html", "report.md"):
            files.is_file(self.path / name, self.path)
        self.read_rounds()
        self.read_records()
        self.read_calibrations()
        self.read_evaluations()
        self.read_mechanisms()
        self.index()

    @classmethod
    def create(cls, path: Path, scenario: Scenario | None) -> RunFolder:
        """Make a run folder with the resolved scenario in it, if there is one.

        What a run leaves that was killed before it had written its scenario does not count as something.

        Raises:
            RunFolderError: `path` already holds something, or cannot be made.
        """
        try:
            if path.exists() and not (path.is_dir() and _is_empty(path)):
                raise RunFolderError(f"{path}: already exists and is not empty. Name another, or use --resume.")
            path.mkdir(mode=files.OWNER_ONLY, parents=True, exist_ok=True)
            folder = cls(path)
            if scenario is not None:
                folder.write_scenario(scenario)
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be written: {error.strerror}.") from None
        return folder

    @property
    def name(self) -> str:
        """The folder's own name, which is the run's."""
        return self.path.resolve().name

    def scenario(self) -> Scenario:
        """Return the scenario of the run.

        Raises:
            RunFolderError: it cannot be read, or the run was observed without one.
            ScenarioError: it is no scenario.
        """
        path = self.path / "scenario.yaml"
        if not self.has_scenario():
            raise RunFolderError(
                f"{self.path}: was observed without a scenario. Name one: fedsim audit {self.path} --scenario FILE. It "
                "says at least the model of the app; README shows an example."
            )
        return parse(yaml_loader.parse(self.read_text(path), str(path), yaml_loader.RESOLVED), str(path))

    def has_scenario(self) -> bool:
        """Return whether the run has a scenario; an observed one may get it later."""
        return files.is_file(self.path / "scenario.yaml", self.path)

    def read_text(self, path: Path) -> str:
        """Return the text of a file of the folder.

        Raises:
            RunFolderError: it is missing, no text, or cannot be read.
        """
        content = files.read(path, self.path)
        if content is None:
            raise RunFolderError(f"{path}: no such file.")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise DamagedFileError(f"{path}: not UTF-8 text.") from None

    def write(self, path: Path, content: bytes | str) -> None:
        """Write a file of the folder atomically.

        Raises:
            RunFolderError: the way to it leads out of the folder, or something that is no file is there.
        """
        write_atomically(path, content, self.path)

    def write_scenario(self, scenario: Scenario) -> None:
        """Store the resolved scenario; for an observed app what was stated alone, since defaults say nothing about it."""
        content = scenario.stated() if environment.is_observed(self.path) else scenario.resolved()
        self.write(self.path / "scenario.yaml", yaml_loader.dump(content))

    def read_rounds(self) -> list[Round]:
        """Return the lines of rounds.jsonl.

        Raises:
            RunFolderError: a line is damaged, or of another schema.
        """
        return records.check(self.rounds.path, self.rounds.read(), Round)

    def read_records(self) -> list[AnyRecord]:
        """Return the lines of records.jsonl.

        Raises:
            RunFolderError: a line is damaged, or of another schema.
        """
        return records.check_records(self.records.path, self.records.read())

    def read_calibrations(self) -> list[Calibration]:
        """Return the lines of calibrations.jsonl.

        Raises:
            RunFolderError: a line is damaged, or of another schema.
        """
        return records.check(self.calibrations.path, self.calibrations.read(), Calibration)

    def read_evaluations(self) -> list[EvaluationRecord]:
        """Return the lines of evaluations.jsonl.

        Raises:
            RunFolderError: a line is damaged.
        """
        return records.check(self.evaluations.path, self.evaluations.read(), EvaluationRecord)

    def read_mechanisms(self) -> list[MechanismRecord]:
        """Return the lines of mechanisms.jsonl.

        Raises:
            RunFolderError: a line is damaged, or of another schema.
        """
        return records.check(self.mechanisms.path, self.mechanisms.read(), MechanismRecord)

    # Artifacts

    def artifact(self, view: View, name: str) -> Path:
        """Return the path of an artifact of an attempt on what a view shows."""
        place = self.path / "artifacts"
        if view.client is not None:
            return place / f"round-{view.round:04d}" / f"client-{view.client:03d}" / name
        # Of several updates there may be views of more and of fewer rounds or clients.
        stated = json.dumps([view.rounds, view.clients, view.is_sum]).encode()
        return place / f"{view.scope}-{hashlib.sha256(stated).hexdigest()[:12]}" / name

    def evaluation_artifact(self, round: int, name: str) -> Path:
        """Return the path of an artifact of an evaluation after a round."""
        return self.path / "artifacts" / f"round-{round:04d}" / "evaluations" / name

    def relative(self, path: Path) -> str:
        """Return a path inside the folder as records and reports name it."""
        return path.relative_to(self.path).as_posix()

    # Exclusion

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder against a second fedsim process; the lock ends with this process, however it ends.

        What a killed process was writing aside is removed. Whoever holds the lock may take it again.

        Raises:
            RunFolderError: another process holds it; see `FolderLock.held`.
        """
        return self._lock.held()


def _is_empty(path: Path) -> bool:
    """Return whether a folder holds nothing, or only what a process leaves that was killed as it began."""
    return all(file.name == LOCK or files.is_partial(file) for file in path.iterdir())
