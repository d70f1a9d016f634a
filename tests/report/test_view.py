"""What a page says of the set-up."""

from fedsim.report import reading, view


def test_what_is_trained_and_sent_is_told_where_that_is_not_all(tiny_plan, run_folder):
    part = {"lora": {"rank": 2}, "position_embedding": "sincos"}
    plan = tiny_plan(model=part, training={"trainable": ["!head.bias"]})
    told = dict(view._facts(reading.read(run_folder(plan).path)))
    assert told["Trained and sent"] == "!head.bias"
    assert told["LoRA"] == "rank 2 of *.attn.qkv, *.attn.proj, with the head; the rest is frozen"
    assert told["Position embedding"] == "sines and cosines, fixed"
    plain = dict(view._facts(reading.read(run_folder(tiny_plan(), "plain").path)))
    assert not {"Trained and sent", "LoRA", "Position embedding"} & plain.keys()
