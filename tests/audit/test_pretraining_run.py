"""A client that pre-trains without labels: what its update gives away, what is logged of it, and that nothing calls it safe."""

import shutil

import audits
import pytest
import torch
from safetensors.torch import load_file

from fedsim import simulation
from fedsim.models import patch_grid
from fedsim.planning import preparation as planning
from fedsim.recording.run_folder import RunFolder
from fedsim.report import reading, rendering, summary
from fedsim.report.analysis import Analysis
from fedsim.scenario import parse

OWN = range(2)  # clients that pre-train; another one does not
LABELS = ("label_count", "soft_labels", "head_features")
RAW = {
    "name": "pretraining",
    "engine": "inline",
    "data": {"name": "shapes", "samples": 40, "test_samples": 8, "auxiliary_samples": 24},
    "model": "vit_nano",
    "federation": {"clients": 3, "rounds": 1},
    "training": {"batch_size": 1},
    "defenses": [{"name": "mimir", "clients": [0, 1], "params": {"epsilon": 0.0}}],
    "attacks": ["patch_embedding", *LABELS],
    "threat": {"grants": ["batch_size", "normalization", "defenses"]},
    "audit": {"processes": 0, "calibrate": "none"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    plan = planning.make(parse(RAW, "scenario"))
    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "one", plan.scenario)
    audits.simulate(plan, folder, simulation.Progress())
    return plan, folder, reading.read(folder.path)


def test_the_visible_patches_of_one_image_are_found_exactly_and_the_others_are_not(run):
    plan, folder, found = run
    grid = patch_grid(plan.model())
    for client in OWN:
        record = next(line for line in found.records if (line.client, line.attack.name) == (client, "patch_embedding"))
        seen = folder.read_update(1, client).tensors["pos_embed"][0, 1:].any(1)
        assert int(seen.sum()) == grid.count // 4
        stored = load_file(folder.path / f"artifacts/round-0001/client-{client:03}/00-patch_embedding.safetensors")
        image, own = stored["images"], plan.truth([(1, client)]).images
        errors = ((grid.cut(image) - grid.cut(own)) ** 2).mean((0, 2))
        assert errors[seen].max() < 1e-8 and errors[~seen].mean() > 1e-3
        assert any("12 of 16 patches have no gradient of their own" in caution for caution in record.cautions)


def test_attacks_on_labels_refuse_and_no_attack_is_made_for_it(run):
    _, _, found = run
    for line in found.records:
        if line.client in OWN:
            assert line.attack.name not in LABELS or line.status == "refused"
            assert any("the client trains on one of its own, without labels" in text for text in line.inapplicable)
        else:
            assert line.status == "found" and not line.inapplicable


def test_no_verdict_calls_it_safe(run):
    _, _, found = run
    result = summary.of(Analysis(found))
    assert {line["verdict"] for line in result["attacks"] if line["client"] in OWN} <= {
        "leaks",
        "partial",
        "inconclusive",
    }


def test_what_it_logs_stands_in_the_round_and_in_the_report_and_in_no_update(run):
    _, folder, found = run
    (line,) = (line for line in found.rounds if line.round == 1)
    assert set(line.logged) == set(OWN)
    for client in OWN:
        header = folder.read_header(1, client)
        assert set(header["metrics"]) == {"num-examples", "train_loss"}
        logged = line.logged[client]
        assert set(logged) == {"mimir.reconstruction", "mimir.dependence"}
        assert logged["mimir.reconstruction"] == pytest.approx(header["metrics"]["train_loss"])
        assert logged["mimir.dependence"] == 0  # of a single image
    rendering.render(folder.path)
    mean = sum(logged["mimir.reconstruction"] for logged in line.logged.values()) / len(OWN)
    for name in ("report.md", "report.html"):
        page = (folder.path / name).read_text(encoding="utf-8")
        assert "mimir.reconstruction" in page and f"{mean:.4g}" in page
    assert (folder.path / "tables" / "logged.csv").read_text(encoding="utf-8").count("mimir.dependence") == len(OWN)


def test_a_lost_log_of_rounds_is_made_again_from_the_captures(run, tmp_path):
    plan, folder, _ = run
    other = RunFolder.create(tmp_path / "again", plan.scenario)
    shutil.copytree(folder.path, other.path, dirs_exist_ok=True)
    lines = other.rounds.read()
    (other.path / "rounds.jsonl").unlink()
    audits.simulate(plan, RunFolder(other.path), simulation.Progress())
    again = RunFolder(other.path).rounds.read()
    assert [line.get("logged") for line in again] == [line.get("logged") for line in lines] and lines[1]["logged"]


def test_a_client_without_it_sends_what_it_sends_in_a_run_without_it(run, tmp_path):
    _, folder, _ = run
    plan = planning.make(parse({**RAW, "defenses": [], "attacks": []}, "scenario"))
    other = RunFolder.create(tmp_path / "plain", plan.scenario)
    audits.simulate(plan, other, simulation.Progress())
    sent, plain = folder.read_update(1, 2).tensors, other.read_update(1, 2).tensors
    assert all(torch.equal(tensor, sent[name]) for name, tensor in plain.items())
    assert not any(tensor.any() for name, tensor in sent.items() if name.startswith("mimir."))
