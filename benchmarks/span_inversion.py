"""Whole batches at 224 px out of stock Vision Transformers: every image of `span_inversion`, beside blind controls.

    python benchmarks/span_inversion.py FOLDER --cells vit_small_patch32_224:2 vit_base_patch32_224:8
    python benchmarks/span_inversion.py FOLDER --cells vit_small_patch32_224:2 --changes none noise:1e-6 fp16 top_k:0.1
    python benchmarks/span_inversion.py FOLDER --cells vit_small_patch32_224:4 --steps 200
    python benchmarks/span_inversion.py --show

FOLDER holds images in class folders. A cell is a timm model and a batch size; no image is used twice in a cell. Labels are
drawn without repeats. The model is untrained, or trained for `--steps` steps of AdamW on enlarged images of CIFAR-10
(`--cifar`), which are no images of the folder. The normalization alone is granted. `--changes` does to the gradient what
defenses and transports do: Gaussian noise of a share of its norm, rounding, the largest entries alone, parameters that are not
shared (`hidden:pos_embed`). The best control is the higher of grey and each image's own mean color. Every attempt is one row
of the output, and is not made again, unless with `--again` where another version of the attack made it: `*` in the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attack_sources import digest, older
from fedsim_attacks.span_inversion import SpanInversion
from torch import Tensor, nn

from fedsim import models
from fedsim.audit.threat import ModelFactory
from fedsim.data.folder import Folder
from fedsim.data.parquet import Parquet
from fedsim.errors import AttackRefusedError
from fedsim.exchange import LabeledImages, Observation, Update
from fedsim.findings import blind
from fedsim.metrics.image import psnr
from fedsim.metrics.matching import match
from fedsim.scenario import ModelPart
from fedsim.seeds import torch_generator, torch_threads
from fedsim.source import Pool

SIZE, CLASSES = 224, 1000
RESULTS = Path(__file__).parent / "results" / "span_inversion.json"
Tensors = Mapping[str, Tensor]


class Cell(NamedTuple):
    """A model and a batch size."""

    model: str
    size: int


def main() -> None:
    """Measure every cell that the results lack, print a line each, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="images in class folders")
    parser.add_argument(
        "--cells", type=_cell, nargs="+", default=[Cell("vit_small_patch32_224", 2)], metavar="MODEL:SIZE"
    )
    parser.add_argument("--changes", nargs="+", default=["none"], metavar="NAME[:VALUE]")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="of training before")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10 in parquet, to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="make those again that other code of the attack made")
    parser.add_argument("--show", action="store_true", help="print the table of the results, and end")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(options.output.read_text()) if options.output.exists() else []
    if options.show:
        print(table(rows))
        return
    if options.folder is None:
        parser.error("FOLDER is needed, unless with --show")
    if options.steps and options.cifar is None:
        parser.error("--steps needs --cifar")
    pool = Folder(path=str(options.folder), image_size=SIZE).load(options.seed).train
    with torch_threads(options.threads):
        for cell in options.cells:
            model = victim(cell.model, options)
            for batch in range(options.batches):
                for change in options.changes:
                    key = {
                        "model": cell.model,
                        "size": cell.size,
                        "batch": batch,
                        "change": change,
                        "steps": options.steps,
                        "seed": options.seed,
                    }
                    known = [row for row in rows if all(row[name] == value for name, value in key.items())]
                    if any(row["code"] == digest("span_inversion") or not options.again for row in known):
                        continue
                    rows = [row for row in rows if row not in known]
                    made = {"code": digest("span_inversion")} | attempt(model, pool, cell.size, batch, change, options)
                    rows.append(key | made)
                    print(json.dumps(rows[-1]), flush=True)
                    options.output.write_text(json.dumps(rows, indent=1) + "\n")


def _cell(text: str) -> Cell:
    name, _, size = text.rpartition(":")
    return Cell(name, int(size))


def victim(name: str, options: argparse.Namespace) -> nn.Module:
    """Return the model, trained as asked for; with a classifier of the training data's classes where it is trained."""
    if not options.steps:
        return models.build(ModelPart(name=name), CLASSES, SIZE, options.seed)
    pools = Parquet(path=str(options.cifar), image_size=SIZE).load(options.seed)
    source = pools.train
    model = models.build(ModelPart(name=name), len(pools.class_names), SIZE, options.seed)
    normalize = models.normalization(model).normalize
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    generator = torch_generator(options.seed, "training")
    model.train()
    for step in range(options.steps):
        chosen = torch.randperm(len(source), generator=generator)[:32].tolist()
        images, labels = source.read(chosen).images, source.read(chosen).labels
        optimizer.zero_grad()
        output = model(normalize(images))
        torch.nn.functional.cross_entropy(output, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 20 == 0 or step == options.steps - 1:
            print(
                f"step {step}: accuracy of the batch {float((output.argmax(1) == labels).float().mean()):.2f}",
                flush=True,
            )
    return model.eval()


def observed(model: nn.Module, true: LabeledImages, change: str, generator: torch.Generator) -> Observation:
    """Return what a server sees of one batch, as a defense or a transport leaves it."""
    normalization = models.normalization(model)
    gradient = models.gradient_of(model, normalization.normalize(true.images), true.labels)
    classes = int(model.get_classifier().out_features)  # type: ignore[operator]
    return Observation(
        Update(1, 0, "gradient", changed(gradient, change, generator), len(true.labels)),
        ModelFactory(model),
        (3, SIZE, SIZE),
        classes,
        normalization=normalization,
    )


def attempt(
    model: nn.Module, pool: Pool, size: int, batch: int, change: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Return what the attack finds of one batch."""
    classes = model.get_classifier().out_features  # type: ignore[operator]
    generator = torch_generator(options.seed, f"labels {batch}")
    images = pool.read(range(batch * size, (batch + 1) * size)).images
    true = LabeledImages(images, torch.randperm(classes, generator=generator)[:size])
    observation = observed(model, true, change, torch_generator(options.seed, f"change {batch}"))
    controls = [
        psnr(guess, image, 1.0)
        for kind in (blind.grey, blind.own_mean)
        for guess, image in zip(kind(images), images, strict=True)
    ]
    best = [max(controls[place::size]) for place in range(size)]
    wall, start = time.perf_counter(), time.process_time()
    try:
        finding = SpanInversion().run(observation, torch_generator(options.seed, "attack"))
    except AttackRefusedError as error:
        return {
            "refused": str(error),
            "control": best,
            "cpu": time.process_time() - start,
            "wall": time.perf_counter() - wall,
        }
    cpu, wall = time.process_time() - start, time.perf_counter() - wall
    assert finding.images is not None
    pairs = [(found, image) for image, found in enumerate(match(finding.images, images)) if found is not None]
    scores = [0.0] * size
    for found, image in pairs:
        scores[image] = psnr(finding.images[found], images[image], 1.0)
    right = None
    if finding.labels is not None:
        right = sum(int(finding.labels[found]) == int(true.labels[image]) for found, image in pairs) / size
    return {
        "psnr": [round(score, 1) for score in scores],
        "control": [round(score, 1) for score in best],
        "labels": right,
        "confidence": finding.trace["confidence"],
        "tokens": finding.trace["tokens"],
        "cpu": round(cpu),
        "wall": round(wall),
        "torch_threads": options.threads,
    }


def changed(gradient: Tensors, change: str, generator: torch.Generator) -> Tensors:
    """Return a gradient as a defense or a transport leaves it.

    Raises:
        SystemExit: no such change.
    """
    name, _, value = change.partition(":")
    whole = torch.cat([tensor.flatten() for tensor in gradient.values()])
    spread = float(whole.norm()) / len(whole) ** 0.5
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda tensor: tensor,
        "noise": lambda tensor: tensor + float(value) * spread * torch.randn(tensor.shape, generator=generator),
        "fp16": lambda tensor: (tensor * 1024).half().float() / 1024,
        "bf16": lambda tensor: tensor.bfloat16().float(),
        "int8": lambda tensor: (tensor / tensor.abs().max() * 127).round() / 127 * tensor.abs().max(),
        "top_k": lambda tensor: torch.where(tensor.abs() >= threshold, tensor, 0.0),
        "clipping": lambda tensor: tensor * float(value) / whole.norm(),
    }
    if name == "hidden":
        return {name: tensor for name, tensor in gradient.items() if not fnmatchcase(name, value)}
    if name not in kinds:
        raise SystemExit(f"--changes: {change} is none of {', '.join([*kinds, 'hidden'])}.")
    threshold = 0.0
    if name == "top_k":
        threshold = float(whole.abs().kthvalue(int((1 - float(value)) * len(whole)) + 1).values)
    return {parameter: kinds[name](tensor) for parameter, tensor in gradient.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table, one row a cell."""
    lines = [
        "| model | batch | weights | update | images, dB: every one | best control | labels | confidence | processor time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["model"], row["size"], row["steps"], row["change"]), []).append(row)
    for (model, size, steps, change), own in cells.items():
        done = [row for row in own if "psnr" in row]
        images = "; ".join(
            ", ".join(f"{score:.0f}" for score in row["psnr"]) if "psnr" in row else "refused" for row in own
        )
        control = statistics.mean(score for row in own for score in row["control"])
        labels = (
            "" if not done or done[0]["labels"] is None else f"{statistics.mean(row['labels'] for row in done):.2f}"
        )
        confidence = "" if not done else f"{min(min(row['confidence']) for row in done):.2f}"
        seconds = statistics.mean(row["cpu"] for row in own)
        weights = f"{steps} steps" if steps else "untrained"
        mark = "*" if any(older({"span_inversion": row["code"]}) for row in own) else ""
        cells_of_row = (
            f"`{model}`",
            size,
            weights,
            change,
            images + mark,
            f"{control:.1f}",
            labels,
            confidence,
            f"{seconds:.0f} s",
        )
        lines.append(f"| {' | '.join(map(str, cells_of_row))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
