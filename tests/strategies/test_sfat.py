"""SFAT against its weights written out, and in a run."""

import audits
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounds import Answer, aggregated

from fedsim.errors import ScenarioError
from fedsim.simulation import Progress

SENT = {"a": torch.zeros(3)}
CLIENTS = st.lists(st.tuples(st.integers(1, 20), st.sampled_from([0.5, 1.0, 2.0, 3.0])), min_size=2, max_size=5)


def by_loop(clients, alpha, upweighted):
    """The mean over clients of whose number the model of each is made, weights as in the paper."""
    losses = sorted(loss for _, loss in clients)
    total = weighted = 0.0
    for number, (examples, loss) in enumerate(clients):
        rank = sum(other < loss for other in losses)  # how many have a smaller loss
        weight = examples * ((1 + alpha) / (1 - alpha) if rank < upweighted else 1)
        total, weighted = total + weight, weighted + weight * (number + 1)
    return weighted / total


@given(CLIENTS, st.sampled_from([0.0, 1 / 11, 1 / 6, 0.9]), st.integers(1, 4))
def test_clients_of_the_smallest_losses_weigh_more_and_equal_ones_alike(clients, alpha, upweighted):
    upweighted = min(upweighted, len(clients) - 1)
    answers = [Answer({"a": torch.full((3,), n + 1.0)}, count, loss) for n, (count, loss) in enumerate(clients)]
    found = aggregated("SFAT", {"alpha": alpha, "upweighted": upweighted}, SENT, answers)["a"]
    torch.testing.assert_close(found, torch.full((3,), by_loop(clients, alpha, upweighted)))


def test_the_first_round_is_a_plain_average():
    answers = [Answer({"a": torch.full((3,), float(n))}, 1, float(n)) for n in range(3)]
    assert aggregated("SFAT", {"alpha": 0.9}, SENT, answers, round=1)["a"].tolist() == [1, 1, 1]
    assert aggregated("SFAT", {"alpha": 0.9}, SENT, answers, round=2)["a"][0] < 0.5


@pytest.mark.parametrize("shares", ["gradient", "delta"])
def test_a_run_moves_the_model_by_its_weights(tiny_plan, run_folder, shares):
    plan = tiny_plan(
        federation={"clients": 3, "rounds": 2, "strategy": "SFAT", "strategy_params": {"alpha": 0.5}},
        training={"batch_size": 4, "learning_rate": 0.1, "shares": shares},
        defenses=[{"name": "adversarial_training", "clients": "all", "params": {"steps": 1}}],
        attacks=[],
    )
    folder = run_folder(plan)
    audits.simulate(plan, folder, Progress())
    updates = [folder.read_update(2, client) for client in range(3)]
    losses = [folder.read_header(2, client)["metrics"]["train_loss"] for client in range(3)]
    weights = [
        update.num_examples * (3 if loss == min(losses) else 1) for update, loss in zip(updates, losses, strict=True)
    ]
    start, after = folder.read_global(2, 0), folder.read_model()
    factor = -0.1 if shares == "gradient" else 1.0
    for name, tensor in start.items():
        step = sum(w * factor * u.tensors[name] for w, u in zip(weights, updates, strict=True)) / sum(weights)
        torch.testing.assert_close(after[name], tensor + step, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["SFAT", "FedWAvg"])
def test_where_the_server_sees_sums_alone_it_is_refused(tiny_plan, name):
    with pytest.raises(ScenarioError, match=f"{name} looks at each client's update"):
        tiny_plan(federation={"clients": 3, "strategy": name}, threat={"sees": "aggregate"}, attacks=[])


def test_what_a_defense_adds_is_diluted_and_a_note_says_so(tiny_plan):
    federation = {"clients": 3, "rounds": 2, "strategy": "SFAT"}
    plan = tiny_plan(federation=federation, defenses=[{"name": "mimir", "clients": [0]}], attacks=[])
    assert any("SFAT takes what 2 clients send of mimir." in note for note in plan.notes)
