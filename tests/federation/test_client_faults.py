"""One run in which every client but one goes wrong in the first round, each in its own way: the rows of docs/faults.md."""

import json

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp
from safetensors import safe_open

from fedsim import wire
from fedsim.federation import engine_inline
from fedsim.federation.client_app import Client
from fedsim.federation.server_app import server_app
from fedsim.models.build import build
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import ModelPart

HUGE = 100 * 2**20


def raises(content):
    raise RuntimeError("out of battery" + "!" * HUGE)


def sends_wrong_shapes(content):
    content["arrays"] = ArrayRecord({name: Array(a.numpy().reshape(-1)) for name, a in content["arrays"].items()})


def sends_nan(content):
    content["arrays"] = ArrayRecord({name: Array(a.numpy() * np.nan) for name, a in content["arrays"].items()})


def sends_another_architecture(content):
    content["arrays"] = wire.to_arrays(build(ModelPart(name="convnet"), 10, 32, 0).state_dict())


def sends_a_huge_array(content):
    content["arrays"] = ArrayRecord({"junk": Array(np.zeros(HUGE, np.uint8)), "small": Array(np.arange(3.0))})


def sends_a_huge_text(content):
    content["privacy"] = ConfigRecord({"epsilon": 1.0, "delta": 0.1, "neighbors": "x" * HUGE})


def sends_a_bomb(content):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4398046511104,), } "
    content["arrays"]["cls_token"] = Array(
        dtype="float32",
        shape=(1,),
        stype="numpy.ndarray",
        data=b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header,
    )


def also_sends_junk(content):
    content["junk"] = ConfigRecord({"bytes": b"x" * HUGE})


FAULTS = {
    1: (raises, "out of battery!!!"),
    2: (sends_wrong_shapes, "its reply was refused: cls_token has shape (64,), not (1, 1, 64)"),
    3: (sends_nan, "its reply was refused: cls_token is not finite in 64 of 64 entries"),
    4: (sends_another_architecture, "its reply was refused: cls_token and "),
    5: (sends_a_huge_array, "its reply was refused: cls_token and "),
    6: (sends_a_huge_text, "its reply was refused: it states the privacy budget "),
    7: (sends_a_bomb, "its reply was refused: its arrays cannot be read: ValueError: an array of 17592186044416 bytes"),
}
JUNK = 8


def faulty(plan):
    """A ClientApp like the plan's own, of which clients do in round 1 what `FAULTS` says."""
    app, own = ClientApp(), Client(plan.scenario)

    @app.train()
    def train(message, context):
        reply, client = own.train(message, context), context.node_config["partition-id"]
        if message.content["config"]["server-round"] == 1:
            do = also_sends_junk if client == JUNK else FAULTS.get(client, [lambda content: None])[0]
            do(reply.content)
        return reply

    app.query("identify")(Client.identify)
    return app


def test_clients_that_go_wrong_fail_alone_in_their_round_and_nothing_of_the_others_is_lost(tiny_plan, run_folder):
    plan = tiny_plan(federation={"clients": 9}, attacks=[])
    path = run_folder(plan).path
    engine_inline.run(server_app(plan, RunFolder.open(path)), faulty(plan), 9)
    folder = RunFolder.open(path)
    assert_told(folder)
    assert_others_are_captured(plan, folder)
    assert_little_is_kept_of_what_was_refused(folder)


def assert_told(folder):
    first, second = folder.read_rounds()[1:]
    assert first.participants == (0, JUNK) and second.participants == tuple(range(9)) and not second.failed
    assert set(map(int, first.failed)) == set(FAULTS)
    for client, text in first.failed.items():
        assert text.startswith(FAULTS[int(client)][1]), text
        assert len(text) < 1000 and "\n" not in text


def assert_others_are_captured(plan, folder):
    """The next global model is what they alone make of it."""
    assert folder.captured(1) == (0, JUNK)
    for name, weight in plan.initial_weights().items():
        mean = torch.stack([folder.read_update(1, client).tensors[name] for client in (0, JUNK)]).mean(0)
        expected = weight - plan.scenario.training.learning_rate * mean
        torch.testing.assert_close(folder.read_global(2, 0)[name], expected, rtol=1e-4, atol=1e-6)


def assert_little_is_kept_of_what_was_refused(folder):
    kept = {}
    for client in set(FAULTS) - {1}:
        file = folder.path / "captures" / "round-0001" / f"rejected-client-{client:03d}.safetensors"
        with safe_open(file, "pt") as opened:
            header = json.loads(opened.metadata()["fedsim"])
            kept[client] = [array.get("bytes_left_out") for array in header["arrays"]], len(list(opened.keys()))
    left_out, count = kept[5]
    assert left_out[0] > HUGE and left_out[1] is None and count == 1
    assert sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file()) < HUGE / 5
