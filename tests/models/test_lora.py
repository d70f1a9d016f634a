"""Low-rank adaptation against the plain model, its gradient and its merged weights."""

import copy
import pickle

import pytest
import torch
from fedsim_defenses._per_image import per_image
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim import models
from fedsim.errors import ScenarioError
from fedsim.models import LoRALinear
from fedsim.models.lora import add_lora
from fedsim.scenario import LoRAPart, ModelPart

KWARGS = {"depth": 2}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([1, 4, 4])


def build(**lora):
    part = ModelPart(name="vit_nano", kwargs=KWARGS, lora=LoRAPart(**{"rank": 3, **lora}))
    return models.build(part, 10, 32, 0)


def plain():
    return models.build(ModelPart(name="vit_nano", kwargs=KWARGS), 10, 32, 0)


@torch.no_grad()
def moved(model, seed=1):
    """Return a copy whose trained parameters are drawn anew, as after some training."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in models.trained(model).values():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def test_names_are_those_of_the_plain_model_and_of_loralib_and_the_changes_travel_with_the_head():
    model = build()
    targets = [f"blocks.{block}.attn.{layer}" for block in (0, 1) for layer in ("qkv", "proj")]
    sent = [f"{name}.lora_{matrix}" for name in targets for matrix in "AB"] + ["head.weight", "head.bias"]
    assert list(models.shared_state(model)) == list(models.trained(model)) == sent
    assert [name for name in model.state_dict() if ".lora_" not in name] == list(plain().state_dict())
    assert list(models.trained(build(train_head=False))) == sent[:-2]


def test_at_the_start_it_is_the_plain_model_bit_for_bit():
    model, original = build(), plain()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in original.state_dict().items())
    assert torch.equal(model(IMAGES), original(IMAGES))


@pytest.mark.parametrize("alpha", [None, 12.0])
def test_in_round_1_the_gradient_of_a_is_zero_and_that_of_b_is_the_plain_one_times_a_transposed(alpha):
    model, scale = build(alpha=alpha), (alpha or 3.0) / 3
    found, whole = (models.gradient_of(one, IMAGES, LABELS) for one in (model, plain()))
    for name in (name.removesuffix(".lora_A") for name in found if name.endswith("lora_A")):
        assert not found[f"{name}.lora_A"].any()
        down = model.get_parameter(f"{name}.lora_A").detach()
        torch.testing.assert_close(found[f"{name}.lora_B"], scale * whole[f"{name}.weight"] @ down.T)
    torch.testing.assert_close(found["head.weight"], whole["head.weight"])


@settings(max_examples=20)
@given(rank=st.integers(1, 8), alpha=st.floats(0.1, 50), seed=st.integers(0, 99))
def test_the_merged_layer_computes_the_same(rank, alpha, seed):
    torch.manual_seed(seed)  # noqa: TID251
    original = nn.Linear(12, 9, bias=bool(seed % 2))
    layer = moved(LoRALinear(original, rank, alpha), seed)
    inputs = torch.randn(4, 12)
    torch.testing.assert_close(layer.merged()(inputs), layer(inputs), atol=1e-4, rtol=1e-4)


def test_the_merged_model_is_a_plain_one_with_the_same_outputs_that_a_plain_one_loads():
    model = moved(build())
    whole = models.merged(model)
    assert not any(isinstance(module, LoRALinear) for module in whole.modules())
    torch.testing.assert_close(whole(IMAGES), model(IMAGES), atol=1e-4, rtol=1e-4)
    other = plain()
    other.load_state_dict(whole.state_dict())
    assert torch.equal(other(IMAGES), whole(IMAGES))
    assert any(isinstance(module, LoRALinear) for module in model.modules())


def test_gradients_of_single_images_are_those_of_a_loop():
    model = moved(build())
    found = per_image(model, IMAGES, LABELS)
    assert list(found.gradients) == list(models.trained(model))
    for place in range(3):
        alone = models.gradient_of(model, IMAGES[place : place + 1], LABELS[place : place + 1])
        for name, gradient in alone.items():
            torch.testing.assert_close(found.gradients[name][place], gradient, atol=1e-5, rtol=1e-3)


def test_second_derivatives_in_the_input_are_those_of_finite_differences():
    layer = moved(LoRALinear(nn.Linear(5, 4), 2, 3.0)).double()
    inputs = torch.randn(2, 5, dtype=torch.double, generator=torch.Generator().manual_seed(2), requires_grad=True)

    def slope(inputs):
        loss = layer(inputs).tanh().square().sum()
        return torch.autograd.grad(loss, [layer.lora_A, layer.lora_B], create_graph=True)

    assert torch.autograd.gradcheck(slope, [inputs])


def test_the_base_depends_on_the_seed_alone_and_copies_and_pickles_keep_the_change():
    first, second = build(rank=2), build(rank=3)
    assert torch.equal(first.blocks[0].attn.qkv.weight, second.blocks[0].attn.qkv.weight)
    model = moved(first)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone(IMAGES), model(IMAGES))
        assert list(models.trained(clone)) == list(models.trained(model))


def test_it_works_on_a_network_without_attention():
    part = ModelPart(name="test_convnext", lora=LoRAPart(rank=2, targets=["*.mlp.fc1"]))
    assert next(iter(models.trained(models.build(part, 10, 32, 0)))) == "stages.0.blocks.0.mlp.fc1.lora_A"


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        (
            {"targets": ["*.attn.qvk"]},
            "model.lora.targets: '*.attn.qvk' matches no linear layer of the model. Did you mean 'blocks.1.attn.qkv'? It has "
            "blocks.0.attn.qkv, blocks.0.attn.proj",
        ),
        (
            {"targets": ["*.attn.qkv", "head"]},
            "model.lora.targets: 'head' matches the classifier head, which is trained",
        ),
        (
            {"rank": 64},
            "model.lora.rank: expected less than 64, the rank that blocks.0.attn.qkv has itself, got 64.",
        ),
    ],
)
def test_what_it_cannot_adapt_is_refused_by_name(lora, says):
    with pytest.raises(ScenarioError) as refused:
        build(**lora)
    assert says in str(refused.value)


def test_a_model_without_a_linear_classifier_is_refused_where_the_classifier_is_to_be_trained():
    class Headless(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def get_classifier(self):
            return nn.Identity()

    with pytest.raises(
        ScenarioError, match=r"model\.lora\.train_head: Headless has no linear classifier.*Set it to false"
    ):
        add_lora(Headless(), LoRAPart(rank=2, targets=["fc"]))
    add_lora(model := Headless(), LoRAPart(rank=2, targets=["fc"], train_head=False))
    assert list(models.trained(model)) == ["fc.lora_A", "fc.lora_B"]


# A federation


@pytest.mark.parametrize("recipe", [{}, {"shares": "delta", "local_steps": 2, "batch_size": 2, "optimizer": "adamw"}])
def test_clients_send_the_changes_and_the_server_knows_the_base(tiny_plan, recipe):
    from fedsim.audit.threat import ThreatModel
    from fedsim.federation.training import local_update

    plan = tiny_plan(model={"lora": {"rank": 2}}, training=recipe)
    weights = plan.initial_weights()
    update = local_update(plan, 1, 1, weights).update
    assert list(update.tensors) == list(weights) == list(models.trained(plan.model()))
    assert update.tensors["blocks.0.attn.qkv.lora_B"].any()
    seen = ThreatModel(plan).observe(update, weights)
    assert torch.equal(seen.model().blocks[0].attn.qkv.weight, plan.model().blocks[0].attn.qkv.weight)


def test_dp_sgd_clips_the_changes_of_single_images(tiny_plan):
    from fedsim.federation.training import local_update

    pytest.importorskip("opacus")
    clipping = {"name": "dp_sgd", "params": {"clip_norm": 0.01, "noise_multiplier": 0.0}}
    recipe = {"batch_size": 1, "shares": "gradient"}
    plan = tiny_plan(model={"lora": {"rank": 2}}, training=recipe, defenses=[clipping])
    update = local_update(plan, 0, 1, plan.initial_weights()).update
    assert update.norm() == pytest.approx(0.01, rel=1e-4)
    assert list(update.tensors) == list(models.trained(plan.model()))
