import dataclasses
from collections.abc import Sequence

import pytest
import torch
from descent_cases import SIDE, one_gradient, pictures, tiny
from fedsim_attacks.update.client_gradient import (
    LABELS,
    PATH,
    ClientGradient,
    OneGradient,
    Surrogate,
    Unrolled,
    model_client,
)
from fedsim_attacks.update.gradient import mean_gradient
from fedsim_attacks.update.target import read_target
from torch.nn.functional import cross_entropy
from vit_cases import observe

from fedsim import models
from fedsim.exchange import LabeledImages, TrainingKnowledge, Update


@pytest.fixture(scope="module")
def batch() -> LabeledImages:
    return pictures(0, 50, 20, 7)


def double() -> torch.nn.Module:
    return tiny().double()


def normalized(model: torch.nn.Module, batch: LabeledImages) -> torch.Tensor:
    return models.normalization(model).normalize(batch.images.double())


def recipe(steps: int, momentum: float = 0.0, decay: float = 0.0, exempt: Sequence[str] = ()) -> TrainingKnowledge:
    return TrainingKnowledge("sgd", 0.05, momentum, decay, steps, None, tuple(exempt))


def trained(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, told: TrainingKnowledge, size: int
) -> Update:
    """Return the delta of local SGD over batches of `size`, epoch after epoch, by torch's own optimizer."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = [
        {"params": [p], "weight_decay": 0.0 if n in told.decay_exempt else told.weight_decay}
        for n, p in model.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups, lr=told.learning_rate, momentum=told.momentum)
    rows = [slice(start, start + size) for start in range(0, len(images), size)]
    for step in range(told.local_steps or 1):
        optimizer.zero_grad()
        cross_entropy(model(images[rows[step % len(rows)]]), labels[rows[step % len(rows)]]).backward()
        if told.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), told.clip_norm)
        optimizer.step()
    delta = {name: (parameter.detach() - before[name]) for name, parameter in model.named_parameters()}
    return Update(1, 0, "delta", delta, len(images))


def cosine(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    one, other = (torch.cat([t.detach().flatten() for t in tensors]) for tensors in (left, right))
    return float(torch.cosine_similarity(one, other, dim=0))


@pytest.mark.parametrize("is_functional", [False, True])
@pytest.mark.parametrize(
    ("told", "size"),
    [
        (recipe(1), 4),
        (recipe(5), 4),
        (recipe(4, momentum=0.9), 4),
        (recipe(3, decay=0.3, exempt=("pos_embed", "cls_token")), 4),
        (recipe(5, momentum=0.8, decay=0.2, exempt=("pos_embed",)), 2),
        (recipe(3, momentum=0.5, decay=0.1), 3),
        (dataclasses.replace(recipe(4, momentum=0.5, decay=0.1), clip_norm=0.5), 2),
    ],
)
def test_unrolled_steps_give_the_gradient_that_is_read_off_a_real_delta(
    told: TrainingKnowledge, size: int, is_functional: bool, batch: LabeledImages
) -> None:
    model = double()
    images = normalized(model, batch)
    update = trained(double(), images, batch.labels, told, size)
    seen = dataclasses.replace(observe(model, update, SIDE, batch_size=size, training=told), model=double)
    wanted = mean_gradient(seen, update.tensors)
    assert wanted.is_scaled == (told.clip_norm is None) and wanted.is_decay_known
    names = list(update.tensors)
    steps = told.local_steps or 1
    unrolled = Unrolled(model, names, batch.labels, is_functional, training=told, steps=steps, batch_size=size)
    found = unrolled.gradients(images, {})
    for name, tensor in zip(names, found, strict=True):
        torch.testing.assert_close(tensor.detach(), wanted.tensors[name], rtol=1e-6, atol=1e-10)


def test_clipped_steps_are_simulated_where_all_parameters_are_matched(batch: LabeledImages) -> None:
    told = dataclasses.replace(recipe(3), clip_norm=0.5)
    update = trained(tiny(), models.normalization(tiny()).normalize(batch.images), batch.labels, told, 4)
    seen = dataclasses.replace(observe(tiny(), update, SIDE, batch_size=4, training=told), model=tiny)
    whole, part = (read_target(seen, layers, torch.device("cpu")) for layers in ((), ("head.*",)))
    assert isinstance(model_client(seen, whole, batch.labels, "auto")[0], Unrolled)
    assert isinstance(model_client(seen, part, batch.labels, "auto")[0], Surrogate)
    unrolled, doubt = model_client(seen, part, batch.labels, "unrolled")
    assert isinstance(unrolled, Unrolled) and doubt is not None and "clips each step" in doubt
    plain = dataclasses.replace(seen, training=recipe(3))
    assert isinstance(model_client(plain, part, batch.labels, "auto")[0], Unrolled)


def test_one_gradient_is_that_of_the_mean_loss(batch: LabeledImages) -> None:
    model = tiny()
    response, observed = one_gradient(model, batch)
    images = models.normalization(model).normalize(batch.images)
    for found in (response.gradients(images, {}), response.functional().gradients(images, {})):
        for tensor, wanted in zip(found, observed, strict=True):
            torch.testing.assert_close(tensor.detach(), wanted, rtol=1e-4, atol=1e-6)


def test_a_surrogate_at_the_global_weights_is_one_gradient_and_at_the_end_the_last_step_s(batch: LabeledImages) -> None:
    model = double()
    images, names = normalized(model, batch), [name for name, _ in model.named_parameters()]
    update = trained(moved := double(), images, batch.labels, recipe(3), 4)
    surrogate = Surrogate(model, names, batch.labels, movement=list(update.tensors.values()))
    for place, at in ((0.0, model), (1.0, moved)):
        wanted = OneGradient(at, names, batch.labels).gradients(images, {})
        found = surrogate.gradients(images, {PATH: torch.tensor(place, dtype=torch.float64)})
        for tensor, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(tensor, other, rtol=1e-6, atol=1e-10)


def test_some_surrogate_between_the_weights_points_where_the_delta_does_better_than_the_start(
    batch: LabeledImages,
) -> None:
    model = double()
    images, names = normalized(model, batch), [name for name, _ in model.named_parameters()]
    update = trained(double(), images, batch.labels, TrainingKnowledge("sgd", 0.01, 0.0, 0.0, 8, None), 4)
    surrogate = Surrogate(model, names, batch.labels, movement=list(update.tensors.values()))
    start, *between = (
        -cosine(surrogate.gradients(images, {PATH: torch.tensor(place).double()}), list(update.tensors.values()))
        for place in (0.0, 0.25, 0.5, 0.75)
    )
    assert max(between) > start + 0.01


@pytest.mark.parametrize("kind", ["surrogate", "unrolled"])
def test_slopes_in_images_labels_and_place_are_those_of_finite_differences(kind: str, batch: LabeledImages) -> None:
    model = double()
    images, names = normalized(model, batch), [name for name, _ in model.named_parameters()]
    update = trained(double(), images, batch.labels, recipe(2), 4)
    generator = torch.Generator().manual_seed(0)
    variables = {LABELS: torch.randn(4, 10, generator=generator, dtype=torch.float64)}
    response: ClientGradient = Unrolled(model, names, batch.labels, training=recipe(2, 0.9), steps=2, batch_size=2)
    if kind == "surrogate":
        variables[PATH] = torch.tensor(0.5, dtype=torch.float64)
        response = Surrogate(model, names, batch.labels, movement=list(update.tensors.values()))
    goal = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in update.tensors.values()]

    def value(point: Sequence[torch.Tensor]) -> torch.Tensor:
        found = response.gradients(point[0], dict(zip(variables, point[1:], strict=True)))
        return torch.stack([(f * g).sum() for f, g in zip(found, goal, strict=True)]).sum()

    point = [tensor.clone().requires_grad_() for tensor in (images, *variables.values())]
    with models.unfused_attention(model):
        slopes = torch.autograd.grad(value(point), point)
        for index, slope in enumerate(slopes):
            way = torch.randn(slope.shape, generator=generator, dtype=torch.float64)
            ends = []
            for step in (1e-6, -1e-6):
                shifted = [t.detach() + (step * way if i == index else 0) for i, t in enumerate(point)]
                ends.append(float(value(shifted).detach()))
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((slope * way).sum()), rel=1e-4, abs=1e-6)


def test_labels_that_are_variables_overrule_the_known_ones(batch: LabeledImages) -> None:
    model = tiny()
    response, observed = one_gradient(model, batch)
    images = models.normalization(model).normalize(batch.images)
    certain = 40.0 * torch.nn.functional.one_hot(batch.labels, 10)
    wrong = dataclasses.replace(response, labels=(batch.labels + 1) % 10)
    assert cosine(wrong.gradients(images, {LABELS: certain}), observed) == pytest.approx(1, abs=1e-5)
    assert cosine(wrong.gradients(images, {}), observed) < 0.9


def test_only_the_named_parameters_are_differentiated_and_none_is_changed(batch: LabeledImages) -> None:
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = models.normalization(model).normalize(batch.images)
    names = ["pos_embed", "head.bias"]
    found = OneGradient(model, names, batch.labels).gradients(images, {})
    assert [tensor.shape for tensor in found] == [model.get_parameter(name).shape for name in names]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_is_near_the_gradient_and_leaves_it_in_single(batch: LabeledImages) -> None:
    model = tiny()
    response, observed = one_gradient(model, batch)
    images = models.normalization(model).normalize(batch.images)
    found = dataclasses.replace(response, is_bfloat16=True).gradients(images, {})
    assert all(tensor.dtype == torch.float32 for tensor in found)
    assert 0.99 < cosine(found, observed) < 1 - 1e-7
