"""Shuffled test images: puzzles are bijections, scores are those of a loop."""

import pytest
import torch
from fedsim_defenses._position import occluded
from fedsim_defenses.evaluators._shuffled import draw_puzzles
from fedsim_defenses.evaluators.diff_norm import DiffNorm
from fedsim_defenses.evaluators.shuffle_accuracy import ShuffleAccuracy
from fedsim_defenses.evaluators.shuffle_consistency import ShuffleConsistency
from fedsim_defenses.mjp import MJP
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim import models
from fedsim.errors import EvaluationRefusedError, ScenarioError
from fedsim.evaluator import PixelModel
from fedsim.models import PatchGrid, patch_grid
from fedsim.plugins import configure
from fedsim.scenario import ModelPart
from fedsim.seeds import seeded, torch_generator
from fedsim.source import Pool
from fedsim.testing import random_images, small_model

ALL = (ShuffleAccuracy, ShuffleConsistency, DiffNorm)
NAMES = tuple(map(str, range(10)))


def pool_of(count=30):
    pictures = random_images(torch_generator(0, "pool"), count)
    stored = (pictures.images * 255).to(torch.uint8)
    return Pool(pictures.labels, lambda chosen: stored[list(chosen)])


POOL = pool_of()


class CountsLeft(nn.Module):
    """The class is where the bright patch stands: it knows nothing but positions."""

    def __init__(self, vit):
        super().__init__()
        self.patch_embed = vit.patch_embed
        self._grid = patch_grid(vit)

    def forward(self, images):
        return self._grid.cut(images).mean(2)


class Sums(CountsLeft):
    """Knows no positions at all."""

    def forward(self, images):
        return self._grid.cut(images).double().mean(1).round(decimals=6).float()


def asked(vit):
    return PixelModel(vit, models.normalization(small_model())).eval()


def prepared():
    model = small_model()
    with seeded(0, "test"):
        MJP().prepare_model(model)
        nn.init.normal_(model.mjp.unknown, std=1.0)
    return model


def ask(evaluator, vit, pool=POOL, seed=0):
    return evaluator.run(asked(vit), pool, NAMES, torch_generator(seed, "ask"))


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    ratio=st.floats(0.01, 1),
    kind=st.sampled_from(["block", "random"]),
    seed=st.integers(0, 100),
)
def test_every_puzzle_is_a_bijection_of_its_own_places(rows, columns, ratio, kind, seed):
    grid = PatchGrid(2, rows, columns, 1)
    orders, masks = draw_puzzles(grid, ratio, 3, kind, torch_generator(seed))
    target = int(grid.count * ratio)
    for order, mask in zip(orders, masks, strict=True):
        assert sorted(order.tolist()) == list(range(grid.count))
        assert torch.equal(order[~mask], torch.arange(grid.count)[~mask])
        assert int(mask.sum()) == target if kind == "random" else int(mask.sum()) <= target


def test_images_are_shuffled_each_in_its_own_order_as_by_a_loop():
    grid = patch_grid(small_model())
    images = torch.rand(4, 3, 32, 32)
    puzzles = draw_puzzles(grid, 0.7, 4, "random", torch_generator(1))
    found = grid.cut(puzzles.shuffled(images, grid))
    patches = grid.cut(images)
    for number in range(4):
        for place, source in enumerate(puzzles.orders[number].tolist()):
            assert torch.equal(found[number, place], patches[number, source])
    assert len({tuple(order) for order in puzzles.orders.tolist()}) == 4


def test_scores_are_those_of_a_loop_over_images():
    model, ratios = small_model(), (0.3, 0.8)
    grid, known, generator = patch_grid(model), POOL.read(range(20)), torch_generator(0, "ask")
    normalization = models.normalization(model)
    said, features = [], []
    for ratio in (None, *ratios):
        puzzles = draw_puzzles(grid, ratio or 1.0, 20, "random", generator) if ratio else None
        images = puzzles.shuffled(known.images, grid) if puzzles else known.images
        with torch.no_grad():
            features.append(
                [model.norm(model.forward_features(normalization.normalize(x[None])))[0, 0] for x in images]
            )
            said.append([int(model(normalization.normalize(x[None])).argmax()) for x in images])
    consistent = ask(ShuffleConsistency(ratios=ratios, images=20), model).scores
    accurate = ask(ShuffleAccuracy(ratios=ratios, images=20), model).scores
    labels = known.labels.tolist()
    assert accurate["accuracy, not shuffled"] == pytest.approx(sum(map(int.__eq__, said[0], labels)) / 20)
    for ratio, shuffled in zip(ratios, said[1:], strict=True):
        assert consistent[f"consistency at {ratio}"] == pytest.approx(sum(map(int.__eq__, said[0], shuffled)) / 20)
        assert accurate[f"accuracy at {ratio}"] == pytest.approx(sum(map(int.__eq__, shuffled, labels)) / 20)
    most = max(said[0].count(label) for label in range(10))
    assert consistent["most frequent answer (control)"] == pytest.approx(most / 20)


def test_diff_norm_is_the_distance_of_what_reaches_the_classifier():
    model = small_model()
    found = ask(DiffNorm(ratios=(0.5,), images=20), model).scores
    grid, known = patch_grid(model), POOL.read(range(20))
    puzzles = draw_puzzles(grid, 0.5, 20, "random", torch_generator(0, "ask"))
    normalize = models.normalization(model).normalize
    (clean,) = models.head_inputs(model, normalize(known.images))
    (shuffled,) = models.head_inputs(model, normalize(puzzles.shuffled(known.images, grid)))
    assert found["DiffNorm at 0.5"] == pytest.approx(float((clean - shuffled).norm(dim=1).mean()), rel=1e-4)
    others = [float((clean[n] - clean[n - 1]).norm()) for n in range(20)]
    assert found["distance of two images (control)"] == pytest.approx(sum(others) / 20, rel=1e-4)


def test_a_model_of_positions_alone_is_as_consistent_as_a_patch_stays_and_one_without_fully():
    # One bright patch an image: the share of places that a puzzle of ratio r leaves alone is 1 - r (15 / 16 of r moves).
    vit, count = small_model(), 400
    grid = patch_grid(vit)
    patches = torch.zeros(count, grid.count, grid.values)
    places = torch.randint(grid.count, (count,), generator=torch_generator(3))
    patches[torch.arange(count), places] = 255
    stored = grid.join(patches).to(torch.uint8)
    pool = Pool(places, lambda chosen: stored[list(chosen)])
    scores = ask(ShuffleConsistency(ratios=(0.5, 1.0)), CountsLeft(vit), pool).scores
    kept = 1 - 0.5 * (1 - 2 / grid.count)
    assert scores["consistency at 0.5, 95% from"] < kept < scores["consistency at 0.5, 95% to"]
    assert scores["consistency at 1"] < 0.2
    assert ask(ShuffleConsistency(ratios=(0.5, 1.0)), Sums(vit), pool).scores["consistency at 1"] == 1.0


def test_the_unknown_position_is_used_where_it_is_asked_for():
    model = prepared()
    evaluator = ShuffleConsistency(ratios=(0.5,), images=12, unknown=True)
    found = ask(evaluator, model).scores
    grid, known = patch_grid(model), POOL.read(range(12))
    puzzles = draw_puzzles(grid, 0.5, 12, "random", torch_generator(0, "ask"))
    normalize, same = models.normalization(model).normalize, 0
    with torch.no_grad():
        for image, shuffled, mask in zip(
            known.images, puzzles.shuffled(known.images, grid), puzzles.masks, strict=True
        ):
            with occluded(model, mask):
                said = model(normalize(shuffled[None])).argmax()
            same += int(said == model(normalize(image[None])).argmax())
    assert found["consistency at 0.5"] == pytest.approx(same / 12)
    norms = [ask(DiffNorm(ratios=(0.5,), images=12, unknown=unknown), model).scores for unknown in (False, True)]
    assert norms[0] != norms[1] and model.mjp.mask is None


@pytest.mark.parametrize("cls", ALL)
def test_what_is_no_vit_is_refused_with_the_reason(cls):
    convolutional = models.build(ModelPart(name="convnet"), 10, 32, 0)
    with pytest.raises(EvaluationRefusedError, match="ConvNet does not cut images into patches"):
        ask(cls(), convolutional)
    with pytest.raises(EvaluationRefusedError, match="no client of the scenario carries mjp"):
        ask(cls(unknown=True), small_model())


def test_features_of_a_model_that_tells_none_are_refused():
    with pytest.raises(EvaluationRefusedError, match="CountsLeft tells none"):
        ask(DiffNorm(), CountsLeft(small_model()))


@pytest.mark.parametrize("cls", ALL)
def test_other_draws_give_other_scores_and_a_ratio_of_one_patch_is_cautioned(cls):
    tiny = ask(cls(ratios=(0.1,), images=4), small_model())
    assert "nothing is shuffled" in tiny.cautions[0]
    one, other = (ask(DiffNorm(images=8), small_model(), seed=seed).scores for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"ratios": []}, "ratios"),
        ({"ratios": [0.0]}, "ratios"),
        ({"ratios": [1.1]}, "ratios"),
        ({"ratios": [".nan"]}, "ratios"),
        ({"ratios": [0.5, 0.5]}, "ratios"),
        ({"images": 0}, "images"),
        ({"mask": "blocks"}, "mask"),
    ],
)
@pytest.mark.parametrize("cls", ALL)
def test_a_bad_parameter_is_refused_by_its_name(cls, params, field):
    with pytest.raises(ScenarioError) as refused:
        configure(cls, params, "evaluators.0.params")
    assert refused.value.where.startswith(f"evaluators.0.params.{field}")
