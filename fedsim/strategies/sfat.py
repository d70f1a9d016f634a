"""SFAT: clients with the smallest adversarial loss weigh more in the average.

Paper: Zhu, Yao, Liu, Yao, Xu, Han. "Combating Exacerbated Heterogeneity for Robust Models in Federated Learning". ICLR 2023.
https://openreview.net/forum?id=eKllxpLOOm; code: https://github.com/ZFancy/SFAT

Idea: adversarial training makes clients of skewed data drift apart. So of the clients of a round those `upweighted` with the
smallest adversarial loss get the weight (1 + alpha) / (1 - alpha), all others 1, each times the number of its examples n_k, and
the average is normalized. Equal losses at the border count alike. The first round is a plain average. That much is the
published code's, with its defaults: one client, and alpha 1/6, which is a weight of 1.4 (1.2 to 1.6 in the experiments).

Differs from the published code: the loss is the mean over all local steps of the round, as clients report it (there that of the
last local epoch); weights times n_k are divided by their sum (there by that of the factors); parameters of batch normalization
are no exception.

Needs: single updates and their losses, so that it is refused where the server sees the sum of a round alone. The loss is what
the client says it is: one that reports a small one weighs more. Losses of different recipes do not compare: beside clients of
plain training, or of `mimir`, those with the easier task are preferred.
"""

from collections.abc import Sequence

from flwr.app import RecordDict

from fedsim.strategies.weighted import WeightedMean, reported_loss


class SFAT(WeightedMean):
    """Slack federated adversarial training: up-weight the clients with the smallest reported loss, from round 2 on.

    Parameters
    ----------
    alpha : float (default: 1/6)
        The slack, at least 0 and below 1: the weight of a preferred client is (1 + alpha) / (1 - alpha).
    upweighted : int (default: 1)
        How many clients of a round are preferred; fewer than take part.

    Zhu et al. ICLR 2023. https://openreview.net/forum?id=eKllxpLOOm
    """

    def __init__(
        self,
        alpha: float = 1 / 6,
        upweighted: int = 1,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
    ) -> None:
        super().__init__(fraction_train, fraction_evaluate, min_train_nodes, min_evaluate_nodes, min_available_nodes)
        self.alpha = alpha
        self.upweighted = upweighted

    def weights(self, server_round: int, replies: Sequence[RecordDict]) -> list[float]:
        """See `WeightedMean.weights`."""
        examples = [self.examples(reply) for reply in replies]
        if server_round == 1:
            return examples
        losses = [reported_loss(reply) for reply in replies]
        limit = sorted(losses)[min(self.upweighted, len(losses)) - 1]
        factor = (1 + self.alpha) / (1 - self.alpha)
        return [count * (factor if loss <= limit else 1.0) for count, loss in zip(examples, losses, strict=True)]
