"""Which samples a client uses: pure in (seed, client, round), no sample twice in a pass."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import elsewhere

from fedsim.data import batches
from fedsim.data.augmentation import augmented
from fedsim.data.batches import FederatedData, load
from fedsim.errors import ScenarioError
from fedsim.scenario import DataPart, TrainingPart
from fedsim.source import Pool, Pools, Source


def pool_of(images, labels):
    """Return a pool over images in memory: uint8, samples x height x width x channels."""
    stored = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    return Pool(torch.as_tensor(np.asarray(labels), dtype=torch.int64), lambda chosen: stored[list(chosen)])


def batches_of(data, client, round, training):
    """Return what each local step of a round trains on."""
    return [data.read(inputs, training) for inputs in data.client_inputs(client, round, training)]


def _pool(count, side=4, classes=3):
    images = np.zeros((count, side, side, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return pool_of(images, np.arange(count) % classes)


def _data(sizes, seed=0):
    edges = np.cumsum([0, *sizes])
    pool = _pool(int(edges[-1]))
    partition = tuple(
        tuple(range(start, stop)) for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    )
    return FederatedData(Pools(pool, pool, pool, ("a", "b", "c")), partition, seed)


counts, sizes = st.integers(1, 40), st.integers(1, 50)


@settings(deadline=None)
@given(counts, sizes, st.integers(1, 6), st.integers(1, 12), st.integers(0, 2**32))
def test_rounds_walk_through_the_samples_without_repeats_in_a_pass(count, batch_size, steps, rounds, seed):
    data = _data([3, count], seed)
    walked = [step for round in range(1, rounds + 1) for step in data.client_steps(1, round, batch_size, steps)]
    size = min(batch_size, count)
    assert len(walked) == steps * rounds
    for step in walked:
        assert len(step) == len(set(step)) == size
        assert set(step) <= set(range(3, 3 + count))
    per_pass = count // size
    for start in range(0, len(walked), per_pass):
        used = [sample for step in walked[start : start + per_pass] for sample in step]
        assert len(set(used)) == len(used)


@settings(deadline=None)
@given(counts, sizes, st.integers(1, 4), st.integers(1, 4))
def test_every_epoch_takes_every_sample_once(count, batch_size, epochs, round):
    steps = _data([count]).client_steps(0, round, batch_size, local_epochs=epochs)
    used = Counter(sample for step in steps for sample in step)
    assert used == dict.fromkeys(range(count), epochs)
    size = min(batch_size, count)
    assert len(steps) == epochs * -(-count // size)
    assert all(len(step) == size for number, step in enumerate(steps, 1) if number % -(-count // size))


def test_one_step_is_the_default():
    data = _data([10])
    assert data.client_steps(0, 3, 4) == data.client_steps(0, 3, 4, local_steps=1)
    assert len(data.client_steps(0, 3, 4)) == 1


def test_splitting_steps_over_rounds_does_not_change_the_walk():
    data = _data([11])
    slow = [step for round in range(1, 13) for step in data.client_steps(0, round, 3)]
    fast = [step for round in range(1, 4) for step in data.client_steps(0, round, 3, local_steps=4)]
    assert slow == fast


def test_passes_epochs_clients_and_seeds_are_shuffled_apart():
    data = _data([30, 30])
    orders = [tuple(data.client_steps(0, round, 30)[0]) for round in (1, 2)]
    orders += [tuple(step) for step in data.client_steps(0, 1, 30, local_epochs=2)]
    orders += [tuple(data.client_steps(0, 2, 30, local_epochs=1)[0])]
    orders += [tuple(sample - 30 for sample in data.client_steps(1, 1, 30)[0])]
    orders += [tuple(_data([30, 30], seed=1).client_steps(0, 1, 30)[0])]
    assert len(set(orders)) == len(orders)


_FINGERPRINT = """
import hashlib
from fedsim.data.batches import load
from fedsim.scenario import DataPart, PartitionPart, TrainingPart
data = load(DataPart(name="photos", samples=40, partition=PartitionPart(name="dirichlet")), 3, 9)
truth = data.truth(2, 5, TrainingPart(batch_size=4))
found = f"{data.partition} {data.client_steps(2, 5, 4)} {hashlib.sha256(truth.images.numpy().tobytes()).hexdigest()}"
"""


def test_batches_are_the_same_in_another_process():
    here: dict[str, object] = {}
    exec(_FINGERPRINT, here)
    assert elsewhere(_FINGERPRINT) == here["found"]


def test_batches_hold_the_images_of_the_steps():
    data = _data([6, 6])
    training = TrainingPart(batch_size=2, local_steps=2, shares="delta")
    found = batches_of(data, 1, 1, training)
    steps = data.client_steps(1, 1, 2, 2)
    assert [len(batch) for batch in found] == [2, 2]
    for batch, step in zip(found, steps, strict=True):
        assert (batch.images[:, 0, 0, 0] * 255).round().int().tolist() == list(step)
        assert batch.labels.tolist() == [sample % 3 for sample in step]


@settings(deadline=None)
@given(counts, sizes, st.integers(1, 3), st.booleans())
def test_truth_holds_every_used_image_once_in_the_order_of_first_use(count, batch_size, work, epochs):
    data = _data([count])
    local = {"local_epochs": work} if epochs else {"local_steps": work}
    training = TrainingPart(batch_size=batch_size, shares="delta", **local)
    steps = data.client_steps(0, 2, batch_size, training.local_steps, training.local_epochs)
    expected = list(dict.fromkeys(sample for step in steps for sample in step))
    truth = data.truth(0, 2, training)
    assert (truth.images[:, 0, 0, 0] * 255).round().int().tolist() == expected
    assert truth.labels.tolist() == [sample % 3 for sample in expected]


def test_truth_is_the_batch_for_one_step():
    data, training = _data([9]), TrainingPart(batch_size=4)
    (batch,) = batches_of(data, 0, 3, training)
    truth = data.truth(0, 3, training)
    assert torch.equal(batch.images, truth.images)
    assert torch.equal(batch.labels, truth.labels)


MIXED = {"label_smoothing": 0.2, "mixup": 0.5, "batch_size": 2, "shares": "delta"}


def test_smoothing_and_mixup_are_off_by_default_and_leave_hard_labels():
    data = _data([9])
    (batch,) = batches_of(data, 0, 1, TrainingPart(batch_size=4))
    assert batch.labels.dtype == torch.int64 and batch.labels.shape == (4,)
    pool = data.pools.train.read(data.client_steps(0, 1, 4)[0])
    assert torch.equal(batch.images, pool.images) and torch.equal(batch.labels, pool.labels)


def test_an_input_is_blended_and_then_smoothed():
    data, training = _data([9]), TrainingPart(**MIXED)
    (inputs,) = data.client_inputs(0, 1, training)
    (batch,) = batches_of(data, 0, 1, training)
    for mixture, image, label in zip(inputs, batch.images, batch.labels, strict=True):
        (one, other), whole = data.pools.train.read([mixture.sample, mixture.partner]).images, torch.eye(3)
        torch.testing.assert_close(image, mixture.share * one + (1 - mixture.share) * other)
        mixed = mixture.share * whole[mixture.sample % 3] + (1 - mixture.share) * whole[mixture.partner % 3]
        torch.testing.assert_close(label, 0.8 * mixed + 0.2 / 3)


def test_smoothing_alone_leaves_the_images():
    data = _data([9])
    (plain,), (smoothed,) = (batches_of(data, 0, 1, TrainingPart(batch_size=4, label_smoothing=a)) for a in (0.0, 0.3))
    assert torch.equal(plain.images, smoothed.images)
    torch.testing.assert_close(smoothed.labels, 0.7 * torch.eye(3)[plain.labels] + 0.1)


@settings(deadline=None)
@given(st.integers(2, 20), st.integers(1, 4), st.booleans(), st.integers(0, 2**32), st.floats(1e-4, 4))
def test_truth_holds_every_distinct_input_once(count, work, epochs, seed, alpha):
    local = {"local_epochs": work} if epochs else {"local_steps": work}
    training = TrainingPart(**{**MIXED, "mixup": alpha}, **local)
    data = _data([3, count], seed)
    flat = [one for step in data.client_inputs(1, 2, training) for one in step]
    expected = data.read(list(dict.fromkeys(flat)), training)
    truth = data.truth(1, 2, training)
    assert torch.equal(truth.images, expected.images) and torch.equal(truth.labels, expected.labels)
    assert {sample for one in flat for sample in one[:2]} <= set(range(3, 3 + count))


def test_mixtures_differ_between_steps_rounds_clients_and_seeds_but_not_between_calls():
    training = TrainingPart(**{**MIXED, "batch_size": 9}, local_epochs=2)
    data = _data([9, 9])
    shares = [
        tuple(one.share for one in step)
        for found in (
            data.client_inputs(0, 1, training),
            data.client_inputs(0, 2, training),
            data.client_inputs(1, 1, training),
            _data([9, 9], seed=1).client_inputs(0, 1, training),
        )
        for step in found
    ]
    assert len(set(shares)) == len(shares) == 8
    assert data.client_inputs(0, 1, training) == _data([9, 9]).client_inputs(0, 1, training)


def test_verify_reads_the_partners_too():
    read = set()
    plain = _pool(30)
    watched = Pool(plain.labels, lambda chosen: (read.update(chosen), plain.fetch(chosen))[1])
    data = FederatedData(Pools(watched, _pool(3), _pool(3), ("a", "b", "c")), (tuple(range(30)),), 0)
    training = TrainingPart(**{**MIXED, "mixup": 1e9})
    data.verify(1, training)
    assert read == {sample for step in data.client_inputs(0, 1, training) for one in step for sample in one[:2]}
    assert len(read) > 2


def test_verify_reads_what_a_run_uses_and_nothing_else():
    read = set()
    plain = _pool(100)
    watched = Pool(plain.labels, lambda chosen: (read.update(chosen), plain.fetch(chosen))[1])
    data = FederatedData(
        Pools(watched, _pool(3), _pool(3), ("a", "b", "c")), (tuple(range(50)), tuple(range(50, 100))), 0
    )
    training = TrainingPart(batch_size=2)
    data.verify(3, training)
    used = {s for client in (0, 1) for round in (1, 2, 3) for step in data.client_steps(client, round, 2) for s in step}
    assert read == used
    assert len(used) == 12


def test_notes_count_the_conversions_of_the_images_that_are_used():
    gray = Pool(_pool(4).labels, _pool(4).fetch, lambda sample: ("gray",) if sample != 1 else ())
    data = FederatedData(Pools(gray, _pool(3), gray, ("a", "b", "c"), ("data.path: said before.",)), ((0, 1), (2,)), 0)
    assert data.notes(2, TrainingPart(batch_size=2)) == (
        "data.path: said before.",
        "data: 5 of 10 images used: gray.",
    )


def test_load_builds_the_default_scenario():
    data = load(DataPart(), 4, 7)
    assert len(data.partition) == 4
    assert sum(len(samples) for samples in data.partition) == len(data.pools.train) == 600
    assert data.pools.train.read([0]).images.shape == (1, 3, 32, 32)


def test_load_names_what_is_wrong_with_the_parameters():
    with pytest.raises(ScenarioError, match=r"^data\.image_siz: unknown parameter\. Did you mean 'image_size'\?"):
        load(DataPart(name="shapes", image_siz=8), 2, 0)
    with pytest.raises(ScenarioError, match=r"^data\.name: no data source 'shape'\. Did you mean 'shapes'\?"):
        load(DataPart(name="shape"), 2, 0)
    with pytest.raises(ScenarioError, match=r"^data\.image_size: "):
        load(DataPart(name="photos", image_size=None), 2, 0)
    with pytest.raises(ScenarioError, match=r"^data\.samples: expected at least 1, got 0"):
        load(DataPart(name="shapes", samples=0), 2, 0)


@dataclass(frozen=True, kw_only=True)
class Given(Source):
    """A source that delivers what the test gives it."""

    def load(self, seed):
        return _GIVEN[0]


_GIVEN = []


@pytest.mark.parametrize(
    "pools,where,message",
    [
        (Pools(_pool(9), _pool(9), _pool(9), ("a",)), "data", "1 class"),
        (Pools(_pool(9), _pool(0), _pool(9), ("a", "b", "c")), "data", "the test pool is empty"),
        (Pools(_pool(9), _pool(9), _pool(9), ("a", "b")), "data", "training pool has labels outside 0 to 1"),
        (
            Pools(_pool(9), _pool(9), _pool(9, side=5), ("a", "b", "c")),
            "data.image_size",
            "auxiliary images have shape",
        ),
    ],
)
def test_load_refuses_pools_that_cannot_be_used(pools, where, message, monkeypatch):
    _GIVEN[:] = [pools]
    monkeypatch.setattr(batches.plugins, "build", lambda *arguments: Given())
    with pytest.raises(ScenarioError, match=message) as refusal:
        load(DataPart(name="given"), 2, 0)
    assert refusal.value.where == where


# Poisson sampling


@settings(deadline=None)
@given(counts, sizes, st.integers(1, 5), st.booleans(), st.integers(1, 9), st.integers(0, 2**32))
def test_poisson_steps_hold_samples_of_the_client_once_in_as_many_steps_as_asked_for(
    count, batch_size, length, by_epochs, round, seed
):
    data = _data([3, count], seed)
    lengths = (None, length) if by_epochs else (length, None)
    steps = data.client_steps(1, round, batch_size, *lengths, "poisson")
    per_epoch = -(-count // min(batch_size, count))
    assert len(steps) == (length * per_epoch if by_epochs else length)
    for step in steps:
        assert len(step) == len(set(step))
        assert set(step) <= set(range(3, 3 + count))
        assert batch_size < count or len(step) == count
    assert steps == _data([3, count], seed).client_steps(1, round, batch_size, *lengths, "poisson")


def test_poisson_sampling_takes_each_sample_with_the_same_probability_whatever_the_others_do():
    count, size, steps = 40, 6, 4000
    drawn = np.zeros((steps, count))
    for row, step in zip(drawn, _data([count]).client_steps(0, 1, size, steps, sampling="poisson"), strict=True):
        row[list(step)] = 1
    rate = size / count
    # Of 40 binomial counts, and of the pairs' covariances, none is beyond 5 standard errors.
    assert np.all(np.abs(drawn.mean(0) - rate) < 5 * np.sqrt(rate * (1 - rate) / steps))
    covariance = np.cov(drawn.T) - rate * (1 - rate) * np.eye(count)
    assert np.abs(covariance).max() < 5 * rate / np.sqrt(steps)
    # Independent draws vary in number; batches of a fixed size would not.
    variance, error = drawn.sum(1).var(), np.sqrt(2 / steps)
    assert variance == pytest.approx(count * rate * (1 - rate), rel=5 * error)


def test_poisson_draws_differ_by_step_round_client_and_seed():
    draws = [tuple(step) for step in _data([30, 30]).client_steps(0, 1, 15, 3, sampling="poisson")]
    draws += [tuple(_data([30, 30]).client_steps(0, 2, 15, sampling="poisson")[0])]
    draws += [tuple(s - 30 for s in _data([30, 30]).client_steps(1, 1, 15, sampling="poisson")[0])]
    draws += [tuple(_data([30, 30], seed=1).client_steps(0, 1, 15, sampling="poisson")[0])]
    assert len(set(draws)) == len(draws)


AUGMENTED = {"augment": ["flip", "crop"], "batch_size": 4, "shares": "delta", "local_epochs": 2}


def _pictured(sizes, seed=0, side=16):
    """Return data of images that are nowhere alike, so that each placement shows."""
    data, generator = _data(sizes, seed), np.random.default_rng(0)
    count = sum(sizes)
    pool = pool_of(generator.integers(1, 256, (count, side, side, 3), dtype=np.uint8), np.arange(count) % 3)
    return FederatedData(Pools(pool, pool, pool, ("a", "b", "c")), data.partition, seed)


@pytest.mark.parametrize("kinds", [["flip"], ["crop"], ["flip", "crop"]])
def test_each_use_of_an_image_is_placed_anew_and_is_what_is_read(kinds):
    data, training = _pictured([6]), TrainingPart(**{**AUGMENTED, "augment": kinds})
    plain = TrainingPart(**{**AUGMENTED, "augment": []})
    for inputs, same, batch, other in zip(
        data.client_inputs(0, 1, training),
        data.client_inputs(0, 1, plain),
        batches_of(data, 0, 1, training),
        batches_of(data, 0, 1, plain),
        strict=True,
    ):
        assert [one.sample for one in inputs] == [one.sample for one in same]
        assert torch.equal(batch.labels, other.labels) and batch.labels.dtype == torch.int64
        assert torch.equal(batch.images, augmented(other.images, [one.placement for one in inputs]))
    assert {one.placement.is_flipped for step in data.client_inputs(0, 1, training) for one in step} == (
        {True, False} if "flip" in kinds else {False}
    )


def test_placements_differ_by_step_round_client_and_seed_but_not_between_calls():
    training = TrainingPart(**{**AUGMENTED, "batch_size": 12})
    data = _pictured([12, 12])
    placements = [
        tuple(one.placement for one in sorted(step))
        for found in (
            data.client_inputs(0, 1, training),
            data.client_inputs(0, 2, training),
            data.client_inputs(1, 1, training),
            _pictured([12, 12], seed=1).client_inputs(0, 1, training),
        )
        for step in found
    ]
    assert len(set(placements)) == len(placements) == 8
    assert data.client_inputs(0, 1, training) == _pictured([12, 12]).client_inputs(0, 1, training)


def test_what_becomes_of_an_image_depends_on_no_other_image_of_the_client():
    training = TrainingPart(augment=["flip", "crop"], batch_size=12, shares="delta")
    whole = _pictured([12])
    without = FederatedData(whole.pools, (tuple(sample for sample in range(12) if sample != 5),), 0)
    (step,), (fewer,) = whole.client_inputs(0, 1, training), without.client_inputs(0, 1, training)
    assert {one for one in step if one.sample != 5} == set(fewer) and len(fewer) == 11


def test_the_truth_of_augmented_uses_holds_each_version_and_counts_the_images():
    data, training = _pictured([6]), TrainingPart(**AUGMENTED)
    truth = data.truth(0, 1, training)
    flat = [one for step in data.client_inputs(0, 1, training) for one in step]
    assert torch.equal(truth.images, data.read(list(dict.fromkeys(flat)), training).images)
    assert len(truth.images) > 6 == truth.pictures == data.client_examples(0, 1, training)


def test_both_images_of_a_blend_are_augmented_before_they_are_blended():
    data, training = _pictured([9]), TrainingPart(**{**AUGMENTED, "mixup": 1.0})
    places = set()
    for inputs, batch in zip(data.client_inputs(0, 1, training), batches_of(data, 0, 1, training), strict=True):
        for one, image in zip(inputs, batch.images, strict=True):
            own, other = data.pools.train.read([one.sample, one.partner]).images
            first = augmented(own[None], [one.placement])[0]
            second = augmented(other[None], [one.partner_placement])[0]
            torch.testing.assert_close(image, one.share * first + (1 - one.share) * second)
            places.add(one.placement == one.partner_placement)
    assert False in places
    drawn = [tuple(one[:3] for one in step) for step in data.client_inputs(0, 1, training)]
    assert drawn == [
        tuple(one[:3] for one in step)
        for step in data.client_inputs(0, 1, TrainingPart(**{**AUGMENTED, "augment": [], "mixup": 1.0}))
    ]


@pytest.mark.parametrize("recipe", [{}, {"label_smoothing": 0.1}, {"mixup": 0.4}, {"augment": ["crop"]}])
def test_an_empty_batch_has_the_shapes_of_any_other(recipe):
    data, training = _data([9]), TrainingPart(batch_size=2, **recipe)
    some, none = data.read(data.client_inputs(0, 1, training)[0], training), data.read((), training)
    assert len(none) == 0
    assert none.images.shape[1:] == some.images.shape[1:]
    assert none.labels.shape[1:] == some.labels.shape[1:]
    assert (none.images.dtype, none.labels.dtype) == (some.images.dtype, some.labels.dtype)


def test_the_truth_of_poisson_steps_is_what_they_hold_and_the_report_tells_nothing_of_it():
    data, training = _data([9]), TrainingPart(batch_size=1, sampling="poisson")
    sizes = []
    for round in range(1, 30):
        (step,) = data.client_steps(0, round, 1, sampling="poisson")
        truth = data.truth(0, round, training)
        assert torch.equal(truth.labels, data.pools.train.labels[list(step)])
        assert len(truth.images) == truth.pictures == data.images_used(0, round, training) == len(step)
        assert data.client_examples(0, round, training) == 9
        sizes.append(len(step))
    assert {0, 1, 2} <= set(sizes)
