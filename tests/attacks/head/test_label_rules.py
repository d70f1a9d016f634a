import pytest
import torch
from fedsim_attacks.head.label_bounds import SEPARABLE, separable
from fedsim_attacks.head.label_rules import RULES, Evidence
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import AttackRefusedError

BATCH_RULES = [name for name in RULES if name != "idlg"]


def made(labels, classes, embed=24, scale=0.05, seed=0, offset=0.0, bias=None):
    """Return the evidence of a batch of random head inputs under a random classifier, and its mean softmax."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(len(labels), embed, generator=generator, dtype=torch.float64) + offset
    weight = scale * torch.randn(classes, embed, generator=generator, dtype=torch.float64)
    bias = torch.zeros(classes, dtype=torch.float64) if bias is None else bias
    probabilities = (inputs @ weight.T + bias).softmax(1)
    errors = probabilities - torch.nn.functional.one_hot(torch.tensor(labels), classes)
    mean = probabilities.mean(0)
    return Evidence(errors.mean(0), errors.T @ inputs / len(labels), weight, bias, len(labels), mean)


def truth(labels, classes):
    return torch.bincount(torch.tensor(labels), minlength=classes)


def found(name, seen):
    return RULES[name].read(seen)


def test_one_image_worked_by_hand():
    # p = (1/2, 1/4, 1/4), y = class 1, h = (2, -4): r = p - y and G = r h^T.
    residual = torch.tensor([0.5, -0.75, 0.25], dtype=torch.float64)
    gradient = torch.tensor([[1.0, -2.0], [-1.5, 3.0], [0.5, -1.0]], dtype=torch.float64)
    weight, bias = torch.zeros(3, 2).double(), torch.tensor([0.5, 0.25, 0.25]).double().log()
    seen = Evidence(residual, gradient, weight, bias, 1, torch.tensor([0.5, 0.25, 0.25]).double())
    for name in ("idlg", "idlg_bias", "llg", "llg_star", "rlg", "ilrg", "bias_count_uniform", "bias_count"):
        assert found(name, seen).tolist() == [0, 1, 0], name
    # Signed inputs defeat the least entry: row 0 holds -2, row 1 only -1.5.
    assert found("grad_inversion", seen).tolist() == [1, 0, 0]


def test_llg_worked_by_hand():
    # r < 0 at 0 and 1; m = (1 + 1/3) / 4 * (-0.5 - 0.25) = -0.25; left = (-0.25, 0, 0.75): 0, then 0 or 1 at zero.
    seen = Evidence(torch.tensor([-0.5, -0.25, 0.75]).double(), None, torch.zeros(3, 1), torch.zeros(3), 4)
    assert found("llg", seen).tolist() == [3, 1, 0]


def test_llg_star_worked_by_hand():
    # Offsets 1/4 each: m = (1 + 1/4) / 4 * (1/4 - 1) = -15/64; n = (2, 1, 1, 0) leaves r = (-1/4, 0, 0, 1/4).
    reference = torch.full((4,), 0.25).double()
    seen = Evidence(
        torch.tensor([-0.25, 0.0, 0.0, 0.25]).double(), None, torch.zeros(4, 1), torch.zeros(4), 4, reference
    )
    assert found("llg_star", seen).tolist() == [2, 1, 1, 0]


def test_bias_counts_worked_by_hand():
    # n = 4 (p - r): p = (.7, .2, .1) and n = (1, 3, 0) leave r = (.45, -.55, .1).
    residual, mean = torch.tensor([0.45, -0.55, 0.1]).double(), torch.tensor([0.7, 0.2, 0.1]).double()
    seen = Evidence(residual, None, torch.zeros(3, 1), torch.zeros(3), 4, mean)
    assert found("bias_count", seen).tolist() == [1, 3, 0]
    # With p even: 4 (1/3 - r) = (-.47, 3.53, .93); nearest of sum 4 without negatives.
    assert found("bias_count_uniform", seen).tolist() == [0, 3, 1]


@given(labels=st.lists(st.integers(0, 9), min_size=1, max_size=24), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_counting_rules_are_exact_where_the_mean_softmax_is_known(labels, seed):
    assert torch.equal(found("bias_count", made(labels, 10, seed=seed)), truth(labels, 10))


@given(labels=st.lists(st.integers(0, 19), min_size=1, max_size=8, unique=True), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_rules_without_repeats_find_distinct_labels_of_an_untrained_head(labels, seed):
    seen = made(labels, 20, scale=0.02, seed=seed)
    for name in ("idlg_bias", "rlg", "ilrg", "llg"):
        assert torch.equal(found(name, seen), truth(labels, 20)), name


@given(label=st.integers(0, 9), seed=st.integers(0, 99), scale=st.sampled_from([0.05, 0.5, 2.0]))
@settings(max_examples=40, deadline=None)
def test_idlg_reads_one_label_of_signed_inputs_trained_or_not(label, seed, scale):
    seen = made([label], 10, scale=scale, seed=seed)
    assert torch.equal(found("idlg", seen), truth([label], 10))
    assert torch.equal(found("idlg_bias", seen), truth([label], 10))


def test_the_least_entry_finds_distinct_labels_of_non_negative_inputs_and_not_of_signed_ones():
    labels = [2, 7, 11, 15]
    positive, signed = made(labels, 20, offset=6.0), [made(labels, 20, scale=0.3, seed=s) for s in range(5)]
    assert torch.equal(found("grad_inversion", positive), truth(labels, 20))
    assert any(not torch.equal(found("grad_inversion", seen), truth(labels, 20)) for seen in signed)


def test_the_column_space_names_the_classes_of_a_trained_head_where_signs_do_not():
    labels = [0, 0, 1, 4, 9, 9, 13, 17]
    bias = torch.zeros(40, dtype=torch.float64)
    bias[:2] = 4.0  # p is large at classes 0 and 1, so their images leave hardly a trace in r
    seen = made(labels, 40, scale=0.3, bias=bias)
    assert found("rlg", seen).tolist() == truth(labels, 40).clamp_max(1).tolist()
    assert not torch.equal(found("llg", seen), truth(labels, 40))


def test_a_class_without_a_image_is_a_non_negative_sum_of_others():
    seen = made([3, 5, 5, 8], 20, scale=0.3)
    distances = separable(seen.weight_gradient, 4, [3, 4, 5, 8, 9])
    assert (distances[[3, 5, 8]] > SEPARABLE).all()
    assert (distances[[4, 9]] < 1e-6).all()
    assert (distances[[0, 1, 2]] == -1).all()


def test_ilrg_counts_repeats_of_an_untrained_head():
    labels = [0, 0, 0, 4, 4, 7]
    assert torch.equal(found("ilrg", made(labels, 20, scale=0.01)), truth(labels, 20))


def test_ilrg_survives_residuals_of_zero():
    seen = made([0, 1, 2], 3, scale=0.0)  # p = 1/3 each: r = 0
    assert int(found("ilrg", seen).sum()) == 3


@given(
    name=st.sampled_from(BATCH_RULES),
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=16),
    scale=st.sampled_from([0.02, 1.0]),
    seed=st.integers(0, 9),
)
@settings(max_examples=80, deadline=None)
def test_every_rule_names_at_most_as_many_labels_as_images(name, labels, scale, seed):
    counts = found(name, made(labels, 6, scale=scale, seed=seed))
    assert counts.dtype == torch.int64 and int(counts.min()) >= 0
    assert int(counts.sum()) <= len(labels)
    if RULES[name].has_repeats:
        assert int(counts.sum()) == len(labels)
    else:
        assert int(counts.max()) <= 1


@given(factor=st.floats(0.01, 100), seed=st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_rules_that_claim_so_do_not_ask_for_the_scale(factor, seed):
    seen = made([1, 1, 6, 8], 20, scale=0.3, seed=seed)
    scaled = seen._replace(residual=factor * seen.residual, weight_gradient=factor * seen.weight_gradient)
    for name in BATCH_RULES:
        if not RULES[name].needs_scale:
            assert torch.equal(found(name, scaled), found(name, seen)), name


def test_idlg_is_refused_for_two_images_and_rules_say_what_they_lack():
    seen = made([1, 2], 5)
    with pytest.raises(AttackRefusedError, match="one image"):
        found("idlg", seen)
    for name, facts in RULES.items():
        if facts.needs_weights and name != "idlg":
            with pytest.raises(AttackRefusedError, match=name):
                found(name, seen._replace(weight_gradient=None))
        if facts.reference != "none":
            with pytest.raises(AttackRefusedError, match="reference"):
                found(name, seen._replace(reference=None))


def test_another_batch_gives_its_own_labels_instead():
    mine, other = [0, 1, 2, 3], [6, 7, 8, 9]
    for name in ("rlg", "bias_count", "llg", "ilrg"):
        assert torch.minimum(found(name, made(other, 10)), truth(mine, 10)).sum() == 0
