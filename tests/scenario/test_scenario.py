"""Scenarios: what five lines mean, what is refused, and that the resolved scenario is the scenario."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ScenarioError
from fedsim.phases import stating
from fedsim.scenario import METRICS, Scenario, load, parse, parse_attack, select_clients, select_rounds, yaml_loader

GALLERY = sorted((Path(__file__).parents[2] / "scenarios").glob("*.yaml"))


def scenario(**content):
    return parse(content, "test")


def refusal(**content):
    with pytest.raises(ScenarioError) as caught:
        scenario(**content)
    return str(caught.value)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# Defaults


def test_a_part_or_item_of_which_only_the_name_is_given_is_that_name(tmp_path):
    bare = {"data": "shapes", "model": "vit_nano", "attacks": ["label_count"], "defenses": ["dp_noise"]}
    full = {key: [{"name": value[0]}] if isinstance(value, list) else {"name": value} for key, value in bare.items()}
    assert scenario(**bare) == scenario(**full)
    file = write(tmp_path / "bare.yaml", yaml_loader.dump(bare))
    settings = ("data.samples=40", "model.kwargs.depth=1", "attacks.0.params.a=1", "defenses.0.clients=[1]")
    loaded, _ = load(file, settings)
    assert loaded.data.name == "shapes" and loaded.data.params == {"samples": 40}
    assert loaded.model.kwargs == {"depth": 1} and loaded.attacks[0].params == {"a": 1}
    assert loaded.defenses[0].clients == [1]
    loaded, _ = load(file, ("data.partition.name=shards", "data=photos", "model=vit_mini"))
    assert (loaded.data.name, loaded.data.partition.name, loaded.model.name) == ("photos", "shards", "vit_mini")


def test_a_sweep_file_in_the_place_of_a_scenario_is_told_to_sweep(tmp_path):
    (tmp_path / "grid.yaml").write_text("sweep: {scenario: smoke}")
    with pytest.raises(ScenarioError, match=r"a sweep file, no scenario\. Run it with: fedsim sweep .*grid\.yaml"):
        load(tmp_path / "grid.yaml")


def test_a_run_folder_in_the_place_of_a_scenario_is_told_to_resume(tmp_path):
    write(tmp_path / "run" / "scenario.yaml", "name: x")
    with pytest.raises(ScenarioError, match=r"a run folder, no scenario file\. .*fedsim run --resume"):
        load(tmp_path / "run")


def test_five_lines_are_a_scenario_and_the_rest_are_defaults(tmp_path):
    text = """
data: {name: shapes}
model: {name: vit_nano}
federation: {clients: 2, rounds: 1}
defenses: [{name: dp_noise, clients: [0], params: {clip_norm: 1.0}}]
attacks: [{name: patch_embedding}]
"""
    loaded, notes = load(write(tmp_path / "five.yaml", text))
    assert notes == []
    assert loaded.name == "five"
    assert (loaded.version, loaded.seed, loaded.engine) == (1, 0, "ray")
    assert (loaded.federation.strategy, loaded.federation.fraction) == ("FedAvg", 1.0)
    assert (loaded.training.shares, loaded.training.batch_size, loaded.training.mode) == ("gradient", 1, "train")
    assert loaded.threat.grants == ["batch_size", "normalization"]
    assert (loaded.audit.rounds, loaded.audit.clients, loaded.audit.processes) == ("all", "all", 1)
    assert loaded.audit.metrics == ["psnr", "ssim", "label_recall"]
    assert loaded.audit.attack_timeout == 3600
    assert loaded.data.partition.name == "iid"
    assert loaded.defenses[0].params == {"clip_norm": 1.0}


def test_no_line_at_all_is_a_scenario_of_defaults():
    assert scenario() == Scenario()
    assert Scenario().data.name == "photos"
    assert [attack.name for attack in Scenario().attacks] == ["patch_embedding"]
    assert Scenario().defenses == []


def test_defaults_are_not_shared_between_scenarios():
    first, second = scenario(), scenario()
    first.attacks.append(first.attacks[0])
    first.threat.grants.append("labels")
    assert len(second.attacks) == 1
    assert second.threat.grants == ["batch_size", "normalization"]
    assert Scenario() == second


@pytest.mark.parametrize(
    ("file", "name"), [("a.yaml", "a"), ("my run (2).yaml", "my-run-2-"), (".hidden.yaml", "hidden"), ("été.yml", "t-")]
)
def test_the_name_is_that_of_the_file_where_none_is_given(file, name, tmp_path):
    assert load(write(tmp_path / file, "seed: 1"))[0].name == name


def test_a_scenario_cannot_be_changed():
    for part in (Scenario(), Scenario().training, Scenario().data):
        with pytest.raises(ValueError, match="frozen"):
            part.name = "other"


def test_the_metrics_of_the_scenario_are_those_that_exist():
    from fedsim.metrics.table import METRICS as scored

    assert tuple(scored) == METRICS
    assert scenario(audit={"metrics": list(METRICS)}).audit.metrics == list(METRICS)


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.name)
def test_every_scenario_of_the_gallery_loads_and_is_named_like_its_file(path):
    phases, _ = stating.read(path)
    for loaded in [phase.scenario for phase in phases] or [load(path)[0]]:
        assert loaded.name.replace("_", "-").startswith(path.stem.replace("_", "-"))
        assert phases or loaded.name.replace("_", "-") == path.stem.replace("_", "-")
        assert parse(loaded.resolved(), "resolved") == loaded


# Numbers, switches and texts


def test_numbers_may_be_written_as_text():
    # YAML 1.1 reads 1e-4 as text, because it has no dot.
    assert yaml.safe_load("1e-4") == "1e-4"
    assert scenario(training={"learning_rate": "1e-4"}).training.learning_rate == 1e-4
    assert scenario(federation={"clients": "3", "fraction": "0.5"}).federation.clients == 3
    assert scenario(federation={"clients": 3.0}).federation.clients == 3


def test_no_limit_on_the_time_of_an_attack_is_a_value_of_its_own():
    unlimited = scenario(audit={"attack_timeout": None})
    assert unlimited.audit.attack_timeout is None
    assert parse(unlimited.resolved(), "again") == unlimited != scenario()
    assert refusal(audit={"attack_timeout": 0}) == "audit.attack_timeout: expected a number above 0, got 0."
    assert refusal(audit={"attack_timeout": 1e9}) == "audit.attack_timeout: expected at most 1e+06, got 1000000000.0."


def test_a_limit_on_the_memory_of_an_attack_is_a_number_of_mebibytes_and_not_set_by_default():
    limited = scenario(audit={"attack_memory": 512})
    assert limited.audit.attack_memory == 512 and parse(limited.resolved(), "again") == limited
    unlimited = scenario(audit={"attack_memory": None})
    assert unlimited == scenario() and "attack_memory" not in unlimited.resolved()["audit"]
    assert refusal(audit={"attack_memory": 0}) == "audit.attack_memory: expected at least 1, got 0."
    assert refusal(audit={"attack_memory": 2**30}) == "audit.attack_memory: expected at most 1e+07, got 1073741824."
    assert refusal(audit={"attack_memory": "2 GB"}).startswith("audit.attack_memory: expected a whole number")


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(
    "path",
    [
        "seed",
        "federation.rounds",
        "training.learning_rate",
        "audit.processes",
        "audit.attack_timeout",
        "audit.attack_memory",
    ],
)
def test_booleans_are_no_numbers(path, value):
    content = value
    for key in reversed(path.split(".")):
        content = {key: content}
    assert refusal(**content) == f"{path}: expected a number, got {str(value).lower()}."


def test_numbers_are_no_switches_and_no_text():
    assert "model.pretrained: expected true, false or the path" in refusal(model={"pretrained": 1})
    assert "model.name: expected text, got 3." in refusal(model={"name": 3})
    assert refusal(data={"partition": {"name": "sizes", "sizes": [1, True]}}) == (
        "data.partition.sizes.1: expected a number, got true."
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "inf", "1e999"])
def test_numbers_are_finite(value):
    assert refusal(training={"learning_rate": value}).startswith("training.learning_rate: expected a finite number")


# Refusals


def test_all_faults_are_told_at_once_in_the_order_of_the_scenario():
    message = refusal(sed=1, training={"batch_size": 0, "optimizer": "adam"}, federation={"clients": "x"})
    assert message.splitlines() == [
        "federation.clients: expected a whole number, got 'x'.",
        "training.batch_size: expected at least 1, got 0.",
        "training.optimizer: expected 'sgd' or 'adamw', got 'adam'. Did you mean 'adamw'?",
        f"sed: unknown key. Did you mean 'seed'? Allowed: {', '.join(Scenario.model_fields)}.",
    ]


def test_one_fault_in_a_choice_of_forms_is_one_line():
    for clients in (3, [0, "x"], {"fraction": 0}, {"frac": 0.5}, None):
        lines = refusal(defenses=[{"name": "a", "clients": clients}]).splitlines()
        assert len(lines) == 1
        assert lines[0].startswith('defenses.0.clients: expected all, [0, 2], "0-3" or {fraction: 0.5}')


def test_an_unknown_key_names_the_keys_of_its_own_place():
    assert refusal(defenses=[{"name": "a", "parms": {}}]) == (
        "defenses.0.parms: unknown key. Did you mean 'params'? Allowed: name, clients, params."
    )
    assert "Allowed: name, alpha, shards_per_client, classes_per_client, sizes." in refusal(
        data={"partition": {"beta": 1}}
    )


def test_a_key_of_a_part_that_stands_at_the_top_is_sent_there():
    assert refusal(batch_size=3).startswith(
        "batch_size: unknown key. Did you mean training.batch_size? Allowed: name, "
    )
    assert refusal(rounds=3).startswith("rounds: unknown key. Did you mean federation.rounds? Allowed: ")


def test_the_parameters_of_a_source_stand_beside_its_name():
    part = scenario(data={"name": "shapes", "samples": 8, "classes": 3}).data
    assert part.params == {"samples": 8, "classes": 3}


@pytest.mark.parametrize("raw", [None, [], "name", 3])
def test_what_is_no_mapping_is_no_scenario(raw):
    with pytest.raises(ScenarioError, match=r"^here: expected a mapping"):
        parse(raw, "here")


def test_an_attack_is_a_name_or_a_mapping():
    assert parse_attack("gradvit", "here") == parse_attack({"name": "gradvit"}, "here")
    assert parse_attack({"name": "a", "params": {"x": 1}}, "here").params == {"x": 1}
    with pytest.raises(
        ScenarioError,
        match=r"^here.steps: unknown key. A parameter belongs under params: .* Allowed: name, params, label\.$",
    ):
        parse_attack({"name": "a", "steps": 1}, "here")


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["all", "1e-4", "ray"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
PLACES = [part for part in Scenario.model_fields] + [
    f"{part}.{key}"
    for part, field in Scenario.model_fields.items()
    for key in getattr(field.annotation, "model_fields", ())
]


@settings(deadline=None, max_examples=200)
@given(place=st.sampled_from(PLACES), value=ANYTHING)
def test_anything_anywhere_is_a_scenario_or_refused_at_its_place(place, value):
    content = value
    for key in reversed(place.split(".")):
        content = {key: content}
    try:
        accepted = parse(content, "test")
    except ScenarioError as error:
        assert error.where.startswith(place.split(".")[0])
        assert "Input should" not in str(error)
    else:
        assert parse(accepted.resolved(), "resolved") == accepted or "nan" in str(value)


# The resolved scenario

NAMES = st.text("abcdefgh_", min_size=1, max_size=8)
NUMBERS = st.integers(1, 9) | st.floats(1e-6, 1e6)
PARAMS = st.dictionaries(
    NAMES, NUMBERS | st.booleans() | st.none() | st.text(max_size=5) | st.lists(NUMBERS), max_size=3
)
CLIENTS = (
    st.just("all")
    | st.lists(st.integers(0, 9), max_size=3)
    | st.sampled_from(["0-3", "1, 4", "2"])
    | st.fixed_dictionaries({"fraction": st.floats(0.01, 1)})
)
PARTITIONS = st.sampled_from(
    [
        {},
        {"name": "dirichlet"},
        {"name": "dirichlet", "alpha": "1e-1"},
        {"name": "shards", "shards_per_client": 2},
        {"name": "pathological", "classes_per_client": 2},
        {"name": "sizes", "sizes": [3, 2]},
    ]
)
CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,9}\Z"),
        "seed": st.integers(0, 2**80),
        "engine": st.sampled_from(["inline", "ray", "deployment"]),
        "data": st.builds(
            lambda partition, params: {**params, "partition": partition},
            PARTITIONS,
            PARAMS.map(lambda params: {f"p_{key}": value for key, value in params.items()}),
        ),
        "model": st.fixed_dictionaries({"kwargs": PARAMS, "pretrained": st.booleans() | st.just("/weights.pth")}),
        "federation": st.fixed_dictionaries({"clients": st.integers(1, 9), "strategy_params": PARAMS}),
        "threat": st.fixed_dictionaries({"grants": st.lists(st.sampled_from(["labels", "training"]), unique=True)}),
        "defenses": st.lists(st.fixed_dictionaries({"name": NAMES, "clients": CLIENTS, "params": PARAMS}), max_size=2),
        "attacks": st.lists(st.fixed_dictionaries({"name": NAMES, "params": PARAMS}), max_size=2),
        "audit": st.fixed_dictionaries(
            {
                "rounds": st.just("all") | st.lists(st.integers(1, 9) | st.just("last"), min_size=1),
                "clients": CLIENTS.filter(lambda chosen: chosen != []),
            }
        ),
    },
)


@settings(deadline=None, max_examples=60)
@given(content=CONTENTS)
def test_the_resolved_scenario_loads_as_the_same_scenario(tmp_path_factory, content):
    given_scenario = parse(content, "content")
    path = tmp_path_factory.mktemp("resolved") / "scenario.yaml"
    path.write_text(yaml_loader.dump(given_scenario.resolved()))
    again, notes = load(path)
    assert (again, notes) == (given_scenario, [])
    assert again.resolved() == given_scenario.resolved()


def test_what_a_scenario_states_is_that_scenario_without_a_default():
    stated = {
        "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
        "data": {"name": "folder", "path": "pictures", "image_size": None},
        "training": {"batch_size": 2},
        "attacks": [{"name": "label_count"}],
    }
    loaded = scenario(**stated)
    assert loaded.stated() == stated and parse(loaded.stated(), "again") == loaded
    assert scenario().stated() == {} and parse(loaded.stated(), "again").stated() == stated


def test_a_null_that_a_source_was_given_survives_resolving():
    resolved = scenario(data={"name": "folder", "image_size": None}).resolved()
    assert resolved["data"]["image_size"] is None
    assert parse(resolved, "resolved").data.params == {"image_size": None}


def test_the_resolved_scenario_states_every_default():
    resolved = scenario(training={"batch_size": 3}).resolved()
    assert resolved["training"]["learning_rate"] == 0.01
    # Without an evaluator there is no part of it, as in runs from before there were any.
    assert set(resolved) == set(Scenario.model_fields) - {"evaluators"}


# Which clients, which rounds


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("all", (0, 1, 2, 3, 4)),
        ([3, 0, 3], (0, 3)),
        ([], ()),
        ("1-3", (1, 2, 3)),
        ("4", (4,)),
        (" 0 , 2 - 3 ", (0, 2, 3)),
        ("3,1-3", (1, 2, 3)),
    ],
)
def test_clients_are_named_by_list_range_or_all(selector, expected):
    assert select_clients(selector, 5, 0, "here") == expected


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ([5], "here: no client 5; federation.clients is 5, so 0 to 4."),
        ([-1], "here: no client -1;"),
        ("0-5", "here: no client 5;"),
        ("3-1", "here: the range '3-1' runs backwards."),
        ("", "here: expected all, "),
        ("1-", "here: expected all, "),
        ("-1", "here: expected all, "),
        ("1;2", "here: expected all, "),
        ("half", "here: expected all, "),
    ],
)
def test_clients_that_do_not_exist_are_refused(selector, message):
    with pytest.raises(ScenarioError) as caught:
        select_clients(selector, 5, 0, "here")
    assert str(caught.value).startswith(message)


@given(
    clients=st.integers(1, 40),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 2**64),
    place=st.sampled_from(["a", "b"]),
)
def test_a_share_of_clients_is_drawn_once_from_the_seed(clients, fraction, seed, place):
    part = parse({"audit": {"clients": {"fraction": fraction}}}, "test").audit.clients
    chosen = select_clients(part, clients, seed, place)
    assert chosen == select_clients(part, clients, seed, place)
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= set(range(clients))
    assert abs(len(chosen) - fraction * clients) <= 0.5 + 1e-9 or len(chosen) == 1


def test_two_places_draw_their_shares_apart():
    part = scenario(audit={"clients": {"fraction": 0.5}}).audit.clients
    drawn = {(seed, place): select_clients(part, 20, seed, place) for seed in range(3) for place in ("a", "b")}
    assert len(set(drawn.values())) == len(drawn)


def test_rounds_are_named_by_number_and_the_last_by_name():
    assert select_rounds("all", 3) == (1, 2, 3)
    assert select_rounds(["last", 1, 3, 1], 3) == (1, 3)
    assert select_rounds([], 3) == ()
    for outside in (0, 4, -1):
        with pytest.raises(
            ScenarioError, match=rf"^audit.rounds: no round {outside}; federation.rounds is 3, so 1 to 3"
        ):
            select_rounds([outside], 3)


# Limits


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("seed", 10**30),
        ("federation.clients", 10_000),
        ("federation.rounds", 100_000),
        ("training.batch_size", 10**9),
        ("training.local_steps", 100_000),
        ("training.local_epochs", 10_000),
        ("audit.processes", 256),
    ],
)
def test_counts_have_a_bound_that_the_message_states(path, most):
    def content(value):
        extra = {"shares": "delta"} if path.startswith("training.local") else {}
        part, _, key = path.rpartition(".")
        return {part: {key: value, **extra}} if part else {key: value}

    assert scenario(**content(most))
    for value in (most + 1, 10**30 + 1, 10**400):
        assert refusal(**content(value)).startswith(f"{path}: expected at most {most:g}, got ")


def test_attacks_and_defenses_are_a_hundred_at_most():
    assert len(scenario(attacks=["a"] * 100).attacks) == 100
    assert refusal(attacks=["a"] * 101).startswith("attacks: expected at most 100 items, got ['a', 'a'")
    assert refusal(defenses=["a"] * 9999).startswith("defenses: expected at most 100 items")


def test_of_many_faults_the_first_are_told_and_the_others_counted():
    lines = refusal(**{f"k{n}": 1 for n in range(3000)}).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "2980 more faults."


@pytest.mark.parametrize("selector", ["0-999999999999999999", "0-3,4-99999999", "9" * 17])
def test_a_range_of_clients_beyond_the_last_is_refused_before_it_is_listed(selector):
    with pytest.raises(ScenarioError, match=r"^here: no client \d+; federation.clients is 4, so 0 to 3\.$"):
        select_clients(selector, 4, 0, "here")


@pytest.mark.parametrize("selector", ["0-" + "9" * 5000, "0," * 100_000 + "0", "k" * 100_000], ids=len)
def test_a_text_of_clients_without_end_is_refused(selector):
    with pytest.raises(ScenarioError) as caught:
        select_clients(selector, 4, 0, "here")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "setting",
    [
        "model.kwargs=" + "[" * 100_000,
        "model.kwargs=" + "{a: " * 45 + "[[[[[[1]]]]]]" + "}" * 45,
        "model.kwargs." + "a." * 50_000 + "b=1",
        "attacks." + "9" * 5000 + "=x",
        "attacks.\u00b2=x",
        "seed=!!bool x",
        "seed=0x" + "f" * 100_000,
        "x" * 100_000,
        "x" * 100_000 + "=1",
        "model." + "x" * 100_000 + ".y=1",
        "\udcff=1",
        "data.path=" + "k" * 100_000,
        "name=" + "k" * 1_000_000,
    ],
    ids=lambda setting: f"{setting[:20]!a} of {len(setting)}",
)
def test_a_setting_that_no_scenario_can_hold_is_refused_in_readable_lines(tmp_path, setting):
    file = write(tmp_path / "s.yaml", "attacks: [a]\nmodel: vit_nano\n")
    with pytest.raises(ScenarioError) as caught:
        load(file, (setting,))
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


SMALL = b'seed: 1\ndata: {name: shapes, samples: 40}\nattacks: [{name: a, params: {x: [1, 1e-4]}}]\naudit: {clients: "0-1"}\n'
TOKENS = "!!bool |!!int |!!float |&a |*a|[|]|{|}|? |: |- |\n|\t|<<: |\"|'|>|%|\0|1:59|.inf|--- |\\uD800|=|~|0x|\x1b[31m|\u202e"
PIECES = st.sampled_from(
    [*(token.encode() for token in TOKENS.split("|")), b"\xff", b"\xef\xbb\xbf", b"9" * 200, b"1" * 30]
)


@settings(deadline=None, max_examples=300)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(SMALL)), st.integers(0, 12), PIECES | st.binary(max_size=4)),
        min_size=1,
        max_size=5,
    )
)
def test_any_bytes_are_a_scenario_or_refused(tmp_path_factory, edits):
    content = SMALL
    for start, dropped, piece in edits:
        content = content[:start] + piece + content[start + dropped :]
    file = tmp_path_factory.getbasetemp() / "mutated.yaml"
    file.write_bytes(content)
    try:
        loaded, _ = load(file)
    except ScenarioError as error:
        assert len(str(error)) < 10_000
        assert all(line.isprintable() for line in str(error).split("\n"))
    else:
        assert (
            parse(yaml_loader.parse(yaml_loader.dump(loaded.resolved()), "resolved", yaml_loader.RESOLVED), "r")
            == loaded
        )
