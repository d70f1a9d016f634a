"""Malformed input through the real entry: exit code 2, where the fault is, no traceback, nothing half-written."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from fedsim import models, simulation
from fedsim.planning import preparation as planning
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import ModelPart, parse

STUBS = Path(__file__).parent / "stubs"

BASE: dict[str, Any] = {
    "name": "bad",
    "engine": "inline",
    "data": {"name": "shapes", "samples": 24, "test_samples": 4, "auxiliary_samples": 4, "classes": 2},
    "model": {"name": "vit_nano"},
    "federation": {"clients": 3, "rounds": 2},
    "attacks": [{"name": "stubs:Guess"}],
    "audit": {"processes": 0, "calibrate": "none"},
}


def refused(outcome: Any, starts: str, *parts: str) -> None:
    assert "Traceback" not in outcome.output
    assert outcome.code == 2, outcome.output
    assert outcome.message.startswith(f"fedsim: {starts}"), outcome.message
    for part in parts:
        assert part in outcome.message, outcome.message


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def records_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [json.loads(line) | {"seconds": None} for line in lines]


def with_settings(settings: dict[str, Any]) -> dict[str, Any]:
    scenario = json.loads(json.dumps(BASE))
    for path, value in settings.items():
        *parents, last = path.split(".")
        node = scenario
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        node[last] = value
    return scenario


SETTINGS = {
    # keys and types
    "unknown key": ({"federation.clents": 3}, "federation.clents: unknown key", "Did you mean 'clients'?"),
    "unknown part": ({"modle": {}}, "modle: unknown key", "Did you mean 'model'?", "Allowed: name, version"),
    "parameter beside the name": (
        {"attacks.0.steps": 3},
        "attacks.0.steps: unknown key. A parameter belongs under params: {name: ..., params: {steps: ...}}. "
        "Allowed: name, params, label.",
    ),
    "defense parameter beside the name": (
        {"defenses": [{"name": "dp_noise", "clip_norm": 1.0}]},
        "defenses.0.clip_norm: unknown key.",
        "belongs under params: {name: ..., params: {clip_norm: ...}}.",
    ),
    "number for an attack": ({"attacks": [3]}, "attacks.0: expected a mapping, got 3."),
    "name that no attack has": ({"attacks": ["patch_embeding"]}, "attacks.0.name: no attack", "'patch_embedding'?"),
    "name that no model has": ({"model": "vit_nanno"}, "model.name: ", "vit_nanno"),
    "attack without a name": ({"attacks": [{"params": {}}]}, "attacks.0.name: missing"),
    "text for a number": ({"training.batch_size": "four"}, "training.batch_size: expected a whole number, got 'four'."),
    "fraction for a count": ({"federation.rounds": 2.5}, "federation.rounds: expected a whole number, got 2.5."),
    "boolean for a number": ({"federation.clients": True}, "federation.clients: expected a number, got true."),
    "number for a mapping": ({"training": 3}, "training: expected a mapping, got 3."),
    "nothing for a list": ({"defenses": None}, "defenses: expected a list, got nothing. Leave the key out"),
    "number for text": ({"model.name": 7}, "model.name: expected text, got 7."),
    "name that is no file name": ({"name": "../up"}, "name: expected letters, digits, ", "got '../up'."),
    "scenario of another version": ({"version": 2}, "version: expected 1, got 2."),
    "no clients": ({"federation.clients": 0}, "federation.clients: expected at least 1, got 0."),
    "no rounds": ({"federation.rounds": 0}, "federation.rounds: expected at least 1, got 0."),
    "fraction above one": ({"federation.fraction": 1.5}, "federation.fraction: expected at most 1, got 1.5."),
    "learning rate of zero": ({"training.learning_rate": 0}, "training.learning_rate: expected a number above 0"),
    "negative seed": ({"seed": -1}, "seed: expected at least 0, got -1."),
    "unknown engine": (
        {"engine": "rya"},
        "engine: expected 'inline', 'ray' or 'deployment', got 'rya'. Did you mean 'ray'?",
    ),
    # plug-ins
    "unknown attack": ({"attacks.0.name": "patch_embeding"}, "attacks.0.name: no attack", "'patch_embedding'?"),
    "unknown defense": ({"defenses": [{"name": "dp_nois"}]}, "defenses.0.name: no defense", "'dp_noise'?"),
    "unknown data source": ({"data.name": "shape"}, "data.name: no data source", "Did you mean 'shapes'?"),
    "unknown attack parameter": ({"attacks.0.params": {"picture": 2}}, "attacks.0.params.picture: unknown", "pictures"),
    "attack parameter of the wrong type": (
        {"attacks.0.params": {"pictures": "many"}},
        "attacks.0.params.pictures: expected a whole number, got 'many'.",
    ),
    "attack parameter that is a boolean": (
        {"attacks.0.params": {"pictures": True}},
        "attacks.0.params.pictures: expected a whole number, got true.",
    ),
    "unknown data parameter": ({"data.sample": 3}, "data.sample: unknown parameter", "Did you mean 'samples'?"),
    "data parameter out of range": ({"data.classes": 1}, "data.classes: expected 2 to"),
    "module that is not there": ({"attacks.0.name": "no_such:Attack"}, "attacks.0.name: cannot import", "no_such"),
    "class that is not there": ({"attacks.0.name": "stubs:Gess"}, "attacks.0.name: cannot import", "Gess"),
    "half a module and class": ({"attacks.0.name": ":Guess"}, "attacks.0.name: expected a name, or 'module:Class'"),
    "class that is no attack": ({"attacks.0.name": "stubs:Scales"}, "attacks.0.name: stubs:Scales is not"),
    "attack that is no frozen dataclass": (
        {"attacks.0.name": "broken_plugins:Undecorated"},
        "attacks.0.name: broken_plugins:Undecorated must be a concrete dataclass",
    ),
    "attack listed twice": (
        {"attacks": [{"name": "stubs:Guess"}, {"name": "stubs:Guess", "params": {"pictures": 1}}]},
        "attacks.1: stubs:Guess is listed before, as attacks.0, with equal parameters.",
    ),
    # what the threat model grants
    "ungranted need": (
        {"attacks.0.name": "broken_plugins:NeedsLabels"},
        "attacks.0.name: broken_plugins:NeedsLabels needs the grant labels; threat.grants has batch_size, ",
    ),
    "unknown grant": ({"threat.grants": ["label"]}, "threat.grants.0: expected", "Did you mean 'labels'?"),
    "grant given twice": ({"threat.grants": ["labels", "labels"]}, "threat.grants: a grant is listed twice"),
    # clients and rounds by number
    "defense on a client beyond the last": (
        {"defenses": [{"name": "stubs:Scales", "clients": [3]}]},
        "defenses.0.clients: no client 3; federation.clients is 3, so 0 to 2.",
    ),
    "range of clients backwards": (
        {"defenses": [{"name": "stubs:Scales", "clients": "2-0"}]},
        "defenses.0.clients: the range '2-0' runs backwards.",
    ),
    "clients in other words": (
        {"defenses": [{"name": "stubs:Scales", "clients": "most"}]},
        'defenses.0.clients: expected all, [0, 2], "0-3" or {fraction: 0.5}',
        "got 'most'.",
    ),
    "client selector of another type": (
        {"defenses": [{"name": "stubs:Scales", "clients": 1}]},
        'defenses.0.clients: expected all, [0, 2], "0-3" or {fraction: 0.5}',
        "got 1.",
    ),
    "share of clients above one": ({"audit.clients": {"fraction": 2}}, "audit.clients: expected all", "{fraction: 2}"),
    "audit of a client beyond the last": ({"audit.clients": "0-9"}, "audit.clients: no client 3;"),
    "audit of a round beyond the last": ({"audit.rounds": [3]}, "audit.rounds: no round 3; federation.rounds is 2"),
    "audit of round zero": ({"audit.rounds": [0]}, "audit.rounds: no round 0;"),
    "audit rounds in other words": ({"audit.rounds": ["first"]}, "audit.rounds: expected all, or a list", "['first']"),
    "audit of no round": ({"audit.rounds": []}, "audit.rounds: expected at least one, got []", "write attacks: []."),
    "audit of no client": ({"audit.clients": []}, "audit.clients: expected at least one, got []"),
    "no metric": ({"audit.metrics": []}, "audit.metrics: expected at least one, got []"),
    "metric given twice": ({"audit.metrics": ["psnr", "psnr"]}, "audit.metrics: a metric is listed twice."),
    "pull away from the global model": (
        {"federation.strategy": "FedProx", "federation.strategy_params": {"proximal_mu": -1}},
        "federation.strategy_params.proximal_mu: expected a number at least 0, got -1",
    ),
    "unknown metric": ({"audit.metrics": ["psnt"]}, "audit.metrics.0: expected", "Did you mean 'psnr'?"),
    # partitions
    "more clients than samples": ({"federation.clients": 25}, "data.partition: 25 clients and 24 training samples"),
    "unknown partition": ({"data.partition": {"name": "iidd"}}, "data.partition.name: expected", "Did you mean 'iid'?"),
    "parameter of another partition": ({"data.partition": {"alpha": 1}}, "data.partition: alpha does not belong"),
    "partition without its parameter": (
        {"data.partition": {"name": "pathological"}},
        "data.partition: partition 'pathological' needs classes_per_client",
    ),
    "more classes a client than there are": (
        {"data.partition": {"name": "pathological", "classes_per_client": 3}},
        "data.partition.classes_per_client: 3 is more than the 2 classes",
    ),
    "more shards than samples": (
        {"data.partition": {"name": "shards", "shards_per_client": 9}},
        "data.partition.shards_per_client: 3 clients with 9 shards each need 27 training samples, there are 24",
    ),
    "sizes for other clients": (
        {"data.partition": {"name": "sizes", "sizes": [1, 2]}},
        "data.partition.sizes: 2 sizes for 3 clients",
    ),
    "sizes beyond the samples": (
        {"data.partition": {"name": "sizes", "sizes": [9, 9, 9]}},
        "data.partition.sizes: they sum to 27, there are 24 training samples",
    ),
    "dirichlet alpha of zero": (
        {"data.partition": {"name": "dirichlet", "alpha": 0}},
        "data.partition.alpha: expected a number above 0, got 0.",
    ),
    # defenses whose claim would be false
    "noise without clipping": (
        {"defenses": [{"name": "dp_noise", "params": {"noise_multiplier": 1}}]},
        "defenses.0.params.clip_norm: got none with noise_multiplier 1",
    ),
    "negative noise": (
        {"defenses": [{"name": "dp_noise", "params": {"clip_norm": 1, "noise_multiplier": -1}}]},
        "defenses.0.params.noise_multiplier: expected a number of at least 0, got -1",
    ),
    "clipping to zero": (
        {"defenses": [{"name": "dp_noise", "params": {"clip_norm": 0}}]},
        "defenses.0.params.clip_norm: expected a number above 0",
    ),
    # models
    "unknown model": ({"model.name": "vit_nan"}, "model.name: no model 'vit_nan'. Did you mean 'vit_nano'?"),
    "model of nobody": ({"model": {"name": "no_such:Model"}}, "model.name: cannot import 'no_such:Model'"),
    "unknown weights of a model": (
        {"model": {"name": "vit_tiny_patch16_224.augreg"}},
        "model.name: no published weights 'vit_tiny_patch16_224.augreg'",
    ),
    "unknown model kwarg": (
        {"model.kwargs": {"dept": 2}},
        "model.kwargs.dept: unknown kwarg.",
        "Did you mean 'depth'?",
    ),
    "model kwarg of the wrong type": (
        {"model.kwargs": {"depth": "two"}},
        "model.kwargs.depth: expected a whole number",
    ),
    "model kwarg that timm refuses": ({"model.kwargs": {"global_pool": "sum"}}, "model.kwargs.global_pool: expected"),
    "classes as a model kwarg": (
        {"model.kwargs": {"num_classes": 5}},
        "model.kwargs.num_classes: follows from the data",
    ),
    "patch that does not divide the image": (
        {"model.kwargs": {"patch_size": 5}},
        "model.kwargs.patch_size: patches of 5 x 5 pixels do not divide images of 32 x 32.",
    ),
    "stock patch that does not divide the image": (
        {"model": {"name": "vit_tiny_patch16_224"}, "data.image_size": 40},
        "model.name: patches of 16 x 16 pixels do not divide images of 40 x 40.",
    ),
    "image size that is not the model's": (
        {"model.kwargs": {"img_size": 64}},
        "model.kwargs.img_size: the model takes 64, data.image_size is 32.",
    ),
    "width that heads do not divide": (
        {"model.kwargs": {"embed_dim": 63}},
        "model.kwargs.num_heads: 2 does not divide",
    ),
    "weights file that is not there": ({"model.pretrained": "no.safetensors"}, "model.pretrained: no weights file"),
    "number for a weights file": ({"model.pretrained": 3}, "model.pretrained: expected true, false or the path"),
    "published weights of a preset": ({"model.pretrained": True}, "model.pretrained: there are no published weights"),
    # training and aggregation
    "steps and epochs together": (
        {"training": {"shares": "delta", "local_steps": 2, "local_epochs": 1}},
        "training: give local_steps or local_epochs, not both.",
    ),
    "gradient of several steps": ({"training": {"local_steps": 2}}, "training: shares: gradient is one plain SGD step"),
    "momentum of AdamW": (
        {"training": {"shares": "delta", "optimizer": "adamw", "momentum": 0.9}},
        "training: momentum belongs to sgd",
    ),
    "local clipping of a shared gradient": (
        {"training.clip_norm": 1.0},
        "training: clip_norm: got 1 with shares: gradient, and it clips local steps",
        "the defense clipping, or dp_noise",
    ),
    "clipping norm of zero": (
        {"training": {"shares": "delta", "clip_norm": 0}},
        "training.clip_norm: expected a number above 0, got 0.",
    ),
    "warm-up longer than the run": (
        {"training.schedule": {"warmup_rounds": 3}, "federation.rounds": 3},
        "training.schedule.warmup_rounds: got 3, and there are 3 rounds",
        "raise federation.rounds.",
    ),
    "schedule that ends at nothing": (
        {"training.schedule": {"name": "step", "every": 1, "factor": 1e-200}, "federation.rounds": 3},
        "training.schedule: the learning rate of round 3 is too small to be told from 0.",
    ),
    "label smoothing of all": (
        {"training.label_smoothing": 1},
        "training.label_smoothing: expected a number below 1, got 1.",
    ),
    "negative label smoothing": ({"training.label_smoothing": -0.1}, "training.label_smoothing: expected at least 0"),
    "label smoothing that is a boolean": ({"training.label_smoothing": True}, "training.label_smoothing: expected a"),
    "label smoothing that is no number": (
        {"training.label_smoothing": float("nan")},
        "training.label_smoothing: expected a finite number",
    ),
    "more parts than images": (
        {"training": {"accumulate": 3, "batch_size": 2}},
        "training: accumulate: got 3 with batch_size 2, and a batch has no more parts than images. Give at most batch_size.",
    ),
    "parts of a batch that dropout would tell apart": (
        {"training": {"accumulate": 2, "batch_size": 2}, "model.kwargs": {"depth": 1, "proj_drop_rate": 0.1}},
        "training.accumulate: got 2, and in training, vit_nano draws other numbers for parts than for the whole",
        "set training.mode to eval",
    ),
    "augmentation that there is not": (
        {"training.augment": ["flp"]},
        "training.augment.0: expected 'flip' or 'crop', got 'flp'. Did you mean 'flip'?",
    ),
    "augmentation twice": (
        {"training.augment": ["flip", "flip"]},
        "training.augment: expected flip and crop once at most, got ['flip', 'flip'].",
    ),
    "augmentation that is no list": ({"training.augment": "flip"}, "training.augment: expected a list, got 'flip'."),
    "mixup alpha of zero": ({"training.mixup": 0}, "training.mixup: expected a number above 0, got 0."),
    "mixup in words": ({"training.mixup": "some"}, "training.mixup: expected a number, got 'some'."),
    "mixup that is a boolean": ({"training.mixup": True}, "training.mixup: expected a number, got true."),
    "mixup of a single image": (
        {"training.mixup": 0.4, "data.partition": {"name": "sizes", "sizes": [2, 1, 2]}},
        "training.mixup: client 1 has a single image, and mixup blends two of a client's own.",
        "leave mixup out",
    ),
    "unknown strategy": ({"federation.strategy": "FedAvgg"}, "federation.strategy: no strategy", "'FedAvg'?"),
    "unknown strategy parameter": (
        {"federation": {"strategy": "FedAdam", "strategy_params": {"etha": 1}}},
        "federation.strategy_params.etha: unknown parameter of FedAdam. Did you mean 'eta'?",
    ),
    "missing strategy parameter": (
        {"federation": {"strategy": "DifferentialPrivacyServerSideFixedClipping"}},
        "federation.strategy_params.noise_multiplier: missing",
    ),
    "strategy parameter that Flower refuses": (
        {"federation": {"strategy": "FedTrimmedAvg", "strategy_params": {"beta": 0.9}}},
        "federation.strategy_params.beta: expected a number at least 0 and below 0.5, got 0.9",
    ),
    "strategy parameter of the wrong type": (
        {"federation": {"strategy": "FedAdam", "strategy_params": {"eta": "fast"}}},
        "federation.strategy_params.eta: expected a number",
    ),
    # files
    "folder that is not there": ({"data": {"name": "folder", "path": "nowhere"}}, "data.path: no folder"),
    "data source without its path": ({"data": {"name": "folder"}}, "data.path: missing"),
    "parquet file that is not there": ({"data": {"name": "parquet", "path": "no.parquet"}}, "data.path: no file or"),
}


@pytest.fixture
def scenario_file(tmp_path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


@pytest.mark.parametrize(
    ("settings", "starts", "parts"), [(s[0], s[1], s[2:]) for s in SETTINGS.values()], ids=SETTINGS
)
def test_a_bad_setting_is_refused_before_anything_is_written(settings, starts, parts, fedsim, scenario_file, tmp_path):
    scenario_file.write_text(yaml.safe_dump(with_settings(settings)))
    refused(fedsim("run", scenario_file, "--out", tmp_path / "run"), starts, *parts)
    assert list(tmp_path.iterdir()) == [scenario_file]


TEXTS = {
    "empty": ("# nothing\n", "{file}: the file is empty"),
    "list": ("- name: bad\n", "{file}: expected a mapping"),
    "one word": ("bad\n", "{file}: expected a mapping such as 'name: my-run', got 'bad'."),
    "no YAML": ("name: [bad\n", "{file}: not valid YAML: line 2:"),
    "tab": ("model:\n\tname: vit_nano\n", "{file}: not valid YAML: line 2:"),
    "duplicate key": ("seed: 1\nmodel: {name: vit_nano}\nseed: 2\n", "seed: given twice, in line 1 and line 3."),
    "duplicate key inside": (
        "attacks:\n  - name: a\n    params: {x: 1, x: 2}\n",
        "attacks.0.params.x: given twice, in line 3.",
    ),
    "endless alias": ("model: {kwargs: &k {depth: *k}}\n", "model.kwargs.depth: line 1: this alias contains itself."),
    "number without end": ("training: {learning_rate: .inf}\n", "training.learning_rate: expected a finite number"),
    "Python object": ("name: !!python/name:os.system\n", "name: expected text, a number"),
    "key that is a number": ("data: {3: 4}\n", "data.3: expected text as a key, got 3."),
}


@pytest.mark.parametrize(("text", "starts"), TEXTS.values(), ids=TEXTS)
def test_a_text_that_is_no_scenario_is_refused(text, starts, fedsim, scenario_file, tmp_path):
    scenario_file.write_text(text)
    refused(fedsim("run", scenario_file, "--out", tmp_path / "run"), starts.format(file=scenario_file))
    assert list(tmp_path.iterdir()) == [scenario_file]


def test_a_scenario_that_is_not_there_is_refused(fedsim, tmp_path):
    refused(fedsim("run", tmp_path / "none.yaml", "--out", tmp_path / "run"), f"{tmp_path}/none.yaml: no such file.")
    refused(fedsim("check", tmp_path), f"{tmp_path}: cannot be read: Is a directory.")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    refused(fedsim("check", tmp_path / "latin.yaml"), f"{tmp_path}/latin.yaml: not UTF-8 text")
    assert [path.name for path in tmp_path.iterdir()] == ["latin.yaml"]


OPTIONS = {
    "set without an equals sign": (["--set", "seed"], "--set seed: expected a.b=value"),
    "set without a key": (["--set", "=3"], "--set =3: expected a.b=value"),
    "set with an empty part": (["--set", "data..name=x"], "--set data..name=x: expected a.b=value"),
    "set on a value": (["--set", "model.name.size=3"], "--set model.name.size: model.name is a value, not a mapping."),
    "set beyond a list": (["--set", "attacks.4.name=x"], "--set attacks.4.name: '4' is not an index of a list of 1."),
    "set to no YAML": (["--set", "training={"], "--set training: not valid YAML"),
    "set to an unknown key": (["--set", "training.epochs=3"], "training.epochs: unknown key"),
    "set to the wrong type": (["--set", "training.batch_size=x"], "training.batch_size: expected a whole number"),
    "set to an unknown source": (["--set", "data.name=photo"], "data.name: no data source 'photo'. Did you mean"),
    "engine": (["--engine", "dask"], "engine: expected 'inline', 'ray' or 'deployment', got 'dask'."),
}


@pytest.mark.parametrize(("options", "starts"), OPTIONS.values(), ids=OPTIONS)
def test_a_bad_option_is_refused(options, starts, fedsim, scenario_file, tmp_path):
    refused(fedsim("run", scenario_file, "--out", tmp_path / "run", *options), starts)
    assert list(tmp_path.iterdir()) == [scenario_file]


def test_run_wants_a_scenario_or_a_folder_to_resume(fedsim, scenario_file, tmp_path):
    refused(
        fedsim("run"), "run: give a scenario, as in fedsim run quickstart, or --resume with a run folder, and not both."
    )
    refused(
        fedsim("run", scenario_file, "--resume", tmp_path),
        "run: give a scenario, as in fedsim run quickstart, or --resume",
    )
    for option in (["--set", "seed=1"], ["--engine", "inline"], ["--out", tmp_path / "run"]):
        refused(fedsim("run", "--resume", tmp_path, *option), "run --resume: goes on exactly as the run began")
    assert list(tmp_path.iterdir()) == [scenario_file]


def test_a_folder_with_something_in_it_is_not_written_to(fedsim, scenario_file, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    for out in (taken, scenario_file):
        refused(fedsim("run", scenario_file, "--out", out), f"{out}: already exists and is not empty.")
    refused(fedsim("run", scenario_file, "--out", scenario_file / "run"), f"{scenario_file}/run: cannot be written")
    assert content(tmp_path) == {"bad.yaml": scenario_file.read_bytes(), "taken/notes.txt": b"mine"}


@pytest.mark.parametrize("command", [["run", "--resume"], ["audit"], ["report"]], ids=" ".join)
def test_a_folder_that_is_no_run_is_refused(command, fedsim, scenario_file, tmp_path):
    for path in (tmp_path, tmp_path / "none", scenario_file):
        refused(fedsim(*command, path), f"{path}: not a run folder, it has no scenario.yaml.")
    assert list(tmp_path.iterdir()) == [scenario_file]


# Damaged data files


def _images(folder: Path) -> None:
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (32, 32), (10 * number, 80, 40)).save(folder / label / f"{number:02d}.png")


def _parquet(path: Path) -> None:
    png = io.BytesIO()
    Image.new("RGB", (32, 32), (10, 80, 40)).save(png, "PNG")
    rows = [{"bytes": png.getvalue(), "path": f"{row}.png"} for row in range(24)]
    pq.write_table(pa.table({"img": rows, "label": [0, 1] * 12}), path)


def test_a_parquet_file_cut_short_is_refused(fedsim, scenario_file, tmp_path):
    path = tmp_path / "train.parquet"
    _parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    scenario_file.write_text(yaml.safe_dump(BASE | {"data": {"name": "parquet", "path": "train.parquet"}}))
    refused(fedsim("run", scenario_file, "--out", tmp_path / "run"), f"data.path: {path} is truncated, damaged or")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("column", ["image_column", "label_column"])
def test_a_parquet_file_without_the_column_is_refused(column, fedsim, scenario_file, tmp_path):
    _parquet(tmp_path / "train.parquet")
    data = {"name": "parquet", "path": "train.parquet", column: "lable"}
    scenario_file.write_text(yaml.safe_dump(BASE | {"data": data}))
    outcome = fedsim("run", scenario_file, "--out", tmp_path / "run")
    refused(outcome, f"data.{column}: no column 'lable'", "train.parquet", "Columns: img, label.")
    assert not (tmp_path / "run").exists()


def test_a_broken_image_is_refused_before_the_run(fedsim, scenario_file, tmp_path):
    _images(tmp_path / "images")
    scenario_file.write_text(yaml.safe_dump(BASE | {"data": {"name": "folder", "path": "images"}}))
    assert fedsim("check", scenario_file).code == 0
    for path in (tmp_path / "images").glob("dog/*.png"):
        path.write_bytes(path.read_bytes()[:60])
    # The plan of this scenario is in memory, so reading the images again is what must find the fault.
    outcome = fedsim("run", scenario_file, "--out", tmp_path / "run")
    refused(outcome, f"data.path: {tmp_path}/images/dog/", "is no readable image")
    assert not (tmp_path / "run").exists()


def test_a_class_folder_without_images_is_refused(fedsim, scenario_file, tmp_path):
    _images(tmp_path / "images")
    (tmp_path / "images" / "eel").mkdir()
    scenario_file.write_text(yaml.safe_dump(BASE | {"data": {"name": "folder", "path": "images"}}))
    outcome = fedsim("run", scenario_file, "--out", tmp_path / "run")
    refused(outcome, f"data.path: no image in {tmp_path}/images/eel.")


def test_images_of_several_sizes_need_an_image_size(fedsim, scenario_file, tmp_path):
    _images(tmp_path / "images")
    for path in (tmp_path / "images").glob("dog/*.png"):
        Image.new("RGB", (40, 32)).save(path)
    data = {"name": "folder", "path": "images", "image_size": None}
    scenario_file.write_text(yaml.safe_dump(BASE | {"data": data}))
    outcome = fedsim("run", scenario_file, "--out", tmp_path / "run")
    refused(outcome, "data.image_size: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["not weights", "another model", "not finite"])
def test_a_damaged_weights_file_is_refused(damage, fedsim, scenario_file, tmp_path):
    path = tmp_path / "weights.safetensors"
    if damage == "not weights":
        path.write_bytes(b"not weights")
        says = "is damaged or no weights file"
    elif damage == "another model":
        save_file({"layer.weight": torch.zeros(2, 2)}, path)
        says = "does not hold the weights of this model"
    else:
        model = models.build(ModelPart(name="vit_nano"), 2, 32, 0)
        save_file({name: tensor * torch.inf for name, tensor in model.state_dict().items()}, path)
        says = "holds weights that are not finite"
    model_part = {"name": "vit_nano", "pretrained": "weights.safetensors"}
    scenario_file.write_text(yaml.safe_dump(BASE | {"model": model_part}))
    refused(fedsim("run", scenario_file, "--out", tmp_path / "run"), f"model.pretrained: {path} {says}")
    assert not (tmp_path / "run").exists()


# Damaged run folders


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run; tests copy it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUBS)
        scenario = parse(BASE, "base")
        plan = planning.of(scenario)
        simulation.simulate(plan, RunFolder.create(path, scenario), simulation.Progress())
    return path


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def captured(run) -> Path:
    """A run that is captured and not yet audited."""
    for name in ("records.jsonl", "report.html", "report.md"):
        (run / name).unlink()
    for name in ("artifacts", "tables"):
        shutil.rmtree(run / name)
    return run


@pytest.mark.parametrize(
    ("damage", "name"),
    [("flipped byte", "client-000"), ("cut short", "global"), ("gone", "client-002")],
)
def test_a_damaged_capture_is_refused_and_what_was_done_stays(damage, name, fedsim, captured, finished):
    path = captured / "captures" / "round-0001" / f"{name}.safetensors"
    whole, before = path.read_bytes(), content(captured)
    if damage == "flipped byte":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "cut short":
        path.write_bytes(whole[:-1])
    else:
        path.unlink()
    says = {
        "flipped byte": "corrupted, its checksum differs",
        "cut short": "corrupted, Error while deserializing header",
        "gone": "missing, though captures/index.jsonl lists it",
    }
    refused(fedsim("audit", captured), f"{path}: {says[damage]}")
    path.write_bytes(whole)
    after = content(captured)
    assert before.items() <= after.items()
    assert not [file for file in after if file.endswith(".partial")]
    assert fedsim("audit", captured).code == 0
    assert records_of(captured) == records_of(finished)


@pytest.mark.parametrize("file", ["records.jsonl", "rounds.jsonl", "captures/index.jsonl"])
@pytest.mark.parametrize("line", ["no JSON", "[1, 2]", "{}"])
@pytest.mark.parametrize("command", [["run", "--resume"], ["audit"]], ids=" ".join)
def test_a_line_that_fedsim_did_not_write_is_refused(command, line, file, fedsim, run):
    path = run / file
    path.write_text(line + "\n" + path.read_text())
    before = content(run)
    refused(fedsim(*command, run), f"{path}: line 1 ")
    assert content(run) == before


DAMAGES = {
    "attack that is text": ("records.jsonl", {"attack": "x"}, "attack"),
    "attack without params": ("records.jsonl", {"attack": {"name": "x"}}, "attack.params"),
    "client that is text": ("records.jsonl", {"client": "one"}, "client"),
    "unknown status": ("records.jsonl", {"status": "lost"}, "status"),
    "no participants": ("rounds.jsonl", {"participants": None}, "participants"),
    "participants that are text": ("rounds.jsonl", {"participants": ["a"]}, "participants.0"),
    "failures in a list": ("rounds.jsonl", {"failed": []}, "failed"),
    "loss in words": ("rounds.jsonl", {"loss": "low"}, "loss"),
    "round that is a fraction": ("rounds.jsonl", {"round": 0.5}, "round"),
}


@pytest.mark.parametrize(("file", "change", "where"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("command", [["run", "--resume"], ["audit"]], ids=" ".join)
def test_a_line_with_a_damaged_field_is_named_with_the_field(command, file, change, where, fedsim, run):
    path = run / file
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | change), *rest, ""]))
    before = content(run)
    refused(fedsim(*command, run), f"{path}: line 1 is damaged, or not of fedsim: {where}: ")
    assert content(run) == before


def test_a_file_where_the_report_needs_a_folder_is_told_in_one_line(fedsim, run):
    shutil.rmtree(run / "tables")
    (run / "tables").write_text("mine")
    refused(fedsim("report", run), f"{run}/tables", "exists")
    assert (run / "tables").read_text() == "mine"


@pytest.mark.parametrize("command", [["run", "--resume"], ["audit"], ["report"]], ids=" ".join)
def test_records_of_another_version_are_refused(command, fedsim, run):
    path = run / "records.jsonl"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    before = content(run)
    outcome = fedsim(*command, run)
    refused(outcome, "", "records.jsonl", "line 1", "schema 2", "reads 1")
    assert content(run) == before


ATTACKS = {
    "unknown": ("patch_embeding", "attacks.1.name: no attack 'patch_embeding'. Did you mean 'patch_embedding'?"),
    "number": ("3", "--attack: expected a name or {name: ..., params: ...}, got 3."),
    "nothing": ("", "--attack: expected a name or {name: ..., params: ...}, got nothing."),
    "no YAML": ("{name: x", "--attack: not valid YAML"),
    "unknown key": ("{name: x, param: {}}", "--attack.param: unknown key. Did you mean 'params'?"),
    "without a name": ("{params: {}}", "--attack.name: missing"),
    "unknown parameter": ("{name: stubs:Guess, params: {picture: 2}}", "attacks.1.params.picture: unknown"),
    "ungranted need": (
        "broken_plugins:NeedsLabels",
        "attacks.1.name: broken_plugins:NeedsLabels needs the grant labels",
    ),
    "equal to another": ("{name: stubs:Guess, params: {pictures: 1}}", "attacks.1: stubs:Guess is listed"),
}


@pytest.mark.parametrize(("attack", "starts"), ATTACKS.values(), ids=ATTACKS)
def test_a_bad_attack_leaves_the_run_as_it_was(attack, starts, fedsim, run):
    before = content(run)
    refused(fedsim("audit", run, "--attack", attack), starts)
    assert content(run) == before


def test_an_update_that_is_not_finite_ends_the_run_and_keeps_what_was_finished(fedsim, scenario_file, tmp_path):
    scenario_file.write_text(yaml.safe_dump(BASE | {"training": {"learning_rate": "1e38"}}))
    refused(fedsim("run", scenario_file, "--out", tmp_path / "run"), "training.learning_rate: ")
    run = tmp_path / "run"
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in rounds] == list(range(len(rounds)))
    assert (run / "report.html").exists()
    before = content(run / "captures")
    refused(fedsim("run", "--resume", run), "training.learning_rate: ")
    assert fedsim("audit", run).code == 0
    assert content(run / "captures") == before
