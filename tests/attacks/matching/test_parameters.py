import dataclasses

import pytest
from fedsim_attacks.gradient_matching import GradientMatching
from fedsim_attacks.matching.parameters import RENAMED
from fedsim_attacks.regularized_newton import RegularizedNewton
from fedsim_attacks.token_matching import TokenMatching

from fedsim import plugins
from fedsim.attack import Attack
from fedsim.errors import ScenarioError

FORMER = [*((GradientMatching, *pair) for pair in RENAMED.items())]
FORMER += [(RegularizedNewton, *pair) for pair in RegularizedNewton.renamed.items()]


@pytest.mark.parametrize(("cls", "former", "now"), FORMER)
def test_a_former_name_is_refused_with_the_present_one(cls: type[Attack], former: str, now: str) -> None:
    fields = {field.name for field in dataclasses.fields(cls)}
    assert former not in fields and now.split(":")[0].split(",")[0] in fields
    with pytest.raises(ScenarioError) as refusal:
        plugins.configure(cls, {former: 1}, "attacks.0.params")
    assert str(refusal.value) == f"attacks.0.params.{former}: has another name now: {now}."


def test_a_preset_knows_former_names_too() -> None:
    with pytest.raises(ScenarioError, match="has another name now: refinement_steps"):
        plugins.configure(TokenMatching, {"polish_steps": 3}, "here")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("distance", "cosin", "no distance 'cosin'. Did you mean 'cosine'? Known: cosine, tensor_cosine, l2, "),
        ("optimizer", "lbgfs", "no optimizer 'lbgfs'. Did you mean 'lbfgs'? Known: adam, signed_adam, lbfgs."),
        ("priors", {"seams": 0.1}, "no prior 'seams'. Known: total_variation, patch, norm, "),
    ],
)
def test_an_unknown_part_is_refused_with_the_list(name: str, given: object, message: str) -> None:
    with pytest.raises(ScenarioError) as refusal:
        plugins.configure(GradientMatching, {name: given}, "attacks.0.params")
    assert str(refusal.value).startswith(f"attacks.0.params.{name}") and message in str(refusal.value)
