"""What timm builds and cannot train, or what mixes the images of a batch, is refused with the reason."""

import pytest
import torch
from torch import nn

from fedsim import models
from fedsim.errors import ScenarioError
from fedsim.models import trial
from fedsim.scenario import ModelPart


def refusal(**kwargs):
    with pytest.raises(ScenarioError) as caught:
        models.build(ModelPart(name="vit_nano", kwargs={"depth": 2, **kwargs}), 10, 32, 0)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("kwargs", "start"),
    [
        (
            {"norm_layer": "groupnorm"},
            "model.kwargs.norm_layer: vit_nano cannot train: RuntimeError: Expected number of",
        ),
        ({"norm_layer": "layernorm2d"}, "model.kwargs.norm_layer: vit_nano cannot train: RuntimeError: "),
        ({"embed_norm_layer": "layernorm2d"}, "model.kwargs.embed_norm_layer: vit_nano cannot train: RuntimeError: "),
        (
            {"global_pool": ""},
            "model.kwargs.global_pool: vit_nano gives 2 x 17 x 10 outputs for two images, not 2 x 10",
        ),
        ({"init_values": 1e30}, "model.kwargs: vit_nano gives outputs or gradients that are not finite (with {"),
        ({"weight_init": "skip"}, "model.kwargs.weight_init: skip leaves tokens and positions uninitialized."),
    ],
)
def test_what_cannot_train_is_refused_at_its_kwarg(kwargs, start):
    assert refusal(**kwargs).startswith(start)


@pytest.mark.parametrize("kwarg", ["norm_layer", "embed_norm_layer"])
@pytest.mark.parametrize("layer", ["batchnorm", "batchnorm1d", "batchnorm2d"])
def test_batch_normalization_of_tokens_whose_sizes_do_not_fit_is_refused_at_its_kwarg(kwarg, layer):
    assert refusal(**{kwarg: layer}).startswith(f"model.kwargs.{kwarg}: vit_nano cannot train: ")


def test_batch_normalization_that_can_train_is_told():
    kwargs = {"norm_layer": "batchnorm1d", "embed_dim": 16, "class_token": False, "global_pool": "avg", "depth": 2}
    _, notes = models.build_with_notes(ModelPart(name="vit_nano", kwargs=kwargs), 10, 32, 0)
    (note,) = notes
    assert note.startswith("vit_nano has 5 BatchNorm layers: their running statistics travel and are aggregated")


class Mixing(nn.Module):
    """Subtracts the mean of the batch."""

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


class Counting(nn.Module):
    """Counts the batches it is trained on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.seen += self.training
        return x


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Mixing(), "vit_nano lets the images of a batch influence each other"),
        (Counting(), "vit_nano changes a buffer in training that does not travel (norm_pre.seen)"),
    ],
)
def test_mixed_images_and_changing_buffers_are_found_whatever_the_layer(layer, reason):
    part = ModelPart(name="vit_nano")
    model = models.build(part, 10, 32, 0)
    model.norm_pre = layer
    with pytest.raises(ScenarioError) as caught:
        trial.run(model, part, 10, (3, 32, 32), 0)
    assert str(caught.value).startswith(f"model.name: {reason}")


@pytest.mark.parametrize(
    "kwargs",
    [
        {"norm_layer": "rmsnorm", "qk_norm": True},
        {"embed_norm_layer": "layernorm"},
        {"patch_drop_rate": 0.5, "drop_rate": 0.5, "drop_path_rate": 0.5},
        {"class_token": False, "global_pool": "map", "reg_tokens": 2},
        {"pos_embed": "none"},
        {"no_embed_class": True, "dynamic_img_size": True},
        {"act_layer": "relu", "init_values": 1e-5, "fc_norm": True},
    ],
)
def test_a_trial_leaves_weights_buffers_and_the_global_generator_alone(kwargs):
    part = ModelPart(name="vit_nano", kwargs=kwargs)
    model = models.build(part, 10, 32, 0)
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    trial.run(model, part, 10, (3, 32, 32), 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(model.blocks) == 4


@pytest.mark.parametrize(
    ("kwargs", "draws"), [({}, False), ({"proj_drop_rate": 0.01}, True), ({"depth": 2, "drop_path_rate": 0.01}, True)]
)
def test_a_model_that_draws_in_training_is_known_by_that_and_stays_as_it_is(kwargs, draws):
    model = models.build(ModelPart(name="vit_nano", kwargs={"depth": 1, **kwargs}), 10, 32, 0)
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    assert models.draws_in_training(model, (3, 32, 32), 0) == draws
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
