from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from fedsim.verdicts.separation import separation

ROUNDS = st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=8)


def rank(rows):
    """Return the exact rank of a matrix by elimination over fractions."""
    rows, found = [list(map(Fraction, row)) for row in rows], 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((i for i in range(found, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        for i in range(found + 1, len(rows)):
            factor = rows[i][column] / rows[found][column]
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[found], strict=True)]
        found += 1
    return found


@given(ROUNDS)
def test_a_client_is_separated_once_its_unit_vector_is_in_the_row_space(sets):
    participants = {round: sorted(found) for round, found in enumerate(sets, 1)}
    clients = sorted(set().union(*sets))
    rows = [[int(client in found) for client in clients] for found in sets]
    expected = {}
    for place, client in enumerate(clients):
        unit = [int(place == i) for i in range(len(clients))]
        expected[client] = next((t for t in range(1, len(rows) + 1) if rank(rows[:t]) == rank([*rows[:t], unit])), None)
    assert separation(participants) == expected


def test_a_client_alone_in_a_round_is_separated_there_and_the_same_clients_never():
    assert separation({1: (0, 1), 2: (1,)}) == {0: 2, 1: 2}
    assert separation({1: (0, 1, 2), 2: (0, 1, 2), 3: (0, 1, 2)}) == {0: None, 1: None, 2: None}
    assert separation({1: (0, 1), 2: (1, 2), 3: (0, 2)}) == {0: 3, 1: 3, 2: 3}
    assert separation({}) == {}
