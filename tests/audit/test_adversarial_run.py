"""Adversarial training hides nothing: what its clients trained on is found, and with that their own images."""

import json

import audits
import pytest

from fedsim import simulation
from fedsim.planning import preparation as planning
from fedsim.recording.run_folder import RunFolder
from fedsim.report import overview, reading
from fedsim.report.summaries import by_client
from fedsim.scenario import parse
from fedsim.verdicts.judge import Judge

ON_PERTURBED = ["adversarial_training", "fast"]
RECIPES = [*ON_PERTURBED, "trades", "mart"]
PLAIN, ROUNDED = len(RECIPES), len(RECIPES) + 1
FLOOR = 30.0  # 20 log10(255 / 8) is 30.07


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a run in which each recipe has a client, one client has none, and one rounds its update to fp16."""
    raw = {
        "name": "adversarial",
        "engine": "inline",
        "data": {"name": "shapes", "samples": 40, "test_samples": 8, "auxiliary_samples": 24},
        "model": "vit_nano",
        "federation": {"clients": ROUNDED + 1, "rounds": 1},
        "training": {"batch_size": 1},
        "defenses": [
            *({"name": name, "clients": [client]} for client, name in enumerate(RECIPES)),
            {"name": "adversarial_training", "clients": [ROUNDED], "params": {"ard": True, "prm": True, "rise": 0.0}},
            {"name": "quantization", "clients": [ROUNDED], "params": {"format": "fp16"}},
        ],
        "attacks": ["patch_embedding"],
        "audit": {"processes": 0, "calibrate": "none"},
    }
    plan = planning.make(parse(raw, "scenario"))
    made = RunFolder.create(tmp_path_factory.mktemp("runs") / "one", plan.scenario)
    audits.simulate(plan, made, simulation.Progress())
    return made.path


@pytest.fixture(scope="module")
def records(folder):
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert len(lines) == ROUNDED + 1
    return {line["client"]: line for line in lines}


def value(record, metric):
    return record["scores"][metric]["value"]


@pytest.mark.parametrize("client", range(len(ON_PERTURBED)))
def test_the_perturbed_image_is_found_exactly_and_the_own_one_up_to_epsilon(records, client):
    record = records[client]
    assert record["trained_on"] == {"inputs": 1, "other_pictures": True, "other_labels": False}
    assert FLOOR < value(record, "psnr") < 45 < 60 < value(record, "psnr@trained")


def test_an_update_rounded_to_fp16_is_scored_against_both_too(records):
    assert value(records[ROUNDED], "psnr@trained") > value(records[ROUNDED], "psnr") > FLOOR - 5


def test_recipes_that_train_on_both_are_scored_against_what_they_hand_on(records):
    trades, mart = (records[RECIPES.index(name)] for name in ("trades", "mart"))
    assert trades["trained_on"] == {"inputs": 1, "other_pictures": False, "other_labels": False}
    assert mart["trained_on"] == {"inputs": 1, "other_pictures": True, "other_labels": False}
    assert any("compared with the former alone" in caution for caution in trades["cautions"])


def test_no_recipe_turns_a_leak_into_safety(folder, records):
    found = reading.read(folder)
    verdicts = {line.client: line.verdict for line in overview.entries(by_client(found.records, Judge.of(found)))}
    assert all(verdicts[client] == "leaks" for client in (*range(len(ON_PERTURBED)), PLAIN, ROUNDED))
    assert all(verdict != "resisted" for verdict in verdicts.values())
    assert all(
        any("no privacy defense" in caution for caution in records[client]["cautions"]) for client in range(PLAIN)
    )
