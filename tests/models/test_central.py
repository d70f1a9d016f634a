"""Central training: a function of model, recipe, images and seed, which a cache saves and never decides."""

import threading

import pytest
import torch

from fedsim import models, progress
from fedsim.errors import ScenarioError
from fedsim.models import central
from fedsim.scenario import CentralPart, ModelPart
from fedsim.source import Pool

RECIPE = CentralPart(epochs=2, batch_size=8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "starts"


def colors(count=40):
    """Return images that are red or blue, with some noise, and which it is."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 60, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images[labels == 0, 0] += 150
    images[labels == 1, 2] += 150
    return Pool(labels, lambda chosen: images[list(chosen)])


def model(name="vit_nano", **kwargs):
    given = {} if name == "convnet" else {"img_size": 16, "depth": 1, "embed_dim": 16, "num_heads": 2}
    return models.build(ModelPart(name=name, kwargs={**given, **kwargs}), 2, 16, 0)


def trained(part=RECIPE, seed=0, pool=None, identity="", name="vit_nano", **kwargs):
    made = model(name, **kwargs)
    central.train(made, part, pool or colors(), seed, identity)
    return made


def equal(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", ["vit_nano", "convnet"])
def test_it_learns_and_ends_in_evaluation_mode(name, optimizer):
    pool = colors()
    rate = 0.003 if optimizer == "adamw" else 0.02
    made = trained(CentralPart(epochs=8, batch_size=8, optimizer=optimizer, learning_rate=rate), pool=pool, name=name)
    read = pool.read(range(len(pool)))
    found = made(models.normalization(made).normalize(read.images)).argmax(1)
    assert (found == read.labels).float().mean() > 0.9
    assert not made.training


def test_one_step_of_sgd_is_the_step_of_the_formula():
    pool, before = colors(8), model()
    after = trained(CentralPart(epochs=1, batch_size=8, optimizer="sgd", learning_rate=0.1, weight_decay=0), pool=pool)
    read = pool.read(range(8))
    before.train()
    loss = torch.nn.functional.cross_entropy(before(models.normalization(before).normalize(read.images)), read.labels)
    torch.autograd.backward(loss)
    for name, parameter in before.named_parameters():
        expected = parameter - 0.1 * parameter.grad
        torch.testing.assert_close(after.get_parameter(name), expected, atol=1e-6, rtol=1e-5)


def test_the_same_seed_gives_the_same_weights_with_the_cache_and_without(cache, monkeypatch):
    first = trained()
    (file,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(central, "_train", lambda *_: pytest.fail("what is cached is not trained again"))
        assert equal(trained(), first)
    file.unlink()
    state = torch.get_rng_state()
    assert equal(trained(), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_whatever_decides_the_weights_decides_the_place_in_the_cache(cache):
    first = trained()
    other = colors()
    labels = other.labels.clone()
    labels[0] = 1 - labels[0]
    for number, change in enumerate(
        (
            {"seed": 1},
            {"part": CentralPart(epochs=3, batch_size=8)},
            {"pool": Pool(labels, other.fetch)},
            {"pool": colors(32)},
            {"identity": "another"},
            {"num_heads": 1, "identity": "heads"},
        ),
        2,
    ):
        made = trained(**change)
        assert len([*cache.iterdir()]) == number
        assert equal(made, first) == (change == {"identity": "another"})


def test_a_damaged_cache_is_trained_again(cache):
    first = trained()
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    assert equal(trained(), first)
    assert file.read_bytes() == content


def test_two_that_train_at_once_leave_one_whole_file(cache):
    made = []
    threads = [threading.Thread(target=lambda: made.append(trained())) for _ in range(2)]
    # Seeding is of the process: one after the other up to the writes, which may meet.
    for thread in threads:
        thread.start()
        thread.join()
    assert equal(*made)
    assert len([*cache.iterdir()]) == 1


def test_it_tells_how_far_it_has_come():
    steps = []
    with progress.listening(steps.append, interval=0.0):
        trained()
    assert [(step.done, step.total) for step in steps] == [(n, 10) for n in range(1, 11)]


def test_weights_that_do_not_stay_finite_are_refused_and_not_kept(cache):
    with pytest.raises(ScenarioError, match=r"central\.learning_rate: got 1e\+30, and the weights do not stay finite"):
        trained(CentralPart(epochs=2, batch_size=8, optimizer="sgd", learning_rate=1e30))
    assert not cache.exists()


def test_a_last_batch_that_is_not_whole_is_left_out():
    batches = list(central._batches(2, 3, 8, 0))
    assert [len(batch) for batch in batches] == [3, 3, 3, 3]
    assert len({*batches[0], *batches[1]}) == 6 and batches[:2] != batches[2:]


def test_models_that_differ_in_what_they_compute_alone_do_not_share_weights(cache):
    made = []
    for activation in (torch.nn.ReLU(), torch.nn.Tanh(), torch.nn.ReLU()):
        one = model()
        one.blocks[0].mlp.act = activation
        central.train(one, RECIPE, colors(), 0, "the same")
        made.append(one)
    assert len(list(cache.iterdir())) == 2
    assert equal(made[0], made[2]) and not equal(made[0], made[1])
