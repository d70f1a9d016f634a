"""A run is resumed, audited and reported with the inputs that its captures were made from, or not at all."""

import copy
import json
import shutil
from pathlib import Path

import audits
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fedsim.errors import RunFolderError
from fedsim.planning import inputs
from fedsim.planning import preparation as planning
from fedsim.recording import environment
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import parse, yaml_loader
from fedsim.seeds import numpy_generator
from fedsim.simulation import Progress

STUBS = Path(__file__).parents[1] / "stubs"
SCENARIO = {
    "name": "own",
    "engine": "inline",
    "data": {"name": "folder", "image_size": 32, "auxiliary_samples": 2, "test_samples": 2},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
    "federation": {"clients": 2, "rounds": 1},
    "training": {"batch_size": 2},
    "attacks": [{"name": "stubs:Guess"}],
    "audit": {"processes": 0, "calibrate": "none"},
}


@pytest.fixture(autouse=True)
def without_summary(without_report, monkeypatch):
    monkeypatch.setattr("fedsim.cli.display.summary", lambda path: "")


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = numpy_generator(seed, "picture").integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A finished run on a folder of images."""
    root = tmp_path_factory.mktemp("inputs")
    for number in range(16):
        draw(root / "pictures" / ("cat" if number % 2 else "dog") / f"{number:02d}.png", number)
    scenario = parse({**SCENARIO, "data": {**SCENARIO["data"], "path": str(root / "pictures")}}, "own")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUBS)
        patch.setattr("fedsim.report.render", lambda path: path / "report.html")
        audits.simulate(planning.of(scenario), RunFolder.create(root / "run", scenario), Progress())
    return root


@pytest.fixture
def run(template, tmp_path, stubs):
    """A copy of the run and of its images, under other paths."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "run", lambda content: content["data"].update(path=str(tmp_path / "pictures")))
    return tmp_path / "run"


def edit(run, change):
    content = yaml_loader.read(run / "scenario.yaml")
    change(content)
    (run / "scenario.yaml").write_text(yaml.safe_dump(content))


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def steps(run):
    plan = planning.of(RunFolder.open(run).scenario())
    return {
        "audit": lambda: audits.audit(plan, RunFolder.open(run), Progress()),
        "resume": lambda: audits.simulate(plan, RunFolder.open(run), Progress()),
    }


def test_the_inputs_are_stored_once_and_images_may_move(run):
    stored = json.loads((run / "inputs.json").read_text())
    assert stored["schema"] == 1
    assert set(stored["settings"]) == {"seed", "data", "model", "federation", "training", "threat", "defenses"}
    assert set(stored["data"]) == {"class names", "partition", "train", "test", "auxiliary"}
    for step in steps(run).values():
        step()
    after = json.loads((run / "inputs.json").read_text())
    assert after["data"] == stored["data"]


def all_images(run):
    for path in run.parent.glob("pictures/*/*.png"):
        draw(path, 1000 + int(path.stem))


def swapped_labels(run):
    pictures = run.parent / "pictures"
    for source, target in (("cat", "moved"), ("dog", "cat"), ("moved", "dog")):
        (pictures / source).rename(pictures / target)


def renamed_class(run):
    (run.parent / "pictures" / "cat").rename(run.parent / "pictures" / "bird")


def one_more_image(run):
    draw(run.parent / "pictures" / "cat" / "99.png", 99)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (all_images, "the images or labels of the clients differ"),
        (swapped_labels, "the images or labels of the clients differ"),
        (renamed_class, "the class names differ"),
        (one_more_image, "the samples are dealt to the clients in another way"),
    ],
)
def test_changed_data_are_refused_by_every_step_that_derives_the_truth(change, says, run):
    change(run)
    planning._made.cache_clear()
    before = content(run)
    for step in steps(run).values():
        with pytest.raises(
            RunFolderError, match=rf"inputs\.json: the data is not what .*: {says}\. Restore the data, or"
        ):
            step()
    assert content(run) == before


def pool_of(run, name):
    return getattr(planning.of(RunFolder.open(run).scenario()).data.pools, name)


@pytest.mark.parametrize(("name", "says"), [("test", "test pool"), ("auxiliary", "auxiliary pool")])
def test_a_single_changed_image_of_any_pool_is_noticed(name, says, run):
    wanted = pool_of(run, name).fetch([0])[0].permute(1, 2, 0).numpy()
    (path,) = [p for p in run.parent.glob("pictures/*/*.png") if np.array_equal(np.asarray(Image.open(p)), wanted)]
    pixels = wanted.copy()
    pixels[5, 5, 1] ^= 1
    Image.fromarray(pixels).save(path)
    with pytest.raises(RunFolderError, match=f"the images or labels of the {says} differ"):
        steps(run)["audit"]()


SETTINGS = {
    "seed": (lambda c: c.update(seed=5), "seed is 5, but this run was made with 0"),
    "data": (lambda c: c["data"].update(test_samples=3), "data.test_samples is 3, but this run was made with 2"),
    "partition": (
        lambda c: c["data"].update(partition={"name": "sizes", "sizes": [2, 3]}),
        'data.partition.name is "sizes", but this run was made with "iid"',
    ),
    "model": (lambda c: c["model"]["kwargs"].update(depth=2), "model.kwargs.depth is 2, but this run was made with 1"),
    "rounds": (lambda c: c["federation"].update(rounds=2), "federation.rounds is 2, but this run was made with 1"),
    "training": (
        lambda c: c["training"].update(batch_size=1),
        "training.batch_size is 1, but this run was made with 2",
    ),
    "mixup": (lambda c: c["training"].update(mixup=0.5), "training.mixup is 0.5, but this run was made with not set"),
    "threat": (lambda c: c["threat"].update(grants=[]), "threat.grants is [], but this run was made with ["),
    "defenses": (
        lambda c: c.update(defenses=[{"name": "stubs:Scales", "clients": [0]}]),
        'defenses.0.name is "stubs:Scales", but this run was made with not set',
    ),
}


@pytest.mark.parametrize(("change", "says"), SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("command", [["run", "--resume"], ["audit"], ["report"]], ids=" ".join)
def test_a_changed_setting_is_refused_by_name_and_nothing_is_written(command, change, says, run, fedsim):
    edit(run, change)
    before = content(run)
    outcome = fedsim(*command, run)
    assert outcome.code == 2 and "Traceback" not in outcome.output
    assert outcome.message.startswith(f"fedsim: {run}/scenario.yaml: {says}"), outcome.message
    assert "Put it back, or " in outcome.message
    assert content(run) == before


def test_attacks_audit_and_engine_may_change(run):
    scenario = RunFolder.open(run).scenario().resolved()
    scenario["attacks"].append({"name": "stubs:Guess", "params": {"pictures": 2}})
    scenario["audit"]["metrics"] = ["psnr"]
    scenario["engine"] = "ray"
    plan = planning.of(parse(scenario, "changed"))
    assert len(audits.audit(plan, RunFolder.open(run), Progress())) == 4


def test_a_folder_of_an_earlier_fedsim_gets_its_inputs_at_the_next_step(run):
    stored = (run / "inputs.json").read_bytes()
    (run / "inputs.json").unlink()
    steps(run)["audit"]()
    now, before = json.loads((run / "inputs.json").read_text()), json.loads(stored)
    assert now["data"] == before["data"]
    all_images(run)
    with pytest.raises(RunFolderError, match="the images or labels of the clients differ"):
        steps(run)["audit"]()


def test_frozen_weights_are_part_of_the_inputs_where_there_are_any(tiny_plan, run_folder):
    whole, plan = tiny_plan(), tiny_plan(training={"trainable": ["head.*"]})
    assert "frozen weights" not in inputs.of(whole).data
    assert len(inputs.of(plan).data["frozen weights"]) == 64
    folder = run_folder(plan)
    folder.write(folder.path / "environment.json", environment.as_json("simulated"))
    inputs.bind(folder, inputs.of(plan))
    with torch.no_grad():
        (changed := copy.deepcopy(plan))._skeleton.blocks[0].norm1.bias.add_(1e-3)
    with pytest.raises(RunFolderError, match="the frozen weights of the model, which no capture holds, differ"):
        inputs.bind(folder, inputs.of(changed))
    with torch.no_grad():
        (changed := copy.deepcopy(plan))._skeleton.head.bias.add_(1e-3)
    inputs.bind(folder, inputs.of(changed))


def test_a_setting_younger_than_the_run_counts_at_its_default(run):
    stored = json.loads((run / "inputs.json").read_text())
    assert not {"trainable", "lora"} & {*stored["settings"]["training"], *stored["settings"]["model"]}
    del stored["settings"]["training"]["label_smoothing"], stored["settings"]["model"]["first_block"]
    del stored["settings"]["model"]["position_embedding"]
    (run / "inputs.json").write_text(json.dumps(stored))
    steps(run)["audit"]()


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", '{"schema": 1, "settings": {"sed": 1}, "data": {}}', '{"schema": 2}']
)
def test_damaged_inputs_are_refused_and_not_replaced(damage, run):
    (run / "inputs.json").write_text(damage)
    with pytest.raises(RunFolderError, match=r"inputs\.json: (damaged|schema 2, this fedsim reads 1)"):
        steps(run)["audit"]()
    assert (run / "inputs.json").read_text() == damage


def test_before_the_first_finding_the_threat_model_may_change(run):
    shutil.rmtree(run / "artifacts")
    (run / "records.jsonl").unlink()
    edit(run, lambda content: content["threat"].update(grants=["batch_size"]))
    assert {tuple(record["grants"]) for record in steps(run)["audit"]()} == {("batch_size",)}
    edit(run, lambda content: content["threat"].update(grants=[]))
    with pytest.raises(
        RunFolderError, match=r"threat\.grants is \[\].*delete records\.jsonl, calibrations\.jsonl and artifacts/"
    ):
        steps(run)["audit"]()


def test_calibrations_alone_bind_the_threat_model_since_they_were_made_with_its_grants(run):
    shutil.rmtree(run / "artifacts")
    (run / "records.jsonl").unlink()
    (run / "calibrations.jsonl").write_text(
        json.dumps({"round": 1, "attack": {"name": "a", "params": {}}, "status": "found"}) + "\n"
    )
    edit(run, lambda content: content["threat"].update(grants=["batch_size"]))
    with pytest.raises(RunFolderError, match=r"delete records\.jsonl, calibrations\.jsonl and artifacts/"):
        steps(run)["audit"]()


def test_an_observed_run_is_bound_by_its_first_findings(run):
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"origin": "observed"}))
    shutil.rmtree(run / "artifacts")
    (run / "records.jsonl").unlink()
    edit(run, lambda content: content.update(seed=9))
    steps(run)["audit"]()
    assert json.loads((run / "inputs.json").read_text())["settings"]["seed"] == 9
    edit(run, lambda content: content.update(seed=10))
    with pytest.raises(
        RunFolderError,
        match=r"seed is 10, .* with 9\. Put it back, or delete records\.jsonl, calibrations\.jsonl and artifacts/",
    ):
        steps(run)["audit"]()


def test_equal_plans_have_equal_inputs_and_images_are_decoded_once(tiny_plan):
    plan, reads = tiny_plan(), []
    pools = plan.data.pools
    found = inputs.of(plan)
    assert found == inputs.of(tiny_plan())
    assert found.data != inputs.of(tiny_plan(seed=4)).data
    for pool in (pools.train, pools.test, pools.auxiliary):
        fetch = pool.fetch
        object.__setattr__(pool, "fetch", lambda chosen, fetch=fetch: reads.extend(chosen) or fetch(chosen))
    inputs.of(plan)
    clients, rounds = plan.scenario.federation.clients, plan.scenario.federation.rounds
    assert len(reads) == clients * rounds + len(pools.test) + len(pools.auxiliary)
