import pytest
import torch
from descent_cases import mean_decibels, observed, one_gradient, pictures, tiny
from fedsim_attacks.newton.alternation import closed_form
from fedsim_attacks.newton.iteration import above_noise, gauss_newton
from fedsim_attacks.newton.levenberg_marquardt import ChosenProducts, LevenbergMarquardt, chosen_products
from fedsim_attacks.newton.residual import Differences, Exact, Iterate, Place, Residual, adjoint_error
from fedsim_attacks.token_matching import TokenMatching
from fedsim_attacks.update.target import Target, read_target

from fedsim import models
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Images, LabeledImages, TrainingKnowledge, Update

BOX = 1.0  # of the model's normalization


def confined(images: Images) -> Images:
    return images.clamp(-BOX, BOX)


def residual(batch: LabeledImages, positions: float = 10.0, depth: int = 1) -> Residual:
    model = tiny(depth=depth)
    response, gradients = one_gradient(model, batch)
    return Residual(response, {}, Target(response.names, gradients, True, model), positions)


def near(batch: LabeledImages, amount: float) -> Images:
    inputs = models.normalization(tiny()).normalize(batch.images)
    drawn = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    return confined(inputs + amount * drawn)


def decibels(images: Images, batch: LabeledImages) -> float:
    return mean_decibels(models.normalization(tiny()).denormalize(images).clamp(0, 1), batch)


def test_true_images_leave_nothing_and_others_do() -> None:
    batch = pictures(0, 50)
    left = residual(batch)

    def share(images: Images) -> float:
        (only,) = gauss_newton(left, images, LevenbergMarquardt(confined, "exact"), 0)
        assert torch.equal(only.images, images)
        return only.residual

    assert share(models.normalization(tiny()).normalize(batch.images)) < 1e-5
    assert share(near(batch, 0.3)) > 0.05


def test_every_row_of_positions_weighs_the_same() -> None:
    left = residual(pictures(0), positions=3.0)
    place = left.target.place("pos_embed")
    assert place is not None
    rows = left.goal[place].square().sum(-1).flatten()
    # Beside its own share every row has one of the whole tensor's.
    own = 3.0 / len(rows)
    assert bool((rows >= own * (1 - 1e-5)).all()) and float(rows.sum()) == pytest.approx(
        3 + 1 / len(left.scales), rel=1e-4
    )


@pytest.mark.parametrize(("kind", "error"), [(Differences, 0.02), (Exact, 1e-4)])
def test_products_with_the_jacobian_and_its_transpose_are_those_of_central_differences(
    kind: type[Place], error: float
) -> None:
    batch = pictures(0, 50)
    left = residual(batch)
    images = near(batch, 0.2)
    place = kind(left, images)
    step = 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))

    def exact(at: Images) -> tuple[torch.Tensor, ...]:
        with models.unfused_attention(left.response.model):
            return tuple(s * g for s, g in zip(left.scales, left.response.gradients(at, {}), strict=True))

    ahead = [(a - b) / 2e-3 for a, b in zip(exact(images + 1e-3 * step), exact(images - 1e-3 * step), strict=True)]
    forward = torch.cat([tensor.flatten() for tensor in place.forward(step)])
    wanted = torch.cat([tensor.detach().flatten() for tensor in ahead])
    assert float(torch.cosine_similarity(forward, wanted, dim=0)) > 0.999

    leaf = images.clone().requires_grad_()
    sums = [tensor.detach() for tensor in place.left]
    (wanted,) = torch.autograd.grad(exact(leaf), leaf, sums)
    backward = place.backward(sums)
    assert float(torch.cosine_similarity(backward.flatten(), wanted.flatten(), dim=0)) > 0.999
    assert float(backward.norm() / wanted.norm()) == pytest.approx(1, abs=error)


def test_exact_products_are_adjoint() -> None:
    left = residual(pictures(0, 50), depth=2)
    place = Exact(left, near(pictures(0, 50), 0.2))
    generator = torch.Generator().manual_seed(2)
    step = torch.randn(place.images.shape, generator=generator)
    aside = [torch.randn(part.shape, generator=generator) for part in place.compared]
    there = sum(float((a * b).sum()) for a, b in zip(place.forward(step), aside, strict=True))
    assert there == pytest.approx(float((step * place.backward(aside)).sum()), rel=1e-3)


def bent(amount: float) -> Residual:
    """Return the residual of a model whose gradient bends more, the larger its weights are."""
    model, batch = tiny(depth=2), pictures(0, 50)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and name.startswith("blocks"):
                weight *= amount
    response, gradients = one_gradient(model, batch)
    return Residual(response, {}, Target(response.names, gradients, True, model), 10.0)


def test_differences_are_taken_where_they_are_adjoint_and_exact_products_elsewhere() -> None:
    start = near(pictures(0, 50), 0.2)
    straight, curved = bent(1.0), bent(16.0)
    errors = [
        [adjoint_error(place, place.backward(place.left)) for place in (Differences(left, start), Exact(left, start))]
        for left in (straight, curved)
    ]
    (fair, low), (poor, still_low) = errors
    assert fair < 0.01 < 0.02 < poor and max(low, still_low) < 1e-3
    assert [chosen_products(left, start, "auto") for left in (straight, curved)] == ["differences", "exact"]
    assert (
        chosen_products(straight, start, "exact") == "exact"
        and chosen_products(curved, start, "differences") == "differences"
    )


def test_at_the_true_images_differences_are_enough() -> None:
    left = residual(pictures(0))
    assert chosen_products(left, models.normalization(tiny()).normalize(pictures(0).images), "auto") == "differences"


@pytest.mark.parametrize("products", ["differences", "exact"])
def test_levenberg_marquardt_finds_two_images_from_near_by_and_never_leaves_more(products: ChosenProducts) -> None:
    batch = pictures(0, 50)
    left, start = residual(batch), near(batch, 0.15)
    found = list(gauss_newton(left, start, LevenbergMarquardt(confined, products), 5))
    assert decibels(found[-1].images, batch) >= decibels(start, batch) + 6
    assert torch.equal(found[0].images, start)
    assert found[-1].residual < 0.2 * found[0].residual


def test_it_does_not_leave_true_images() -> None:
    batch = pictures(0)
    left, true = residual(batch), models.normalization(tiny()).normalize(pictures(0).images)
    *_, last = gauss_newton(left, true, LevenbergMarquardt(confined, "differences"), 1)
    assert decibels(last.images, batch) >= 40


def test_the_closed_form_inverts_one_image() -> None:
    batch = pictures(0)
    left, start = residual(batch), near(batch, 0.3)
    found = list(closed_form(left, start, confined, 6))
    assert torch.equal(found[0].images, start) and len(found) == 7
    assert decibels(found[-1].images, batch) >= decibels(start, batch) + 3
    left_of_projection = [refined.residual for refined in found]
    assert left_of_projection == sorted(left_of_projection, reverse=True)


def test_the_closed_form_stays_where_it_is_at_the_true_images() -> None:
    batch = pictures(0, 50)
    left, true = residual(batch), models.normalization(tiny()).normalize(batch.images)
    found = list(closed_form(left, true, confined, 3))
    assert all(refined.residual < 1e-5 for refined in found)
    assert decibels(found[-1].images, batch) >= 80


def test_the_closed_form_needs_positions_and_the_projection() -> None:
    batch = pictures(0)
    model = tiny()
    target = read_target(observed(model, batch), ("blocks.*",), torch.device("cpu"))
    response, _ = one_gradient(model, batch)
    with pytest.raises(AttackRefusedError, match="closed_form reads"):
        next(closed_form(Residual(response, {}, target, 0.0), near(batch, 0.1), confined, 1))


def test_what_is_no_gradient_of_known_scale_is_left_unpolished_with_a_caution() -> None:
    batch, model = pictures(0), tiny()
    tensors = {name: -0.01 * tensor for name, tensor in observed(model, batch).update.tensors.items()}
    unknown = observed(model, batch, update=Update(1, 0, "delta", tensors, 1))
    several = observed(
        model,
        batch,
        update=Update(1, 0, "delta", tensors, 2),
        training=TrainingKnowledge("sgd", 0.01, 0.0, 0.0, None, 2),
    )
    dropped = observed(model, batch, train_mode=True)
    for seen, reason in ((unknown, "scale"), (several, "local steps"), (dropped, "dropout")):
        finding = TokenMatching(steps=2, refinement_steps=2).run(seen, torch.Generator().manual_seed(0))
        assert finding.trace["refinement"] == []
        assert any("not refined" in caution and reason in caution for caution in finding.cautions)


def test_the_step_that_leaves_least_is_kept_and_filmed() -> None:
    finding = TokenMatching(steps=4, refinement_steps=3).run(
        observed(tiny(), pictures(0)), torch.Generator().manual_seed(0)
    )
    left = finding.trace["refinement"]
    assert len(left) == 4 and finding.trajectory is not None and finding.images is not None
    assert finding.trajectory.steps[-3:] == (5, 6, 7)
    best = min(range(4), key=left.__getitem__)
    assert finding.trace["step"] == 4 + best
    assert torch.equal(finding.trajectory.images[finding.trajectory.steps.index(4 + best)], finding.images)


def test_iterates_end_before_the_first_that_leaves_less_than_noise_but_the_start_counts() -> None:
    images = torch.zeros(1, 3, 2, 2)
    iterates = [Iterate(images, left, images) for left in (0.1, 0.5, 0.3, 0.19, 0.4)]
    assert [iterate.residual for iterate in above_noise(iterates, 0.2)] == [0.1, 0.5, 0.3]
    assert len(list(above_noise(iterates, 0.0))) == 5
