"""What a model starts from, where that is more than a file: the global model of a run, or central training."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from fedsim import models
from fedsim.errors import RunFolderError, ScenarioError
from fedsim.models import Start, central, weights
from fedsim.planning import inputs
from fedsim.planning.plan import Plan
from fedsim.presets import PRESETS
from fedsim.recording import environment
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import ModelPart, Scenario, StartPart
from fedsim.seeds import seeded
from fedsim.source import Pool

_WHERE = "model.pretrained"


def of(scenario: Scenario, auxiliary: Pool, trains: bool, plan_of: Callable[[Scenario], Plan]) -> Start | None:
    """Return what gives the scenario's model its weights; None where they are drawn, or those of a file.

    Args:
        scenario: the scenario.
        auxiliary: the images that central training may use.
        trains: whether to train centrally; the architecture alone is enough otherwise.
        plan_of: makes the plan of an earlier run, whose frozen weights no capture holds.

    Raises:
        ScenarioError: the folder holds no finished run.
    """
    start = scenario.model.start
    if start is None:
        return None
    if start.central is not None:
        return functools.partial(_train, scenario=scenario, auxiliary=auxiliary) if trains else _untrained
    if start.file is not None and Path(start.file).is_dir():
        return _of_run(Path(start.file), start, plan_of)
    return None


def _untrained(model: nn.Module) -> tuple[str, ...]:
    return ("model.pretrained: the model is trained centrally on the auxiliary images when the run begins.",)


def _train(model: nn.Module, scenario: Scenario, auxiliary: Pool) -> tuple[str, ...]:
    start = scenario.model.start
    assert start is not None and start.central is not None
    return central.train(model, start.central, auxiliary, scenario.seed, _identity(scenario.model))


def _identity(part: ModelPart) -> str:
    """Return what tells apart models of equal parameters: name, kwargs, first block, and the file of one's own factory."""
    target = PRESETS[part.name].target if part.name in PRESETS else part.name
    source = ""
    if ":" in target:
        file = inspect.getsourcefile(importlib.import_module(target.partition(":")[0]))
        source = "" if file is None else Path(file).read_text(encoding="utf-8")
    return json.dumps([part.name, part.kwargs, part.first_block, source], sort_keys=True)


def like(before: Plan) -> Start:
    """Return what gives a model the weights that a planned run begins with, to check that those it ends with will fit."""
    content = dict(_plain(before.model(), before.scenario).state_dict())
    return functools.partial(weights.take, content=content, source=f"the run {before.scenario.name}")


def _plain(model: nn.Module, scenario: Scenario) -> nn.Module:
    """Return a model with its changes of low rank added to the weights."""
    if scenario.model.lora is None:
        return model
    with seeded(scenario.seed, "merged"):  # new layers draw weights, which they do not keep
        return models.merged(model)


def _of_run(path: Path, start: StartPart, plan_of: Callable[[Scenario], Plan]) -> Start:
    try:
        folder = RunFolder.open(path)
        if environment.is_observed(path):
            raise ScenarioError(
                _WHERE, f"{path} was observed, and holds no final model. Give a weights file of the app."
            )
        scenario = folder.scenario()
        if not folder.has_model():
            rounds, done = scenario.federation.rounds, max((line.round for line in folder.read_rounds()), default=0)
            raise ScenarioError(
                _WHERE,
                f"{path} is not finished: {done} of {rounds} rounds. Complete it first: fedsim run --resume {path}.",
            )
        content = _whole(folder, scenario, plan_of)
    except RunFolderError as error:
        raise ScenarioError(_WHERE, str(error)) from None
    origin = f"the global model of the run {path} after its last round, {scenario.federation.rounds}"
    note = f"{_WHERE}: starts from {origin} (SHA-256 {str(folder.model_digest())[:12]})."

    def fill(model: nn.Module) -> tuple[str, ...]:
        return (note, *weights.take(model, content, str(path), path.name, start.patches))

    return fill


def _whole(folder: RunFolder, scenario: Scenario, plan_of: Callable[[Scenario], Plan]) -> dict[str, Tensor]:
    """Return the final global model of a run, with the weights that it froze and without an adapter beside them."""
    content = folder.read_model()
    frozen = inputs.frozen_of(folder)
    if frozen is None:
        return content
    plan = plan_of(scenario)
    if plan.frozen_digest() != frozen:
        raise ScenarioError(
            _WHERE,
            f"{folder.path}: the weights that this run froze cannot be made again as they were. Give another run.",
        )
    return dict(_plain(plan.model(content), scenario).state_dict())
