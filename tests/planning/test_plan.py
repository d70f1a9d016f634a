"""The plan: every name found and every value checked before the first gradient, and the same in every process."""

import dataclasses
import sys

import pytest
import torch
from processes import elsewhere

from fedsim import installation, models
from fedsim.data import batches
from fedsim.errors import FedsimError, PluginError
from fedsim.exchange import DefenseKnowledge, UpdateEffects
from fedsim.planning import preparation as planning
from fedsim.source import Pool, Pools


def refusal(tiny_scenario, **parts):
    with pytest.raises(FedsimError) as caught:
        planning.make(tiny_scenario(**parts))
    return str(caught.value)


def guesses(*params):
    return [{"name": "stubs:Guess", "params": given} for given in params]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("MadeForAMapping", "applicability: expected an Applicability or None, got {pictures: 1}"),
        ("MadeForNobodyKnows", "applicability: raised KeyError: 'rule'"),
        ("RecoversPixels", "recovers: expected a frozenset out of images, labels, features"),
    ],
)
def test_an_attack_whose_facts_nobody_can_read_is_refused_before_the_first_gradient(tiny_scenario, name, says):
    found = refusal(tiny_scenario, attacks=[{"name": "stubs:Guess"}, {"name": f"broken_plugins:{name}"}])
    assert found.startswith(f"attacks.1: broken_plugins:{name} (")
    assert says in found and found.endswith("Mend the plug-in, or leave it out.")


# What a plan holds


def test_a_client_with_fewer_samples_than_the_batch_size_has_a_caution(tiny_plan):
    sizes = {"name": "shapes", "samples": 24, "partition": {"name": "sizes", "sizes": [6, 8, 10]}}
    plan = tiny_plan(data={**sizes, "test_samples": 8, "auxiliary_samples": 8}, training={"batch_size": 8})
    assert plan.cautions_of(0) == ("training.batch_size is 8, but the client has 6 samples: its batches are as small",)
    assert plan.cautions_of(1) == plan.cautions_of(2) == ()


def test_a_plan_holds_configured_attacks_and_defenses_in_the_order_of_the_scenario(tiny_plan):
    plan = tiny_plan(
        attacks=guesses({"pictures": 2}, {}),
        defenses=[
            {"name": "stubs:Scales", "clients": [2], "params": {"factor": "5e-1"}},
            {"name": "dp_noise", "clients": "0,2", "params": {"clip_norm": 1}},
        ],
    )
    assert [planned.params for planned in plan.attacks] == [{"pictures": 2}, {"pictures": 1}]
    assert [planned.index for planned in plan.attacks] == [0, 1]
    assert [[d.info.name for d in plan.defenses_of(client)] for client in range(3)] == [
        ["dp_noise"],
        [],
        ["stubs:Scales", "dp_noise"],
    ]
    scales, noise = plan.defenses
    assert scales.params == {"factor": 0.5}
    assert (scales.info.distribution, installation.recorded(noise.info.distribution)) == (None, "fedsim")
    effects = UpdateEffects(clip_norm=noise.defense.clip_norm, noise=noise.defense.effects.noise)
    assert noise.knowledge == DefenseKnowledge("dp_noise", dataclasses.asdict(noise.defense), effects, noise.defense)
    assert scales.clients == {2}


@pytest.mark.parametrize(
    ("params", "changed"),
    [({}, {}), ({"steps": 5}, {"steps": 5}), ({"priors": {"patch": 0.5}}, {"priors": {"patch": 0.5}})],
)
def test_only_parameters_that_differ_from_their_defaults_are_shown_mappings_included(tiny_scenario, params, changed):
    plan = planning.make(tiny_scenario(attacks=[{"name": "gradvit", "params": params}]))
    assert plan.attacks[0].changed == changed
    assert plan.attacks[0].params["priors"]


def test_attacks_have_file_names_of_their_own(tiny_plan):
    plan = tiny_plan(attacks=guesses({"pictures": 2}, {}))
    assert [planned.slug for planned in plan.attacks] == ["00-stubs.Guess", "01-stubs.Guess"]


def test_what_is_audited_is_stated_by_number(tiny_plan):
    plan = tiny_plan(audit={"rounds": ["last"], "clients": "1-2"})
    assert (plan.audit_rounds, plan.audit_clients) == ((2,), (1, 2))
    assert (tiny_plan().audit_rounds, tiny_plan().audit_clients) == ((1, 2), (0, 1, 2))


def test_the_model_fits_the_data(tiny_plan):
    plan = tiny_plan(data={"name": "shapes", "samples": 8, "classes": 3})
    assert plan.num_classes == 3
    assert plan.image_shape == (3, 32, 32)
    assert plan.model()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert plan.normalization == models.normalization(plan.model())


def test_models_of_a_plan_are_fresh_and_in_evaluation_mode(tiny_plan):
    plan = tiny_plan()
    weights = {name: tensor + 1 for name, tensor in plan.initial_weights().items()}
    model = plan.model(weights)
    assert not model.training
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    with torch.no_grad():
        model.norm.bias.add_(3)
    again, initial = dict(plan.model().named_parameters()), plan.initial_weights()
    assert list(again) == list(initial)
    assert all(torch.equal(again[name], initial[name]) for name in again)
    plan.initial_weights()["norm.bias"].add_(3)
    assert torch.equal(plan.initial_weights()["norm.bias"], initial["norm.bias"])


def test_a_defense_that_adds_parameters_adds_them_to_every_clients_model(tiny_plan):
    plain = tiny_plan().initial_weights()
    plan = tiny_plan(defenses=[{"name": "mjp", "clients": [1]}])
    assert set(plain) < set(plan.initial_weights())
    assert all(torch.equal(plan.initial_weights()[name], plain[name]) for name in plain)
    assert list(plan.cautions_of(0)) == []
    assert all(text.startswith("mjp: ") for text in plan.cautions_of(1))
    assert plan.cautions_of(1)


def test_a_client_trains_what_is_added_by_a_kind_of_defense_that_it_carries_and_uses(tiny_plan):
    def puzzle(clients, **params):
        return {"name": "mjp", "clients": clients, "params": {"gamma": 0.5, **params}}

    plan = tiny_plan(
        defenses=[puzzle([0], dal="none", warmup=0.5), puzzle([1]), puzzle([2], gamma=0.0)],
        federation={"clients": 4, "rounds": 2},
    )
    added = {name for name in plan.initial_weights() if name.startswith("mjp.")}
    assert set(plan.added) == added and len(added) == 5
    head = added - {"mjp.unknown"}
    assert {client: set(plan.untrained(client, 1)) for client in range(4)} == {0: added, 1: set(), 2: added, 3: added}
    assert set(plan.untrained(0, 2)) == head
    frozen = tiny_plan(defenses=[puzzle([1])], training={"trainable": ["!mjp.*"]})
    assert frozen.untrained(0, 1) == ()


def test_a_strategy_that_needs_more_than_the_mean_is_said_to_take_zeros_for_updates(tiny_plan):
    puzzle = {"name": "mjp", "clients": [1], "params": {"gamma": 0.5}}
    assert tiny_plan(defenses=[puzzle]).notes == ()
    (note,) = tiny_plan(defenses=[puzzle], federation={"strategy": "FedMedian"}).notes
    assert note.startswith("federation.strategy: FedMedian takes what 2 clients send of mjp.unknown")
    all_carry = {**puzzle, "clients": "all"}
    assert tiny_plan(defenses=[all_carry], federation={"strategy": "FedMedian"}).notes == ()


def test_a_plan_without_attacks_and_defenses_is_a_plan(tiny_plan):
    plan = tiny_plan(attacks=[])
    assert (plan.attacks, plan.defenses) == ((), ())


def test_the_plan_of_a_scenario_is_built_once(tiny_scenario):
    assert planning.of(tiny_scenario(seed=1)) is planning.of(tiny_scenario(seed="1"))
    assert planning.of(tiny_scenario(seed=1)) is not planning.of(tiny_scenario(seed=2))


_FINGERPRINT = """
from fedsim.planning import preparation
from fedsim.scenario import parse
plan = preparation.of(parse(resolved, "x"))
weights = {name: float(tensor.double().sum()) for name, tensor in plan.initial_weights().items()}
found = [plan.data.partition, plan.audit_clients, [sorted(d.clients) for d in plan.defenses], list(weights.items())]
"""


def test_another_process_makes_the_same_plan(tiny_scenario):
    scenario = tiny_scenario(
        defenses=[{"name": "mjp", "clients": {"fraction": 0.5}}],
        data={"partition": {"name": "dirichlet"}},
        audit={"clients": {"fraction": 0.7}},
    )
    here: dict[str, object] = {"resolved": scenario.resolved()}
    exec(_FINGERPRINT, here)
    assert elsewhere(_FINGERPRINT, resolved=scenario.resolved()) == here["found"]


# Refusals


def test_an_attack_whose_needs_are_not_granted_is_refused(tiny_scenario):
    needy = [{"name": "stubs:Guess"}, {"name": "broken_plugins:NeedsLabels"}]
    assert refusal(tiny_scenario, attacks=needy, threat={"grants": ["training"]}) == (
        "attacks.1.name: broken_plugins:NeedsLabels needs the grant batch_size, labels; threat.grants has training. "
        "Grant it, or leave the attack out."
    )
    assert "threat.grants has none." in refusal(tiny_scenario, attacks=needy, threat={"grants": []})
    granted = planning.make(tiny_scenario(attacks=needy, threat={"grants": ["labels", "batch_size"]}))
    assert granted.attacks[1].attack.needs == {"labels", "batch_size"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"attacks": [{"name": "gues"}]}, "attacks.0.name: no attack 'gues'."),
        ({"attacks": guesses({"pictures": "x"})}, "attacks.0.params.pictures: expected a whole number"),
        (
            {"attacks": guesses({}, {"pictures": "1"})},
            "attacks.1: stubs:Guess is listed before, as attacks.0, with",
        ),
        (
            {"attacks": [{**each, "label": "twice"} for each in guesses({}, {"pictures": 2})]},
            "attacks.1.label: attacks.0 is called 'twice' already.",
        ),
        ({"defenses": [{"name": "stubs:Scales", "clients": [7]}]}, "defenses.0.clients: no client 7;"),
        ({"defenses": [{"name": "stubs:Guess"}]}, "defenses.0.name: stubs:Guess is not a subclass"),
        ({"audit": {"rounds": [9]}}, "audit.rounds: no round 9;"),
        ({"audit": {"clients": "0-9"}}, "audit.clients: no client 3;"),
        ({"federation": {"strategy": "FedAvgg"}}, "federation.strategy: no strategy 'FedAvgg'."),
        ({"data": {"samples": 2}}, "data.partition: 3 clients and 2 training samples;"),
        ({"model": {"name": "vit_nan"}}, "model.name: no model 'vit_nan'."),
        (
            {"model": {"kwargs": {"pos_embed": "none"}}, "defenses": [{"name": "mjp"}]},
            "model.kwargs.pos_embed: mjp needs",
        ),
    ],
)
def test_what_does_not_work_is_refused_at_its_path(parts, message, tiny_scenario):
    assert refusal(tiny_scenario, **parts).startswith(message)


def test_the_same_attack_with_other_parameters_may_run_twice(tiny_scenario):
    assert len(planning.make(tiny_scenario(attacks=guesses({}, {"pictures": 2}))).attacks) == 2


def test_images_of_other_channels_than_the_models_are_refused(tiny_scenario, monkeypatch):
    def grey(part, clients, seed):
        pool = Pool(torch.tensor([0, 1]), lambda chosen: torch.zeros((len(chosen), 1, 32, 32), dtype=torch.uint8))
        return batches.FederatedData(Pools(pool, pool, pool, ("a", "b")), ((0,), (1,)), seed)

    monkeypatch.setattr(planning, "load_data", grey)
    assert refusal(tiny_scenario) == "data: images of 1 channels do not fit vit_nano, whose input has 3."


# Hooks of defenses outside the client


def _raises(*_):
    raise RuntimeError("out of paint\n\x1b[31m")


@pytest.mark.parametrize(
    ("hook", "broken", "said"),
    [
        ("prepare_model", _raises, r"RuntimeError: out of paint \\x1b\[31m"),
        ("prepare_model", lambda model: sys.exit(0), "SystemExit: 0"),
        ("cautions", _raises, r"RuntimeError: out of paint"),
        ("cautions", lambda: None, "TypeError: expected a tuple of texts, got nothing"),
        ("cautions", lambda: (1,), "TypeError: expected a tuple of texts"),
    ],
)
def test_a_defense_that_breaks_outside_the_client_is_named(tiny_scenario, monkeypatch, hook, broken, said):
    scenario = tiny_scenario(defenses=["stubs:Breaks"])
    from stubs import Breaks

    monkeypatch.setattr(Breaks, "hooks", {hook: broken})
    with pytest.raises(PluginError, match=rf"^defenses\.0: {hook} of stubs:Breaks .*raised {said}"):
        planning.make(scenario)


def test_what_saw_the_images_may_not_change_an_update_that_noise_has_made_private(tiny_scenario, tiny_plan):
    noise = {"name": "dp_noise", "clients": [1], "params": {"clip_norm": 1.0, "noise_multiplier": 4.0}}
    layers = {"name": "fedsim_defenses.layer_noise:LayerNoise", "clients": [0, 1]}
    said = refusal(tiny_scenario, defenses=[noise, layers])
    assert said.startswith(
        "defenses.1: fedsim_defenses.layer_noise:LayerNoise sees the images of client 1 and then changes"
    )
    assert "the epsilon of dp_noise would be false" in said
    # Listed first it is before the noise; without noise nothing is promised; what sees the update alone may follow.
    tiny_plan(defenses=[layers, noise])
    tiny_plan(defenses=[{**noise, "params": {}}, layers])
    tiny_plan(defenses=[noise, {**layers, "clients": [0]}])
    tiny_plan(defenses=[noise, {"name": "quantization", "params": {"format": "fp16"}}, {"name": "mjp"}])


def test_a_recipe_that_another_one_would_skip_is_refused(tiny_scenario, tiny_plan):
    skipped = {"name": "stubs:Notes", "clients": [1, 2]}
    said = refusal(tiny_scenario, defenses=[{"name": "stubs:Recipe", "clients": [2]}, skipped])
    assert said.startswith("defenses.1: stubs:Notes would be left out on client 2: stubs:Recipe")
    # Listed first it calls the other one, and on other clients they do not meet; a defense of the update is not skipped.
    tiny_plan(defenses=[skipped, "stubs:Recipe"])
    tiny_plan(defenses=[{"name": "stubs:Recipe", "clients": [0]}, skipped])
    tiny_plan(defenses=["stubs:Recipe", "stubs:Scales"])


def test_a_plug_in_of_an_earlier_version_of_the_contract_is_refused_before_the_run(tiny_scenario):
    said = refusal(tiny_scenario, defenses=["stubs:Outdated"])
    assert "stubs:Outdated.protect_update takes (self, update, generator)" in said
    assert "calls it with (self, update, context, generator)" in said
