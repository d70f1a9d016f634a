import json
import math
import shutil
import sys
import warnings
from dataclasses import replace

import audits
import pytest
import torch
from fedsim_defenses._accounting import MissingOpacusError, subsampled_epsilon
from fedsim_defenses._position import occluded
from fedsim_defenses.dp_sgd import DPSGD, BudgetSpentError
from fedsim_defenses.mjp import MJP
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.optimizers import DPOptimizer
from scipy.stats import kstest, norm
from torch import nn

from fedsim.defense import ONE_IMAGE, LocalStep
from fedsim.errors import ScenarioError
from fedsim.federation.training import Past, local_update
from fedsim.models import gradient_of, trained
from fedsim.plugins import configure
from fedsim.recording.client_state import ClientState
from fedsim.recording.run_folder import RunFolder
from fedsim.seeds import seeded, torch_generator
from fedsim.simulation import Progress
from fedsim.testing import client_context, random_images, small_model

POISSON = replace(client_context().training, sampling="poisson")
BATCH = 4
DELTA = {"shares": "delta", "batch_size": 2, "local_steps": 3, "sampling": "poisson"}


def context_of(**changes):
    return client_context(**{"training": POISSON, "batch_size": BATCH, "num_examples": 40, **changes})


def batch(count=3, seed=0):
    images = random_images(torch_generator(seed, "batch"), count)
    return images.images * 2 - 1, images.labels


def step(defense, model, images, labels, context=None, seed=0, progress=0.0):
    """Return the gradient that one step leaves, with its loss."""
    model.zero_grad(set_to_none=True)
    taken = LocalStep(model, images, labels, progress)
    loss = defense.train_step(taken, context or context_of(), torch_generator(seed, "step"), refuse)
    return {name: p.grad.clone() for name, p in model.named_parameters()}, loss


def refuse(_):
    raise AssertionError("dp_sgd computes the gradient itself")


def empty():
    images, labels = batch(1)
    return images[:0], labels[:0]


def flat(gradients):
    return torch.cat([tensor.flatten() for tensor in gradients.values()]).double()


def clipped_by_a_loop(model, images, labels, clip_norm):
    total = 0.0
    for index in range(len(images)):
        one = flat(gradient_of(model, images[index : index + 1], labels[index : index + 1]))
        total = total + one * min(1.0, clip_norm / float(one.norm()))
    return total


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * (1 + float(expected.abs().max())))


# The step


@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_step_averages_over_the_expected_number_of_images_not_the_drawn_one(count):
    model, (images, labels) = small_model(), batch(count)
    found, loss = step(DPSGD(clip_norm=0.5, noise_multiplier=0.0), model, images, labels)
    close(flat(found), clipped_by_a_loop(model, images, labels, 0.5) / BATCH)
    close(loss, nn.functional.cross_entropy(model(images), labels).detach())


def test_noise_of_an_empty_batch_is_gaussian_of_the_stated_size():
    found, loss = step(DPSGD(clip_norm=0.5, noise_multiplier=2.0), small_model(), *empty())
    assert float(loss) == 0
    values = flat(found)
    assert len(values) > 100_000
    assert kstest(values.numpy(), norm(scale=2.0 * 0.5 / BATCH).cdf).pvalue > 1e-3


def test_noise_is_added_to_the_clipped_mean_and_drawn_from_the_given_generator():
    defense, model, (images, labels) = DPSGD(clip_norm=0.5), small_model(), batch(3)
    found, again = (flat(step(defense, model, images, labels)[0]) for _ in range(2))
    alone = flat(step(defense, model, *empty())[0])
    assert torch.equal(found, again)
    assert not torch.equal(found, flat(step(defense, model, images, labels, seed=1)[0]))
    close(found - alone, clipped_by_a_loop(model, images, labels, 0.5) / BATCH)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # of the first layer
@pytest.mark.parametrize("clip_norm", [0.05, 1e6])
def test_the_clipped_mean_is_that_of_opacus(clip_norm):
    with seeded(0, "model"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 10))
    images, labels = batch(5)
    found, _ = step(DPSGD(clip_norm=clip_norm, noise_multiplier=0.0), model, images, labels)
    model.zero_grad(set_to_none=True)
    wrapped = GradSampleModule(model)
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=clip_norm,
        expected_batch_size=BATCH,
    )
    nn.functional.cross_entropy(wrapped(images), labels).backward()
    optimizer.pre_step()
    for name, parameter in wrapped._module.named_parameters():
        close(found[name], parameter.grad)


def test_masked_jigsaw_before_it_masks_every_image_and_keeps_the_gradient_exact():
    puzzle, model, (images, labels) = MJP(gamma=0.5, dal_weight=1.0), small_model(), batch(3)
    with seeded(0, "defenses"):
        puzzle.prepare_model(model)
    defense, seen = DPSGD(clip_norm=0.5, noise_multiplier=0.0), []

    def proceed(taken):
        seen.append((taken, model.mjp.mask))
        return defense.train_step(taken, context_of(), torch_generator(0, "step"), refuse)

    model.zero_grad(set_to_none=True)
    puzzle.train_step(LocalStep(model, images, labels, 0.0), context_of(), torch_generator(0, "mjp"), proceed)
    found = flat({name: p.grad for name, p in model.named_parameters()})
    ((taken, mask),) = seen
    assert mask.any()
    model.zero_grad(set_to_none=True)
    # Of images without any gradient the localization loss is left, which depends on no image.
    unclipped = puzzle.train_step(
        LocalStep(model, images, labels, 0.0), context_of(), torch_generator(0, "mjp"), lambda _: torch.tensor(0.0)
    )
    assert float(unclipped) == 0
    rest = flat({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()})
    with occluded(model, mask):
        expected = clipped_by_a_loop(model, taken.images, labels, 0.5) / BATCH
    close(found - rest, expected)


def test_masked_jigsaw_before_it_takes_an_empty_batch():
    puzzle, model = MJP(gamma=0.5), small_model()
    with seeded(0, "defenses"):
        puzzle.prepare_model(model)
    defense = DPSGD()

    def proceed(taken):
        return defense.train_step(taken, context_of(), torch_generator(0, "step"), refuse)

    loss = puzzle.train_step(LocalStep(model, *empty(), 0.0), context_of(), torch_generator(0, "mjp"), proceed)
    assert float(loss) == 0


# Adaptive clipping


def test_an_adaptive_norm_follows_the_formula_and_its_count_has_noise_of_its_own():
    model, (images, labels) = small_model(), batch(3)
    norms = [float(flat(gradient_of(model, images[i : i + 1], labels[i : i + 1])).norm()) for i in range(3)]
    defense = DPSGD(
        clip_norm=sorted(norms)[1] + 1e-3, noise_multiplier=0.0, clipping="adaptive", quantile=0.9, clip_rate=0.3
    )
    context = context_of()
    step(defense, model, images, labels, context)
    share = (2 - 3 / 2) / BATCH + 1 / 2
    assert context.state["clip_norm"] == pytest.approx(defense.clip_norm * math.exp(-0.3 * (share - 0.9)), rel=1e-6)
    noisy, drawn = replace(defense, count_noise=2.0), []
    for seed in range(200):
        context = context_of()
        step(noisy, model, *empty(), context, seed)
        drawn.append(-math.log(context.state["clip_norm"] / defense.clip_norm) / 0.3 + 0.9 - 0.5)
    assert kstest(drawn, norm(scale=2.0 / BATCH).cdf).pvalue > 1e-3


@pytest.mark.parametrize("quantile", [0.3, 0.7])
def test_an_adaptive_norm_settles_at_the_quantile(quantile):
    model, (images, labels) = small_model(), batch(10)
    norms = sorted(float(flat(gradient_of(model, images[i : i + 1], labels[i : i + 1])).norm()) for i in range(10))
    defense = DPSGD(clip_norm=norms[-1] * 5, noise_multiplier=0.0, clipping="adaptive", quantile=quantile)
    context = context_of(batch_size=10, num_examples=10)
    for _ in range(40):
        step(defense, model, images, labels, context)
    place = round(10 * quantile)
    assert norms[place - 2] < context.state["clip_norm"] < norms[place + 1]


@settings(deadline=None, max_examples=30)
@given(noise=st.floats(0.1, 20), over=st.floats(1.01, 20), expected=st.integers(1, 512), is_stated=st.booleans())
def test_gradient_and_count_together_cost_what_the_accountant_counts(noise, over, expected, is_stated):
    count_noise = noise / 2 * over if is_stated else None
    defense = DPSGD(noise_multiplier=noise, clipping="adaptive", count_noise=count_noise)
    context = context_of(batch_size=expected, num_examples=1000)
    on_count = defense._count_noise(context)
    assert on_count == (count_noise or max(noise, expected / 20))
    # Sensitivities: 1 in units of the clipping norm, 1/2 of the centered count.
    together = (defense._gradient_multiplier(context) ** -2 + (2 * on_count) ** -2) ** -0.5
    assert together == pytest.approx(noise, rel=1e-9)


def test_adaptive_clipping_puts_more_noise_on_the_gradient():
    defense = DPSGD(clip_norm=0.5, clipping="adaptive", count_noise=1.0)
    values = flat(step(defense, small_model(), *empty())[0])
    expected = 0.5 / math.sqrt(1 - 0.25) / BATCH
    assert kstest(values.numpy(), norm(scale=expected).cdf).pvalue > 1e-3


# Accounting


def of_opacus(history, delta=1e-5, accountant=RDPAccountant):
    """Return what an accountant says that is told of every step by itself."""
    own = accountant()
    for noise, rate, steps in history:
        for _ in range(steps):
            own.step(noise_multiplier=noise, sample_rate=rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where another order would be tighter
        return own.get_epsilon(delta)


@settings(deadline=None, max_examples=6)
@given(
    st.lists(st.tuples(st.floats(0.5, 5), st.floats(0.01, 1), st.integers(1, 9)), min_size=1, max_size=3),
    st.floats(1e-8, 1e-2),
)
def test_epsilon_is_that_of_opacus(history, delta):
    assert subsampled_epsilon(tuple(history), delta, "rdp") == pytest.approx(
        max(0.0, of_opacus(history, delta)), abs=1e-6
    )


@pytest.mark.parametrize(("steps", "published"), [(16, 4.70), (40, 6.59)])
def test_known_values_of_the_renyi_accountant(steps, published):
    assert subsampled_epsilon(((1.0, 0.125, steps),), 1e-5, "rdp") == pytest.approx(published, abs=0.005)


def test_the_privacy_loss_itself_is_tighter_and_gives_way_where_it_cannot_be_computed():
    history = ((1.0, 0.125, 40),)
    tighter = subsampled_epsilon(history, 1e-5, "prv")
    assert tighter == pytest.approx(of_opacus(history, accountant=PRVAccountant), abs=1e-6)
    assert tighter < subsampled_epsilon(history, 1e-5, "rdp")
    far = ((0.05, 0.1, 40),)
    assert subsampled_epsilon(far, 1e-5, "prv") == subsampled_epsilon(far, 1e-5, "rdp") > 50
    assert subsampled_epsilon(((1e-200, 0.1, 1),), 1e-5, "rdp") == math.inf
    assert subsampled_epsilon((), 1e-5, "rdp") == 0


def test_without_opacus_a_message_says_how_to_install_it(monkeypatch, tiny_plan):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(MissingOpacusError, match=r"pip install 'fedsim-audit\[dp\]'"):
        subsampled_epsilon(((1.234, 0.125, 3),), 1e-5, "rdp")


def test_epsilon_composes_over_the_rounds_in_which_the_client_takes_part(tiny_plan):
    """Through what a server hands back after a kill: state as it travels, rounds left out in between."""
    plan = tiny_plan(
        federation={"rounds": 6}, training=DELTA, defenses=[{"name": "dp_sgd", "params": {"noise_multiplier": 0.8}}]
    )
    held, weights, past, epsilons = len(plan.data.partition[1]), plan.initial_weights(), Past(), []
    for participations, round in enumerate((1, 3, 6), start=1):
        result = local_update(plan, 1, round, weights, past=past)
        epsilons.append(result.budget.epsilon)
        assert (result.budget.delta, result.budget.neighbors) == (1e-5, ONE_IMAGE)
        past = Past(participations, ClientState.from_wire(result.state.to_wire()))
    expected = [of_opacus([(0.8, 2 / held, 3 * count)]) for count in (1, 2, 3)]
    assert epsilons == pytest.approx(expected, abs=1e-6)


def test_rounds_of_which_nothing_was_kept_count_as_well(tiny_plan):
    plan = tiny_plan(federation={"rounds": 4}, training=DELTA, defenses=[{"name": "dp_sgd"}])
    held, weights = len(plan.data.partition[1]), plan.initial_weights()
    result = local_update(plan, 1, 3, weights, past=Past(2))
    assert result.budget.epsilon == pytest.approx(of_opacus([(1.0, 2 / held, 9)]), abs=1e-6)
    result = local_update(plan, 1, 4, weights, past=Past(3, result.state))
    assert result.budget.epsilon == pytest.approx(of_opacus([(1.0, 2 / held, 12)]), abs=1e-6)


def test_epsilon_stands_in_the_rounds_of_a_run_also_after_a_kill(tiny_plan, run_folder, without_report):
    left_out = {"name": "stubs:FailsIn", "clients": [1], "params": {"round": 2}}
    plan = tiny_plan(
        federation={"clients": 3, "rounds": 3},
        training=DELTA,
        defenses=[{"name": "dp_sgd", "clients": [0, 1]}, left_out],
        attacks=[],
    )
    folder = run_folder(plan)
    audits.simulate(plan, folder, Progress())
    whole = folder.rounds.read()
    for part, key in (("captures/index.jsonl", "key"), ("rounds.jsonl", "round")):
        lines = (folder.path / part).read_text().splitlines(keepends=True)
        kept = [line for line in lines if not str(json.loads(line)[key]).startswith(("3", "round-0003"))]
        (folder.path / part).write_text("".join(kept))
    shutil.rmtree(folder.path / "captures" / "round-0003")
    (folder.path / "model.safetensors").unlink()
    audits.simulate(plan, RunFolder.open(folder.path), Progress())
    resumed = RunFolder.open(folder.path).rounds.read()
    assert [line["epsilon"] for line in resumed] == [line["epsilon"] for line in whole]
    taken = {0: [1, 2, 3], 1: [1, None, 2]}
    for number, line in enumerate(resumed[1:]):
        counts = {client: rounds[number] for client, rounds in taken.items() if rounds[number]}
        assert list(line["epsilon"]) == [str(client) for client in counts]
        for client, count in counts.items():
            rate = 2 / len(plan.data.partition[client])
            assert line["epsilon"][str(client)] == {
                "epsilon": pytest.approx(of_opacus([(1.0, rate, 3 * count)]), abs=1e-6),
                "delta": 1e-5,
                "neighbors": ONE_IMAGE,
            }


def test_before_a_run_the_budget_is_that_of_as_many_rounds():
    context = context_of(participation=3, steps=5)
    assert DPSGD().budget(context).epsilon == pytest.approx(of_opacus([(1.0, 0.1, 15)]), abs=1e-6)


@pytest.mark.parametrize("training", [{"sampling": "shuffle"}, {"sampling": "poisson", "mixup": 0.4}])
def test_no_budget_is_claimed_where_it_would_be_false(training):
    assert DPSGD().budget(context_of(training=replace(POISSON, **training))) is None
    assert DPSGD(noise_multiplier=0.0).budget(context_of()) is None


# The target


def target_between(plan, first, second):
    rate = 2 / len(plan.data.partition[1])
    return (of_opacus([(1.0, rate, 3 * first)]) + of_opacus([(1.0, rate, 3 * second)])) / 2


def test_a_round_beyond_the_target_is_refused_before_it_begins(tiny_plan):
    parts = {"federation": {"rounds": 4}, "training": DELTA}
    target = target_between(tiny_plan(**parts), 2, 3)
    plan = tiny_plan(**parts, defenses=[{"name": "dp_sgd", "params": {"target_epsilon": target}}])
    weights, past = plan.initial_weights(), Past()
    for round in (1, 2):
        result = local_update(plan, 1, round, weights, past=past)
        assert result.budget.epsilon <= target
        past = Past(round, result.state)
    with pytest.raises(BudgetSpentError, match=r"epsilon would be .* after this round, and target_epsilon is"):
        local_update(plan, 1, 3, weights, past=past)


def test_a_client_whose_budget_is_spent_takes_no_part_and_the_others_go_on(tiny_plan, run_folder, without_report):
    parts = {"federation": {"clients": 3, "rounds": 3}, "training": DELTA, "attacks": []}
    target = target_between(tiny_plan(**parts), 1, 2)
    defense = {"name": "dp_sgd", "clients": [1], "params": {"target_epsilon": target}}
    plan = tiny_plan(**parts, defenses=[defense])
    folder = run_folder(plan)
    audits.simulate(plan, folder, Progress())
    lines = folder.rounds.read()[1:]
    assert [line["participants"] for line in lines] == [[0, 1, 2], [0, 2], [0, 2]]
    assert all("target_epsilon" in line["failed"]["1"] for line in lines[1:])


# Refusals and cautions


def refusal(tiny_plan, training=DELTA, params=None, **parts):
    with pytest.raises(ScenarioError) as caught:
        tiny_plan(training=training, defenses=[{"name": "dp_sgd", "clients": [0], "params": params or {}}], **parts)
    return str(caught.value)


def test_a_guarantee_is_refused_where_it_would_be_false(tiny_plan):
    shuffled = {**DELTA, "sampling": "shuffle"}
    assert refusal(tiny_plan, shuffled).startswith("training.sampling: got shuffle, and the epsilon of dp_sgd holds")
    assert refusal(tiny_plan, {**DELTA, "mixup": 0.4}).startswith("training.mixup: got 0.4, and the epsilon of dp_sgd")
    assert refusal(tiny_plan, params={"target_epsilon": 0.01}).startswith(
        "defenses.0: dp_sgd: target_epsilon: got 0.01, but the first round of client 0 costs"
    )


def test_augmented_images_are_still_alone_so_the_guarantee_is_that_of_plain_ones(tiny_plan):
    plain, augmented = (
        tiny_plan(training={**DELTA, **recipe}, defenses=[{"name": "dp_sgd"}])
        for recipe in ({}, {"augment": ["flip", "crop"]})
    )
    weights = plain.initial_weights()
    found, other = (local_update(plan, 1, 1, weights) for plan in (plain, augmented))
    assert found.budget == other.budget is not None
    assert not torch.equal(found.update.tensors["pos_embed"], other.update.tensors["pos_embed"])


def test_a_model_with_batch_norm_is_refused(tiny_plan):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    for noise in (0.0, 1.0):
        with pytest.raises(
            ScenarioError, match=r"model\.name: dp_sgd clips .* in Sequential BatchNorm lets the images"
        ):
            DPSGD(noise_multiplier=noise).check(model, context_of(), [])
    assert "without BatchNorm" in refusal(tiny_plan, model={"name": "test_resnet", "kwargs": {}})


def test_without_noise_nothing_is_promised_so_shuffled_and_mixed_batches_are_allowed(tiny_plan):
    clipping = [{"name": "dp_sgd", "params": {"noise_multiplier": 0.0}}]
    plan = tiny_plan(training={**DELTA, "sampling": "shuffle", "mixup": 0.4}, defenses=clipping)
    assert local_update(plan, 0, 1, plan.initial_weights()).budget is None


@pytest.mark.parametrize("hook", ["batch", "step"])
def test_another_defense_that_may_mix_images_is_refused_on_the_same_client(tiny_plan, hook):
    other = {"name": "stubs:Shaken", "clients": [0], "params": {"hook": hook}}
    with pytest.raises(ScenarioError, match="Shaken beside dp_sgd does not say that it treats each image alone"):
        tiny_plan(training=DELTA, defenses=[other, {"name": "dp_sgd", "clients": [0]}])
    assert tiny_plan(training=DELTA, defenses=[other, {"name": "dp_sgd", "clients": [1]}])


def test_defenses_that_treat_images_alone_or_change_the_update_go_together_with_it(tiny_plan):
    others = [{"name": "mjp"}, {"name": "dp_sgd"}, {"name": "quantization"}]
    plan = tiny_plan(training=DELTA, defenses=others)
    assert local_update(plan, 0, 1, plan.initial_weights()).budget.neighbors == ONE_IMAGE


def test_one_noised_gradient_is_all_that_a_client_shares_and_is_accounted_as_one_step(tiny_plan):
    plan = tiny_plan(training={"sampling": "poisson", "batch_size": 2}, defenses=[{"name": "dp_sgd"}])
    result = local_update(plan, 0, 1, plan.initial_weights())
    held = len(plan.data.partition[0])
    assert result.budget.epsilon == pytest.approx(of_opacus([(1.0, 2 / held, 1)]), abs=1e-6)
    assert list(result.update.tensors) == list(trained(plan.model()))
    assert not result.update.buffers
    assert result.update.num_examples == held, "the number of drawn images is not told"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm: expected a number above 0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier: expected"),
        ({"delta": 0.0}, "delta: expected"),
        ({"target_epsilon": 0.0}, "target_epsilon: expected"),
        ({"target_epsilon": 1.0, "noise_multiplier": 0.0}, "target_epsilon: got 1.0 with noise_multiplier 0"),
        ({"quantile": 0.4}, "quantile: got 0.4, but clipping 'flat' has none"),
        ({"clip_rate": 0.4}, "clip_rate: got 0.4, but clipping 'flat' has none"),
        ({"count_noise": 4.0}, "count_noise: got 4.0, but clipping 'flat' has none"),
        ({"clipping": "adaptive", "quantile": 1.0}, "quantile: expected"),
        ({"clipping": "adaptive", "clip_rate": 0.0}, "clip_rate: expected"),
        (
            {"clipping": "adaptive", "count_noise": 0.5},
            "count_noise: expected a number above half of noise_multiplier, 0.5",
        ),
        ({"clipping": "median"}, "clipping"),
        ({"accountant": "moments"}, "accountant"),
    ],
)
def test_parameters_out_of_range_are_refused_with_what_is_allowed(params, message):
    with pytest.raises(ScenarioError, match=message):
        configure(DPSGD, params, "defenses.0.params")


def test_cautions_name_what_the_guarantee_does_not_cover():
    model = small_model()
    alone = DPSGD(noise_multiplier=0.0).cautions(model)
    assert alone[0].endswith("hides nothing: no guarantee.")
    usual = " ".join(DPSGD().cautions(model))
    assert "do not model" in usual and "do not model" in alone[1], "what is called aware is no adaptive attack"
    assert "scenario's seed" in usual
    assert "each single image" in usual
    assert "Delta is" not in usual
    assert "Delta is 0.01" in " ".join(DPSGD(delta=0.01).cautions(model))
    context = context_of(rounds=10, steps=2)
    assert DPSGD(noise_multiplier=2.0).client_cautions(context) == ()
    (weak,) = DPSGD(noise_multiplier=0.3).client_cautions(context)
    assert weak.startswith(
        f"Epsilon is {of_opacus([(0.3, 0.1, 20)]):.3g} after 10 rounds (delta 1e-05, add_remove of one"
    )
    assert DPSGD(noise_multiplier=0.3, target_epsilon=5.0).client_cautions(context) == ()
