import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn

from fedsim import wire
from fedsim.models.correspondence import ForeignArraysError, correspond, shapes_of
from fedsim.seeds import seeded


def network(classes=4, width=6):
    """A model with running statistics and a counter between its parameters, as batch norm has them."""
    model = nn.Sequential()
    with seeded(classes):
        stem = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, width))
        model.add_module("stem", stem)
        model.add_module("head", nn.Linear(width, classes))
    with torch.no_grad():
        stem[1].running_mean += 1.0
        stem[1].num_batches_tracked += 7
    return model


def loaded(arrays, model=None):
    """The model that the arrays make of a fresh one, and the correspondence."""
    fresh = model or network()
    for tensor in fresh.state_dict().values():
        tensor.zero_()
    found = correspond(shapes_of(arrays), fresh)
    found.load(fresh, arrays)
    return fresh, found


def state(model=None, prefix=""):
    return {prefix + name: tensor.clone() for name, tensor in (model or network()).state_dict().items()}


def over_the_wire(arrays):
    """A bare list of arrays as Flower sends it."""
    return wire.to_tensors(ArrayRecord([array.numpy() for array in arrays]))


def is_equal(model, wanted=None):
    return all(torch.equal(tensor, state(wanted)[name]) for name, tensor in model.state_dict().items())


def test_the_models_own_names_need_no_word():
    model, found = loaded(state())
    assert is_equal(model) and found.how is None and found.foreign == ()


def test_own_names_count_in_whatever_order_they_come():
    model, found = loaded(dict(reversed(state().items())))
    assert is_equal(model) and found.how is None
    assert list(found.captured) == [name for name, _ in network().named_parameters()]


@pytest.mark.parametrize("prefix", ["net.", "module.", "_orig_mod.", "module._orig_mod.net."])
def test_one_prefix_before_every_name_is_found(prefix):
    model, found = loaded(state(prefix=prefix))
    assert is_equal(model) and found.how == f"by the prefix {prefix!r}" and found.foreign == ()


def test_arrays_beside_a_prefixed_model_are_named_as_foreign():
    model, found = loaded({"mean": torch.ones(3), **state(prefix="net."), "net.decoder.weight": torch.ones(2, 2)})
    assert is_equal(model) and found.foreign == ("mean", "net.decoder.weight")


def test_of_two_models_none_is_guessed():
    with pytest.raises(ForeignArraysError, match=r"2 such models, 'net\.' and 'teacher\.'"):
        loaded({**state(prefix="net."), **state(prefix="teacher.")})


def test_the_models_own_names_go_before_a_copy_behind_a_prefix():
    ema = {name: tensor + 1 for name, tensor in state(prefix="ema.").items()}
    model, found = loaded({**ema, **state()})
    assert is_equal(model) and len(found.foreign) == len(ema)


def test_a_bare_list_of_a_state_dict_carries_the_running_statistics():
    model, found = loaded(over_the_wire(state().values()))
    assert is_equal(model) and found.how == "by order and shapes"
    assert model.stem[1].running_mean.tolist() == [1.0] * 6 and int(model.stem[1].num_batches_tracked) == 7


def test_a_bare_list_of_parameters_leaves_the_buffers_alone():
    model, found = loaded(over_the_wire([parameter.detach() for parameter in network().parameters()]))
    wanted = state()
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in model.named_parameters())
    assert found.buffers == {} and model.stem[1].running_mean.tolist() == [0.0] * 6


def test_positions_count_as_numbers_and_not_as_words():
    arrays = over_the_wire(state().values())
    model, _ = loaded({name: arrays[name] for name in sorted(arrays)} | {})
    assert is_equal(model)
    many = nn.Sequential(*[nn.Linear(2, 2) for _ in range(8)])
    arrays = over_the_wire(many.state_dict().values())
    fresh, _ = loaded(
        {name: arrays[name] for name in sorted(arrays)}, nn.Sequential(*[nn.Linear(2, 2) for _ in range(8)])
    )
    assert is_equal(fresh, many)


def test_names_of_another_library_are_matched_by_order_and_shapes():
    foreign = {f"layer_{place}/kernel": tensor for place, tensor in enumerate(state().values())}
    model, found = loaded(foreign)
    assert is_equal(model) and found.how == "by order and shapes"


def test_order_is_not_believed_against_the_names():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    swapped = {"a.1.weight": torch.ones(2, 2), "b.0.weight": torch.zeros(2, 2)}
    with pytest.raises(ForeignArraysError, match=r"missing in the capture .*another name is a\.1\.weight"):
        correspond(shapes_of(swapped), model)


def test_a_classifier_may_have_other_classes_and_nothing_else_may_differ():
    arrays = shapes_of(state(network(classes=9)))
    found = correspond(arrays, network(), resized=["head.weight", "head.bias"])
    assert arrays[found.captured["head.weight"]] == (9, 6)
    with pytest.raises(ForeignArraysError, match=r"head\.weight is of shape \(4, 6\) in the model"):
        correspond(arrays, network())
    with pytest.raises(ForeignArraysError, match=r"stem\.0\.weight is of shape \(6, 3\) in the model"):
        correspond(shapes_of(state(network(width=5))), network(), resized=["head.weight", "head.bias"])


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (
            {},
            "array 0 is missing in the capture and stem.0.weight of shape (6, 3) in the model. The capture holds 0 arrays",
        ),
        (
            {"conv.weight": np.zeros((6, 3, 5, 5)), "conv.bias": np.zeros(6)},
            "missing in the capture, whose first array of another name is conv.weight of shape (6, 3, 5, 5). The",
        ),
        (
            {"0": np.zeros((6, 3)), "1": np.zeros(5)},
            "array 1 is 1 of shape (5,) in the capture and stem.0.bias of shape (6,)",
        ),
        (
            {"0": np.zeros((6, 3)), "1": np.zeros(6)},
            "array 2 is missing in the capture and stem.1.weight of shape (6,)",
        ),
    ],
    ids=["nothing", "another model", "another shape", "fewer"],
)
def test_the_message_shows_the_first_difference_of_both_sides(arrays, says):
    with pytest.raises(ForeignArraysError) as caught:
        correspond({name: array.shape for name, array in arrays.items()}, network())
    assert says in str(caught.value) and "the model 8 parameters and 3 buffers" in str(caught.value)


def test_a_list_that_is_too_long_is_not_cut():
    arrays = over_the_wire([*state().values(), torch.ones(3)])
    with pytest.raises(ForeignArraysError, match=r"array \d+ is .* The capture holds 12 arrays"):
        loaded(arrays)


def test_updates_become_float32_under_the_models_names():
    arrays = {name: tensor.double() for name, tensor in state(prefix="net.").items()}
    _, found = loaded(arrays)
    tensors = found.parameters_of(arrays)
    assert list(tensors) == [name for name, _ in network().named_parameters()]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
