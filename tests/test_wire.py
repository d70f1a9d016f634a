import ast
import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsim import wire

DTYPES = [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint8, np.bool_]


@given(array=st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))))
def test_arrays_survive_the_wire_bit_for_bit(array):
    got = wire.to_tensors(ArrayRecord({"w": Array(array)}))["w"].numpy()
    assert got.dtype == array.dtype and got.shape == array.shape and got.tobytes() == array.tobytes()


@pytest.mark.parametrize("array", [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(6.0)[::2], np.float32(2)])
def test_any_memory_order_is_read_as_flower_reads_it(array):
    flower = Array(np.asarray(array))
    got = wire.to_tensors(ArrayRecord({"w": flower}))["w"]
    assert torch.equal(got, torch.from_numpy(flower.numpy()))


def test_a_decoded_array_is_a_copy_that_may_be_written():
    sent = Array(np.ones(3, np.float32))
    wire.to_tensors(ArrayRecord({"w": sent}))["w"].add_(1)
    assert np.array_equal(sent.numpy(), np.ones(3))


def test_decoding_leaves_the_ast_module_alone_which_threads_of_the_host_may_be_using(monkeypatch):
    sent = wire.to_arrays({"w": torch.ones(2, 3), "scale": torch.tensor(1.0), "empty": torch.zeros(0, 4)})

    def busy(*_):
        raise SystemError("AST constructor recursion depth mismatch")

    monkeypatch.setattr(ast, "literal_eval", busy)
    got = wire.to_tensors(sent)
    assert torch.equal(got["w"], torch.ones(2, 3)) and got["scale"] == 1 and got["empty"].shape == (0, 4)


def npy(header, data=b"", version=b"\x01\x00", size=2):
    return b"\x93NUMPY" + version + len(header).to_bytes(size, "little") + header + data


BOMB = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (npy(BOMB, bytes(8)), "cannot reshape"),
        (
            npy(BOMB.replace(b"'<f4'", b' "<f4"'), bytes(8)),
            "of 4398046511104 bytes, as it states, of which 8 are there",
        ),
        (npy(BOMB, bytes(8), b"\x02\x00", 4), "of 4398046511104 bytes, as it states, of which 8 are there"),
        (npy(BOMB.replace(b"(1099511627776,)", b"(1,)"), bytes(8), b"\x02\x00", 4), "of which 8 are there"),
        (
            npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps(print)),
            "are there|Object arrays",
        ),
        (npy(BOMB, bytes(8), b"\x03\x00", 4), r"version \(3, 0\)"),
        (pickle.dumps(print), "magic"),
        (b"PK\x03\x04" + bytes(60), "magic"),
        (b"", "."),
    ],
)
def test_bytes_that_state_more_than_they_hold_are_refused_and_nothing_is_unpickled(data, said):
    sent = ArrayRecord({"w": Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=data)})
    with pytest.raises(ValueError, match=said):
        wire.to_tensors(sent)
