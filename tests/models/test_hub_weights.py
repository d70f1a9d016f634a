"""Published weights: what the cache holds needs no network, and without both there is one attempt and one message."""

import logging

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants

from fedsim.errors import ScenarioError
from fedsim.models import hub_weights

REPOSITORY = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def attempts(monkeypatch):
    """Every request for the repository; each of them fails, and nothing waits."""
    tried = []

    def refuse(transport, request):
        if REPOSITORY in str(request.url):
            tried.append(request)
        raise httpx.ConnectError("Connection refused", request=request)

    def no_sleep(seconds):
        raise AssertionError(f"waits for {seconds} seconds")

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", refuse)
    monkeypatch.setattr("time.sleep", no_sleep)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield tried
    huggingface_hub.close_session()


def test_the_repository_is_that_of_the_default_or_the_named_weights():
    assert hub_weights.repository("vit_tiny_patch16_224") == REPOSITORY
    assert hub_weights.repository("vit_small_patch16_224.dino") == "timm/vit_small_patch16_224.dino"


def test_weights_that_are_not_on_the_hub_are_refused_with_their_address():
    with pytest.raises(
        ScenarioError, match=r"^model\.pretrained: .* not on the Hugging Face hub\. Download https://.*path"
    ):
        hub_weights.repository("vit_huge_patch14_gap_224.in1k_ijepa")


def test_without_network_and_cache_there_is_one_attempt_and_one_message(cache, attempts, capfd, caplog):
    with caplog.at_level(logging.INFO), pytest.raises(ScenarioError) as caught:
        hub_weights.fetch(REPOSITORY)
    assert len(attempts) == 1
    message = str(caught.value)
    assert message.startswith(
        f"model.pretrained: cannot fetch {REPOSITORY} from the Hugging Face hub: ConnectError: Connection refused. "
    )
    assert message.endswith("Without a network, give the path of a weights file.")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert capfd.readouterr() == ("", "")


def test_the_offline_mode_of_the_hub_is_one_message_too(cache, attempts, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ScenarioError, match=r"OfflineModeIsEnabled.*give the path of a weights file"):
        hub_weights.fetch(REPOSITORY)
    assert attempts == []


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_cached_weights_need_no_network(cache, attempts, file):
    folder = cache / f"models--{REPOSITORY.replace('/', '--')}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / file).write_bytes(b"weights")
    assert hub_weights.fetch(REPOSITORY).read_bytes() == b"weights"
    assert attempts == []


def test_with_a_network_the_first_file_that_the_repository_has_is_downloaded(cache, monkeypatch, tmp_path):
    asked = []

    def metadata(url, timeout):
        asked.append(url.rpartition("/")[2])
        if asked[-1] == "model.safetensors":
            raise _missing(url)

    monkeypatch.setattr(hub_weights, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(hub_weights, "hf_hub_download", lambda repo, file: str(tmp_path / file))
    assert hub_weights.fetch(REPOSITORY) == tmp_path / "pytorch_model.bin"
    assert asked == ["model.safetensors", "pytorch_model.bin"]


def _missing(url):
    response = httpx.Response(404, request=httpx.Request("HEAD", url))
    return huggingface_hub.errors.RemoteEntryNotFoundError("no such file", response=response)
