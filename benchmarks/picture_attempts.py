"""One attack on one batch, ours or breaching's: named on a command line, run, timed and scored."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from typing import Any, NamedTuple

from breaching_pictures import iterations_within, reconstruct
from picture_cases import METRICS, Case
from picture_results import Row

from fedsim import plugins
from fedsim.attack import Attack
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, HardLabels
from fedsim.metrics.scoring import score
from fedsim.seeds import torch_generator

PEER = "breaching:"


class Method(NamedTuple):
    """One attack of the command line.

    Args:
        label: as it was written.
        name: of the plug-in, or `breaching:CONFIG`.
        params: of the plug-in, all of them; of breaching the overrides.
        attack: the plug-in; None for breaching's.
    """

    label: str
    name: str
    params: dict[str, Any]
    attack: Attack | None


def named(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and parameters of `NAME` or `NAME:{json}`."""
    name, brace, rest = text.partition(":{")
    return name, json.loads("{" + rest) if brace else {}


def method(text: str) -> Method:
    """Return the attack that a text names.

    Raises:
        ScenarioError: there is none, or it does not take these parameters.
    """
    name, params = named(text)
    if name.startswith(PEER):
        return Method(text, name, params, None)
    attack: Attack = plugins.build("attacks", Attack, name, params, "attack")
    return Method(text, name, dataclasses.asdict(attack), attack)


def recovered_labels(case: Case) -> HardLabels:
    """Return the labels that `label_recovery` finds in a gradient."""
    attack: Attack = plugins.build("attacks", Attack, "label_recovery", {}, "attack")
    found = attack.run(case.observation, torch_generator(case.number, "labels"))
    assert found.labels is not None
    return found.labels


def attempt(case: Case, chosen: Method, seed: int, budget: float | None) -> tuple[Finding, Row]:
    """Return what one attack finds in one gradient, and how long that took.

    Raises:
        AttackRefusedError: the attack cannot work on this gradient.
    """
    facts: Row = {}
    if chosen.attack is not None:
        start, worked = time.perf_counter(), time.process_time()
        finding = chosen.attack.run(case.observation, torch_generator(seed, "attack", chosen.name, case.number))
    else:
        assert budget is not None
        labels, config = recovered_labels(case), chosen.name.removeprefix(PEER)
        count = iterations_within(budget, case.observation, labels, config, chosen.params)
        start, worked = time.perf_counter(), time.process_time()
        made = reconstruct(case.observation, labels, config, chosen.params, count, seed=case.number)
        finding = Finding(images=made.images, labels=labels)
        facts = {"iterations": count, "objective": made.objective}
    took = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - worked}
    return finding, facts | {name: round(value, 2) for name, value in took.items()}


def scored(case: Case, finding: Finding) -> Row:
    """Return the scores of a finding, of every image in the batch's order, and what it says of itself.

    Raises:
        AttackRefusedError: it holds no images.
    """
    found = score([*METRICS, "label_recall"], finding, case.truth)
    if "psnr" not in found:
        raise AttackRefusedError("the attack returned no images.")
    pictures = {name: [round(value, 4) for value in found[name].per_example or ()] for name in METRICS}
    recall = {"label_recall": found["label_recall"].value} if "label_recall" in found else {}
    plain = {name: value for name, value in finding.trace.items() if isinstance(value, int | float | str)}
    trace = {name: value for name, value in plain.items() if isinstance(value, str) or math.isfinite(value)}
    return {**pictures, **recall, "trace": trace, "cautions": list(finding.cautions)}
