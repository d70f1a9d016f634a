"""Published weights of timm's models: from the hub's cache, else downloaded in one attempt."""

from __future__ import annotations

from pathlib import Path

import httpx
import timm
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError

from fedsim.errors import ScenarioError
from fedsim.models.weights import in_one_line

_WHERE = "model.pretrained"
_FILES = ("model.safetensors", "pytorch_model.bin")
_CONNECT = 2.0  # seconds for a connection; an answer may take as long as the hub's own setting says


def repository(name: str) -> str:
    """Return the hub's repository with the weights of a timm model.

    Raises:
        ScenarioError: nobody has published weights of it, or not on the hub.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ScenarioError(_WHERE, f"there are no published weights for {name}. Give the path of a weights file.")
    if not config.hf_hub_id:
        raise ScenarioError(
            _WHERE, f"the weights of {name} are not on the Hugging Face hub. Download {config.url} and give its path."
        )
    return str(config.hf_hub_id)


def fetch(repo: str) -> Path:
    """Return the weights file of a repository; what is in the hub's cache is taken from there, without a network.

    Raises:
        ScenarioError: not in the cache, and the hub cannot be reached or does not give it.
    """
    for file in _FILES:
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):
            return Path(cached)
    for file in _FILES:
        try:
            # The download itself would try six times, and say so each time.
            get_hf_file_metadata(hf_hub_url(repo, file), timeout=_timeout())  # type: ignore[arg-type]
            return Path(hf_hub_download(repo, file))
        except RemoteEntryNotFoundError:
            continue
        except (OSError, httpx.HTTPError, ValueError) as error:
            raise _refusal(repo, in_one_line(error)) from None
    raise _refusal(repo, f"it has none of {', '.join(_FILES)}")


def _timeout() -> httpx.Timeout:
    return httpx.Timeout(constants.HF_HUB_ETAG_TIMEOUT, connect=_CONNECT)


def _refusal(repo: str, reason: str) -> ScenarioError:
    return ScenarioError(
        _WHERE,
        f"cannot fetch {repo} from the Hugging Face hub: {reason}. Without a network, give the path of a weights file.",
    )
