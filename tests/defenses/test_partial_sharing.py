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

from fedsim.errors import AttackRefusedError, ScenarioError
from fedsim.exchange import Update
from fedsim.plugins import configure
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
