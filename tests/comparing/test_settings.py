import pytest
from runs import record, write_run

from fedsim.comparing.leaks import Attacker
from fedsim.comparing.settings import families
from fedsim.comparing.sources import sources
from fedsim.errors import FedsimError, RunFolderError
from fedsim.metrics.bootstrap import interval
from fedsim.recording.records import SCHEMA
from fedsim.seeds import numpy_generator
from fedsim.sweeping.manifest import Entry, Manifest, Outcome, SweepFolder

IMAGES = Attacker("inversion", "images")


def compared(*folders, baseline=None):
    found, notes = sources(folders)
    return families(found, baseline), notes


def by_name(family):
    return {setting.name: setting for setting in family.settings}


@pytest.fixture
def runs(tmp_path):
    """Return a function: name, value per seed -> run folders."""

    def write(name, by_seed, **given):
        return [
            write_run(tmp_path / f"{name}-{seed}", name=name, seed=seed, **{**given, **own})
            for seed, own in by_seed.items()
        ]

    return write


def test_means_and_intervals_are_over_seeds_and_few_seeds_have_none(runs):
    accuracies = {0: 0.5, 1: 0.6, 2: 0.9}
    three = runs("three", {seed: {"accuracy": value} for seed, value in accuracies.items()})
    two = runs("two", {seed: {"accuracy": 0.5} for seed in (0, 1)}, defenses=["clips"])
    ((family,), _) = compared(*three, *two)
    spread = by_name(family)["three"].accuracy
    assert spread.values == accuracies and spread.mean == pytest.approx(2 / 3)
    expected = interval([*accuracies.values()], numpy_generator(0, "compare", "three", "accuracy"))
    assert spread.interval == expected and expected.low < spread.mean < expected.high
    assert by_name(family)["two"].accuracy.interval is None


def test_differences_are_those_of_common_seeds(runs):
    plain = runs("none", {seed: {"accuracy": 0.8 + seed / 10, "psnr": 60.0, "seconds": 2.0} for seed in (0, 1, 2)})
    other = runs(
        "clips",
        {seed: {"accuracy": 0.5 + seed / 5, "psnr": 20.0 + seed, "seconds": 3.0} for seed in (1, 2, 3)},
        defenses=["clips"],
    )
    ((family,), _) = compared(*plain, *other)
    setting = by_name(family)["clips"]
    assert setting.baseline.name == "none" and setting.paired == {1, 2}
    assert setting.loss_of_accuracy.values == {1: pytest.approx(0.2), 2: pytest.approx(0.1)}
    assert setting.difference(IMAGES).values == {1: -39.0, 2: -38.0}
    assert setting.time_ratio.values == {1: 1.5, 2: 1.5}
    assert by_name(family)["none"].loss_of_accuracy.mean is None


def test_seeds_with_other_data_are_not_paired(runs):
    same, other = {"class names": "a", "test": "b"}, {"class names": "a", "test": "c"}
    plain = runs("none", {0: {"digests": same}, 1: {"digests": same}})
    defended = runs("clips", {0: {"digests": same}, 1: {"digests": other}}, defenses=["clips"])
    ((family,), _) = compared(*plain, *defended)
    assert by_name(family)["clips"].paired == {0}


def test_other_models_and_data_are_families_of_their_own_and_the_way_to_the_files_is_not(runs):
    first = runs("first", {0: {}}, data={"name": "folder", "path": "/here"})
    moved = runs("moved", {1: {}}, data={"name": "folder", "path": "/there"}, defenses=["clips"])
    model = runs("model", {0: {}}, model={"name": "vit_mini"}, defenses=["clips"])
    data = runs("data", {0: {}}, data={"name": "photos"}, defenses=["clips"])
    found, _ = compared(*first, *moved, *model, *data)
    assert [[setting.name for setting in family.settings] for family in found] == [
        ["first", "moved"],
        ["model"],
        ["data"],
    ]
    assert all(setting.baseline is None for family in found[1:] for setting in family.settings)
    assert found[1].title == "vit_mini on shapes"


def test_the_baseline_is_what_differs_in_its_defenses_alone_or_what_is_named(runs):
    sizes = {size: {"training": {"batch_size": size}} for size in (1, 2)}
    folders = [
        folder
        for size, part in sizes.items()
        for name, defenses in (("none", []), ("clips", ["clips"]))
        for folder in runs(f"{name}{size}", {0: {}}, defenses=defenses, **part)
    ]
    ((family,), _) = compared(*folders)
    baselines = {name: one.baseline and one.baseline.name for name, one in by_name(family).items()}
    assert baselines == {"none1": None, "clips1": "none1", "none2": None, "clips2": "none2"}
    ((family,), _) = compared(*folders, baseline="clips2")
    assert {one.baseline.name for name, one in by_name(family).items() if name != "clips2"} == {"clips2"}
    with pytest.raises(FedsimError, match=r"no such setting\. Did you mean 'none1'"):
        compared(*folders, baseline="non1")


def test_clients_with_the_same_defenses_are_a_group_with_its_own_numbers(runs):
    folders = runs("half", {0: {"psnr": {0: 9.0, 1: 60.0}}}, defenses=["clips"], carriers=[0], epsilon=3.0)
    ((family,), _) = compared(*folders)
    (setting,) = family.settings
    groups = setting.groups
    assert [*groups] == ["none", "clips"]
    assert {name: rows[IMAGES].value.mean for name, rows in groups.items()} == {"none": 60.0, "clips": 9.0}
    assert {name: rows[IMAGES].clients for name, rows in groups.items()} == {"none": (1,), "clips": (0,)}
    assert (setting.rows[IMAGES].group, setting.rows[IMAGES].verdict) == ("none", "leaks")
    assert setting.epsilon.written == "3 (delta 1e-05; replace), not of all clients" and setting.epsilon.value is None


def test_the_epsilon_of_a_setting_is_the_largest_of_its_clients_and_seeds(runs):
    ((family,), _) = compared(*runs("noise", {0: {"epsilon": 2.0}, 1: {"epsilon": 4.0}}, defenses=["noise"]))
    found = family.settings[0].epsilon
    assert (found.written, found.value) == ("4 (delta 1e-05; replace)", 4.0)


def test_the_worst_seed_decides_the_verdict(runs):
    folders = runs("clips", {0: {"psnr": 9.0}, 1: {"psnr": 9.0}, 2: {"psnr": 30.0}}, defenses=["clips"])
    ((family,), _) = compared(*folders)
    row = family.settings[0].rows[IMAGES]
    assert row.verdict == family.settings[0].verdict == "leaks"
    assert row.verdicts == {0: "resisted", 1: "resisted", 2: "leaks"}


def test_the_same_run_twice_counts_once_and_another_of_the_same_seed_is_noted(runs, tmp_path):
    (folder,) = runs("one", {0: {}})
    again = write_run(tmp_path / "again", name="one", seed=0)
    ((family,), notes) = compared(folder, folder, again)
    assert len(family.settings[0].runs) == 1
    assert notes == [f"{again}: the same setting and seed as {folder}; left out."]


def test_a_run_that_is_not_complete_is_a_row_without_numbers(runs):
    ((family,), _) = compared(*runs("one", {0: {"rounds": 1}}))
    (setting,) = family.settings
    assert (setting.runs, setting.verdict, setting.accuracy.mean) == ((), "inconclusive", None)
    assert setting.lost[0].reason == "the run is not complete: 1 of 2 rounds"


def test_cells_of_a_sweep_bring_their_names_and_a_failed_one_is_a_row_with_its_reason(tmp_path):
    sweep = SweepFolder(tmp_path / "sweep")
    entries = []
    for name, status, reason in (("kept", "finished", None), ("lost", "failed", "out of luck"), ("open", None, None)):
        write_run(sweep.run(name), defenses=[name], name="same")
        entries.append(Entry(folder=name, setting=f"{name} setting", seed=0, digest=name, changes={}))
        if status:
            sweep.write_outcome(name, Outcome(schema=SCHEMA, status=status, reason=reason))
    sweep.write(Manifest(schema=SCHEMA, name="same", scenario="x", seeds=1, keep="captures", cells=tuple(entries)))
    ((family,), _) = compared(sweep.path)
    found = by_name(family)
    assert [*found] == ["kept setting", "lost setting", "open setting"]
    assert found["kept setting"].accuracy.mean == 0.5
    assert found["lost setting"].lost[0].reason == "the cell failed: out of luck"
    assert found["open setting"].lost[0].reason == "the cell has not finished"
    assert found["lost setting"].verdict == "inconclusive" and found["lost setting"].rows[IMAGES] is None


def test_a_cell_whose_folder_is_gone_belongs_to_the_setting_of_its_name(tmp_path):
    sweep = SweepFolder(tmp_path / "sweep")
    entries = [Entry(folder=f"s{seed}", setting="one", seed=seed, digest=f"s{seed}", changes={}) for seed in (0, 1)]
    write_run(sweep.run("s1"), seed=1)
    for entry in entries:
        sweep.write_outcome(entry.folder, Outcome(schema=SCHEMA, status="finished"))
    sweep.write(Manifest(schema=SCHEMA, name="same", scenario="x", seeds=2, keep="captures", cells=tuple(entries)))
    ((family,), _) = compared(sweep.path)
    (setting,) = family.settings
    assert (setting.name, len(setting.runs), setting.verdict) == ("one", 1, "leaks")
    assert "s0: no such folder" in setting.lost[0].reason


def test_a_seed_without_a_result_makes_its_setting_inconclusive(runs):
    folders = runs("clips", {0: {"psnr": 9.0}, 1: {"psnr": 9.0, "rounds": 1}}, defenses=["clips"])
    ((family,), _) = compared(*folders)
    (setting,) = family.settings
    assert setting.verdict == setting.rows[IMAGES].verdict == "inconclusive"
    assert setting.rows[IMAGES].reason == "the run is not complete: 1 of 2 rounds"


def test_an_attack_on_all_updates_of_a_round_is_an_attacker_that_never_protects(runs):
    view = {"scope": "round", "rounds": [1], "clients": [0, 1]}
    together = {
        **record(0, 1, psnr=9.0, attack={"name": "of_rounds", "params": {}, "recovers": ["images"]}),
        "client": None,
        "view": view,
    }
    single = [record(client, round, ["clips"], psnr=9.0) for round in (1, 2) for client in (0, 1)]
    ((family,), _) = compared(*runs("clips", {0: {"records": [*single, together]}}, defenses=["clips"]))
    row = family.settings[0].rows[Attacker("of_rounds", "images")]
    assert (row.group, row.verdict, row.value.mean, row.gained.mean) == ("all of a round", "inconclusive", 9.0, -1.0)


def test_a_folder_that_is_neither_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="not a run folder"):
        compared(tmp_path)


def test_what_luck_explains_on_each_client_and_not_on_the_group_is_the_verdict_of_the_setting(runs):
    labels = {"name": "labels", "params": {}, "recovers": ["labels"]}
    found = [record(client, round, label_recall=1.0, attack=labels) for round in (1, 2) for client in (0, 1)]
    ((family,), _) = compared(*runs("none", {0: {"records": found, "attacks": [{"name": "labels"}]}}))
    (setting,) = family.settings
    assert setting.runs[0].analysis.verdict == "inconclusive"
    assert setting.verdict == setting.rows[Attacker("labels", "labels")].verdict == "leaks"
