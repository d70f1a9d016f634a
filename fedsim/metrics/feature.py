"""How close recovered head inputs come to the true ones."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fedsim.metrics.matching import assign
from fedsim.metrics.unavailable import MetricUnavailableError

FoundFeatures = Float[Tensor, "found width"]
Features = Float[Tensor, "batch embed"]


def feature_errors(found: FoundFeatures, true: Features) -> tuple[float, ...]:
    """Relative error of each image's head input, |found - true| / |true| in l2; lower means more leakage.

    0 is exact and 1 is what zeros score. Found rows are assigned to true ones so that the summed error is least; where there
    are too few, the rest score as zeros. Scale and sign count: a head input up to a factor is not recovered.

    Raises:
        MetricUnavailableError: the rows are of another length, or a true one is zero.
    """
    from scipy.spatial.distance import cdist

    if found.shape[1] != true.shape[1]:
        raise MetricUnavailableError(
            f"found features have {found.shape[1]} entries, the model's head inputs {true.shape[1]}"
        )
    rows, originals = (tensor.detach().cpu().double().numpy() for tensor in (found, true))
    norms = np.linalg.norm(originals, axis=1)
    if not norms.all():
        raise MetricUnavailableError("a true head input is zero, so that no error is relative to it")
    errors = cdist(rows, originals) / norms
    return tuple(1.0 if row is None else float(errors[row, i]) for i, row in enumerate(assign(errors)))
