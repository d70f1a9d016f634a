from hypothesis import given
from hypothesis import strategies as st

from fedsim.recording.records import PluginUse, Record
from fedsim.report.naming import Naming

USES = st.builds(
    lambda name, params: PluginUse(name=name, params=params),
    st.sampled_from(["match", "invert"]),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from([None, 0, 1, [1], "x"]), max_size=3),
)


def record(use, defenses=()):
    return Record(round=1, client=0, attack=use, defenses=tuple(defenses), status="found")


def named(use, uses):
    """Return the name by its definition: with each parameter whose value is another one in some use of the same name."""
    same = [other.params for other in uses if other.name == use.name]
    differing = [key for key, value in use.params.items() if any(other.get(key) != value for other in same)]
    values = ", ".join(f"{key}={use.params[key]}" for key in differing)
    return f"{use.name} ({values})" if values else use.name


@given(uses=st.lists(USES, max_size=6), other=USES)
def test_a_name_has_the_parameters_that_tell_it_from_others_of_its_name(uses, other):
    naming = Naming([record(use) for use in uses])
    assert [naming.use(use) for use in uses] == [named(use, uses) for use in uses]
    assert naming.use(other) == named(other, uses)


@given(carried=st.lists(st.lists(USES, max_size=2), max_size=4))
def test_defenses_are_named_in_the_order_of_application_and_their_sets_none_first(carried):
    records = [record(PluginUse(name="match"), defenses) for defenses in carried]
    naming, uses = Naming(records), [use for defenses in carried for use in defenses]
    names = [" + ".join(named(use, uses) for use in defenses) or "none" for defenses in carried]
    assert [naming.defenses(one) for one in records] == names
    assert naming.sets == sorted(set(names), key=lambda name: (name != "none", name))
