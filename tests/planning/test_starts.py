"""What a model starts from: the global model of a finished run, or central training on the auxiliary images."""

import json
import shutil
from dataclasses import replace

import audits
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fedsim import report
from fedsim.defense import EPSILON_OF_ONE_RUN
from fedsim.errors import RunFolderError, ScenarioError
from fedsim.models import central
from fedsim.planning import inputs, preparation
from fedsim.recording import environment
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import parse
from fedsim.simulation import Progress
from fedsim.source import Pool

SMALL = {"name": "vit_nano", "kwargs": {"depth": 1}}
PLACES = ("train", "test", "auxiliary")
ONE = {"federation": {"clients": 2, "rounds": 1}}
CENTRAL = {"central": {"epochs": 1, "batch_size": 4}}


@pytest.fixture
def run(tiny_plan, run_folder):
    """Return a function: parts -> the folder of a finished run."""

    def made(name="first", **parts):
        plan = tiny_plan(**{**ONE, **parts})
        folder = run_folder(plan, name)
        audits.simulate(plan, folder, Progress())
        return folder.path

    return made


def starting(tiny_scenario, start, **parts):
    return preparation.make(
        tiny_scenario(**{**ONE, **parts, "model": {**SMALL, **parts.get("model", {}), "pretrained": start}})
    )


def refusal(tiny_scenario, start, **parts):
    with pytest.raises(ScenarioError) as caught:
        starting(tiny_scenario, start, **parts)
    return str(caught.value)


def test_a_run_gives_the_weights_of_its_final_model_as_its_file_does(run, tiny_scenario):
    path = run()
    plan = starting(tiny_scenario, str(path))
    expected = load_file(path / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in plan.initial_weights().items())
    by_file = starting(tiny_scenario, str(path / "model.safetensors"))
    assert by_file.initial_digest() == plan.initial_digest()
    digest = RunFolder.open(path).model_digest()
    assert plan.notes[0] == (
        f"model.pretrained: starts from the global model of the run {path} after its last round, 1 (SHA-256 {digest[:12]})."
    )
    assert starting(tiny_scenario, {"file": str(path)}).initial_digest() == plan.initial_digest()


def test_a_head_for_other_classes_is_fresh_and_what_defenses_added_is_left_out(run, tiny_scenario):
    path = run(defenses=[{"name": "mjp"}], data={"classes": 2})
    plan = starting(tiny_scenario, str(path), data={"classes": 3})
    expected = load_file(path / "model.safetensors")
    found = plan.initial_weights()
    assert torch.equal(found["blocks.0.attn.qkv.weight"], expected["blocks.0.attn.qkv.weight"])
    assert found["head.weight"].shape[0] == 3
    notes = " ".join(plan.notes)
    assert "the head is fresh" in notes and "left out: " in notes


def test_weights_that_the_run_froze_come_with_it(run, tiny_scenario):
    path = run(training={"trainable": ["head.*"]}, model={**SMALL, "position_embedding": "sincos"}, seed=5)
    assert {*load_file(path / "model.safetensors")} == {"head.weight", "head.bias"}
    other = tiny_scenario(**ONE, model={**SMALL, "position_embedding": "sincos"}, seed=5)
    before = preparation.make(other).model().state_dict()
    plan = starting(tiny_scenario, str(path), seed=9, model={"position_embedding": "sincos"})
    after = plan.model().state_dict()
    assert torch.equal(after["blocks.0.mlp.fc1.weight"], before["blocks.0.mlp.fc1.weight"])
    assert torch.equal(after["pos_embed"], before["pos_embed"])
    assert not torch.equal(after["head.weight"], before["head.weight"])
    content = json.loads((path / "inputs.json").read_text())
    content["data"]["frozen weights"] = "0" * 64
    (path / "inputs.json").write_text(json.dumps(content))
    assert "the weights that this run froze cannot be made again" in refusal(tiny_scenario, str(path), seed=9)


def test_a_model_that_is_no_transformer_starts_from_a_run_too(run, tiny_scenario):
    path = run(model={"name": "convnet", "kwargs": {}})
    plan = preparation.make(tiny_scenario(**ONE, model={"name": "convnet", "kwargs": {}, "pretrained": str(path)}))
    expected = load_file(path / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in plan.initial_weights().items())


def test_an_unfinished_run_and_what_is_no_run_are_refused_by_name(run, tiny_scenario, tmp_path):
    path = run()
    assert "it lacks blocks.1" in refusal(tiny_scenario, str(path), model={"kwargs": {"depth": 2}})
    unfinished = tmp_path / "unfinished"
    shutil.copytree(path, unfinished)
    (unfinished / "model.safetensors").unlink()
    assert refusal(tiny_scenario, str(unfinished)) == (
        f"model.pretrained: {unfinished} is not finished: 1 of 1 rounds. Complete it first: fedsim run --resume {unfinished}."
    )
    damaged = tmp_path / "damaged"
    shutil.copytree(path, damaged)
    (damaged / "model.safetensors").write_bytes(b"0")
    assert "model.safetensors: corrupted" in refusal(tiny_scenario, str(damaged))
    (tmp_path / "empty").mkdir()
    assert "not a run folder, it has no scenario.yaml" in refusal(tiny_scenario, str(tmp_path / "empty"))
    assert "no weights file" in refusal(tiny_scenario, str(tmp_path / "none"))
    (path / "environment.json").write_text(environment.as_json("observed"))
    assert "was observed, and holds no final model" in refusal(tiny_scenario, str(path))


def test_a_run_of_low_rank_changes_is_a_start_with_these_added(run, tiny_scenario):
    path = run(model={**SMALL, "lora": {"rank": 2}}, training={"learning_rate": 0.5})
    plan = starting(tiny_scenario, str(path))
    before = preparation.of_folder(RunFolder.open(path))
    expected = before.model(RunFolder.open(path).read_model())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plan.model()(images), expected(images))
    assert not torch.allclose(expected(images), before.model()(images), atol=1e-4)


def test_a_run_is_resumed_from_its_own_start_alone(run, tiny_scenario, tmp_path):
    first, other = run(), run("other", seed=8)
    plan = starting(tiny_scenario, str(first))
    folder = RunFolder.create(tmp_path / "second", plan.scenario)
    folder.write(folder.path / "environment.json", environment.as_json("simulated"))
    inputs.bind(folder, inputs.of(plan))
    inputs.bind(folder, inputs.of(plan))
    # Where the start lies is free, what it holds is not.
    moved = shutil.copytree(first, tmp_path / "moved")
    inputs.bind(folder, inputs.of(starting(tiny_scenario, str(moved))))
    with pytest.raises(RunFolderError, match="the weights that the model starts from differ"):
        inputs.bind(folder, inputs.of(starting(tiny_scenario, str(other))))
    assert "start" not in inputs.of(preparation.make(tiny_scenario(**ONE))).data


@pytest.fixture
def counted(monkeypatch):
    """Count what is read of each pool while a model is trained centrally, and how often one is trained."""
    read, trainings = {"train": 0, "test": 0, "auxiliary": 0}, []
    load, train, recipe = preparation.load_data, central.train, central._train

    def counting(pool, name):
        def fetch(chosen):
            read[name] += len(chosen) if read["is under way"] else 0
            return pool.fetch(chosen)

        return Pool(pool.labels, fetch)

    def loaded(*arguments):
        data = load(*arguments)
        pools = data.pools
        return replace(data, pools=replace(pools, **{n: counting(getattr(pools, n), n) for n in PLACES}))

    def trained(*arguments):
        read["is under way"] = True
        try:
            return train(*arguments)
        finally:
            read["is under way"] = False

    read["is under way"] = False
    monkeypatch.setattr(preparation, "load_data", loaded)
    monkeypatch.setattr(central, "train", trained)
    monkeypatch.setattr(central, "_train", lambda *about: trainings.append(about) or recipe(*about))
    return read, trainings


def test_central_training_reads_the_auxiliary_images_alone_and_is_done_once(
    tiny_scenario, counted, monkeypatch, tmp_path
):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    read, trainings = counted
    plan = starting(tiny_scenario, CENTRAL)
    assert (read["train"], read["test"]) == (0, 0)
    assert read["auxiliary"] == 20, "four for the trial, all for the digest and for the epoch"
    again = starting(tiny_scenario, CENTRAL)
    assert len(trainings) == 1 and again.initial_digest() == plan.initial_digest()
    assert starting(tiny_scenario, False).initial_digest() != plan.initial_digest()
    assert plan.notes[0].startswith(
        "model.pretrained: trained centrally on the 8 auxiliary images, 1 epochs of adamw, learning rate 0.001"
    )


def test_a_check_trains_nothing(tiny_scenario, monkeypatch):
    monkeypatch.setattr(central, "_train", lambda *_: pytest.fail("a check trains nothing"))
    scenario = tiny_scenario(**ONE, model={**SMALL, "pretrained": {"central": {"epochs": 7}}})
    plan = preparation.make(scenario, trains=False)
    assert plan.notes == (
        "model.pretrained: the model is trained centrally on the auxiliary images when the run begins.",
    )


def test_fixed_positions_are_trained_with_and_stay(tiny_scenario):
    plan = starting(tiny_scenario, CENTRAL, model={"position_embedding": "sincos"})
    fresh = preparation.make(tiny_scenario(**ONE, model={**SMALL, "position_embedding": "sincos"}))
    assert torch.equal(plan.model().state_dict()["pos_embed"], fresh.model().state_dict()["pos_embed"])


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ({}, "model.pretrained: expected file, patches or central, got an empty mapping"),
        ({"central": {}, "file": "x"}, "model.pretrained: central trains the weights, and file and patches are about"),
        ({"central": {"epochs": 0}}, "model.pretrained.central.epochs: expected at least 1, got 0"),
        ({"central": {"epoch": 1}}, "model.pretrained.central.epoch: unknown key. Did you mean 'epochs'?"),
        ({"patches": "cut"}, "model.pretrained.patches: expected 'resampled' or 'summed', got 'cut'"),
        ({"central": {"learning_rate": True}}, "model.pretrained.central.learning_rate: expected a number, got true"),
        ({"path": "x"}, "model.pretrained.path: unknown key."),
        ({"file": " "}, "model.pretrained: expected the path of a weights file or of a run, got an empty text"),
        ({"central": None}, "model.pretrained: central: expected a mapping such as {epochs: 10}"),
        (3, "model.pretrained: expected true, false or the path of a weights file or of a run, or a mapping, got 3"),
    ],
)
def test_a_start_that_is_none_is_refused_by_its_key(start, says, tiny_scenario):
    with pytest.raises(ScenarioError) as caught:
        tiny_scenario(model={"pretrained": start})
    assert str(caught.value).startswith(says)


def test_an_epsilon_of_a_run_that_continues_another_is_called_partial(run, tiny_scenario):
    noise = [{"name": "dp_noise", "clients": [1], "params": {"clip_norm": 1.0, "noise_multiplier": 1.0}}]
    plan = starting(tiny_scenario, str(run()), defenses=noise)
    whole = "counts the rounds of this run alone"
    assert not any(whole in text for text in plan.cautions_of(0))
    assert any(whole in text for text in plan.cautions_of(1))
    fresh = preparation.make(tiny_scenario(**ONE, defenses=noise))
    assert not any(whole in text for text in fresh.cautions_of(1))


def test_the_file_of_a_run_is_that_run(run, tiny_scenario, run_folder):
    noise = [{"name": "dp_noise", "clients": [1], "params": {"clip_norm": 1.0, "noise_multiplier": 1.0}}]
    plan = starting(tiny_scenario, str(run() / "model.safetensors"), defenses=noise, attacks=[])
    assert any(EPSILON_OF_ONE_RUN in text for text in plan.cautions_of(1))
    assert any(EPSILON_OF_ONE_RUN in note for note in plan.notes)
    folder = run_folder(plan, "second")
    audits.simulate(plan, folder, Progress())
    report.render(folder.path)
    for name in ("report.html", "report.md"):
        # The sentence above the table of budgets, which is not that of the notes.
        assert (
            f"The run starts from the model of another one: {EPSILON_OF_ONE_RUN}." in (folder.path / name).read_text()
        )


def pictures(folder, count=24):
    """Write images of noise in two classes."""
    for number in range(count):
        place = folder / f"class {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(place / f"{number:02d}.png")
    return folder


def test_images_that_clients_of_the_earlier_run_trained_on_are_not_tested_on(run, tiny_scenario, tmp_path):
    data = {"name": "folder", "path": str(pictures(tmp_path / "one"))}
    path = str(run(data=data))
    assert starting(tiny_scenario, path, data=data).notes
    other = refusal(tiny_scenario, path, data=data, seed=9)
    assert other.startswith(
        "seed: differs from the run that the model starts from, so that the same images are divided"
    )
    assert "Leave seed as there." in other
    assert refusal(tiny_scenario, path, data={**data, "test_samples": 1}).startswith("data.test_samples: differs")
    elsewhere = {**data, "path": str(pictures(tmp_path / "two"))}
    assert any(
        "took its images from another source" in note for note in starting(tiny_scenario, path, data=elsewhere).notes
    )
    candidates = {"grants": ["batch_size", "candidates"]}
    parts = {"threat": candidates, "training": {"batch_size": 1}}
    assert refusal(tiny_scenario, path, data=elsewhere, **parts).startswith("threat.grants: candidates: the run before")
    with pytest.raises(ScenarioError, match="differs from the run that the model starts from"):
        preparation.make(
            tiny_scenario(**ONE, data=data, seed=9), before=preparation.make(tiny_scenario(**ONE, data=data))
        )
    # Images that are drawn are others with another seed.
    drawn = str(run("drawn"))
    assert not any("another source" in note for note in starting(tiny_scenario, drawn, seed=9).notes)


def test_what_precode_added_is_drawn_anew_with_the_classifier_behind_it(run, tiny_scenario):
    model = {**SMALL, "precode": {"size": 8}}
    path = run(model=model, training={"mode": "train"})
    plan = starting(tiny_scenario, str(path), model=model, training={"mode": "train"})
    found, before = plan.initial_weights(), load_file(path / "model.safetensors")
    assert torch.equal(found["blocks.0.attn.qkv.weight"], before["blocks.0.attn.qkv.weight"])
    assert not any(
        torch.equal(found[name], before[name]) for name in found if name.startswith("head.") and "weight" in name
    )
    assert "the head is fresh" in " ".join(plan.notes)


def test_a_model_that_cannot_be_trained_centrally_is_refused_before_the_run(tiny_scenario):
    start = {"central": {"epochs": 1, "batch_size": 1}}
    scenario = tiny_scenario(**ONE, model={"name": "resnet18", "kwargs": {}, "pretrained": start})
    for trains in (False, True):
        with pytest.raises(ScenarioError, match=r"model\.pretrained\.central: a step on 1 images fails"):
            preparation.make(scenario, trains=trains)


@pytest.mark.parametrize("start", [CENTRAL, {"patches": "summed"}, {"file": "/x", "patches": "summed"}, {"file": "/x"}])
def test_a_start_is_stored_and_read_again_as_it_is(start, tiny_scenario):
    scenario = tiny_scenario(model={**SMALL, "pretrained": start})
    assert parse(scenario.resolved(), "stored") == scenario
    assert parse(scenario.stated(), "stated") == scenario
