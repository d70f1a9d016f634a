"""Seeds: pure functions of a path, and global generators that are given back as they were."""

import random  # noqa: TID251  (one of the generators that must be given back)

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.seeds import derive, numpy_generator, seeded, torch_generator, torch_threads

PATHS = st.lists(st.text(max_size=3) | st.integers(-3, 3), max_size=4).map(tuple)


def drawn():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_is_one_number_for_ever():
    # A change here changes every client's batches: yesterday's runs could no longer be scored.
    assert derive(7, "attack", "gradvit", 3, 0) == 4727363096132456104
    assert numpy_generator(7, "partition").integers(2**32) == 390989831
    assert int(torch_generator(7, "model").initial_seed()) == derive(7, "model")


@given(seed=st.integers(0, 2**80), path=PATHS)
def test_a_seed_has_63_bits(seed, path):
    assert 0 <= derive(seed, *path) < 2**63
    assert derive(seed, *path) == derive(seed, *path)


@given(seeds=st.tuples(st.integers(0, 3), st.integers(0, 3)), paths=st.tuples(PATHS, PATHS))
def test_different_paths_and_seeds_give_different_seeds(seeds, paths):
    same = seeds[0] == seeds[1] and paths[0] == paths[1]
    assert (derive(seeds[0], *paths[0]) == derive(seeds[1], *paths[1])) == same


def test_text_and_number_are_different_parts_of_a_path():
    assert derive(0, "1") != derive(0, 1)
    assert derive(0, "a", "b") != derive(0, "ab")
    assert derive(0, 1, 2) != derive(0, 12)


def test_generators_of_a_path_draw_the_same_again_and_are_fresh():
    for make in (torch_generator, numpy_generator):
        first, second = make(1, "a"), make(1, "a")
        assert first is not second
    assert torch.equal(
        torch.rand(4, generator=torch_generator(1, "a")), torch.rand(4, generator=torch_generator(1, "a"))
    )
    assert not torch.equal(
        torch.rand(4, generator=torch_generator(1, "a")), torch.rand(4, generator=torch_generator(1, "b"))
    )
    assert numpy_generator(1, "a").random() == numpy_generator(1, "a").random() != numpy_generator(1, "b").random()


def test_seeded_decides_what_global_generators_draw():
    with seeded(3, "server"):
        first = drawn()
    with seeded(3, "server"):
        assert drawn() == first
    with seeded(3, "client"):
        assert all(a != b for a, b in zip(drawn(), first, strict=True))


@pytest.mark.parametrize("raises", [False, True])
def test_seeded_gives_the_global_generators_back(raises):
    with seeded(1, "outside"):
        expected = drawn(), drawn()
    with seeded(1, "outside"):
        before = drawn()
        try:
            with seeded(2, "inside"):
                drawn()
                if raises:
                    raise RuntimeError
        except RuntimeError:
            pass
        assert (before, drawn()) == expected


def test_torch_threads_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before
