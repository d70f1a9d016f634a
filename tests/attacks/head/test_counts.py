import copy

import pytest
import timm
import torch
from fedsim_attacks.head.counts import count_labels, image_count
from fedsim_attacks.solvers.whole_numbers import largest_remainder
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim import models
from fedsim.audit.threat import ModelFactory
from fedsim.data.photos import Photos
from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, Observation, TrainingKnowledge, Update
from fedsim.metrics.label import label_recall
from fedsim.scenario import ModelPart

CLASSES = 10


@pytest.fixture(scope="module")
def pictures() -> LabeledImages:
    pool = Photos(image_size=32).load(0).train
    return pool.read(range(0, 576, 9))


def small(seed: int = 0) -> nn.Module:
    return models.build(ModelPart(name="vit_nano"), CLASSES, 32, seed)


def seen(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, without: str = "", **grants: object
) -> Observation:
    gradient = models.gradient_of(model, models.normalization(model).normalize(images), labels)
    kept = {name: tensor for name, tensor in gradient.items() if name != without}
    update = Update(1, 0, "gradient", kept, len(labels))
    return Observation(update, ModelFactory(model), (3, 32, 32), CLASSES, **{"batch_size": len(labels), **grants})  # type: ignore[arg-type]


def drawn(count: int, seed: int) -> torch.Tensor:
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def counted(observation: Observation) -> torch.Tensor:
    return count_labels(observation, 64, torch.Generator().manual_seed(0)).labels


@pytest.mark.parametrize(
    ("without", "count"), [("head.bias", 1), ("head.bias", 8), ("head.weight", 1), ("head.weight", 8)]
)
def test_one_half_of_the_classifier_suffices_for_a_small_batch(
    without: str, count: int, pictures: LabeledImages
) -> None:
    labels = drawn(count, 1)
    observation = seen(small(), pictures.images[:count], labels, without)
    assert label_recall(counted(observation), labels) == 1.0


def test_a_missing_bias_is_a_caution(pictures: LabeledImages) -> None:
    observation = seen(small(), pictures.images[:4], drawn(4, 0), "head.bias")
    assert any("bias" in caution for caution in count_labels(observation, 16, torch.Generator()).cautions)


def test_both_classifiers_of_a_distilled_model_are_read(pictures: LabeledImages) -> None:
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=CLASSES, **kwargs).eval()
    labels = drawn(16, 2)
    assert label_recall(counted(seen(model, pictures.images[:16], labels)), labels) == 1.0


def test_auxiliary_images_are_used_on_a_trained_model(pictures: LabeledImages) -> None:
    model, normalization = copy.deepcopy(small()), models.normalization(small())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(normalization.normalize(pictures.images)), pictures.labels).backward()
        optimizer.step()
    known = LabeledImages(pictures.images[32:], pictures.labels[32:])
    observation = seen(
        model, pictures.images[:32], pictures.labels[:32], auxiliary_data=known, normalization=normalization
    )
    found = count_labels(observation, 32, torch.Generator())
    blind = count_labels(seen(model, pictures.images[:32], pictures.labels[:32]), 32, torch.Generator().manual_seed(0))
    assert label_recall(found.labels, pictures.labels[:32]) >= label_recall(blind.labels, pictures.labels[:32])
    assert label_recall(found.labels, pictures.labels[:32]) >= 0.9


def test_the_scale_of_an_untold_delta_is_set_by_absent_classes(pictures: LabeledImages) -> None:
    model, labels = small(), torch.tensor([3, 3, 7, 1])
    gradient = seen(model, pictures.images[:4], labels).update
    delta = Update(1, 0, "delta", {name: -0.37 * tensor for name, tensor in gradient.tensors.items()}, 4)
    observation = Observation(delta, ModelFactory(model), (3, 32, 32), CLASSES, batch_size=4)
    found = count_labels(observation, 64, torch.Generator().manual_seed(0))
    assert label_recall(found.labels, labels) == 1.0
    assert any("scale" in caution for caution in found.cautions)


def test_confidence_falls_with_noise(pictures: LabeledImages) -> None:
    labels, generator = drawn(16, 4), torch.Generator().manual_seed(0)
    clean = seen(small(), pictures.images[:16], labels)
    confidences = []
    for sigma in (0.0, 0.01, 0.1):
        tensors = {n: t + sigma * torch.randn(t.shape, generator=generator) for n, t in clean.update.tensors.items()}
        noisy = Observation(Update(1, 0, "gradient", tensors, 16), clean.model, (3, 32, 32), CLASSES, batch_size=16)
        found = count_labels(noisy, 32, torch.Generator().manual_seed(0))
        assert found.noise == pytest.approx(sigma, rel=0.3, abs=1e-6)
        confidences.append(found.confidence)
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[0] > 0.99 and confidences[-1] < 0.5


@given(values=st.lists(st.floats(-5, 20), min_size=1, max_size=12), count=st.integers(1, 64))
def test_rounded_counts_are_whole_not_negative_and_sum_to_the_batch(values: list[float], count: int) -> None:
    whole = largest_remainder(torch.tensor(values, dtype=torch.float64), count)
    assert float(whole.sum()) == count
    assert float(whole.min()) >= 0
    assert torch.equal(whole, whole.round())


def test_whole_counts_stay_as_they_are() -> None:
    assert largest_remainder(torch.tensor([3.0, 0.0, 2.0, 5.0]), 10).tolist() == [3, 0, 2, 5]


def recipe(
    steps: int | None = None, epochs: int | None = None, mixup: float | None = None, augment: tuple[str, ...] = ()
) -> TrainingKnowledge:
    return TrainingKnowledge("sgd", 0.1, 0.0, 0.0, steps, epochs, mixup=mixup, augment=augment)


@pytest.mark.parametrize(
    ("kind", "training", "examples", "batch_size", "expected"),
    [
        ("gradient", recipe(3), 12, 4, 4),
        ("delta", None, 12, 4, 12),
        ("delta", recipe(epochs=3), 12, 4, 12),  # epochs use each image three times, and the client has 12
        ("delta", recipe(4), 10, 5, 10),  # likewise steps, twice
        ("delta", recipe(3), 600, 4, 12),  # an app that reports all that it has, of which three batches were used
        ("delta", recipe(3), 0, 4, 12),
        ("delta", None, 0, 4, 4),
        ("delta", recipe(epochs=3, mixup=0.5), 12, 4, 36),  # every use is a blend of its own
        ("delta", recipe(4, mixup=0.5), 10, 5, 20),
        ("delta", recipe(4, augment=("flip", "crop")), 10, 5, 20),
        ("delta", recipe(epochs=3, augment=("crop",)), 12, 4, 36),
        ("delta", recipe(epochs=2, augment=("flip",)), 12, 4, 18),  # half of the images are seen from both sides
        ("delta", recipe(1, augment=("flip",)), 600, 4, 4),
    ],
)
def test_the_number_of_labels_is_that_of_the_images(
    kind: str, training: TrainingKnowledge | None, examples: int, batch_size: int, expected: int
) -> None:
    update = Update(1, 0, kind, {}, examples)  # type: ignore[arg-type]
    seen = Observation(update, nn.Identity, (3, 32, 32), CLASSES, batch_size=batch_size, training=training)
    assert image_count(seen) == expected


def test_a_number_that_nothing_tells_is_refused() -> None:
    for kind, message in (("gradient", "batch_size"), ("delta", "number of examples")):
        update = Update(1, 0, kind, {}, 0)  # type: ignore[arg-type]
        with pytest.raises(AttackRefusedError, match=message):
            image_count(Observation(update, nn.Identity, (3, 32, 32), CLASSES))


@pytest.mark.parametrize("seed", [1, 2])
def test_the_scale_of_an_untold_delta_is_found_where_every_class_has_a_image(
    seed: int, pictures: LabeledImages
) -> None:
    model, labels = small(seed), torch.cat([torch.arange(CLASSES), drawn(20, seed)])
    assert int(torch.bincount(labels).min()) >= 1
    gradient = seen(model, pictures.images[:30], labels).update
    delta = Update(1, 0, "delta", {name: -0.37 * tensor for name, tensor in gradient.tensors.items()}, 30)
    observation = Observation(delta, ModelFactory(model), (3, 32, 32), CLASSES, batch_size=30)
    found = count_labels(observation, 64, torch.Generator().manual_seed(0))
    assert label_recall(found.labels, labels) == 1.0
    assert found.confidence > 0.9
