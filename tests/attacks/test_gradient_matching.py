import pytest
import torch
from fedsim_attacks._matching import DISTANCES, cosine, relative_l2
from fedsim_attacks.gradient_matching import GradientMatching
from hypothesis import given
from hypothesis import strategies as st

from fedsim import models
from fedsim.data.photos import Photos
from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, Observation, TrainingKnowledge, Update
from fedsim.metrics.image import psnr
from fedsim.scenario import ModelPart
from fedsim.threat import ModelFactory

# One patch: the gradient of its projection is the picture up to a factor, so plain matching has to find it. With more
# patches it stays near the mean color, which is what other attacks are for.
ONE_PATCH = {"img_size": 8, "patch_size": 8, "embed_dim": 96, "depth": 1, "num_heads": 3}
FOUR_PATCHES = {**ONE_PATCH, "patch_size": 4}


def observation(kwargs: dict[str, int], batch: LabeledImages, labels: bool = True, **grants: object) -> Observation:
    size = kwargs["img_size"]
    model = models.build(ModelPart(name="vit_tiny_patch16_224", kwargs=dict(kwargs)), 7, size, seed=0)
    normalization = models.normalization(model)
    gradient = models.gradient_of(model, normalization.normalize(batch.images), batch.labels)
    return Observation(
        Update(1, 0, "gradient", gradient, len(batch)),
        ModelFactory(model),
        (3, size, size),
        7,
        batch_size=len(batch),
        labels=batch.labels if labels else None,
        normalization=normalization,
        **grants,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def pictures() -> LabeledImages:
    return Photos(image_size=8).load(0).train.read([0, 50])


def first(pictures: LabeledImages) -> LabeledImages:
    return LabeledImages(pictures.images[:1], pictures.labels[:1])


def test_plain_matching_recovers_a_picture_of_one_patch_and_another_update_does_not(pictures: LabeledImages) -> None:
    attack, own = GradientMatching(steps=250, total_variation=0.001), first(pictures)
    other = LabeledImages(pictures.images[1:], pictures.labels[1:])
    found, wrong = (
        attack.run(observation(ONE_PATCH, batch, labels=False), torch.Generator().manual_seed(1)).images
        for batch in (own, other)
    )
    assert found is not None and wrong is not None
    right = psnr(found[0], own.images[0], 1.0)
    assert right >= 20
    assert right >= psnr(wrong[0], own.images[0], 1.0) + 3
    assert right >= psnr(own.images[0].mean((1, 2), keepdim=True).expand(3, 8, 8), own.images[0], 1.0) + 3


@pytest.mark.parametrize("params", [{"distance": "l2"}, {"signed": False, "schedule": "cosine"}, {"restarts": 3}])
def test_the_kept_iterate_has_the_lowest_objective_of_all_restarts(
    params: dict[str, object], pictures: LabeledImages
) -> None:
    attack = GradientMatching(steps=20, **params)  # type: ignore[arg-type]
    trace = attack.run(observation(ONE_PATCH, first(pictures)), torch.Generator().manual_seed(0)).trace
    curves = trace["curves"]
    assert len(curves) == attack.restarts
    assert trace["loss"] == min(min(curve) for curve in curves)
    assert trace["loss"] == curves[trace["restart"]][trace["step"]] < curves[trace["restart"]][0]


def test_long_curves_are_thinned(pictures: LabeledImages) -> None:
    trace = GradientMatching(steps=150).run(observation(ONE_PATCH, first(pictures)), torch.Generator()).trace
    assert 50 <= len(trace["curves"][0]) <= 76


def test_dropout_on_the_client_draws_from_the_attack_s_generator(pictures: LabeledImages) -> None:
    kwargs = {**ONE_PATCH, "drop_rate": 0.5}
    seen = observation(kwargs, first(pictures), train_mode=True)  # type: ignore[arg-type]
    attack = GradientMatching(steps=3)
    before = torch.get_rng_state()
    one, two, three = (attack.run(seen, torch.Generator().manual_seed(seed)).images for seed in (0, 0, 1))
    assert one is not None and two is not None and three is not None
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("distance", sorted(DISTANCES))
def test_a_true_picture_has_no_distance(distance: str, pictures: LabeledImages) -> None:
    one = observation(ONE_PATCH, pictures)
    assert one.normalization is not None
    gradient = models.gradient_of(one.model(), one.normalization.normalize(pictures.images), pictures.labels)
    assert float(DISTANCES[distance](list(gradient.values()), list(one.update.tensors.values()))) < 1e-5


@given(scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
def test_only_the_cosine_distance_is_blind_to_scale(scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    observed = [torch.randn(3, 2, generator=generator), torch.randn(5, generator=generator)]
    candidate = [scale * tensor for tensor in observed]
    assert float(cosine(candidate, observed)) == pytest.approx(0, abs=1e-5)
    assert float(relative_l2(candidate, observed)) == pytest.approx((scale - 1) ** 2, rel=1e-3, abs=1e-6)


def test_labels_are_counted_when_they_are_not_granted(pictures: LabeledImages) -> None:
    finding = GradientMatching(steps=2).run(observation(FOUR_PATCHES, pictures, labels=False), torch.Generator())
    assert finding.labels is not None
    assert sorted(finding.labels.tolist()) == sorted(pictures.labels.tolist())
    assert finding.images is not None and finding.images.shape == (2, 3, 8, 8)


def test_no_step_returns_the_start(pictures: LabeledImages) -> None:
    finding = GradientMatching(steps=0).run(observation(ONE_PATCH, pictures), torch.Generator())
    assert finding.images is not None and finding.trace["step"] == 0


def test_l2_is_refused_where_the_scale_of_the_gradient_is_unknown(pictures: LabeledImages) -> None:
    one = observation(ONE_PATCH, pictures)
    update = Update(1, 0, "delta", {n: -0.01 * t for n, t in one.update.tensors.items()}, 2)
    delta = Observation(update, one.model, one.image_shape, 7, 2, one.labels, one.normalization)
    with pytest.raises(AttackRefusedError, match="scale"):
        GradientMatching(distance="l2", steps=1).run(delta, torch.Generator())
    assert GradientMatching(steps=1).run(delta, torch.Generator()).cautions
    told = TrainingKnowledge("sgd", 0.01, 0.0, 0.0, 1, None)
    known = Observation(update, one.model, one.image_shape, 7, 2, one.labels, one.normalization, told)
    cautions = GradientMatching(distance="l2", steps=1).run(known, torch.Generator()).cautions
    assert not any("local steps" in caution for caution in cautions)


@pytest.mark.parametrize(
    "params",
    [{"steps": -1}, {"restarts": 0}, {"learning_rate": 0.0}, {"total_variation": -1.0}, {"initial_scale": -0.1}],
)
def test_values_out_of_range_are_refused_by_name(params: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(params))):
        GradientMatching(**params)  # type: ignore[arg-type]
