"""What a defense adds to the model is averaged over the clients that train it, whatever the mean strategy."""

import audits
import pytest
import torch

from fedsim.simulation import Progress

PUZZLE = {"name": "mjp", "clients": [1], "params": {"gamma": 0.5, "dal_weight": 1.0}}
NOISE = {"name": "dp_noise", "clients": [0], "params": {"clip_norm": 1.0, "noise_multiplier": 0.01}}
PARTS = {"attacks": [], "federation": {"clients": 3, "rounds": 1}, "training": {"batch_size": 4, "learning_rate": 0.1}}


def trained(tiny_plan, run_folder, defenses, **parts):
    plan = tiny_plan(**{**PARTS, **parts}, defenses=defenses)
    folder = run_folder(plan)
    audits.simulate(plan, folder, Progress())
    return plan, folder


@pytest.mark.parametrize("shares", ["gradient", "delta"])
def test_mjp_s_parameters_move_as_if_its_only_carrier_were_alone_and_the_others_as_ever(tiny_plan, run_folder, shares):
    training = {**PARTS["training"], "shares": shares}
    plan, folder = trained(tiny_plan, run_folder, [PUZZLE, NOISE], training=training)
    start, after = plan.initial_weights(), folder.read_model()
    updates = [folder.read_update(1, client) for client in range(3)]
    shares_of = [update.num_examples / sum(u.num_examples for u in updates) for update in updates]
    factor = -0.1 if shares == "gradient" else 1.0
    moved = 0
    for name in start:
        steps = [factor * update.tensors[name] for update in updates]
        mean = sum(share * step for share, step in zip(shares_of, steps, strict=True))
        expected = steps[1] if name in plan.added else mean
        torch.testing.assert_close(after[name], start[name] + expected, atol=1e-6, rtol=1e-5)
        moved += name in plan.added and bool(steps[1].any())
    assert moved == len(plan.added) == 5
    # What a client without the defense sends is on disk as it was sent: its own noise here, zeros there.
    assert updates[0].tensors["mjp.unknown"].any() and not updates[2].tensors["mjp.unknown"].any()


def test_what_nobody_trains_in_a_round_stays_whatever_noise_is_sent(tiny_plan, run_folder):
    idle = {**PUZZLE, "params": {"gamma": 0.0}}
    plan, folder = trained(tiny_plan, run_folder, [idle, NOISE])
    after, start = folder.read_model(), plan.initial_weights()
    assert plan.added and all(torch.allclose(after[name], start[name], atol=1e-7) for name in plan.added)
    assert folder.read_update(1, 0).tensors["mjp.unknown"].any()


def test_a_strategy_that_looks_at_single_updates_gets_them_as_they_were_sent(tiny_plan, run_folder):
    federation = {**PARTS["federation"], "strategy": "FedMedian"}
    plan, folder = trained(tiny_plan, run_folder, [PUZZLE], federation=federation)
    assert all(torch.equal(folder.read_model()[name], plan.initial_weights()[name]) for name in plan.added)
    assert not torch.equal(folder.read_model()["head.bias"], plan.initial_weights()["head.bias"])
