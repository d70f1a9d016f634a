"""Descents that know what the client's defenses did."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from descent_cases import attacked, brief, flat, images_of, mean_color, mean_decibels, observed, pictures, starts, tiny
from fedsim_attacks.gradient_matching import GradientMatching
from fedsim_attacks.matching.discrepancy import Discrepancy, simulate
from fedsim_attacks.matching.distances import DISTANCES, row_cosine, tensor_cosine
from fedsim_attacks.matching.input_gradients import DoubleBackward, ForwardDifference
from fedsim_attacks.matching.objective import GradientTerm, Objective, constant
from fedsim_attacks.update.client_gradient import OneGradient
from fedsim_attacks.update.defended import Defended, read_defenses, signal_share
from fedsim_attacks.update.reordering import fitting_order, rearranged
from fedsim_attacks.update.target import read_target
from fedsim_defenses.dp_noise import DPNoise
from fedsim_defenses.mjp import MJP
from fedsim_defenses.partial_sharing import PartialSharing
from fedsim_defenses.pruning import Pruning
from fedsim_defenses.quantization import Quantization
from fedsim_defenses.random_sparsification import RandomSparsification
from fedsim_defenses.sign import Sign
from fedsim_defenses.soteria import Soteria
from hypothesis import given
from hypothesis import strategies as st
from vit_cases import build, gradient, noisy, photos

from fedsim.defense import ClientContext, Defense, LocalStep, knowledge_of
from fedsim.errors import AttackRefusedError
from fedsim.exchange import (
    DefenseKnowledge,
    Finding,
    LabeledImages,
    Observation,
    TrainingKnowledge,
    Trajectory,
    Update,
    UpdateEffects,
)
from fedsim.federation.training import plain_step
from fedsim.models import normalization, patch_grid, prefix_rows
from fedsim.seeds import seeded, torch_generator
from fedsim.testing import client_context

ONE, OTHER = pictures(0), pictures(50)
JIGSAW = MJP(gamma=0.5, mask="random")
NO_JIGSAW = MJP(gamma=0.0)


def told(*defenses: tuple[str, Defense]) -> tuple[DefenseKnowledge, ...]:
    return tuple(knowledge_of(name, defense) for name, defense in defenses)


def pruned(update: Update, share: float) -> Update:
    """Return the update with that share of each tensor's entries set to zero, those of least magnitude."""
    tensors = {}
    for name, tensor in update.tensors.items():
        bound = tensor.abs().flatten().kthvalue(max(1, round(share * tensor.numel()))).values
        tensors[name] = torch.where(tensor.abs() > bound, tensor, 0)
    return dataclasses.replace(update, tensors=tensors)


def protected(defense: Defense, update: Update) -> Update:
    return defense.protect_update(update, client_context(), torch_generator(0, "test"))


def jigsaw(defense: MJP, batch: LabeledImages, seed: int = 0) -> tuple[torch.nn.Module, Update, LabeledImages]:
    """Return a prepared model of 16 patches, what a client sends of a batch, and the batch as it was shuffled."""
    model, caught = tiny(patch=2), []
    with seeded(0, "test"):
        defense.prepare_model(model)

    def caught_step(step: LocalStep) -> torch.Tensor:
        caught.append(step.images)
        return plain_step(step)

    step = LocalStep(model, normalization(model).normalize(batch.images), batch.labels, 0.0)
    defense.train_step(step, client_context(), torch_generator(seed, "jigsaw"), caught_step)
    tensors = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    seen = normalization(model).denormalize(caught[0])
    return model, Update(1, 0, "gradient", tensors, len(batch)), LabeledImages(seen, batch.labels)


def defended_of(seen: Observation) -> Defended:
    return read_defenses(seen, read_target(seen, (), torch.device("cpu")))


def objective_of(defended: Defended, batch: LabeledImages, distance: str = "l2") -> Objective:
    target, place = defended.target, defended.target.place("pos_embed")
    assert place is not None
    rows = target.gradients[place]
    kept = rows.square().sum(-1)[0] > 0
    terms = [
        GradientTerm(constant(1.0), lambda found: DISTANCES.own[distance](found, target.gradients)),
        GradientTerm(constant(1.0), lambda found: row_cosine(found[place][:, kept], rows[:, kept])),
    ]
    response = OneGradient(target.model, target.names, batch.labels, used=defended.used)
    return Objective(response, lambda v: v["images"], normalization(target.model), terms, [], defended.sent)


def value_at(defended: Defended, batch: LabeledImages, distance: str = "l2") -> float:
    goal = objective_of(defended, batch, distance)
    images = goal.normalization.normalize(batch.images)
    return float(goal.matching([g.detach() for g in goal.response.gradients(images, {})], 0.0))


@functools.cache
def clipped_case() -> tuple[Observation, LabeledImages]:
    model, defense = tiny(), DPNoise(clip_norm=0.01)
    return observed(model, ONE, protected(defense, gradient(model, ONE)), defenses=told(("dp_noise", defense))), ONE


def pruned_case() -> tuple[Observation, LabeledImages]:
    model = tiny()
    return observed(model, ONE, pruned(gradient(model, ONE), 0.8)), ONE


def clipped_and_pruned_case() -> tuple[Observation, LabeledImages]:
    seen, _ = clipped_case()
    return dataclasses.replace(seen, update=pruned(seen.update, 0.8)), ONE


def jigsaw_case() -> tuple[Observation, LabeledImages]:
    model, update, shuffled = jigsaw(JIGSAW, ONE)
    return observed(model, shuffled, update), shuffled


def int8_case() -> tuple[Observation, LabeledImages]:
    model = tiny()
    return observed(model, ONE, protected(Quantization(), gradient(model, ONE))), ONE


CASES: dict[str, Callable[[], tuple[Observation, LabeledImages]]] = {
    "clipping": clipped_case,
    "pruning": pruned_case,
    "clipping, pruning": clipped_and_pruned_case,
    "jigsaw": jigsaw_case,
    "rounding": int8_case,
}


# True images


@pytest.mark.parametrize("distance", ["l2", "tensor_cosine"])
@pytest.mark.parametrize("case", [name for name in CASES if name != "rounding"])
def test_true_images_are_at_the_minimum_where_the_defense_is_modeled(case: str, distance: str) -> None:
    seen, batch = CASES[case]()
    defended = defended_of(seen)
    assert sorted(defended.active) == case.split(", ")
    assert abs(value_at(defended, batch, distance)) < 1e-5
    naive = Defended(read_target(seen, (), torch.device("cpu")))
    if case != "clipping" or distance == "l2":
        assert value_at(naive, batch, distance) > 1e-3


def test_rounded_zeros_cost_true_images_nothing() -> None:
    seen, batch = int8_case()
    defended = defended_of(seen)
    assert defended.active == ("rounding",)
    goal = objective_of(defended, batch)
    raw = goal.response.gradients(goal.normalization.normalize(batch.images), {})
    for found, rounded, silent in zip(defended.sent(raw), defended.target.gradients, defended.silent, strict=True):
        if silent is not None:
            assert not found[rounded == 0].any()
    assert value_at(defended, batch) < value_at(Defended(defended.target), batch)


@pytest.mark.parametrize("input_gradients", [DoubleBackward, ForwardDifference])
@pytest.mark.parametrize("case", CASES)
def test_all_input_gradients_are_of_the_defended_objective(case: str, input_gradients: type) -> None:
    seen, batch = CASES[case]()
    goal, variables = objective_of(defended_of(seen), batch), starts(2, batch)
    exact = flat(DoubleBackward(goal)({"images": variables["images"][:1]}, None, 0.0))
    alone = flat(input_gradients(goal)({"images": variables["images"][:1]}, None, 0.0))
    together = input_gradients(goal)(variables, None, 0.0).gradients["images"][0].flatten()
    assert float(torch.cosine_similarity(alone, exact, dim=0)) > 0.999
    assert float(torch.cosine_similarity(together, exact, dim=0)) > 0.999


# Clipping


@given(scale=st.floats(1e-3, 1e3))
def test_a_gradient_of_any_length_is_clipped_as_the_client_clips_it(scale: float) -> None:
    defended = defended_of(clipped_case()[0])
    clipped = defended.target.gradients
    sent = defended.sent([scale * tensor for tensor in clipped])
    for found, goal in zip(sent, clipped, strict=True):
        torch.testing.assert_close(found, min(1.0, scale) * goal, rtol=1e-4, atol=1e-9)


def test_clipping_is_neither_guessed_nor_modeled_where_the_update_is_shorter() -> None:
    seen, _ = clipped_case()
    assert defended_of(dataclasses.replace(seen, defenses=None)).limit is None
    wide = told(("dp_noise", DPNoise(clip_norm=1.0)))
    assert defended_of(dataclasses.replace(seen, defenses=wide)).active == ()


def test_a_image_that_clipping_hides_from_lengths_is_found_and_another_client_s_is_not() -> None:
    attack = GradientMatching(
        steps=100, distance="l2", priors={"total_variation": 0.001}, input_gradients="forward_difference"
    )
    model, defense = tiny(patch=8), DPNoise(clip_norm=0.01)

    def decibels(batch: LabeledImages, aware: bool) -> float:
        update = protected(defense, gradient(model, batch))
        seen = observed(model, batch, update, defenses=told(("dp_noise", defense)))
        return mean_decibels(attacked(dataclasses.replace(attack, aware=aware), seen).images, ONE)

    found = decibels(ONE, True)
    assert found >= mean_color(ONE) + 3
    assert found >= decibels(ONE, False) + 3
    assert found >= decibels(OTHER, True) + 3


# Zeros


@pytest.mark.parametrize(("share", "is_seen"), [(0.0, False), (0.05, False), (0.3, True), (0.99, True)])
def test_zeros_are_left_out_where_they_are_no_accident(share: float, is_seen: bool) -> None:
    model = tiny()
    update = gradient(model, ONE)
    if share:
        update = pruned(update, share)
    defended = defended_of(observed(model, ONE, update))
    assert (defended.active == ("pruning",)) == is_seen
    for silent, gradient_ in zip(defended.silent, defended.target.gradients, strict=True):
        assert silent is None or torch.equal(silent.isinf(), gradient_ == 0)


def test_whole_rows_of_zeros_are_honest() -> None:
    model = tiny()
    update = gradient(model, ONE)
    head, positions = (update.tensors[name].clone() for name in ("head.weight", "pos_embed"))
    head[3:], positions[0, 2] = 0, 0
    honest = dataclasses.replace(update, tensors={**update.tensors, "head.weight": head, "pos_embed": positions})
    assert defended_of(observed(model, ONE, honest)).active == ()


def test_zeros_of_a_pruned_and_rounded_update_are_dropped_entries_not_small_ones() -> None:
    model = tiny()
    for update in (
        protected(Quantization(), pruned(gradient(model, ONE), 0.9)),
        protected(Quantization(format="bf16"), pruned(gradient(model, ONE), 0.9)),
    ):
        assert "pruning" in defended_of(observed(model, ONE, update)).active


def test_zeros_of_a_delta_of_small_steps_are_less_than_half_a_step_of_its_weights() -> None:
    model, rate = tiny(), 1e-6
    start, input_gradients = dict(model.named_parameters()), gradient(model, ONE).tensors
    tensors = {n: (start[n].detach() - rate * g) - start[n].detach() for n, g in input_gradients.items()}
    recipe = TrainingKnowledge("sgd", rate, 0.0, 0.0, 1, None)
    seen = observed(model, ONE, Update(1, 0, "delta", tensors, 1), training=recipe)
    defended = defended_of(seen)
    assert defended.active == ("rounding",)
    sent = defended.sent([input_gradients[name] for name in defended.target.names])
    for found, goal, silent in zip(sent, defended.target.gradients, defended.silent, strict=True):
        if silent is not None:
            torch.testing.assert_close(found[silent > 0], goal[silent > 0])


def test_every_zero_of_a_client_known_to_drop_entries_is_a_dropped_one() -> None:
    model, defense = tiny(), Pruning(keep=0.97)
    update = protected(defense, gradient(model, ONE))
    seen = observed(model, ONE, update, defenses=told(("pruning", defense)))
    defended = defended_of(seen)
    assert defended.active == ("pruning",) and value_at(defended, ONE) < 1e-9
    untold = defended_of(dataclasses.replace(seen, defenses=None))
    assert untold.active == () and value_at(untold, ONE) > 1e-7


def test_rescaled_entries_are_compared_at_the_scale_that_they_had() -> None:
    model, defense = tiny(), RandomSparsification(keep=0.5, rescale=True)
    update = protected(defense, gradient(model, ONE))
    seen = observed(model, ONE, update, defenses=told(("random_sparsification", defense)))
    assert value_at(defended_of(seen), ONE) < 1e-9
    assert value_at(defended_of(dataclasses.replace(seen, defenses=None)), ONE) > 0.1


# Signs, and columns of the classifier


def test_signs_are_compared_with_signs_at_the_magnitude_that_was_sent() -> None:
    model, defense = tiny(), Sign()
    raw = gradient(model, ONE)
    defended = defended_of(observed(model, ONE, protected(defense, raw), defenses=told(("sign", defense))))
    assert defended.active == ("signs",)
    sent = defended.sent([100 * raw.tensors[name] for name in defended.target.names])
    for found, name, goal in zip(sent, defended.target.names, defended.target.gradients, strict=True):
        size = raw.tensors[name].abs()
        clear = size > 3 * size.mean()
        torch.testing.assert_close(found[clear], goal[clear], rtol=0.01, atol=0)
    assert value_at(defended, ONE) < value_at(Defended(defended.target), ONE)
    assert value_at(defended, ONE) < value_at(defended, OTHER)


def test_a_classifier_with_hidden_columns_is_left_out() -> None:
    model, defense, caught = tiny(), Soteria(prune=0.05), Update(1, 0, "gradient", {}, 1)
    step = LocalStep(model, normalization(model).normalize(ONE.images), ONE.labels, 0.0)
    defense.train_step(step, client_context(), torch_generator(0, "test"), plain_step)
    tensors = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    update = dataclasses.replace(caught, tensors=tensors)
    seen = observed(model, ONE, update, defenses=told(("soteria", defense)))
    defended = defended_of(seen)
    assert set(read_target(seen, (), torch.device("cpu")).names) - set(defended.target.names) == {"head.weight"}
    assert value_at(defended, ONE) < 1e-9 < value_at(defended_of(dataclasses.replace(seen, defenses=None)), ONE)


# Jigsaw


def test_what_is_known_of_the_jigsaw_reproduces_the_update() -> None:
    model, update, shuffled = jigsaw(MJP(gamma=0.5, mask="random", dal_weight=0.5), pictures(0, 50), seed=3)
    defended = defended_of(observed(model, shuffled, update))
    assert defended.hidden is not None
    silent = ~update.tensors["pos_embed"][0, prefix_rows(model) :].any(1)
    assert torch.equal(defended.hidden, silent)
    images = normalization(model).normalize(shuffled.images)
    response = OneGradient(defended.target.model, defended.target.names, shuffled.labels, used=defended.used)
    found = dict(zip(defended.target.names, response.gradients(images, {}), strict=True))
    assert not any(name.startswith("mjp.regressors") for name in found)
    torch.testing.assert_close(found["mjp.unknown"], update.tensors["mjp.unknown"], rtol=1e-3, atol=1e-6)
    goal = dict(zip(defended.target.names, defended.target.gradients, strict=True))
    for name, tensor in goal.items():
        torch.testing.assert_close(found[name].detach(), tensor, rtol=1e-3, atol=2e-5 * float(tensor.abs().max()))


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_of_a_batch_that_is_not_masked_the_localization_loss_alone_is_subtracted(kind: str) -> None:
    defense = MJP(gamma=0.5, p_apply=0.0, dal=kind, dal_weight=100.0)
    (model, update, batch), (_, bare, _) = (
        jigsaw(defense, ONE),
        jigsaw(dataclasses.replace(defense, dal_weight=0.0), ONE),
    )
    sent, expected = (one.tensors["pos_embed"][0, prefix_rows(model) :] for one in (update, bare))
    assert float((sent - expected).norm()) > 0.1 * float(expected.norm()), "the loss moves the position embedding"
    defended = defended_of(observed(model, batch, update))
    place = defended.target.place("pos_embed")
    assert defended.hidden is None and place is not None
    matched = defended.target.gradients[place][0, prefix_rows(model) :]
    torch.testing.assert_close(matched, expected, rtol=0, atol=1e-4 * float(sent.abs().max()))


def test_masked_patches_have_a_caution_and_a_client_without_jigsaw_has_none() -> None:
    model, update, shuffled = jigsaw(JIGSAW, ONE)
    for aware in (True, False):
        finding = brief(observed(model, shuffled, update), aware=aware)
        assert finding.trace["aware"] == (["jigsaw"] if aware else [])
        assert any("share the unknown position" in caution for caution in finding.cautions) == aware
    model, update, shuffled = jigsaw(NO_JIGSAW, ONE)
    plain = brief(observed(model, shuffled, update))
    assert plain.trace["aware"] == [] and plain.cautions == ()


def test_a_shuffle_without_unknown_position_is_named_where_defenses_are_granted() -> None:
    defense = dataclasses.replace(JIGSAW, unknown=False)
    model, update, shuffled = jigsaw(defense, ONE)
    seen = observed(model, shuffled, update, defenses=told(("mjp", defense)))
    assert any("wrong places" in caution for caution in brief(seen).cautions)


def test_several_steps_with_different_masks_are_named() -> None:
    defense = dataclasses.replace(JIGSAW, gamma=0.25)
    model, first, _ = jigsaw(defense, ONE, seed=1)
    _, second, shuffled = jigsaw(defense, ONE, seed=2)
    _, third, _ = jigsaw(defense, ONE, seed=3)
    tensors = {name: sum(u.tensors[name] for u in (first, second, third)) / 3 for name in first.tensors}
    finding = brief(observed(model, shuffled, Update(1, 0, "gradient", tensors, 1)))
    assert finding.trace["aware"] == [] and any("different patches" in caution for caution in finding.cautions)


def test_shuffled_patches_of_photographs_go_back_to_their_places_but_for_flat_ones() -> None:
    grid, restored = patch_grid(build("vit_nano")), 0
    for row in (0, 17, 200, 333, 431):  # 17 is nearly black
        true = photos(32).read([row]).images
        generator = torch.Generator().manual_seed(row)
        loose = torch.zeros(grid.count, dtype=torch.bool)
        loose[torch.randperm(grid.count, generator=generator)[:5]] = True
        order, places = torch.arange(grid.count), loose.nonzero().flatten()
        order[places] = places.roll(1)
        shuffled = grid.join(grid.cut(true)[:, order])
        trajectory = Trajectory((0, 1), torch.stack([shuffled, shuffled]), (1.0, 0.5))
        found = rearranged(Finding(images=shuffled, trajectory=trajectory), loose, grid, generator)
        images = images_of(found)
        assert found.trajectory is not None and torch.equal(found.trajectory.images, torch.stack([images, images]))
        assert torch.equal(grid.cut(images)[:, ~loose], grid.cut(true)[:, ~loose])
        restored += torch.equal(images, true)
    assert restored >= 4


def test_equal_patches_and_a_single_loose_one_stay() -> None:
    grid = patch_grid(tiny())
    for loose in ([True] * 4, [True, False, False, False]):
        order = fitting_order(torch.zeros(4, grid.values), torch.tensor(loose), grid, torch.Generator())
        assert sorted(order.tolist()) == [0, 1, 2, 3]


# Noise


@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 100))
def test_the_share_of_signal_is_one_minus_that_of_noise(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    signal, noise = (torch.randn(10_000, generator=generator) for _ in range(2))
    mixed = share**0.5 * signal + (1 - share) ** 0.5 * noise
    assert float(signal_share([mixed], (1 - share) ** 0.5)) == pytest.approx(share, abs=0.06)
    assert float(signal_share([noise], 2.0)) == 0


def test_rows_and_tensors_of_noise_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    found, other = torch.randn(1, 3, 8, generator=generator), torch.randn(1, 3, 8, generator=generator)
    shares = torch.tensor([1.0, 0.5, 0.0])
    each = [float(row_cosine(found[:, i : i + 1], other[:, i : i + 1])) for i in range(3)]
    assert float(row_cosine(found, other, shares)) == pytest.approx((each[0] + 0.5 * each[1]) / 1.5, abs=1e-6)
    parts = [list(tensor[0]) for tensor in (found, other)]
    assert float(tensor_cosine(*parts, shares)) == pytest.approx((each[0] + 0.5 * each[1]) / 1.5, abs=1e-6)


def noise_case(multiplier: float = 1e-3) -> tuple[Observation, LabeledImages]:
    model = tiny()
    plain = gradient(model, ONE)
    defense = DPNoise(clip_norm=plain.norm(), noise_multiplier=multiplier)
    return observed(model, ONE, protected(defense, plain), defenses=told(("dp_noise", defense))), ONE


@pytest.mark.parametrize("distance", ["l2", "tensor_cosine", "cosine"])
@pytest.mark.parametrize("multiplier", [1e-4, 1e-3])
def test_rehearsed_noise_leaves_what_the_client_s_noise_leaves_of_true_images(multiplier: float, distance: str) -> None:
    seen, batch = noise_case(multiplier)
    defended = defended_of(seen)
    clean, mixed = simulate(defended, torch.Generator().manual_seed(0))
    level, true = DISTANCES.own[distance](clean, mixed), gradient(seen.model(), batch).tensors
    left = DISTANCES.own[distance]([true[name] for name in defended.target.names], defended.target.gradients)
    assert float(level) == pytest.approx(float(left), rel=0.1)


@pytest.mark.parametrize("values", [(0.2, 0.5), (0.2, 2.0), (2.0, 2.0)])
def test_weights_fall_below_their_level_recover_above_it_and_end_a_run_without_prior(
    values: tuple[float, float],
) -> None:
    seen, batch = noise_case()
    goal = objective_of(defended_of(seen), batch)
    terms = [GradientTerm(constant(3.0), lambda found, v=v: torch.tensor(v)) for v in values]
    variables = starts(2, batch)
    follower = Discrepancy(terms, [1.0, 1.0], has_prior=True)
    followed = [term.weight for term in follower.terms()]
    low = [value <= 1 for value in values]
    assert follower.check(goal, variables) == ("changed" if any(low) else "go on")
    assert [weight(0.0) < 3.0 for weight in followed] == low
    follower.levels = [0.0, 0.0]
    for _ in range(5):
        follower.check(goal, variables)
    assert [weight(0.0) for weight in followed] == [3.0, 3.0]
    assert Discrepancy(terms, [1.0, 1.0], has_prior=False).check(goal, variables) == ("end" if all(low) else "go on")


def test_known_noise_keeps_the_matching_at_its_level_instead_of_below() -> None:
    seen, batch = noise_case()
    params: dict[str, Any] = {
        "steps": 100,
        "schedule": "cosine",
        "input_gradients": "forward_difference",
        "positions": 10.0,
    }
    params |= {"distance": "tensor_cosine", "priors": {"total_variation": {"weight": 0.3, "end": 0.01}}}
    aware, naive = (brief(seen, aware=aware, **params) for aware in (True, False))
    assert "noise" in aware.trace["aware"] and aware.trace["trust"][1] < 0.5
    assert naive.trace["aware"] == [] and naive.trace["trust"] is None
    assert mean_decibels(aware.images, batch) >= mean_decibels(naive.images, batch) + 2


def test_without_a_prior_a_noisy_run_ends_at_its_level() -> None:
    seen, _ = noise_case(3e-3)
    finding = brief(seen, steps=150, priors={}, learning_rate=0.05)
    assert finding.trajectory is not None and finding.trajectory.steps[-1] < 150
    assert finding.trace["step"] < 150


# Partial sharing


def test_hidden_tensors_are_not_matched_with_or_without_noise_over_them() -> None:
    model = tiny()
    hidden, noise = PartialSharing(hidden=("head.*",)), DPNoise(clip_norm=1.0, noise_multiplier=1e-3)
    update = protected(hidden, gradient(model, ONE))
    assert not any(name.startswith("head.") for name in defended_of(observed(model, ONE, update)).target.names)
    seen = observed(
        model, ONE, protected(noise, update), defenses=told(("partial_sharing", hidden), ("dp_noise", noise))
    )
    assert not any(name.startswith("head.") for name in defended_of(seen).target.names)
    everything = dataclasses.replace(hidden, hidden=("*",))
    with pytest.raises(AttackRefusedError, match="known to be hidden"):
        brief(dataclasses.replace(seen, defenses=told(("partial_sharing", everything))))


# Defenses of anybody


@dataclass(frozen=True, kw_only=True)
class Theirs(Defense):
    """Clips, adds noise and hides the head, under a name that no attack has heard of."""

    citation: ClassVar[str] = "none"

    @property
    def effects(self) -> UpdateEffects:
        """Say so."""
        return UpdateEffects(clip_norm=0.01, noise=1e-5, hidden=("head.*",))

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Do so."""
        clipped = DPNoise(clip_norm=0.01, noise_multiplier=1e-3).protect_update(update, context, generator)
        return PartialSharing(hidden=("head.*",)).protect_update(clipped, context, generator)


def test_what_a_defense_says_of_itself_is_modeled_whatever_its_name() -> None:
    model = tiny()
    update = protected(Theirs(), gradient(model, ONE))
    found = defended_of(observed(model, ONE, update, defenses=told(("their_own", Theirs()))))
    assert set(found.active) == {"clipping", "noise"} and found.deviation == pytest.approx(1e-5)
    assert not any(name.startswith("head.") for name in found.target.names)
    # By the name of one that is known, and saying nothing of itself, it is not modeled.
    silent = (DefenseKnowledge("dp_noise", {"clip_norm": 0.01, "noise_multiplier": 1e-3}),)
    assert defended_of(observed(model, ONE, update, defenses=silent)).active == ()


def test_an_attack_may_apply_the_clients_own_defense_to_what_it_simulates() -> None:
    honest = gradient(tiny(), ONE)
    (knowledge,) = told(("quantization", Quantization(format="bf16")))
    simulated = protected(knowledge.defense, honest)
    assert all(
        torch.equal(t, simulated.tensors[n]) for n, t in protected(Quantization(format="bf16"), honest).tensors.items()
    )


# Neither granted nor seen


def test_a_run_that_nothing_is_known_of_is_the_run_that_looks_for_nothing() -> None:
    model = tiny()
    for update in (gradient(model, ONE), noisy(gradient(model, ONE), 1e-3)):
        seen = observed(model, ONE, update)
        aware, naive = (brief(seen, steps=5, positions=1.0, aware=aware) for aware in (True, False))
        assert aware.trace["aware"] == [] and torch.equal(images_of(aware), images_of(naive))
        assert aware.trace == naive.trace


@pytest.mark.parametrize("case", CASES)
def test_awareness_can_be_switched_off(case: str) -> None:
    seen, _ = CASES[case]()
    finding = brief(seen, aware=False)
    assert finding.trace["aware"] == [] and finding.images is not None
