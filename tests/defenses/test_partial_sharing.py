from fnmatch import fnmatch

import audits
import pytest
import torch
from fedsim_attacks.gradient_matching import GradientMatching
from fedsim_attacks.label_count import LabelCount
from fedsim_attacks.patch_embedding import PatchEmbedding
from fedsim_defenses.partial_sharing import PartialSharing
from hypothesis import given
from hypothesis import strategies as st
from vit_cases import build, gradient, observe, photos

from fedsim import models
from fedsim.audit.threat import ThreatModel
from fedsim.errors import AttackRefusedError, ScenarioError
from fedsim.exchange import Update
from fedsim.federation import training
from fedsim.federation.training import Past, local_update
from fedsim.plugins import configure
from fedsim.recording.client_state import ClientState
from fedsim.simulation import Progress
from fedsim.testing import client_context

MODEL = build("vit_nano", depth=1)
NAMES = [name for name, _ in MODEL.named_parameters()]


def hide(update: Update, *patterns: str) -> Update:
    return PartialSharing(hidden=patterns).protect_update(update, client_context(), torch.Generator())


@given(
    patterns=st.lists(st.sampled_from(["pos_embed", "head.*", "blocks.?.attn*", "*.bias", "*", "cls_*"]), min_size=1)
)
def test_what_matches_is_zero_and_the_rest_is_untouched_under_the_same_names(patterns):
    update = Update(1, 0, "gradient", {name: torch.ones(2, 3) for name in NAMES}, 1)
    found = hide(update, *patterns)
    assert list(found.tensors) == NAMES
    for name, tensor in found.tensors.items():
        assert torch.equal(tensor, torch.zeros(2, 3)) == any(fnmatch(name, pattern) for pattern in patterns)
        assert tensor is update.tensors[name] or not tensor.any()


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name():
    with pytest.raises(ScenarioError, match="Did you mean 'pos_embed'"):
        PartialSharing(hidden=("pos_embd",)).prepare_model(MODEL)


@pytest.mark.parametrize("hidden", [[], [""]])
def test_no_pattern_is_refused_by_the_field(hidden):
    with pytest.raises(ScenarioError) as refused:
        configure(PartialSharing, {"hidden": hidden}, "defenses.0.params")
    assert refused.value.where == "defenses.0.params.hidden"


def test_cautions_say_what_is_left():
    some = PartialSharing(hidden=("pos_embed",)).cautions(MODEL)
    assert any("guarantees nothing" in c for c in some) and any("labels" in c for c in some)
    assert any("averaging" in c for c in some)
    assert not any("labels" in c for c in PartialSharing(hidden=("head.*",)).cautions(MODEL))
    assert "without contributing" in PartialSharing(hidden=("*",)).cautions(MODEL)[0]


@pytest.mark.parametrize("hidden", ["pos_embed", "patch_embed.proj.weight", "patch_embed.*"])
def test_patch_embedding_refuses_what_is_hidden_by_name(hidden):
    seen = observe(MODEL, hide(gradient(MODEL, photos().read([3])), hidden))
    with pytest.raises(AttackRefusedError, match="did not share"):
        PatchEmbedding().run(seen, torch.Generator())


def test_label_count_refuses_a_hidden_head_and_gradient_matching_leaves_hidden_tensors_out():
    update = gradient(MODEL, photos().read([3]))
    with pytest.raises(AttackRefusedError):
        LabelCount().run(observe(MODEL, hide(update, "head.*"), batch_size=1), torch.Generator())
    seen = observe(MODEL, hide(update, "pos_embed", "blocks.*"), batch_size=1)
    assert GradientMatching(steps=2).run(seen, torch.Generator()).images is not None
    with pytest.raises(AttackRefusedError):
        GradientMatching(steps=2).run(
            observe(MODEL, hide(update, "*"), batch_size=1, labels=torch.tensor([0])), torch.Generator()
        )


@pytest.mark.parametrize("shares", ["gradient", pytest.param("delta", marks=pytest.mark.slow)])
def test_a_run_keeps_the_hidden_tensor_at_its_start_trains_the_rest_and_records_the_refusal(
    tiny_plan, run_folder, monkeypatch, shares
):
    monkeypatch.setattr("fedsim.report.render", lambda path: path / "report.html")
    hiding = {"name": "partial_sharing", "clients": "all", "params": {"hidden": ["pos_embed"]}}
    attacks = [{"name": "patch_embedding"}, {"name": "label_count"}]
    training = {"shares": shares, "learning_rate": 0.1}
    plan = tiny_plan(defenses=[hiding], attacks=attacks, training=training, federation={"clients": 2, "rounds": 2})
    folder = run_folder(plan)
    records = audits.simulate(plan, folder, Progress())
    assert {(r["attack"]["name"], r["status"]) for r in records} == {
        ("patch_embedding", "refused"),
        ("label_count", "found"),
    }
    assert all("did not share" in r["message"] for r in records if r["status"] == "refused")
    start, later = plan.initial_weights(), folder.read_global(2, 0)
    assert torch.equal(start["pos_embed"], later["pos_embed"])
    assert not torch.equal(start["head.bias"], later["head.bias"])
    assert not folder.read_update(1, 0).tensors["pos_embed"].any()


# Local copies

KEEPING = {
    "name": "partial_sharing",
    "clients": [1],
    "params": {"hidden": ["pos_embed", "blocks.0.norm1.*"], "keeps": "local"},
}
LOCAL = ["pos_embed", "blocks.0.norm1.weight", "blocks.0.norm1.bias"]


def sgd(plan, round, weights, steps, rate):
    """Return what plain SGD on a client's batches makes of weights, step by step."""
    model = plan.model(weights).train()
    for inputs in plan.data.client_inputs(1, round, plan.scenario.training)[:steps]:
        batch = plan.data.read(inputs, plan.scenario.training)
        images = plan.normalization.normalize(batch.images)
        gradients = models.gradient_of(model, images, batch.labels)
        with torch.no_grad():
            for name, parameter in models.trained(model).items():
                parameter.sub_(rate * gradients[name])
    return {name: parameter.detach() for name, parameter in models.trained(model).items()}


@pytest.mark.parametrize("shares", ["gradient", "delta"])
def test_local_copies_train_from_round_to_round_as_sgd_by_hand_and_are_never_sent(tiny_plan, shares):
    recipe = {"shares": shares, "batch_size": 2, "learning_rate": 0.2}
    recipe |= {"local_steps": 2} if shares == "delta" else {}
    plan, steps = tiny_plan(defenses=[KEEPING], training=recipe), 2 if shares == "delta" else 1
    weights, own, past = plan.initial_weights(), {}, None
    for round in (1, 2, 3):
        result = local_update(plan, 1, round, weights, past=past)
        start = {**weights, **own}
        end = sgd(plan, round, start, steps, 0.2)
        for name, sent in result.update.tensors.items():
            moved = end[name] - start[name] if shares == "delta" else (start[name] - end[name]) / 0.2
            torch.testing.assert_close(sent, torch.zeros_like(sent) if name in LOCAL else moved, atol=2e-6, rtol=1e-3)
        own = {name: end[name] for name in LOCAL}
        kept = {name.partition("/")[2]: tensor for name, tensor in result.state.tensors.items()}
        assert list(kept) == sorted(LOCAL)
        for name in LOCAL:
            torch.testing.assert_close(kept[name], own[name], atol=1e-6, rtol=1e-4)
            assert not torch.equal(own[name], weights[name])
        past = Past(round, result.state)
    # Of the copy that it does not keep nothing is left.
    frozen = tiny_plan(defenses=[{**KEEPING, "params": {**KEEPING["params"], "keeps": "frozen"}}], training=recipe)
    assert not local_update(frozen, 1, 1, weights).state


def test_local_copies_follow_the_schedule_of_the_learning_rate(tiny_plan):
    schedule = {"name": "step", "every": 1, "factor": 0.1}
    recipe = {"shares": "gradient", "batch_size": 2, "learning_rate": 1.0, "schedule": schedule}
    plan = tiny_plan(defenses=[KEEPING], training=recipe, federation={"rounds": 3})
    rate, weights = plan.scenario.learning_rate(3), plan.initial_weights()
    end = sgd(plan, 3, weights, 1, rate)
    kept = local_update(plan, 1, 3, weights).state.tensors
    assert rate == pytest.approx(0.01) and len(kept) == len(LOCAL)
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, end[name.partition("/")[2]], atol=1e-6, rtol=1e-4)


def test_what_is_clipped_before_is_the_change_of_a_local_copy_and_not_its_distance_from_the_server(tiny_plan):
    clipping = {"name": "dp_noise", "params": {"clip_norm": 1e6}}
    recipe = {"shares": "delta", "batch_size": 2, "learning_rate": 0.01}
    plan = tiny_plan(defenses=[clipping, KEEPING], training=recipe)
    weights = plan.initial_weights()
    far = ClientState({"01-partial_sharing/pos_embed": weights["pos_embed"] + 5})
    run = training.prepared(plan, 1, 2, weights, Past(1, far))
    update, _ = training.unprotected(run)
    assert 0 < float(update.tensors["pos_embed"].norm()) < 1


def test_an_attack_is_not_made_for_a_client_s_own_weights_and_never_gets_them(tiny_plan, run_folder, without_report):
    plan = tiny_plan(defenses=[KEEPING], attacks=["label_count", "stubs:Guess"], training={"learning_rate": 0.5})
    folder = run_folder(plan)
    records = audits.simulate(plan, folder, Progress())
    for record in records:
        is_own = (record["client"], record["round"]) == (1, 2)
        assert any("only it knows" in text for text in record["inapplicable"] or []) == is_own, record
        assert any("Attacks get the global model" in text for text in record["cautions"]) == (record["client"] == 1)
    seen = ThreatModel(plan).observe(folder.read_update(2, 1), folder.read_global(2, 1))
    own = folder.read_state(1, 1).tensors["00-partial_sharing/pos_embed"]
    assert torch.equal(seen.model().pos_embed, folder.read_global(2, 1)["pos_embed"])
    assert not torch.equal(seen.model().pos_embed, own)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (
            {"training": {"trainable": ["head.*", "blocks.*"]}},
            r"defenses\.0: partial_sharing: hidden: 'pos_embed' matches frozen parameters alone",
        ),
        (
            {"defenses": [KEEPING, KEEPING]},
            r"keeps: got local, and PartialSharing of the same client keeps a copy of pos_embed",
        ),
    ],
)
def test_what_would_hide_nothing_or_keep_twice_is_refused(tiny_plan, parts, says):
    with pytest.raises(ScenarioError, match=says):
        tiny_plan(**{"defenses": [KEEPING], **parts})
