"""What a model starts from, where that is more than a file: the global model of a run, or central training."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from fedsim import models, plugins
from fedsim.errors import RunFolderError, ScenarioError
from fedsim.models import Start, central, weights
from fedsim.planning import inputs
from fedsim.planning.plan import Plan
from fedsim.presets import PRESETS
from fedsim.recording import environment
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import ModelPart, Scenario, StartPart
from fedsim.seeds import seeded
from fedsim.source import Pool, Source

_WHERE = "model.pretrained"
_BOTTLENECK = ".bottleneck."


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
        return functools.partial(_train if trains else _untrained, scenario=scenario, auxiliary=auxiliary)
    run = scenario.model.start_run
    return None if run is None else _of_run(run, start, scenario, plan_of)


def _untrained(model: nn.Module, scenario: Scenario, auxiliary: Pool) -> tuple[str, ...]:
    start = scenario.model.start
    assert start is not None and start.central is not None
    central.check(model, start.central, auxiliary, scenario.seed)
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


def like(before: Plan, scenario: Scenario) -> Start:
    """Return what gives a model the weights that a planned run begins with, to check that those it ends with will fit.

    Raises:
        ScenarioError: images that the run before trains on may be here for tests; see `_check_images`.
    """
    content = _without_bottleneck(dict(_plain(before.model(), before.scenario).state_dict()))
    notes = _check_images(scenario, before.scenario)

    def fill(model: nn.Module) -> tuple[str, ...]:
        return (*notes, *weights.take(model, content, f"the run {before.scenario.name}"))

    return fill


def _check_images(now: Scenario, before: Scenario) -> tuple[str, ...]:
    """Check that no image is here for tests, controls or attackers that the clients of an earlier run trained on.

    Returns:
        Notes, where that cannot be known: the images are of another source.

    Raises:
        ScenarioError: the same source is divided another way; or images that nobody trained on are granted, and it is not known
            which these are.
    """
    source: type[Source] = plugins.load(plugins.find("data", now.data.name, "data.name"), Source, "data.name")
    own, other = now.data.params, before.data.params
    keys = [key for key in {**own, **other} if own.get(key) != other.get(key) and key != "image_size"]
    # A text names another place or set; numbers and switches divide the images of the same one.
    is_other = now.data.name != before.data.name or any(
        isinstance(value, str) for key in keys for value in (own.get(key), other.get(key))
    )
    if is_other:
        if "candidates" in now.threat.grants:
            raise ScenarioError(
                "threat.grants",
                f"candidates: the run before took its images from {before.data.name}, and whether its clients trained on those "
                "that nobody trains on here is not known. Leave the grant out.",
            )
        return (
            f"{_WHERE}: the run before took its images from another source ({before.data.name}); whether images that are here "
            "for tests, controls and attackers are among those that its clients trained on is not known.",
        )
    if source.is_drawn:
        return ()
    differing = [f"data.{key}" for key in keys] + (["seed"] if now.seed != before.seed else [])
    if differing:
        raise ScenarioError(
            differing[0],
            "differs from the run that the model starts from, so that the same images are divided another way, and its clients "
            f"may have trained on images that are here for tests and controls. Leave {' and '.join(differing)} as there.",
        )
    return ()


def _without_bottleneck(content: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without PRECODE's bottleneck and the classifier behind it: both are drawn anew."""
    heads = tuple({f"{name.partition(_BOTTLENECK)[0]}." for name in content if _BOTTLENECK in name})
    return {name: tensor for name, tensor in content.items() if not heads or not name.startswith(heads)}


def _plain(model: nn.Module, scenario: Scenario) -> nn.Module:
    """Return a model with its changes of low rank added to the weights."""
    if scenario.model.lora is None:
        return model
    with seeded(scenario.seed, "merged"):  # new layers draw weights, which they do not keep
        return models.merged(model)


def _of_run(path: Path, start: StartPart, now: Scenario, plan_of: Callable[[Scenario], Plan]) -> Start:
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
        notes = _check_images(now, scenario)
        content = _without_bottleneck(_whole(folder, scenario, plan_of))
    except RunFolderError as error:
        raise ScenarioError(_WHERE, str(error)) from None
    origin = f"the global model of the run {path} after its last round, {scenario.federation.rounds}"
    note = f"{_WHERE}: starts from {origin} (SHA-256 {str(folder.model_digest())[:12]})."

    def fill(model: nn.Module) -> tuple[str, ...]:
        return (note, *notes, *weights.take(model, content, str(path), path.name, start.patches))

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
