"""One scenario that every engine is shown to give the same records of, beside the tiny one of the tests.

Each engine is compared with the inline one, in the test of its own: sampled clients, a strategy and a defense that remember
earlier rounds, a claimed budget, and a client that fails.
"""

from typing import Any

PARTS: dict[str, Any] = {
    "seed": 5,  # clients 1 and 2 are drawn in both rounds
    "federation": {"clients": 3, "rounds": 2, "fraction": 0.67, "strategy": "FedAdam"},
    "training": {"shares": "delta", "batch_size": 2, "local_steps": 2},
    "defenses": [
        {"name": "dp_noise", "clients": [0, 1], "params": {"clip_norm": 1.0, "noise_multiplier": 0.5}},
        {"name": "stubs:FailsIn", "clients": [2], "params": {"round": 2}},
    ],
}
