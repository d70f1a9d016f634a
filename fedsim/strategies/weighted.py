"""A weighted average of a round whose weights are not the numbers of examples alone: the base of fedsim's own strategies."""

import math
from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedsim import wire


class WeightedMean(FedAvg):
    """FedAvg with other weights; the average itself is in double precision."""

    def check_names(self, names: Collection[str]) -> None:
        """Refuse a model without the arrays that the strategy looks at.

        Args:
            names: of the arrays that clients send.

        Raises:
            ValueError: "parameter: expected ..., got ...".
        """

    @abstractmethod
    def weights(self, server_round: int, replies: Sequence[RecordDict]) -> list[float]:
        """Return the weight of each reply, at least 0; they need not sum to one. All 0 stands for the numbers of examples."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See `Strategy.aggregate_train`."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if not valid:
            return None, None
        contents = [reply.content for reply in valid]
        weights = self.weights(server_round, contents)
        arrays = weighted_mean(
            [wire.to_tensors(content[self.arrayrecord_key]) for content in contents],  # type: ignore[arg-type]
            weights if any(weights) else [self.examples(content) or 1.0 for content in contents],
        )
        return wire.to_arrays(arrays), self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    def examples(self, reply: RecordDict) -> float:
        """Return how many examples a client reports."""
        return float(_metrics(reply)[self.weighted_by_key])


def reported_loss(reply: RecordDict) -> float:
    """Return the training loss that a client reports; infinity where it is no finite number."""
    loss = float(_metrics(reply)[wire.LOSS])
    return loss if math.isfinite(loss) else math.inf


def weighted_mean(models: Sequence[dict[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of tensors of the same names, in their own number format."""
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    found = {}
    for name, tensor in models[0].items():
        mean = torch.stack([model[name].double() * share for model, share in zip(models, shares, strict=True)]).sum(0)
        found[name] = (mean if tensor.is_floating_point() else mean.round()).to(tensor.dtype)
    return found


def _metrics(reply: RecordDict) -> Any:
    return next(iter(reply.metric_records.values()))
