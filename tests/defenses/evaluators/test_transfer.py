"""Transfer: images made for a source fool the source, and the global model as far as it is like it."""

import copy

import pytest
import torch
from fedsim_defenses.evaluators._robustness import at
from fedsim_defenses.evaluators.pgd import PGD
from fedsim_defenses.evaluators.transfer import Transfer
from safetensors.torch import save_file

from fedsim import models
from fedsim.errors import EvaluationRefusedError, ScenarioError
from fedsim.evaluator import PixelModel
from fedsim.plugins import configure
from fedsim.seeds import torch_generator
from fedsim.source import Pool
from fedsim.testing import check_evaluator, random_images, small_model

MODEL = small_model()
KNOWN = random_images(torch_generator(0, "pool"), 12)
with torch.no_grad():
    SAID = MODEL(models.normalization(MODEL).normalize(KNOWN.images)).argmax(1)
STORED = (KNOWN.images * 255).to(torch.uint8)
# Labels that the untrained model gets right, so that there is something to attack.
POOL = Pool(SAID, lambda chosen: STORED[list(chosen)])


def ask(evaluator, model=MODEL):
    asked = PixelModel(copy.deepcopy(model), models.normalization(model)).eval()
    return evaluator.run(asked, POOL, tuple(map(str, range(10))), torch_generator(0, "ask"))


@pytest.fixture
def weights(tmp_path):
    def of(seed):
        path = tmp_path / f"{seed}.safetensors"
        save_file({name: value.clone() for name, value in small_model(seed=seed).state_dict().items()}, path)
        return str(path)

    return of


def test_with_its_own_weights_as_the_source_it_is_pgd(weights):
    transfer = Transfer(weights=weights(0), epsilons=(0.5,), steps=3)
    own = ask(PGD(epsilons=(0.5,), steps=3))
    assert ask(transfer).scores[at(0.5)] == own.scores[at(0.5)]


def test_another_source_fools_the_model_no_more_than_its_own_gradient(weights):
    own, other = (ask(Transfer(weights=weights(seed), epsilons=(0.5,), steps=3)).scores[at(0.5)] for seed in (0, 7))
    assert own <= other


def test_it_keeps_the_contract_of_evaluators(weights):
    check_evaluator(Transfer, weights=weights(1), epsilons=(0.1,))


def test_a_source_that_is_missing_or_another_model_is_refused_with_what_to_do(weights, tmp_path):
    with pytest.raises(EvaluationRefusedError, match="set weights to a safetensors file"):
        ask(Transfer())
    with pytest.raises(EvaluationRefusedError, match="cannot be read"):
        ask(Transfer(weights=str(tmp_path / "none.safetensors")))
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(EvaluationRefusedError, match="cannot be read"):
        ask(Transfer(weights=str(tmp_path / "text.safetensors")))
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(EvaluationRefusedError, match="are not of this architecture"):
        ask(Transfer(weights=str(tmp_path / "other.safetensors")))


@pytest.mark.parametrize(("params", "field"), [({"steps": 0}, "steps"), ({"step": 0.0}, "step")])
def test_a_bad_parameter_is_refused_by_its_name(params, field):
    with pytest.raises(ScenarioError) as refused:
        configure(Transfer, params, "evaluators.0.params")
    assert refused.value.where.startswith(f"evaluators.0.params.{field}")
