"""Who may be said to have resisted: every installed attack on real updates of every installed defense, all the way."""

import dataclasses
import re
import typing

import audits
import pytest

from fedsim import plugins, simulation
from fedsim.applicability import Applicability
from fedsim.attack import Attack
from fedsim.defense import Defense
from fedsim.planning import preparation as planning
from fedsim.recording.run_folder import RunFolder
from fedsim.report import reading, summary
from fedsim.report.analysis import Analysis
from fedsim.scenario import parse

ATTACKS = {name: plugins.build("attacks", Attack, name, {}, "attacks") for name in sorted(plugins.installed("attacks"))}
# dp_sgd promises nothing where batches are not drawn by Poisson sampling, and is refused with noise there.
NEEDED = {"partial_sharing": {"hidden": ["pos_embed"]}, "dp_sgd": {"noise_multiplier": 0.0}}
DEFENSES = sorted(plugins.installed("defenses"))
SMALL = {
    "engine": "inline",
    "data": {"name": "shapes", "samples": 48, "test_samples": 4, "auxiliary_samples": 8},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
}
_BUDGET = re.compile(r"(^|_)(steps|iterations|restarts|multi_start|epochs)$")


def at_least(attack):
    """Return the smallest budgets that an attack takes."""
    hints, params = typing.get_type_hints(type(attack)), {}
    for field in dataclasses.fields(attack):
        if not (_BUDGET.search(field.name) and hints[field.name] is int):
            continue
        for value in range(4):
            try:
                dataclasses.replace(attack, **params, **{field.name: value})
            except ValueError:
                continue
            params[field.name] = value
            break
    return params


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Return a function: parts of a scenario -> its plan, the evidence of its run and the summary; each is run once."""
    made = {}

    def audit(name, **parts):
        if name not in made:
            plan = planning.make(parse({"name": name, **SMALL, **parts}, "scenario"))
            folder = RunFolder.create(tmp_path_factory.mktemp("resistance") / name, plan.scenario)
            audits.simulate(plan, folder, simulation.Progress())
            found = reading.read(folder.path)
            made[name] = plan, found, summary.of(Analysis(found))
        return made[name]

    return audit


def _params(defense, training):
    if defense == "partial_sharing" and "trainable" in training:  # hiding what is frozen is refused
        return {"hidden": ["head.bias"]}
    return {} if (defense, training.get("sampling")) == ("dp_sgd", "poisson") else NEEDED.get(defense, {})


def of_all(audited, name, defenses=DEFENSES, attacks=tuple(ATTACKS), **training):
    """Run attacks, with their smallest budgets, on a client of each defense, and on two without one."""
    # mimir trains all but the classifier, and is refused where that alone is trained.
    carried = [defense for defense in defenses if not (defense == "mimir" and "trainable" in training)]
    return audited(
        name,
        federation={"clients": len(carried) + 2, "rounds": 1},
        defenses=[
            {"name": defense, "clients": [client], "params": _params(defense, training)}
            for client, defense in enumerate(carried)
        ],
        attacks=[{"name": attack, "params": at_least(ATTACKS[attack])} for attack in attacks],
        threat={"grants": sorted({"training", *(need for attack in ATTACKS.values() for need in attack.needs)})},
        training=training,
        audit={"processes": 0, "metrics": ["psnr", "label_recall", "soft_label_error", "feature_error"]},
    )


TRAININGS = {
    "two-images": {"batch_size": 2},
    "adamw": {"optimizer": "adamw", "shares": "delta", "batch_size": 2, "sampling": "poisson"},
    "head-only": {"batch_size": 2, "trainable": ["head.*"]},
}
# Every pair of an attack and a defense is too many. Where nearly every attack meets an obstacle, the two that need least meet
# every defense, and every attack meets defenses of each kind. Presets of one engine differ in defaults alone: one meets all.
NEED_LITTLE = ("patch_embedding", "label_recovery")
KINDS = ("dp_noise", "dp_sgd", "mjp", "partial_sharing", "quantization")
PRESETS = [name for name, attack in ATTACKS.items() if type(attack).run is type(ATTACKS["gradient_matching"]).run]
RUNS = {
    "two-images": ("two-images", {"attacks": [n for n in ATTACKS if n not in PRESETS or n == "gradient_matching"]}),
    "two-images-presets": ("two-images", {"attacks": PRESETS, "defenses": KINDS}),
    "adamw-defenses": ("adamw", {"attacks": NEED_LITTLE}),
    "adamw-attacks": ("adamw", {"defenses": KINDS}),
    "head-only-defenses": ("head-only", {"attacks": NEED_LITTLE}),
    "head-only-attacks": ("head-only", {"defenses": KINDS}),
}


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if not attack.is_control])
def test_every_attack_says_what_it_is_made_for(name):
    assert isinstance(ATTACKS[name].applicability, Applicability)


def test_every_installed_defense_is_found():
    assert all(issubclass(plugins.load(plugins.find("defenses", n, ""), Defense, ""), Defense) for n in DEFENSES)


def assert_nothing_resists_without_a_defense_a_proof_and_an_attack_that_looked(plan, found, result):
    calibrated = {line.attack.name: line for line in found.calibrations}
    dear = {name for name, attack in ATTACKS.items() if not attack.is_cheap and not attack.is_control}
    assert calibrated.keys() & dear
    for line in result["attacks"]:
        if line["verdict"] == "resisted":
            assert plan.defenses_of(line["client"]) and " that the auditor made itself" in line["reason"]
            assert any(trial.status == "found" for trial in calibrated[line["attack"].partition(" ")[0]].trials)
    # With no step to take, an attack by optimization cannot work, and its failure is nobody's resistance.
    assert all(line["verdict"] != "resisted" for line in result["attacks"] if line["attack"].partition(" ")[0] in dear)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_an_update_that_an_attack_is_not_made_for_is_never_said_to_have_resisted_it(name, audited):
    training, chosen = RUNS[name]
    plan, found, result = of_all(audited, name, **chosen, **TRAININGS[training])
    carried = {client: plan.defenses_of(client) for client in plan.audit_clients}
    assert {(record.client, record.attack.name) for record in found.records} == {
        (client, attack) for client in carried for attack in chosen.get("attacks", ATTACKS)
    }
    settings = {client: plan.setting_of(client, 1) for client in carried}
    made_for = 0
    for line in result["attacks"]:
        attack = ATTACKS[line["attack"].partition(" ")[0]]
        obstacles = () if attack.is_control else attack.applicability.obstacles(settings[line["client"]])
        if attack.is_control or obstacles or not carried[line["client"]]:
            assert line["verdict"] != "resisted", line
        made_for += not (attack.is_control or obstacles)
    assert bool(made_for) == (training != "adamw")
    # Every attack that is made for updates of this training, and has looked at one, is tried on some whose images are known.
    unprotected = settings[max(carried)]
    assert {line.attack.name for line in found.calibrations} == {
        record.attack.name
        for record in found.records
        if record.status == "found" and not ATTACKS[record.attack.name].is_control
        if not ATTACKS[record.attack.name].applicability.obstacles(unprotected)
    }
    if training == "two-images":
        # In the same test, since the run is long, and tests of one file may be run by several workers.
        assert_nothing_resists_without_a_defense_a_proof_and_an_attack_that_looked(plan, found, result)


def one_image(audited):
    return audited(
        "turned",
        federation={"clients": 3, "rounds": 1},
        defenses=[{"name": "stubs:Turned", "clients": [1, 2]}],
        attacks=["patch_embedding", "label_count"],
        audit={"processes": 0},
    )


def test_a_client_whose_defense_stops_an_attack_that_works_has_resisted_it(audited, stubs):
    _, _, result = one_image(audited)
    by_client = {client: one["verdict"] for client, one in result["clients"].items()}
    pictures = {line["client"]: line for line in result["attacks"] if line["kind"] == "images"}
    assert by_client["0"] == "leaks" and pictures[0]["verdict"] == "leaks"
    for client in (1, 2):
        assert pictures[client]["verdict"] == "resisted"
        assert "9 of 9 updates" in pictures[client]["reason"]
        assert "8 of 8 that the auditor made itself" in pictures[client]["reason"]
    assert "2 resisted patch_embedding" in result["headline"]


@pytest.mark.parametrize("keeps", ["frozen", "local"])
def test_no_client_resists_by_weights_that_it_keeps_to_itself(audited, stubs, keeps):
    hiding = {"name": "partial_sharing", "clients": [1], "params": {"hidden": ["cls_token"], "keeps": keeps}}
    _, _, result = audited(
        f"keeps-{keeps}",
        federation={"clients": 3, "rounds": 2},
        defenses=[{"name": "stubs:Turned", "clients": [1]}, hiding],
        attacks=["patch_embedding"],
        audit={"processes": 0},
    )
    (line,) = (line for line in result["attacks"] if (line["client"], line["kind"]) == (1, "images"))
    assert line["verdict"] == ("inconclusive" if keeps == "local" else "resisted"), line["reason"]
    assert ("parameters of its own that only it knows" in line["reason"]) == (keeps == "local")


def test_no_client_resists_by_a_loss_of_its_own(audited, stubs):
    _, _, result = audited(
        "own-loss",
        federation={"clients": 3, "rounds": 1},
        defenses=[{"name": "stubs:Turned", "clients": [1]}, {"name": "mimir", "clients": [1]}],
        attacks=["patch_embedding"],
        audit={"processes": 0},
    )
    (line,) = (line for line in result["attacks"] if (line["client"], line["kind"]) == (1, "images"))
    assert line["verdict"] == "inconclusive", "without it this defense resists the attack"
    assert "the client trains on one of its own, without labels" in line["reason"]


def test_with_that_defense_on_all_clients_the_run_has_resisted(audited, stubs):
    _, _, result = audited(
        "all-turned",
        federation={"clients": 2, "rounds": 1},
        defenses=["stubs:Turned"],
        attacks=["patch_embedding"],
        audit={"processes": 0},
    )
    assert result["headline"] == "No leak of images was found: 2 of 2 clients resisted patch_embedding."
    assert result["verdict"] == "resisted"
