import pytest
import torch
from fedsim_attacks.span_inversion import SpanInversion
from fedsim_attacks.spans import (
    TokenSearch,
    assemble,
    image_count,
    read_first_block,
    shares_outside,
    solve_pictures,
)
from fedsim_attacks.spans.assembly import EMPTY
from vit_cases import build, delta, gradient, noisy, observe, photos

from fedsim import models
from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, TrainingKnowledge, Update
from fedsim.metrics.image import psnr

SAMPLES = [17, 200, 431]


def small(**kwargs):
    """Return an untrained ViT of four patches and five tokens an image, 64 wide: room for twelve images."""
    sizes = {"patch_size": 16, "embed_dim": 64, "num_heads": 4, "depth": 2}
    return build("vit_mini", 32, **{**sizes, **kwargs})


def run(observation, **parameters):
    return SpanInversion(**parameters).run(observation, torch.Generator().manual_seed(0))


def worst(finding, batch):
    """Return the PSNR of the worst image, each beside the one found that is nearest."""
    return min(max(psnr(found, true, 1.0) for found in finding.images) for true in batch.images)


def without(update, *names):
    kept = {name: tensor for name, tensor in update.tensors.items() if name not in names}
    return Update(update.round, update.client, update.kind, kept, update.num_examples)


@pytest.mark.parametrize("samples", [[3], [3, 17], SAMPLES], ids=["one", "two of one class", "three"])
def test_all_images_and_labels_of_a_batch_come_back(samples):
    model, batch = small(), photos().read(samples)
    finding = run(observe(model, gradient(model, batch)))
    assert len(finding.images) == len(samples) == finding.trace["images"]
    assert worst(finding, batch) >= 35
    assert sorted(finding.labels.tolist()) == sorted(batch.labels.tolist())
    assert finding.trace["confidence"] == [1.0] * len(samples)
    assert finding.cautions == ()


@pytest.mark.parametrize(
    "kwargs", [{"reg_tokens": 2}, {"no_embed_class": True}, {"global_pool": "avg", "class_token": False}], ids=str
)
def test_variants_of_the_token_sequence_make_no_difference(kwargs):
    model, batch = small(**kwargs), photos().read(SAMPLES[:2])
    assert worst(run(observe(model, gradient(model, batch))), batch) >= 35


def test_neither_the_scale_nor_the_gradient_of_positions_nor_that_of_the_classifier_is_needed():
    model, batch = small(), photos().read(SAMPLES)
    recipe = TrainingKnowledge("sgd", 0.1, 0.0, 0.0, 1, None)
    sent = without(delta(model, batch, recipe), "pos_embed", "head.weight", "head.bias")
    finding = run(observe(model, sent))
    assert worst(finding, batch) >= 30
    assert finding.labels is None


def test_a_sum_of_clients_gives_the_images_of_all():
    model, pool = small(), photos()
    first, second = (gradient(model, pool.read([sample])) for sample in SAMPLES[:2])
    mean = {name: (tensor + second.tensors[name]) / 2 for name, tensor in first.tensors.items()}
    finding = run(observe(model, Update(1, -1, "gradient", mean, 2)))
    assert worst(finding, pool.read(SAMPLES[:2])) >= 25


def test_images_of_another_client_are_told_from_those_of_the_update():
    model, pool = small(), photos()
    own, other = pool.read(SAMPLES), pool.read([300, 301, 302])
    block = read_first_block(observe(model, gradient(model, own)))
    block = block.limited(image_count(block) * block.tokens_per_image)
    normalize = models.normalization(model).normalize
    assert shares_outside(block, normalize(own.images).double()).max() < 1e-3
    assert shares_outside(block, normalize(other.images).double())[:, 1:].min() > 0.03


def test_the_same_draws_give_the_same_finding():
    model, batch = small(), photos().read(SAMPLES[:1])
    observation = observe(model, gradient(model, batch))
    assert torch.equal(run(observation).images, run(observation).images)


@pytest.mark.parametrize("kept", [1, 2, 6])
def test_tokens_that_were_not_found_leave_the_others_in_place(kept):
    model, batch = small(), photos().read(SAMPLES[:2])
    block = read_first_block(observe(model, gradient(model, batch)))
    block = block.limited(2 * block.tokens_per_image)
    tokens = TokenSearch(block, 16, 1e-3, torch.device("cpu")).run(torch.Generator().manual_seed(0))
    assembly = assemble(block, tokens[:kept], 2)
    placed = sorted(token for rows in assembly.pictures for token in rows if token != EMPTY)
    assert placed == list(range(kept))
    pictures = solve_pictures(block, assembly)
    assert len(pictures) <= 2 and all(bool(picture.image.isfinite().all()) for picture in pictures)


def test_repeats_of_an_image_are_one():
    model, batch = small(), photos().read(SAMPLES[:2])
    twice = LabeledImages(batch.images[[0, 1, 1]], batch.labels[[0, 1, 1]])
    finding = run(observe(model, gradient(model, twice)))
    assert finding.trace["images"] == 2
    assert worst(finding, batch) >= 25


@pytest.mark.parametrize(
    ("kwargs", "changed", "reason"),
    [
        ({}, lambda update: noisy(update, 1e-3), "fills the spectrum"),
        ({}, lambda update: without(update, "blocks.0.mlp.fc2.weight"), "missing from the update"),
        ({"embed_dim": 4, "num_heads": 1}, lambda update: update, "whatever the image"),
        ({"init_values": 0.1}, lambda update: update, "layer scale"),
        ({"pre_norm": True}, lambda update: update, "layer norm stands before"),
    ],
    ids=["noise", "hidden", "narrow", "layer scale", "norm before"],
)
def test_what_hides_the_spans_is_refused_with_the_reason(kwargs, changed, reason):
    model, batch = small(**kwargs), photos().read(SAMPLES[:1])
    with pytest.raises(AttackRefusedError, match=reason):
        run(observe(model, changed(gradient(model, batch))))


def test_more_images_than_the_width_has_room_for_are_refused():
    model, batch = small(embed_dim=16), photos().read([*SAMPLES, 5])
    with pytest.raises(AttackRefusedError, match=r"more images|tokens were found"):
        run(observe(model, gradient(model, batch)))


def test_several_local_steps_are_refused_where_the_recipe_is_known():
    model, batch = small(), photos().read(SAMPLES[:1])
    recipe = TrainingKnowledge("sgd", 0.1, 0.0, 0.0, 3, None)
    with pytest.raises(AttackRefusedError, match="several local steps"):
        run(observe(model, delta(model, batch, recipe), training=recipe))


@pytest.mark.parametrize("wrong", [{"starts": 0}, {"tolerance": 0.0}, {"least_tokens": 1.5}], ids=str)
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SpanInversion(**wrong)
