"""Which parameters train and travel: patterns against a loop, and what a federation makes of them."""

import copy
import fnmatch
import json

import audits
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import models
from fedsim.audit.threat import ThreatModel
from fedsim.errors import ScenarioError
from fedsim.federation.training import local_update
from fedsim.models.trainable import Sharing
from fedsim.scenario import ModelPart
from fedsim.simulation import Progress

PART = ModelPart(name="vit_nano", kwargs={"depth": 1})
MODEL = models.build(PART, 10, 32, 0)
NAMES = [name for name, _ in MODEL.named_parameters()]
GIVEN = ["head.*", "pos_embed", "*.bias", "blocks.?.attn*", "*", "!pos_embed", "!head.*", "![bc]*"]
HEAD = {"trainable": ["head.*"]}


@settings(max_examples=40)
@given(patterns=st.lists(st.sampled_from(GIVEN), min_size=1, max_size=4))
def test_what_matches_a_pattern_and_none_that_takes_away_is_trained(patterns):
    model = copy.deepcopy(MODEL)
    expected = []
    for name in NAMES:
        wanted = [fnmatch.fnmatchcase(name, pattern) for pattern in patterns if pattern[0] != "!"]
        unwanted = [fnmatch.fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern[0] == "!"]
        if (any(wanted) or not wanted) and not any(unwanted):
            expected.append(name)
    if not expected:
        with pytest.raises(ScenarioError, match="leave no parameter to train"):
            models.freeze_others(model, patterns)
        return
    models.freeze_others(model, patterns)
    assert list(models.trained(model)) == list(models.shared_state(model)) == expected


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (
            {"training": {"trainable": ["haed.*"]}},
            r"training\.trainable: 'haed\.\*' matches no parameter of the model\. Did you mean 'head\.bias'\? It trains "
            "cls_token, pos_embed",
        ),
        ({"training": {"trainable": ["!pos_emb"]}}, r"'!pos_emb' matches no parameter.*Did you mean 'pos_embed'\?"),
        (
            {"training": {"trainable": ["*.qkv.weight"]}, "model": {"lora": {}}},
            r"'\*\.qkv\.weight' matches only parameters that the model itself does not train \(blocks\.0\.attn\.qkv\.weight\)",
        ),
        ({"training": {"trainable": ["!*"]}}, r"training\.trainable: \['!\*'\] leave no parameter to train"),
        (
            {"training": {"trainable": []}},
            r"training\.trainable: expected at least one pattern, none of them empty, got \[\]",
        ),
        ({"training": {"trainable": ["!"]}}, r"training\.trainable: expected at least one pattern"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(tiny_plan, parts, says):
    with pytest.raises(ScenarioError, match=says):
        tiny_plan(**parts)


def test_with_lora_patterns_choose_among_what_it_trains(tiny_plan):
    plan = tiny_plan(model={"lora": {"rank": 2}}, training={"trainable": ["!*lora_A"]})
    names = ["blocks.0.attn.qkv.lora_B", "blocks.0.attn.proj.lora_B", "head.weight", "head.bias"]
    assert list(plan.initial_weights()) == names


@pytest.mark.parametrize("shares", ["gradient", "delta"])
def test_what_is_trained_gets_the_gradient_of_the_whole_model_and_nothing_else_is_sent(tiny_plan, shares):
    recipe = {"shares": shares, "batch_size": 2, "learning_rate": 0.5}
    whole, part = tiny_plan(training=recipe), tiny_plan(training={**recipe, **HEAD})
    sent = [local_update(plan, 1, 1, plan.initial_weights()).update for plan in (whole, part)]
    assert list(sent[1].tensors) == ["head.weight", "head.bias"]
    for name, tensor in sent[1].tensors.items():
        torch.testing.assert_close(tensor, sent[0].tensors[name])


def test_buffers_of_frozen_layers_travel_as_ever(tiny_plan):
    plan = tiny_plan(
        model={"name": "test_resnet", "kwargs": {}}, training={"trainable": ["fc.*"], "batch_size": 4, "mode": "train"}
    )
    update = local_update(plan, 0, 1, plan.initial_weights()).update
    assert list(update.tensors) == ["fc.weight", "fc.bias"]
    assert set(update.buffers) == set(plan.buffers) and any(name.endswith("running_var") for name in plan.buffers)


def test_a_defense_s_own_parameters_are_frozen_like_others_and_it_goes_on(tiny_plan):
    puzzle = {"name": "mjp", "params": {"gamma": 0.5}}
    plan = tiny_plan(training=HEAD, defenses=[puzzle])
    assert list(local_update(plan, 0, 1, plan.initial_weights()).update.tensors) == ["head.weight", "head.bias"]
    plan = tiny_plan(training={"trainable": ["head.*", "mjp.*"]}, defenses=[puzzle])
    update = local_update(plan, 0, 1, plan.initial_weights()).update
    assert update.tensors["mjp.unknown"].any() and "pos_embed" not in update.tensors


def test_attacks_on_what_is_frozen_are_not_made_for_the_update_and_refuse_by_name(
    tiny_plan, run_folder, without_report
):
    attacks = ["patch_embedding", "label_count", {"name": "gradient_matching", "params": {"steps": 2}}]
    plan = tiny_plan(training=HEAD, attacks=attacks, federation={"clients": 1, "rounds": 2})
    folder = run_folder(plan)
    audits.simulate(plan, folder, Progress())
    records = [json.loads(line) for line in (folder.path / "records.jsonl").read_text().splitlines()]
    assert {(record["attack"]["name"], record["status"]) for record in records} == {
        ("patch_embedding", "refused"),
        ("label_count", "found"),
        ("gradient_matching", "found"),
    }
    for record in records:
        if record["attack"]["name"] == "patch_embedding":
            assert "the client froze it" in record["message"]
            assert any("learned position embedding, which is frozen here" in text for text in record["inapplicable"])
        else:
            assert not record["inapplicable"]
    later = ThreatModel(plan).observe(folder.read_update(2, 0), folder.read_global(2, 0)).model()
    start = plan.model().state_dict()
    changed = [name for name, tensor in later.state_dict().items() if not torch.equal(tensor, start[name])]
    assert changed == ["head.weight", "head.bias"]


def test_facts_of_frozen_parts_are_told_apart():
    model = copy.deepcopy(MODEL)
    whole = models.facts(model)
    assert whole == {"linear classifier", "learned position embedding", "patch projection"}
    assert not models.frozen_facts(model)
    models.freeze_others(model, ["head.*", "pos_embed"])
    assert models.facts(model) == whole - {"patch projection"} and models.frozen_facts(model) == {"patch projection"}


def test_what_travels_is_counted_and_told():
    model = copy.deepcopy(MODEL)
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert str(Sharing.of(model)) == "all parameters" and Sharing.of(model).size == whole
    deep = models.build(ModelPart(name="vit_nano", kwargs={"depth": 2}), 10, 32, 0)
    models.freeze_others(deep, ["*.qkv.*", "blocks.1.attn.proj.bias"])
    assert "(blocks.*.attn.qkv.weight, blocks.*.attn.qkv.bias, blocks.1.attn.proj.bias); frozen: " in str(
        Sharing.of(deep)
    )
    models.freeze_others(model, ["head.bias"])
    told = Sharing.of(model)
    assert (told.parameters, told.size) == ({"head.bias": 10}, whole)
    assert str(told).startswith(f"10 of {whole:,} parameters (head.bias); frozen: cls_token, pos_embed, ")
