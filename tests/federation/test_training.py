import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedsim import plugins
from fedsim.defense import Defense, LocalStep
from fedsim.errors import ScenarioError
from fedsim.federation import training
from fedsim.federation.training import DefenseFaultError, NonFiniteUpdateError, local_update
from fedsim.planning.context import training_knowledge
from fedsim.planning.planned import PlannedDefense
from fedsim.plugins import PluginInfo
from fedsim.testing import client_context

DELTA = {"shares": "delta", "batch_size": 4, "local_steps": 3, "learning_rate": 0.05}
EXEMPT = {"pos_embed", "cls_token"}  # what timm's ViT names in no_weight_decay


def moved(plan, scale=0.02):
    """Return weights unlike the initial ones, so that a test cannot pass by accident of initialization."""
    generator = torch.Generator().manual_seed(1)
    return {n: w + scale * torch.randn(w.shape, generator=generator) for n, w in plan.initial_weights().items()}


def batches_of(data, client, round, training):
    """Return what each local step of a round trains on."""
    return [data.read(inputs, training) for inputs in data.client_inputs(client, round, training)]


def gradient(plan, weights, batch, train=False):
    model = plan.model(weights).train(train)
    loss = nn.functional.cross_entropy(model(plan.normalization.normalize(batch.images)), batch.labels)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True)), float(loss.detach())


def assert_same(found, expected, **tolerance):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, **(tolerance or {"rtol": 0, "atol": 0}), msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("round", [1, 2])
def test_a_shared_gradient_is_what_autograd_says_of_the_batch(tiny_plan, round):
    plan = tiny_plan(training={"batch_size": 4})
    weights = moved(plan)
    batch = batches_of(plan.data, 1, round, plan.scenario.training)[0]
    expected, loss = gradient(plan, weights, batch)
    result = local_update(plan, 1, round, weights)
    assert_same(result.update.tensors, expected)
    assert result.loss == loss
    assert (result.update.kind, result.update.round, result.update.client) == ("gradient", round, 1)


SOFT = {"label_smoothing": 0.2, "mixup": 0.4}
AUGMENTED = {"augment": ["flip", "crop"]}


def test_an_augmented_client_trains_on_the_images_of_the_truth_and_on_no_others(tiny_plan):
    plan, plain = tiny_plan(training={"batch_size": 4, **AUGMENTED}), tiny_plan(training={"batch_size": 4})
    weights = moved(plan)
    truth, own = (one.data.truth(1, 2, one.scenario.training) for one in (plan, plain))
    assert torch.equal(truth.labels, own.labels) and not torch.equal(truth.images, own.images)
    expected, loss = gradient(plan, weights, truth)
    result = local_update(plan, 1, 2, weights)
    assert_same(result.update.tensors, expected)
    assert result.loss == loss and result.update.num_examples == 4
    assert training_knowledge(plan.scenario, plan.model(), 2).augment == ("flip", "crop")


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(
    "recipe", [{"label_smoothing": 0.2}, {"mixup": 0.4}, SOFT, {**SOFT, **AUGMENTED}], ids="-".join
)
def test_the_truth_is_what_the_client_trained_on(tiny_plan, recipe, size):
    plan = tiny_plan(training={"batch_size": size, **recipe})
    weights, truth = moved(plan), plan.data.truth(1, 2, plan.scenario.training)
    assert truth.labels.shape == (size, 10)
    expected, loss = gradient(plan, weights, truth)
    result = local_update(plan, 1, 2, weights)
    assert_same(result.update.tensors, expected)
    assert result.loss == loss
    plain = tiny_plan(training={"batch_size": size})
    assert not torch.equal(local_update(plain, 1, 2, weights).update.tensors["head.bias"], expected["head.bias"])


def test_the_head_bias_gradient_is_softmax_minus_soft_label(tiny_plan):
    plan = tiny_plan(training={"batch_size": 3, **SOFT})
    weights, truth = moved(plan), plan.data.truth(0, 1, plan.scenario.training)
    with torch.no_grad():
        predicted = plan.model(weights)(plan.normalization.normalize(truth.images)).softmax(1)
    found = local_update(plan, 0, 1, weights).update.tensors["head.bias"]
    torch.testing.assert_close(found, (predicted - truth.labels).mean(0), rtol=0, atol=1e-6)


def test_a_delta_of_several_soft_steps_is_sgd_written_out_by_hand(tiny_plan):
    plan = tiny_plan(training={**DELTA, **SOFT})
    weights = moved(plan)
    batches = batches_of(plan.data, 2, 1, plan.scenario.training)
    assert len(plan.data.truth(2, 1, plan.scenario.training).images) == sum(len(batch) for batch in batches) == 12
    assert_same(local_update(plan, 2, 1, weights).update.tensors, sgd(plan, weights, batches), rtol=1e-3, atol=1e-5)


def test_defenses_get_the_soft_labels_that_the_truth_holds(tiny_plan, monkeypatch):
    plan = tiny_plan(training={"batch_size": 2, **SOFT}, defenses=[{"name": "stubs:Notes"}])
    truth, seen = plan.data.truth(1, 1, plan.scenario.training), []

    def note(self, images, labels, context, generator):
        seen.append((images, labels))
        return images, labels

    monkeypatch.setattr(type(plan.defenses[0].defense), "protect_batch", note)
    first, again = (local_update(plan, 1, 1, moved(plan)).update.tensors for _ in range(2))
    assert_same(first, again)
    for images, labels in seen:
        assert torch.equal(images, plan.normalization.normalize(truth.images)) and torch.equal(labels, truth.labels)
    assert len(seen) == 2


@pytest.mark.parametrize(
    "defense",
    [{"name": "dp_noise", "params": {"clip_norm": 1.0, "noise_multiplier": 0.1}}, {"name": "mjp"}],
    ids=lambda defense: defense["name"],
)
def test_a_defended_client_trains_on_soft_labels(tiny_plan, defense):
    soft = tiny_plan(training={"batch_size": 2, **SOFT}, defenses=[defense])
    hard = tiny_plan(training={"batch_size": 2}, defenses=[defense])
    weights = moved(soft)
    found, other = (local_update(plan, 1, 1, weights).update for plan in (soft, hard))
    assert found.is_finite() and not torch.equal(found.tensors["head.bias"], other.tensors["head.bias"])


def test_the_recipe_that_is_granted_names_smoothing_and_mixup(tiny_plan):
    plan = tiny_plan(training=SOFT)
    knowledge = training_knowledge(plan.scenario, plan.model(), 1)
    assert (knowledge.label_smoothing, knowledge.mixup) == (0.2, 0.4)
    plain = training_knowledge(tiny_plan().scenario, plan.model(), 1)
    assert (plain.label_smoothing, plain.mixup) == (0.0, None)


def sgd(plan, weights, batches, proximal_mu=0.0):
    """SGD with momentum and weight decay, written out; returns new minus old weights."""
    recipe, new, velocity = plan.scenario.training, {n: w.clone() for n, w in weights.items()}, {}
    for batch in batches:
        slopes = {n: g + proximal_mu * (new[n] - weights[n]) for n, g in gradient(plan, new, batch)[0].items()}
        length = math.sqrt(sum(float(slope.double().square().sum()) for slope in slopes.values()))
        factor = min(1.0, (recipe.clip_norm or math.inf) / length)
        for name, slope in slopes.items():
            slope = factor * slope + (0.0 if name in EXEMPT else recipe.weight_decay) * new[name]
            velocity[name] = recipe.momentum * velocity[name] + slope if name in velocity else slope
        for name, step in velocity.items():
            new[name] = new[name] - recipe.learning_rate * step
    return {name: new[name] - weights[name] for name in new}


def adamw(plan, weights, batches):
    """AdamW with its customary constants, written out; returns new minus old weights."""
    recipe, new = plan.scenario.training, {n: w.clone() for n, w in weights.items()}
    first, second = ({n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(2))
    for count, batch in enumerate(batches, 1):
        for name, slope in gradient(plan, new, batch)[0].items():
            first[name] = 0.9 * first[name] + 0.1 * slope
            second[name] = 0.999 * second[name] + 0.001 * slope**2
        for name in new:
            decay = 0.0 if name in EXEMPT else recipe.weight_decay
            scaled = first[name] / (1 - 0.9**count) / ((second[name] / (1 - 0.999**count)).sqrt() + 1e-8)
            new[name] = (1 - recipe.learning_rate * decay) * new[name] - recipe.learning_rate * scaled
    return {name: new[name] - weights[name] for name in new}


@pytest.mark.parametrize(
    ("recipe", "by_hand"),
    [
        ({}, sgd),
        ({"momentum": 0.9}, sgd),
        ({"momentum": 0.5, "weight_decay": 0.3}, sgd),
        ({"local_steps": None, "local_epochs": 2, "weight_decay": 0.3}, sgd),
        ({"clip_norm": 0.3, "momentum": 0.5, "weight_decay": 0.3}, sgd),
        ({"optimizer": "adamw", "learning_rate": 1e-3}, adamw),
        ({"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.3}, adamw),
    ],
    ids=lambda value: "-".join(map(str, value)) or "plain" if isinstance(value, dict) else value.__name__,
)
def test_a_delta_is_what_the_optimizer_does_written_out_by_hand(tiny_plan, recipe, by_hand):
    plan = tiny_plan(training={**DELTA, **recipe})
    weights = moved(plan)
    batches = batches_of(plan.data, 2, 1, plan.scenario.training)
    assert len(batches) >= 3
    update = local_update(plan, 2, 1, weights).update
    found, expected = ({n: t.clone() for n, t in u.items()} for u in (update.tensors, by_hand(plan, weights, batches)))
    for tensors in (found, expected):
        for name, tensor in tensors.items():
            if name.endswith("qkv.bias"):
                # Softmax ignores the keys' bias: its gradient is rounding noise, which AdamW brings to full size.
                tensor.view(3, -1)[1] = 0
    assert_same(found, expected, rtol=1e-3, atol=1e-5)
    assert update.kind == "delta"


@pytest.mark.parametrize("recipe", [{"momentum": 0.5}, {"optimizer": "adamw"}], ids=["sgd", "adamw"])
def test_a_client_trains_with_the_learning_rate_of_the_round(tiny_plan, recipe):
    scheduled = tiny_plan(training={**DELTA, **recipe, "schedule": {"name": "step", "every": 1, "factor": 0.5}})
    weights = moved(scheduled)
    for round, rate in ((1, 0.05), (2, 0.025)):
        constant = tiny_plan(training={**DELTA, **recipe, "learning_rate": rate})
        found, expected = (local_update(plan, 1, round, weights).update for plan in (scheduled, constant))
        assert_same(found.tensors, expected.tensors)
        assert training_knowledge(scheduled.scenario, scheduled.model(), round).learning_rate == rate


def test_weight_decay_leaves_position_and_class_token_alone(tiny_plan):
    plain, decayed = tiny_plan(training={**DELTA, "local_steps": 1}), None
    weights = moved(plain)
    without = local_update(plain, 0, 1, weights).update.tensors
    decayed = tiny_plan(training={**DELTA, "local_steps": 1, "weight_decay": 0.3})
    with_decay = local_update(decayed, 0, 1, weights).update.tensors
    assert {name for name in weights if torch.equal(without[name], with_decay[name])} == EXEMPT
    knowledge = training_knowledge(decayed.scenario, decayed.model(), 1)
    assert set(knowledge.decay_exempt) == EXEMPT


def test_the_proximal_term_pulls_towards_the_global_weights(tiny_plan):
    plan = tiny_plan(training=DELTA)
    weights, mu = moved(plan), 2.0
    batches = batches_of(plan.data, 0, 1, plan.scenario.training)
    pulled = local_update(plan, 0, 1, weights, proximal_mu=mu).update
    assert_same(pulled.tensors, sgd(plan, weights, batches, proximal_mu=mu), rtol=1e-4, atol=1e-6)
    assert pulled.norm() < local_update(plan, 0, 1, weights).update.norm()


@pytest.mark.parametrize("recipe", [{"batch_size": 2}, DELTA], ids=["gradient", "delta"])
@pytest.mark.parametrize(
    "defense",
    [
        {"name": "stubs:Scales"},
        {"name": "dp_noise", "params": {"clip_norm": 1.0, "noise_multiplier": 0.1}},
        {"name": "mjp"},
    ],
    ids=lambda defense: defense["name"],
)
def test_a_defense_of_one_client_changes_the_update_of_that_client_alone(tiny_plan, recipe, defense):
    off = tiny_plan(training=recipe, defenses=[{**defense, "clients": []}])
    weights = moved(off)
    before = [local_update(off, client, 1, weights).update.tensors for client in range(3)]
    on = tiny_plan(training=recipe, defenses=[{**defense, "clients": [1]}])
    after = [local_update(on, client, 1, weights).update.tensors for client in range(3)]
    for client in (0, 2):
        assert_same(after[client], before[client])
    assert any(not torch.equal(after[1][name], before[1][name]) for name in weights)


def test_the_scaled_update_is_the_plain_one_times_the_factor(tiny_plan):
    weights = moved(tiny_plan())
    plain = local_update(tiny_plan(), 1, 1, weights).update.tensors
    scaled = tiny_plan(defenses=[{"name": "stubs:Scales", "params": {"factor": 0.25}}])
    assert_same(local_update(scaled, 1, 1, weights).update.tensors, {n: 0.25 * t for n, t in plain.items()})


@pytest.mark.parametrize("key", ["drop_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate"])
def test_dropout_is_active_in_training_mode_alone(tiny_plan, key):
    dropping = {"name": "vit_nano", "kwargs": {"depth": 1, key: 0.5}}
    plain, weights = tiny_plan(), moved(tiny_plan())
    expected = local_update(plain, 0, 1, weights).update.tensors
    evaluating = tiny_plan(model=dropping, training={"mode": "eval"})
    assert_same(local_update(evaluating, 0, 1, weights).update.tensors, expected)
    active = tiny_plan(model=dropping, training={"mode": "train"})
    dropped = local_update(active, 0, 1, weights).update.tensors
    assert not torch.equal(dropped["head.weight"], expected["head.weight"])
    assert_same(local_update(active, 0, 1, weights).update.tensors, dropped)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"batch_size": 4}, 4),
        ({"batch_size": 99}, 16),
        (DELTA, 12),
        ({**DELTA, "local_steps": 6}, 16),  # four batches hold all of the client's 16 images
        ({**DELTA, "local_steps": None, "local_epochs": 2}, 16),
        ({**DELTA, "local_steps": None, "local_epochs": 3, "batch_size": 5}, 16),  # the last batch is smaller
        ({**DELTA, "local_steps": None, "local_epochs": 2, "batch_size": 99}, 16),
        ({**DELTA, "local_steps": None, "local_epochs": 2, "mixup": 0.5}, 16),
    ],
)
def test_num_examples_counts_distinct_images_as_the_truth_does(tiny_plan, recipe, expected):
    plan = tiny_plan(training=recipe)
    assert local_update(plan, 0, 1, plan.initial_weights()).update.num_examples == expected
    truth = plan.data.truth(0, 1, plan.scenario.training)
    assert truth.pictures == expected
    assert len(truth.labels) == (2 * expected if "mixup" in recipe else expected)  # two blends of each


@pytest.mark.parametrize("recipe", [{}, {**DELTA, "learning_rate": 1e30}], ids=["gradient", "delta"])
def test_an_update_that_is_not_finite_is_refused_with_advice(tiny_plan, recipe):
    plan = tiny_plan(training=recipe)
    weights = plan.initial_weights()
    if not recipe:
        weights["head.bias"][0] = math.inf
    with pytest.raises(NonFiniteUpdateError, match=r"lower training\.learning_rate"):
        local_update(plan, 0, 1, weights)


def test_hooks_run_in_the_listed_order_and_steps_nest(tiny_plan):
    tags = [{"name": "stubs:Notes", "params": {"tag": tag}} for tag in "ab"]
    plan = tiny_plan(training={**DELTA, "local_steps": 2}, defenses=tags)
    calls = plan.defenses[0].defense.calls
    calls.clear()
    local_update(plan, 0, 2, plan.initial_weights())
    # Round 2 of 2: half of the training is done when its first step starts, three quarters at the second.
    steps = [
        (("a", "batch", 4), ("b", "batch", 4), ("a", "in", p), ("b", "in", p), ("b", "out", p), ("a", "out", p))
        for p in (0.5, 0.75)
    ]
    assert calls == [*steps[0], *steps[1], ("a", "update", 2), ("b", "update", 2)]


def test_training_leaves_the_global_generator_and_the_weights_untouched(tiny_plan):
    plan = tiny_plan(training=DELTA, model={"name": "vit_nano", "kwargs": {"depth": 1, "drop_rate": 0.5}})
    weights = plan.initial_weights()
    before, state = {n: w.clone() for n, w in weights.items()}, torch.get_rng_state()
    local_update(plan, 0, 1, weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(weights, before)


def test_no_step_of_a_client_that_clips_is_longer_than_the_norm_allows(tiny_plan):
    one = {**DELTA, "local_steps": 1}
    plain, loose, tight = (
        tiny_plan(training={**one, **clip}) for clip in ({}, {"clip_norm": 1e3}, {"clip_norm": 0.25})
    )
    weights = moved(plain)
    whole, same, clipped = (local_update(plan, 1, 1, weights).update for plan in (plain, loose, tight))
    assert_same(same.tensors, whole.tensors)
    assert whole.norm() > 2 * clipped.norm() and clipped.norm() == pytest.approx(0.05 * 0.25, rel=1e-3)
    factor = clipped.norm() / whole.norm()
    scaled = {name: factor * tensor for name, tensor in whole.tensors.items()}
    assert_same(clipped.tensors, scaled, rtol=1e-3, atol=1e-6)
    assert training_knowledge(tight.scenario, tight.model(), 1).clip_norm == 0.25


PARTS = {"batch_size": 7, "accumulate": 3}


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"augment": ["flip"], **SOFT},
        {"sampling": "poisson", "batch_size": 4},
        {"shares": "delta", "local_epochs": 2, "learning_rate": 0.05, "momentum": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("defense", ["none", "mjp", "fedsim_defenses.soteria:Soteria", "stubs:Notes"])
def test_micro_batches_give_the_gradient_of_the_batch_and_the_same_truth(tiny_plan, recipe, defense):
    parts = {"defenses": [] if defense == "none" else [defense]}
    whole, split = (tiny_plan(training={**PARTS, **recipe, "accumulate": n}, **parts) for n in (1, 3))
    weights = moved(whole)
    found, expected = (local_update(plan, 1, 1, weights) for plan in (split, whole))
    assert_same(found.update.tensors, expected.update.tensors, rtol=1e-3, atol=2e-6)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.update.num_examples == expected.update.num_examples
    truths = [plan.data.truth(1, 1, plan.scenario.training) for plan in (whole, split)]
    assert torch.equal(truths[0].images, truths[1].images) and torch.equal(truths[0].labels, truths[1].labels)
    assert training_knowledge(split.scenario, split.model(), 1) == training_knowledge(whole.scenario, whole.model(), 1)


@pytest.mark.parametrize(("parts", "sizes"), [(1, [7]), (2, [4, 3]), (3, [3, 2, 2]), (7, [1] * 7), (9, [1] * 7)])
def test_no_more_images_pass_the_model_at_once_than_a_part_has_and_earlier_gradients_stay(parts, sizes):
    generator = torch.Generator().manual_seed(0)
    last, seen = nn.Linear(4, 3).double(), []
    model = nn.Sequential(nn.Flatten(), last)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    images = torch.randn(7, 1, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.arange(7) % 3
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), list(model.parameters()))
    seen.clear()
    last.weight.grad, last.bias.grad = torch.ones(3, 4).double(), None
    training.in_parts(training.plain_step, parts)(LocalStep(model, images, labels, 0.0))
    assert seen == sizes
    torch.testing.assert_close(last.weight.grad, 1 + expected[0])
    torch.testing.assert_close(last.bias.grad, expected[1])


def test_batches_are_split_only_where_the_gradient_stays_the_same(tiny_plan):
    norms = {"name": "test_resnet", "kwargs": {}}
    with pytest.raises(ScenarioError, match=r"^training\.accumulate: got 3, and in training, BatchNorm of test_resnet"):
        tiny_plan(model=norms, training=PARTS)
    assert tiny_plan(model=norms, training={**PARTS, "mode": "eval"})
    dropping = {"name": "vit_nano", "kwargs": {"depth": 2, "drop_path_rate": 0.1}}
    with pytest.raises(
        ScenarioError, match=r"^training\.accumulate: got 3, and in training, vit_nano draws other numbers"
    ):
        tiny_plan(model=dropping, training=PARTS)
    assert tiny_plan(model=dropping, training={**PARTS, "mode": "eval"})
    with pytest.raises(ScenarioError, match=r"^training\.accumulate: got 3, and stubs:Recipe \(defenses\.0\) computes"):
        tiny_plan(training=PARTS, defenses=["stubs:Recipe"])
    assert tiny_plan(training=PARTS, defenses=[{"name": "stubs:Recipe", "clients": []}])


def planned(name, **params):
    defense = plugins.build("defenses", Defense, name, params, "defenses.0")
    return PlannedDefense(0, PluginInfo("defenses", name, name, None, "unknown"), defense, frozenset({0}))


def after(participations, *defenses):
    return [(each, client_context(participation=participations)) for each in defenses]


def test_the_claimed_budget_is_the_smallest_finite_epsilon(stubs):
    defenses = [planned("stubs:Budgets", epsilon=e) for e in (3.0, 2.0, 1e308)]
    budget = training.privacy_budget(after(4, *defenses, planned("stubs:Scales")))
    assert budget is not None and budget.epsilon == 8.0
    assert training.privacy_budget(after(2, planned("stubs:Scales"), defenses[2])) is None
    assert training.privacy_budget(()) is None


def test_a_budget_that_may_fail_altogether_is_claimed_where_there_is_no_better_one_alone(stubs):
    failing, sound = (planned("stubs:Budgets", epsilon=e, delta=d) for e, d in ((0.1, 0.5), (9.0, 1e-5)))
    assert training.privacy_budget(after(1, failing, sound)).epsilon == 9.0
    assert training.privacy_budget(after(1, failing)).epsilon == 0.1


def test_the_budget_of_noise_grows_with_participation():
    noise = planned("dp_noise", clip_norm=1.0, noise_multiplier=1.0)
    epsilons = [training.privacy_budget(after(rounds, noise)).epsilon for rounds in (1, 2, 8)]
    assert epsilons == sorted(set(epsilons))


# What a defense keeps from round to round


def test_what_a_defense_keeps_is_there_in_the_next_round(tiny_plan):
    plan = tiny_plan(defenses=["stubs:Halves", "stubs:Halves"])
    weights = moved(plan)
    first = local_update(plan, 1, 1, weights)
    assert first.state.values == {f"{n}-stubs:Halves/rounds": [1] for n in ("00", "01")}
    past = training.Past(1, first.state)
    second, again = (local_update(plan, 1, 2, weights, past=past) for _ in range(2))
    assert_same(second.update.tensors, again.update.tensors)
    assert second.state.values["01-stubs:Halves/rounds"] == [1, 2]
    plain = [local_update(tiny_plan(), 1, round, weights).update.tensors["head.weight"] for round in (1, 2)]
    # Twice the same defense: what the second sends is half of half, and a quarter of each round is on its way in the next.
    torch.testing.assert_close(first.update.tensors["head.weight"], plain[0] / 4)
    torch.testing.assert_close(second.update.tensors["head.weight"], plain[1] / 4 + plain[0] / 4)
    alone = local_update(plan, 1, 2, weights)
    torch.testing.assert_close(alone.update.tensors["head.weight"], plain[1] / 4)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({1: 2.0}, "has the key 1, expected text"),
        ({"a": object()}, r"\['a'\] holds <object"),
        ({"a": math.inf}, "finite numbers"),
        ({"a": {"b": {2: 3}}}, "expected a tensor, or"),
        ({"a": torch.eye(2).to_sparse()}, "sparse or nested"),
        ({"a": "x" * 1_100_000}, "more than 1,000,000 characters"),
    ],
)
def test_what_cannot_be_kept_is_a_fault_of_the_defense(tiny_plan, kept, said):
    plan = tiny_plan(defenses=["stubs:Keeps"])
    from stubs import Keeps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeps, "kept", kept)
        with pytest.raises(training.DefenseFaultError, match=f"stubs:Keeps: what it keeps.*{said}"):
            local_update(plan, 0, 1, moved(plan))


def test_a_context_tells_who_trains_on_what(tiny_plan):
    plan = tiny_plan(training={"batch_size": 2, "local_steps": 3, "shares": "delta"})
    context = plan.context_of(1, round=2, participation=2)
    labels = plan.data.pools.train.labels[list(plan.data.partition[1])].tolist()
    assert [labels.count(label) for label in range(len(context.class_counts))] == list(context.class_counts)
    assert (context.client, context.round, context.participation, context.steps) == (1, 2, 2, 3)
    assert context.num_examples == len(labels) and context.sampling_rate == 2 / len(labels)
    assert context.training.local_steps == 3 and context.rounds == plan.scenario.federation.rounds


def test_a_defense_that_moves_weights_which_it_does_not_declare_is_named(tiny_plan, monkeypatch):
    from fedsim_defenses.partial_sharing import PartialSharing

    plan = tiny_plan(defenses=[{"name": "partial_sharing", "params": {"hidden": ["cls_token"], "keeps": "local"}}])
    monkeypatch.setattr(PartialSharing, "begin_round", lambda self, model, context: model.head.bias.add_(1))
    with pytest.raises(
        DefenseFaultError, match=r"partial_sharing: begin_round is faulty: it changes head\.bias, which eff"
    ):
        local_update(plan, 0, 1, plan.initial_weights())


# What a defense returns


@pytest.mark.parametrize(
    ("hook", "broken", "said"),
    [
        ("protect_update", lambda update: None, "expected an Update, got NoneType"),
        ("protect_update", lambda update: replace(update, tensors={}), "cls_token and 19 more are missing"),
        ("protect_update", lambda update: replace(update, num_examples=0), "num-examples is 0"),
        ("protect_update", lambda update: replace(update, kind="delta"), "kind is 'delta', not 'gradient'"),
        ("protect_update", lambda update: replace(update, round=7), "round is 7, not 1"),
        ("protect_batch", lambda images, labels: (images[:0], labels[:0]), "expected at least one of"),
        ("protect_batch", lambda images, labels: (images, labels[:0]), "expected one of each of 1 images"),
        ("protect_batch", lambda images, labels: (images * float("nan"), labels), "images are not finite"),
        ("protect_batch", lambda images, labels: (images, None), "labels are NoneType, not a tensor"),
        ("train_step", lambda: None, "expected the mean loss as a tensor, got nothing"),
        ("train_step", lambda: torch.zeros(3), r"got a tensor of shape \(3,\)"),
    ],
)
def test_what_a_defense_returns_is_checked_and_the_defense_named(tiny_plan, monkeypatch, hook, broken, said):
    plan = tiny_plan(defenses=["stubs:Breaks"])
    from stubs import Breaks

    monkeypatch.setattr(Breaks, "hooks", {hook: broken})
    with pytest.raises(DefenseFaultError, match=rf"^stubs:Breaks: {hook} is faulty: .*{said}"):
        local_update(plan, 0, 1, plan.initial_weights())


# Poisson sampling


def rounds_by_draw(plan, client=0, most=40):
    """Return the rounds in which no image is drawn, and those in which some are."""
    training = plan.scenario.training
    used = {round: plan.data.images_used(client, round, training) for round in range(1, most)}
    return [round for round, count in used.items() if not count], [round for round, count in used.items() if count]


def test_a_client_that_draws_no_image_sends_a_zero_gradient(tiny_plan):
    plan = tiny_plan(training={"batch_size": 1, "sampling": "poisson"})
    (round, *_), (other, *_) = rounds_by_draw(plan)
    result = local_update(plan, 0, round, plan.initial_weights())
    assert not any(tensor.any() for tensor in result.update.tensors.values())
    assert list(result.update.tensors) == list(plan.model().state_dict())
    assert (result.loss, result.update.num_examples) == (0.0, len(plan.data.partition[0]))
    assert local_update(plan, 0, other, plan.initial_weights()).loss > 0


def test_an_empty_batch_moves_nothing_and_counts_for_nothing(tiny_plan):
    recipe = {"shares": "delta", "batch_size": 1, "local_steps": 6, "momentum": 0.9, "weight_decay": 0.1}
    plan = tiny_plan(training={**recipe, "learning_rate": 0.05, "sampling": "poisson"})
    training, weights = plan.scenario.training, moved(plan)
    batches = batches_of(plan.data, 1, 1, training)
    assert 0 < sum(len(batch) == 0 for batch in batches) < 6
    model = plan.model(weights).train()
    groups = [
        {"params": [p for n, p in model.named_parameters() if n not in EXEMPT], "weight_decay": 0.1},
        {"params": [p for n, p in model.named_parameters() if n in EXEMPT], "weight_decay": 0.0},
    ]
    optimizer, losses = torch.optim.SGD(groups, lr=0.05, momentum=0.9), []
    for batch in batches:
        if len(batch):
            optimizer.zero_grad()
            images = plan.normalization.normalize(batch.images)
            loss = nn.functional.cross_entropy(model(images), batch.labels)
            loss.backward()
            optimizer.step()
            losses += [float(loss.detach())] * len(batch)
    result = local_update(plan, 1, 1, weights)
    assert_same(result.update.tensors, {n: p.detach() - weights[n] for n, p in model.named_parameters()})
    assert result.loss == pytest.approx(sum(losses) / len(losses))


def test_hooks_see_an_empty_batch_only_where_one_computes_the_gradient_itself(tiny_plan):
    sizes = []

    class Counts(Defense):
        citation = "none"

        def protect_batch(self, images, labels, context, generator):
            sizes.append(len(images))
            return images, labels

    class Replaces(Counts):
        replaces_gradient = True

        def train_step(self, step, context, generator, proceed):
            return torch.tensor(float(len(step.images)))

    plan = tiny_plan(training={"batch_size": 1, "sampling": "poisson"})
    (round, *_), _ = rounds_by_draw(plan)
    for kind, expected in ((Counts, []), (Replaces, [0])):
        sizes.clear()
        info = PluginInfo("defenses", "own", "own:Own", None, "1")
        own = replace(plan, defenses=(PlannedDefense(0, info, kind(), frozenset({0})),))
        assert local_update(own, 0, round, plan.initial_weights()).loss == 0
        assert sizes == expected


def test_a_context_states_expected_batch_steps_and_sampling_rate(tiny_plan):
    plan = tiny_plan(training={"shares": "delta", "batch_size": 5, "local_epochs": 2, "sampling": "poisson"})
    held, context = len(plan.data.partition[0]), plan.context_of(0)
    assert (context.batch_size, context.num_examples, context.steps) == (5, held, 2 * -(-held // 5))
    assert (context.sampling_rate, context.training.sampling) == (5 / held, "poisson")
