"""A round of a strategy without clients: what it was sent and what each replied, chosen by the test."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedsim import wire
from fedsim.federation.engine_inline import InlineGrid
from fedsim.scenario import FederationPart
from fedsim.strategies.building import build_strategy


class Answer(NamedTuple):
    """What one client replies."""

    arrays: Mapping[str, Tensor]
    examples: int = 1
    loss: float = 1.0


def aggregated(
    strategy: str, params: Mapping[str, Any], sent: Mapping[str, Tensor], answers: Sequence[Answer], round: int = 2
) -> dict[str, Tensor]:
    """Return what a strategy makes of a round."""
    grid = InlineGrid(ClientApp(), len(answers))
    part = FederationPart(clients=len(answers), strategy=strategy, strategy_params=dict(params))
    built = build_strategy(part)
    asks = list(built.configure_train(round, wire.to_arrays(sent), ConfigRecord(), grid))
    replies = []
    for ask, answer in zip(sorted(asks, key=lambda one: one.metadata.dst_node_id), answers, strict=True):
        metrics = MetricRecord({wire.NUM_EXAMPLES: answer.examples, wire.LOSS: answer.loss})
        content = RecordDict({wire.ARRAYS: wire.to_arrays(answer.arrays), wire.METRICS: metrics})
        replies.append(Message(content, reply_to=ask))
    arrays, _ = built.aggregate_train(round, replies)
    assert arrays is not None
    return wire.to_tensors(arrays)
