import dataclasses
import weakref
from collections import Counter

import pytest
import torch
from descent_cases import flat, objective, one_gradient, pictures, starts, tiny
from fedsim_attacks.matching.distances import DISTANCES
from fedsim_attacks.matching.input_gradients import DoubleBackward, ForwardDifference, InputGradients, choose
from fedsim_attacks.matching.objective import Objective
from fedsim_attacks.priors.natural import length, patch_differences, total_variation
from fedsim_attacks.update.client_gradient import LABELS, Surrogate

from fedsim.exchange import LabeledImages


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny(depth=2)


@pytest.fixture(scope="module")
def batch() -> LabeledImages:
    return pictures(0, 50)


@pytest.fixture(scope="module")
def many() -> LabeledImages:
    generator = torch.Generator().manual_seed(9)
    return LabeledImages(torch.rand(24, 3, 8, 8, generator=generator), torch.arange(24) % 10)


class Kept:
    """Bytes that autograd keeps for backward passes, each memory once: as many as at once, and as many as are left."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.uses: Counter[int] = Counter()

    def pack(self, tensor: torch.Tensor) -> "Holder":
        holder, memory = Holder(tensor), tensor.untyped_storage()
        place, size = memory.data_ptr(), memory.nbytes()
        self.uses[place] += 1
        if self.uses[place] == 1:
            self.now += size
            self.most = max(self.most, self.now)
        weakref.finalize(holder, self.drop, place, size)
        return holder

    def drop(self, place: int, size: int) -> None:
        self.uses[place] -= 1
        if not self.uses[place]:
            self.now -= size


@dataclasses.dataclass(eq=False)
class Holder:
    tensor: torch.Tensor


def cosine_of_slopes(one: InputGradients, other: InputGradients, variables: dict[str, torch.Tensor]) -> float:
    left, right = (flat(input_gradients(variables, None, 0.0)).double() for input_gradients in (one, other))
    return float(torch.cosine_similarity(left, right, dim=0))


def at_float64(model: torch.nn.Module, batch: LabeledImages) -> tuple[torch.nn.Module, LabeledImages]:
    return model.double(), LabeledImages(batch.images.double(), batch.labels)


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("distance", sorted(DISTANCES.own))
def test_the_difference_of_two_passes_has_the_direction_of_double_backward(
    distance: str, positions: bool, model: torch.nn.Module, batch: LabeledImages
) -> None:
    goal = objective(*one_gradient(model, batch), distance, positions)
    variables = starts(1, batch)
    chosen = choose(goal, variables)
    assert isinstance(chosen, ForwardDifference)
    assert cosine_of_slopes(chosen, DoubleBackward(goal), variables) > 0.9999
    assert torch.allclose(
        chosen(variables, None, 0.0).values, DoubleBackward(goal)(variables, None, 0.0).values, rtol=1e-4
    )


@pytest.mark.parametrize("input_gradients", [DoubleBackward, ForwardDifference])
def test_input_gradients_are_those_of_finite_differences(
    input_gradients: type[InputGradients], batch: LabeledImages
) -> None:
    model, pictures = at_float64(tiny(), batch)
    response, observed = one_gradient(model, pictures)
    priors = [lambda c: total_variation(c.pixels), lambda c: patch_differences(c.pixels, 4), lambda c: length(c.images)]
    goal = objective(response, observed, "cosine", positions=True, priors=priors)
    found = input_gradients(goal)
    if isinstance(found, ForwardDifference):
        found = dataclasses.replace(found, reach=1e-7)
    at = {name: tensor.double() for name, tensor in starts(1, batch).items()}
    way = torch.randn(at["images"].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    here = found(at, None, 0.0)
    ahead, behind = (found({"images": at["images"] + s * 1e-6 * way}, None, 0.0).values for s in (1, -1))
    assert float((ahead - behind) / 2e-6) == pytest.approx(float((here.gradients["images"] * way).sum()), rel=1e-4)


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("input_gradients", [DoubleBackward, ForwardDifference])
def test_restarts_in_one_batch_have_the_slopes_that_they_have_alone(
    input_gradients: type[InputGradients], with_labels: bool, model: torch.nn.Module, batch: LabeledImages
) -> None:
    found = input_gradients(
        objective(*one_gradient(model, batch), positions=True, priors=[lambda c: total_variation(c.pixels)])
    )
    variables = starts(3, batch)
    if with_labels:
        variables[LABELS] = torch.randn(3, 2, 10, generator=torch.Generator().manual_seed(1))
    together = found(variables, None, 0.0)
    for index in range(3):
        alone = found({name: tensor[index : index + 1] for name, tensor in variables.items()}, None, 0.0)
        assert torch.allclose(alone.values[0], together.values[index], rtol=1e-5)
        for name in variables:
            assert alone.gradients[name].shape == variables[name][:1].shape
            cosine = torch.cosine_similarity(
                alone.gradients[name][0].flatten(), together.gradients[name][index].flatten(), dim=0
            )
            assert float(cosine) > 0.9999


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("input_gradients", [DoubleBackward, ForwardDifference])
def test_the_model_is_left_as_it_was(
    input_gradients: type[InputGradients], restarts: int, model: torch.nn.Module, batch: LabeledImages
) -> None:
    attention = [module for module in model.modules() if hasattr(module, "fused_attn")]
    attention[0].fused_attn = False  # type: ignore[assignment]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    variables = starts(restarts, batch)
    kept = {name: tensor.clone() for name, tensor in variables.items()}
    try:
        found = input_gradients(objective(*one_gradient(model, batch)))(variables, None, 0.0)
        assert [bool(module.fused_attn) for module in attention] == [False, True]
    finally:
        attention[0].fused_attn = True  # type: ignore[assignment]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad and p.grad_fn is None for p in model.parameters())
    assert all(torch.equal(tensor, kept[name]) and tensor.grad is None for name, tensor in variables.items())
    assert not found.values.requires_grad and not any(slope.requires_grad for slope in found.gradients.values())


def test_the_difference_of_two_passes_needs_no_second_derivative(model: torch.nn.Module, many: LabeledImages) -> None:
    goal = objective(*one_gradient(model, many), positions=True)
    variables, most = starts(1, many), {}
    for input_gradients in (DoubleBackward(goal), ForwardDifference(goal)):
        kept = Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda holder: holder.tensor):
            for _ in range(2):
                input_gradients(variables, None, 0.0)
        most[type(input_gradients)] = kept.most
        assert kept.now == 0, "a graph outlives its step"
    assert most[ForwardDifference] <= 0.5 * most[DoubleBackward]


def test_exact_slopes_are_taken_where_two_passes_would_not_see_the_same_function(
    model: torch.nn.Module, batch: LabeledImages
) -> None:
    response, observed = one_gradient(model, batch)
    goal, variables = objective(response, observed), starts(2, batch)
    assert isinstance(choose(goal, variables), ForwardDifference)
    assert isinstance(choose(with_response(goal, is_bfloat16=True), variables), DoubleBackward)
    noisy = tiny(drop_rate=0.5).train()
    assert isinstance(choose(objective(*one_gradient(noisy, batch)), variables), DoubleBackward)
    moved = Surrogate(model, response.names, batch.labels, movement=[torch.zeros_like(o) for o in observed])
    assert isinstance(choose(objective(moved, observed), {**variables, "path": torch.ones(2)}), DoubleBackward)


def test_exact_slopes_are_taken_where_the_cheap_ones_do_not_agree(model: torch.nn.Module, batch: LabeledImages) -> None:
    response, observed = one_gradient(model, batch)
    goal = objective(response, observed)
    stairs = [goal.gradient_terms[0]._replace(value=lambda found: (found[0] * 1e9).sin().sum())]
    rough = dataclasses.replace(goal, gradient_terms=stairs)
    assert isinstance(choose(rough, starts(1, batch)), DoubleBackward)


def test_the_choice_does_not_take_the_memory_of_exact_slopes_of_the_batch(
    model: torch.nn.Module, many: LabeledImages
) -> None:
    goal, variables, most = objective(*one_gradient(model, many), positions=True), starts(1, many), {}
    for name, work in (
        ("choice", lambda: choose(goal, variables)),
        ("exact", lambda: DoubleBackward(goal)(variables, None, 0.0)),
    ):
        kept = Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda holder: holder.tensor):
            work()
        most[name] = kept.most
    assert isinstance(choose(goal, variables), ForwardDifference)
    assert most["choice"] <= 0.5 * most["exact"]


def with_response(goal: Objective, is_bfloat16: bool) -> Objective:
    return dataclasses.replace(goal, response=dataclasses.replace(goal.response, is_bfloat16=is_bfloat16))


def test_variables_that_no_term_sees_have_a_slope_of_zero(model: torch.nn.Module, batch: LabeledImages) -> None:
    goal = objective(*one_gradient(model, batch))
    variables = {**starts(1, batch), "unused": torch.ones(1, 3)}
    for input_gradients in (DoubleBackward(goal), ForwardDifference(goal)):
        assert not input_gradients(variables, None, 0.0).gradients["unused"].any()
