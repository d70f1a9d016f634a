"""Every installed plug-in keeps its contract: fedsim's own, and whatever else is installed here."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from fedsim_attacks.matching.descent import Descent
from fedsim_attacks.matching.distances import DISTANCES
from fedsim_attacks.matching.optimizers import OPTIMIZERS
from fedsim_attacks.matching.priors import PRIORS
from vit_cases import tiny_model

from fedsim import installation, models, plugins
from fedsim.attack import Attack, Need
from fedsim.defense import Defense
from fedsim.errors import ScenarioError
from fedsim.evaluator import Evaluator
from fedsim.exchange import Observation
from fedsim.planning import preparation as planning
from fedsim.scenario import ModelPart, parse
from fedsim.source import Pool, Source
from fedsim.testing import check_attack, check_defense, check_evaluator
from fedsim.testing.fixtures import ALL_GRANTS, observation, random_images

ROOT = Path(__file__).parents[2]
OWN = "fedsim"
FOLDERS = {"attacks": ROOT / "attacks", "defenses": ROOT / "defenses", "evaluators": ROOT / "defenses"}
# Parameters with which a defense does something, where its defaults do nothing or little.
STRONG: dict[str, dict[str, Any]] = {
    "adversarial_training": {"ard": True, "prm": True, "warmup": 0.5, "calibration": 1.0, "steps": 2},
    "dp_noise": {"clip_norm": 1.0, "noise_multiplier": 0.1},
    "flower_mod": {"mod": "LocalDpMod", "sensitivity": 2.0, "epsilon": 8.0, "delta": 1e-5},
    "mjp": {"gamma": 0.5, "p_apply": 0.5, "warmup": 0.5},
    "partial_sharing": {"hidden": ("pos_embed", "*.bias"), "keeps": "local"},
}
# Defenses that take many passes through the model, for each tensor or feature or step of an attack: a tiny one is enough.
MANY_PASSES = (
    "adversarial_training",
    "ard",
    "fast",
    "flower_mod",
    "free",
    "layer_noise",
    "mart",
    "prm",
    "soteria",
    "trades",
)
# Sources that need nothing but themselves; the others have their files written in tests of their own.
SELF_SUFFICIENT = {"photos": {"samples": 60, "test_samples": 20}, "shapes": {"samples": 60, "test_samples": 20}}


def on_the_april_model(needs: frozenset[Need]) -> list[Observation]:
    part = ModelPart(name="vit_nano", kwargs={"embed_dim": 192, "depth": 2}, first_block="april")
    model = models.build(part, 10, 32, 0)
    pictures = random_images(torch.Generator().manual_seed(0))
    cases = (("gradient", needs), ("gradient", ALL_GRANTS), ("delta", needs))
    return [observation(pictures, kind, grants, model=model) for kind, grants in cases]


def on_a_tiny_model(needs: frozenset[Need], depth: int = 1) -> list[Observation]:
    model = tiny_model(depth)
    draws = torch.Generator().manual_seed(0)
    one, three = (random_images(draws, count, image_shape=(3, 8, 8)) for count in (1, 3))
    cases = (
        (one, "gradient", needs),
        (three, "gradient", ALL_GRANTS),
        (one, "delta", needs),
        (three, "delta", ALL_GRANTS),
    )
    return [observation(pictures, kind, grants, model=model) for pictures, kind, grants in cases]


# Parameters of the engine whose choices are in a registry.
REGISTERED: dict[str, list[Any]] = {
    "distance": DISTANCES.names,
    "optimizer": OPTIMIZERS.names,
    "priors": [{name: 0.1} for name in PRIORS.names],
}

attacks, defenses = plugins.installed("attacks"), plugins.installed("defenses")
evaluators = plugins.installed("evaluators")
# With defaults it takes long on a model that nothing fools.
BRIEF: dict[str, dict[str, Any]] = {"square": {"queries": 20}}
# Two need what a checkout has not, and are checked beside their own tests: weights of another model, an extra.
ASKED = [name for name in evaluators if name not in ("transfer", "autoattack")]
own = [
    (kind, name)
    for kind in FOLDERS
    for name, info in plugins.installed(kind).items()
    if installation.recorded(info.distribution) == OWN
]


def attack_class(name: str) -> type[Attack]:
    return plugins.load(attacks[name], Attack, name)


def defense_class(name: str) -> type:
    return plugins.load(defenses[name], Defense, name)


def evaluator_class(name: str) -> type:
    return plugins.load(evaluators[name], Evaluator, name)


CLASS_OF: dict[str, Callable[[str], type]] = {
    "attacks": attack_class,
    "defenses": defense_class,
    "evaluators": evaluator_class,
}
ENGINE = [name for name in attacks if attack_class(name).run is attack_class("gradient_matching").run]
# Observations for attacks that refuse stock models, and for those that take long on them.
UNUSUAL: dict[str, Callable[[frozenset[Need]], list[Observation]]] = {
    "april": on_the_april_model,
    **dict.fromkeys([*ENGINE, "regularized_newton"], on_a_tiny_model),
    # Of the last block's MLP the class token alone has a gradient.
    "span_inversion": lambda needs: on_a_tiny_model(needs, depth=2),
}
# Presets of one engine differ in defaults alone, so one of them shows every choice; the plainest is the cheapest.
CHOOSERS = [name for name in attacks if name not in ENGINE or name == "gradient_matching"]


def choices(cls: type, base: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return `base` with one choice (Literal or bool) exchanged at a time, where the class allows it, and its name."""
    found = []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        options = typing.get_args(hint) if typing.get_origin(hint) is Literal else (False, True) if hint is bool else ()
        if issubclass(cls, Descent):
            options = REGISTERED.get(field.name, options)
        for option in options:
            params = {**base, field.name: option}
            if option != getattr(cls(**base), field.name) and is_allowed(cls, params):
                found.append((f"{field.name}={option}", params))
    return found


def is_allowed(cls: type, params: dict[str, Any]) -> bool:
    try:
        return bool(cls(**params))
    except ValueError:
        return False


def cases(cls: Callable[[str], type], names: Iterable[str], strong: dict[str, dict[str, Any]]) -> list[Any]:
    """Return a test case for each choice of each plug-in."""
    return [
        pytest.param(name, params, id=f"{name}-{choice}")
        for name in names
        for choice, params in choices(cls(name), strong.get(name, {}))
    ]


@pytest.mark.parametrize("name", attacks)
def test_an_installed_attack_keeps_the_contract(name: str) -> None:
    cls = attack_class(name)
    check_attack(cls, observations=UNUSUAL[name](cls.needs) if name in UNUSUAL else None)


@pytest.mark.parametrize(("name", "params"), cases(attack_class, CHOOSERS, {}))
def test_an_installed_attack_keeps_the_contract_with_every_choice(name: str, params: dict[str, Any]) -> None:
    cls = attack_class(name)
    # The first and the last differ in kind, number and grants; with its defaults the attack was run on all.
    observations = UNUSUAL[name](cls.needs)[::3] if name in UNUSUAL else None
    check_attack(cls, observations=observations, **params)


@pytest.mark.parametrize("name", attacks)
def test_a_scenario_that_grants_nothing_is_refused_where_the_attack_needs_something(name: str) -> None:
    needs = attack_class(name).needs
    scenario = parse({"threat": {"grants": []}, "attacks": [{"name": name}], "model": {"name": "vit_nano"}}, "test")
    if needs:
        with pytest.raises(
            ScenarioError, match=rf"attacks\.0\.name: {name} needs the grant {', '.join(sorted(needs))};"
        ):
            planning.make(scenario)
    else:
        assert planning.make(scenario).attacks[0].info.name == name


@pytest.mark.parametrize("name", defenses)
def test_an_installed_defense_keeps_the_contract(name: str) -> None:
    check_defense(defense_class(name), model=tiny_model() if name in MANY_PASSES else None)


@pytest.mark.parametrize("name", STRONG)
def test_a_defense_of_ours_keeps_the_contract_where_it_does_something(name: str) -> None:
    check_defense(defense_class(name), model=tiny_model() if name in MANY_PASSES else None, **STRONG[name])


@pytest.mark.parametrize(("name", "params"), cases(defense_class, defenses, STRONG))
def test_an_installed_defense_keeps_the_contract_with_every_choice(name: str, params: dict[str, Any]) -> None:
    check_defense(defense_class(name), model=tiny_model() if name in MANY_PASSES else None, **params)


@pytest.mark.parametrize("name", ASKED)
def test_an_installed_evaluator_keeps_the_contract(name: str) -> None:
    check_evaluator(evaluator_class(name), **BRIEF.get(name, {}))


@pytest.mark.parametrize(("name", "params"), [case for case in cases(evaluator_class, ASKED, BRIEF)])
def test_an_installed_evaluator_keeps_the_contract_with_every_choice(name: str, params: dict[str, Any]) -> None:
    if not params.get("unknown"):  # refused of a model that has no unknown position, as the kit's
        check_evaluator(evaluator_class(name), **params)


def same_bytes(first: Pool, second: Pool) -> bool:
    numbers = range(min(len(first), 10))
    return torch.equal(first.labels, second.labels) and torch.equal(first.fetch(numbers), second.fetch(numbers))


@pytest.mark.parametrize("name", SELF_SUFFICIENT)
def test_a_source_gives_the_same_bytes_for_the_same_seed_and_others_for_another(name: str) -> None:
    source = plugins.build("data", Source, name, SELF_SUFFICIENT[name], "data")
    first, again, other = source.load(0), source.load(0), source.load(1)
    for pool in ("train", "test", "auxiliary"):
        assert same_bytes(getattr(first, pool), getattr(again, pool))
        assert not same_bytes(getattr(first, pool), getattr(other, pool))


@pytest.mark.parametrize("name", SELF_SUFFICIENT)
def test_reading_one_image_gives_the_same_bytes_as_reading_many(name: str) -> None:
    pool = plugins.build("data", Source, name, SELF_SUFFICIENT[name], "data").load(0).train
    together = pool.fetch([5, 0, 9])
    assert together.dtype == torch.uint8
    assert all(torch.equal(pool.fetch([number])[0], together[i]) for i, number in enumerate([5, 0, 9]))


@pytest.mark.parametrize("name", plugins.installed("data"))
def test_a_source_is_a_frozen_dataclass_with_a_line_that_says_what_it_is(name: str) -> None:
    cls = plugins.load(plugins.installed("data")[name], Source, name)
    assert all(field.kw_only for field in dataclasses.fields(cls))
    assert inspect.getdoc(inspect.getmodule(cls)).splitlines()[0].endswith(".")


# fedsim's own plug-ins also keep the house rules.


@pytest.mark.parametrize(("kind", "name"), own)
def test_a_module_of_ours_opens_with_paper_idea_difference_and_needs(kind: str, name: str) -> None:
    cls = CLASS_OF[kind](name)
    text = inspect.getdoc(inspect.getmodule(cls))
    places = [text.find(f"\n\n{part}: ") for part in ("Paper", "Idea", "Differs from the paper", "Needs")]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize(("kind", "name"), own)
def test_a_plugin_of_ours_has_a_row_in_its_catalogue(kind: str, name: str) -> None:
    assert f"| `{name}` |" in (FOLDERS[kind] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for kind, name in own if kind == "defenses"])
def test_the_catalogue_claims_a_guarantee_of_those_defenses_alone_that_account_for_one(name: str) -> None:
    lines = (FOLDERS["defenses"] / "README.md").read_text(encoding="utf-8").splitlines()
    heads, row = (
        next(line.split(" | ") for line in lines if line.startswith(start)) for start in ("| name |", f"| `{name}` |")
    )
    claimed = row[heads.index("guarantee")]
    assert (claimed == "no formal guarantee") == (defense_class(name).budget is Defense.budget), claimed
