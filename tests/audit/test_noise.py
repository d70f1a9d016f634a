"""Which defenses count as random, found by trying them with all their hooks."""

import itertools

import pytest
import torch

from fedsim.audit import noise
from fedsim.federation.training import Past
from fedsim.recording.client_state import ClientState

DELTA = {"shares": "delta", "local_epochs": 2, "batch_size": 4, "optimizer": "adamw", "weight_decay": 0.1}
GRADIENT = {"shares": "gradient", "batch_size": 2}


def adds_noise(tiny_plan, name, round=1, past=None, training=GRADIENT, model=None, **params):
    plan = tiny_plan(defenses=[{"name": name, "clients": [1], "params": params}], training=training, model=model or {})
    return noise.adds_noise(plan, plan.defenses[0], 1, round, past)


@pytest.mark.parametrize("training", [GRADIENT, DELTA], ids=["gradient", "delta"])
@pytest.mark.parametrize(
    ("hook", "source", "relative"),
    [
        *itertools.product(("batch", "step", "backward", "update"), ("given", "own", "global"), (False,)),
        *itertools.product(("step", "update"), ("numpy",), (False, True)),
    ],
)
def test_noise_is_seen_in_every_hook_whatever_it_is_drawn_from(tiny_plan, hook, source, relative, training):
    params = {"hook": hook, "source": source, "relative": relative}
    assert adds_noise(tiny_plan, "stubs:Shaken", training=training, **params)


def test_noise_on_deltas_alone_is_seen_where_the_clients_share_deltas(tiny_plan):
    assert adds_noise(tiny_plan, "stubs:Shaken", training=DELTA, kind="delta")
    assert not adds_noise(tiny_plan, "stubs:Shaken", kind="delta")


@pytest.mark.parametrize("hook", ["batch", "step", "update"])
def test_noise_that_begins_late_is_seen_in_the_rounds_that_have_it(tiny_plan, hook):
    found = [adds_noise(tiny_plan, "stubs:Shaken", round=round, hook=hook, first=2) for round in (1, 2)]
    assert found == [False, True]


def test_noise_that_hangs_on_what_the_defense_kept_is_seen_once_it_kept_that(tiny_plan):
    kept = Past(1, ClientState({}, {"00-stubs:Shaken/count": 1}))
    assert not adds_noise(tiny_plan, "stubs:Shaken", participations=1)
    assert adds_noise(tiny_plan, "stubs:Shaken", round=2, past=kept, participations=1)


@pytest.mark.parametrize("training", [GRADIENT, DELTA], ids=["gradient", "delta"])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("partial_sharing", {}),
        ("quantization", {"format": "int8"}),
        ("quantization", {"format": "fp16"}),
        ("quantization", {"format": "bf16"}),
        ("dp_noise", {"clip_norm": 0.01}),
        ("dp_noise", {}),
        ("mjp", {"gamma": 0.0}),
        ("stubs:Scales", {}),
        ("stubs:Halves", {}),
        ("stubs:Recipe", {}),
        ("stubs:Notes", {}),
        *(("stubs:Rearranges", {"how": how}) for how in ("mirrors", "turns", "renames", "repeats")),
    ],
)
def test_what_draws_nothing_and_adds_nothing_of_its_own_is_no_noise(tiny_plan, name, params, training):
    assert not adds_noise(tiny_plan, name, training=training, **params)


def test_what_is_kept_back_for_the_next_round_is_no_noise(tiny_plan):
    weights = tiny_plan().initial_weights()
    kept = {f"00-stubs:Halves/{name}": torch.ones_like(tensor) for name, tensor in weights.items()}
    assert not adds_noise(tiny_plan, "stubs:Halves", round=2, past=Past(1, ClientState(kept, {})))


def test_dropout_of_the_model_is_not_the_defenses(tiny_plan):
    model = {"kwargs": {"depth": 1, "proj_drop_rate": 0.5}}
    training = GRADIENT | {"mode": "train"}
    assert not adds_noise(tiny_plan, "stubs:Notes", training=training, model=model)
    assert adds_noise(tiny_plan, "stubs:Shaken", training=training, model=model, hook="step")


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("dp_noise", {"clip_norm": 1.0, "noise_multiplier": 1e-4}),
        ("mjp", {"gamma": 0.5}),
        ("quantization", {"rounding": "stochastic"}),
        ("stubs:Budgets", {}),
        ("stubs:FailsIn", {}),
        ("stubs:EndsClient", {}),
    ],
)
def test_what_draws_states_a_budget_or_fails_counts_as_random(tiny_plan, name, params):
    assert adds_noise(tiny_plan, name, **params)
