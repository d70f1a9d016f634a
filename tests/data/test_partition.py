"""Dealing samples to clients."""

import warnings

import datasets
import numpy as np
import pytest
from flwr_datasets import partitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.partition import deal
from fedsim.errors import ScenarioError
from fedsim.scenario import PartitionPart
from fedsim.seeds import numpy_generator

LABELS = [number % 10 for number in range(400)]
PARTS = [
    PartitionPart(name="iid"),
    PartitionPart(name="dirichlet", alpha=0.5),
    PartitionPart(name="shards", shards_per_client=3),
    PartitionPart(name="pathological", classes_per_client=2),
    PartitionPart(name="sizes", sizes=[5, 10, 20, 1, 200]),
]


def _part(name, **params):
    return PartitionPart(name=name, **params)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=120),
    st.integers(1, 8),
    st.integers(0, 2**40),
    st.sampled_from(["iid", "dirichlet", "shards", "pathological", "sizes"]),
    st.data(),
)
def test_a_partition_is_disjoint_and_leaves_no_client_empty(labels, clients, seed, name, data):
    params = {
        "dirichlet": {"alpha": data.draw(st.floats(0.05, 100))},
        "shards": {"shards_per_client": data.draw(st.integers(1, 4))},
        "pathological": {"classes_per_client": data.draw(st.integers(1, 5))},
        "sizes": {"sizes": data.draw(st.lists(st.integers(1, 30), min_size=clients, max_size=clients))},
    }.get(name, {})
    try:
        dealt = deal(labels, _part(name, **params), clients, seed)
    except ScenarioError as refusal:
        assert refusal.where.startswith("data.partition")
        return
    together = [sample for samples in dealt for sample in samples]
    assert len(dealt) == clients and all(dealt)
    assert len(set(together)) == len(together)
    assert set(together) <= set(range(len(labels)))
    missing = len(labels) - len(together)
    if name in ("iid", "dirichlet"):
        assert missing == 0
    if name == "shards":
        assert missing < clients * params["shards_per_client"]
    if name == "sizes":
        assert [len(samples) for samples in dealt] == params["sizes"]
    if name == "pathological":
        dealt_classes = {labels[sample] for sample in together}
        assert missing == sum(label not in dealt_classes for label in labels)


@pytest.mark.parametrize("clients,samples", [(7, 100), (4, 400), (5, 5), (1, 3)])
def test_equal_and_given_sizes_are_cut_as_flwr_datasets_cuts_them(clients, samples):
    order = numpy_generator(3, "partition").permutation(samples)
    sizes = [1 + client % 2 for client in range(clients)] if clients < samples else [1] * clients
    theirs = {
        "iid": partitioner.IidPartitioner(clients),
        "sizes": partitioner.SizePartitioner(sizes),
    }
    for name, cut in theirs.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cut.dataset = datasets.Dataset.from_dict({"sample": order})
            expected = [tuple(cut.load_partition(client)["sample"][:]) for client in range(clients)]
        part = _part(name, sizes=sizes) if name == "sizes" else _part(name)
        assert list(deal([0] * samples, part, clients, 3)) == expected


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_the_seed_decides_the_partition(part):
    assert deal(LABELS, part, 5, 3) == deal(LABELS, part, 5, 3)
    assert deal(LABELS, part, 5, 3) != deal(LABELS, part, 5, 4)


def test_iid_clients_have_equal_shares_of_shuffled_samples():
    dealt = deal(LABELS, _part("iid"), 7, 0)
    assert {len(samples) for samples in dealt} == {57, 58}
    for samples in dealt:
        assert len({LABELS[sample] for sample in samples}) >= 8


def test_a_small_alpha_makes_clients_less_alike():
    def spread(alpha):
        dealt = deal(LABELS * 5, _part("dirichlet", alpha=alpha), 5, 0)
        counts = np.array([np.bincount(np.array(LABELS * 5)[list(samples)], minlength=10) for samples in dealt])
        return (counts / counts.sum(1, keepdims=True)).std(0).mean()

    assert spread(0.1) > 2 * spread(10)


def test_pathological_clients_hold_as_many_classes_as_asked():
    dealt = deal(LABELS, _part("pathological", classes_per_client=3), 6, 1)
    assert [len({LABELS[sample] for sample in samples}) for samples in dealt] == [3] * 6


def test_shards_hold_few_classes():
    dealt = deal(LABELS, _part("shards"), 10, 1)
    assert all(len({LABELS[sample] for sample in samples}) <= 2 for samples in dealt)
    assert all(len(samples) == 40 for samples in dealt)


@pytest.mark.parametrize(
    "part,labels,clients,where,message",
    [
        (_part("iid"), [0, 1], 3, "data.partition", "3 clients and 2 training samples"),
        (
            _part("shards", shards_per_client=3),
            [0, 1] * 4,
            3,
            "data.partition.shards_per_client",
            "need 9 .* there are 8",
        ),
        (
            _part("pathological", classes_per_client=3),
            [0, 1] * 9,
            2,
            "data.partition.classes_per_client",
            "3 .*the 2 classes",
        ),
        (
            _part("pathological", classes_per_client=2),
            [0, 1, 1, 1],
            3,
            "data.partition.classes_per_client",
            "rarest has 1",
        ),
        (_part("sizes", sizes=[1, 2]), [0] * 9, 3, "data.partition.sizes", "2 sizes for 3 clients"),
        (_part("sizes", sizes=[1, 2, 3, 4]), [0] * 19, 3, "data.partition.sizes", "4 sizes for 3 clients"),
        (_part("sizes", sizes=[5, 5]), [0] * 9, 2, "data.partition.sizes", "sum to 10, there are 9"),
        (
            _part("dirichlet", alpha=0.1),
            [0, 1, 2, 3],
            4,
            "data.partition.alpha",
            "alpha 0.1 .*4 clients .*4 training samples",
        ),
        (_part("dirichlet"), list(range(8)), 4, "data.partition.alpha", "alpha 0.5"),
    ],
)
def test_an_impossible_partition_is_refused_with_numbers(part, labels, clients, where, message):
    with pytest.raises(ScenarioError, match=message) as refusal:
        deal(labels, part, clients, 0)
    assert refusal.value.where == where


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_dealing_prints_nothing(part, capfd):
    deal(LABELS, part, 5, 3)
    assert capfd.readouterr() == ("", "")
