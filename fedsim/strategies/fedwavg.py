"""FedWAvg: clients whose last layer is like the global model's weigh more in the average.

Paper: Aldahdooh, Hamidouche, Deforges. "Federated Adversarial Training with Transformers". 2022.
https://arxiv.org/abs/2206.02131

Idea, which is the paper's: weigh the clients of a round by the similarity of their last layer with that of the global model,
for better robustness with adversarial training on skewed labels. Labels skew the last layer most.

The weights are the softmax of sharpness s_k over the clients of the round, s_k being the cosine of the layer of the client's
new model and of the global one that it was sent. The paper's own formula was not at hand; this one is that of the only public
code found, which is not the authors': https://github.com/zhaoxing-zstar/FederatedAL (`fedWAvg` in server.py, sharpness 1).

Differs from that code: s_k is of all weights and biases of the layer as one vector, there of its bias alone; and with
`count_examples` a weight is also multiplied by the client's number of examples, so that `sharpness` 0 is FedAvg. Figures of the
paper are not to be expected. Two layers of zeros are alike, one of zeros and another are not.

Needs: single updates, so that it is refused where the server sees the sum of a round alone; a layer of this name that is
trained and sent. A client that leaves the layer as it was sent, as one of `mimir` does or one whose batches were empty, is the
most alike of all, and weighs most.
"""

import math
from collections.abc import Collection, Iterable, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedsim import wire
from fedsim.strategies.weighted import WeightedMean


class FedWAvg(WeightedMean):
    """Weigh clients by the similarity of their last layer with that of the global model that they were sent.

    Parameters
    ----------
    sharpness : float (default: 10.0)
        By which factor similarity counts, at least 0; 0 is FedAvg.
    layer : str (default: "head")
        Name of the last layer, as parameters begin with it.
    count_examples : bool (default: True)
        Whether the number of examples counts too.

    Aldahdooh et al. 2022. https://arxiv.org/abs/2206.02131. The formula is that of public code which is not the authors'.
    """

    def __init__(
        self,
        sharpness: float = 10.0,
        layer: str = "head",
        count_examples: bool = True,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
    ) -> None:
        super().__init__(fraction_train, fraction_evaluate, min_train_nodes, min_evaluate_nodes, min_available_nodes)
        self.sharpness = sharpness
        self.layer = layer
        self.count_examples = count_examples
        self._sent = torch.zeros(0)

    def check_names(self, names: Collection[str]) -> None:
        """See `WeightedMean.check_names`."""
        if not any(name.startswith(f"{self.layer}.") for name in names):
            layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
            raise ValueError(
                f"layer: expected a layer of which clients send weights, such as {layers[-1] if layers else 'none'}, got "
                f"{self.layer!r}."
            )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See `Strategy.configure_train`.

        Raises:
            ValueError: no array belongs to the layer.
        """
        self._sent = self._last_layer(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def weights(self, server_round: int, replies: Sequence[RecordDict]) -> list[float]:
        """See `WeightedMean.weights`."""
        layers = [self._last_layer(reply[self.arrayrecord_key]) for reply in replies]  # type: ignore[arg-type]
        alike = [similarity(layer, self._sent) for layer in layers]
        most = max(alike)
        factors = [math.exp(self.sharpness * (one - most)) for one in alike]
        if not self.count_examples:
            return factors
        return [self.examples(reply) * factor for reply, factor in zip(replies, factors, strict=True)]

    def _last_layer(self, arrays: ArrayRecord) -> Tensor:
        found = [tensor for name, tensor in wire.to_tensors(arrays).items() if name.startswith(f"{self.layer}.")]
        if not found:
            last = next(reversed(list(arrays)), "none")
            raise ValueError(f"no array of the model is of layer {self.layer!r}; the last one is {last}")
        return torch.cat([tensor.double().flatten() for tensor in found])


def similarity(first: Tensor, second: Tensor) -> float:
    """Return the cosine of two vectors; 1 where both are zero, 0 where one is."""
    norms = float(first.norm()), float(second.norm())
    if not all(norms):
        return 0.0 if any(norms) else 1.0
    return float(first @ second) / (norms[0] * norms[1])
