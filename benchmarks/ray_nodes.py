"""The same audit on one worker process and on two Ray nodes of this machine, the second of which is killed in a last audit.

    python benchmarks/ray_nodes.py --out benchmarks/results/ray_nodes.json

Each node is a `ray start` of its own, with one CPU and ports of its own. Prints the wall time of each audit, and whether its
records and images equal those of the worker process, `seconds` aside. The audit of the worker process and that of the two nodes
take turns; `--pairs` says how often. `--apart` has the second node not see the run folder, which needs root and Linux: it
starts in a mount namespace where an empty folder lies over it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedsim import process_tree
from fedsim.deployment.network import free_port
from fedsim.federation.engine import train
from fedsim.planning import inputs
from fedsim.planning import preparation as planning
from fedsim.planning.plan import Plan
from fedsim.recording import environment
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import parse
from fedsim.simulation import Progress, audit

SCENARIO: dict[str, Any] = {
    "name": "ray-nodes",
    "engine": "inline",
    "data": {"name": "shapes", "samples": 64, "test_samples": 16, "auxiliary_samples": 8},
    "model": {"name": "vit_nano"},
    "federation": {"rounds": 2},
    "training": {"batch_size": 1},
    "threat": {"grants": ["batch_size", "normalization"]},
}
_KILL_AFTER = 3  # records


def main() -> None:
    """Print the times and whether the records are equal; write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--steps", type=int, default=60, help="of the attack on each update")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--apart", action="store_true", help="the second node does not see the run folder")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    attack = {"name": "dlg", "params": {"steps": options.steps}}
    content = {**SCENARIO, "federation": {"clients": options.clients, "rounds": 2}, "attacks": [attack]}
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="fedsim-ray-") as scratch,
        nodes(scratch if options.apart else None) as second,
    ):
        captured = capture(planned(content, "processes"), Path(scratch) / "captured")
        for _ in range(options.pairs):
            rows.append(measured("one worker process", planned(content, "processes"), captured))
            rows.append(measured("two Ray nodes", planned(content, "ray"), captured))
        rows.append(measured("two Ray nodes, one killed", planned(content, "ray"), captured, killing(second)))
    expected = rows[0]["found"]
    for row in rows:
        row["equal"] = row.pop("found") == expected
        print(
            f"{row['what']}: {row['seconds']:.1f} s, {row['records']} records, {row['failed']} failed, "
            f"{'equal' if row['equal'] else 'DIFFERENT'}; load {row['load']:.1f}"
        )
    one, two = (
        sum(row["seconds"] for row in rows if row["what"] == what) for what in ("one worker process", "two Ray nodes")
    )
    print(f"throughput of two nodes: {one / two:.2f} times that of one worker process")
    if options.out:
        options.out.write_text(
            json.dumps({"scenario": content, "audits": rows, "throughput": one / two}, indent=2) + "\n"
        )


def planned(content: dict[str, Any], executor: str) -> Plan:
    """Return the plan of the scenario with this executor."""
    part = {"executor": executor, "processes": 1, "calibrate": "none"}
    return planning.make(parse({**content, "audit": part}, "benchmark"))


def capture(plan: Plan, path: Path) -> Path:
    """Train once, without an audit."""
    folder = RunFolder.create(path, plan.scenario)
    folder.write(path / "environment.json", environment.as_json("simulated"))
    inputs.bind(folder, inputs.of(plan))
    train(plan, folder)
    return path


def measured(
    what: str, plan: Plan, captured: Path, on_record: Callable[[Any], None] = lambda record: None
) -> dict[str, Any]:
    """Audit a copy of the captured run, and return what came of it."""
    path = captured.with_name("audited")
    shutil.copytree(captured, path)
    load, began = os.getloadavg()[0], time.perf_counter()
    records = audit(plan, RunFolder.open(path), Progress(on_record=on_record))
    seconds = time.perf_counter() - began
    found = [without_seconds(record.as_json()) for record in records]
    images = {
        image.relative_to(path).as_posix(): hashlib.sha256(image.read_bytes()).hexdigest()
        for image in sorted((path / "artifacts").rglob("*.png"))
    }
    shutil.rmtree(path)
    failed = sum(record.status == "failed" for record in records)
    return {
        "what": what,
        "seconds": seconds,
        "records": len(records),
        "failed": failed,
        "load": load,
        "found": (found, images),
    }


def without_seconds(value: Any) -> Any:
    """Return a line without the times in it."""
    if isinstance(value, dict):
        return {name: without_seconds(item) for name, item in value.items() if name != "seconds"}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


@contextlib.contextmanager
def nodes(hidden: str | None) -> Iterator[subprocess.Popen[bytes]]:
    """Start two nodes, name their cluster in RAY_ADDRESS, and give the second, which does not see one folder; end both."""
    address = f"127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]
    # Of its own, and short enough for sockets: others on this machine would join a cluster in the usual place.
    place = tempfile.mkdtemp(prefix="nodes-")
    started: list[subprocess.Popen[bytes]] = []
    try:
        head = ["--head", "--port", port, "--include-dashboard=false", "--temp-dir", place]
        for given in (head, ["--address", address]):
            command = [str(Path(sys.executable).with_name("ray")), "start", *given, "--num-cpus=1", "--block"]
            command += ["--disable-usage-stats", "--object-store-memory=100000000"]
            if hidden is not None and given is not head:
                over = 'mount -t tmpfs none "$0" && exec "$@"'
                command = ["unshare", "--mount", "sh", "-c", over, hidden, *command]
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            wait_for_nodes(address, len(started))
        os.environ["RAY_ADDRESS"] = address
        yield started[1]
    finally:
        for node in started:
            kill(node)
        shutil.rmtree(place, ignore_errors=True)


def wait_for_nodes(address: str, count: int) -> None:
    """Wait until so many nodes have joined."""
    code = f"import ray; ray.init('{address}', logging_level=50); print(sum(node['Alive'] for node in ray.nodes()))"
    for _ in range(20):
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120).stdout
        if said.strip().endswith(str(count)):
            return
        time.sleep(1)
    raise SystemExit("the nodes of Ray do not start")


def killing(node: subprocess.Popen[bytes]) -> Callable[[Any], None]:
    """Return what kills a node once there are some records."""
    seen: list[Any] = []

    def on_record(record: Any) -> None:
        seen.append(record)
        if len(seen) == _KILL_AFTER:
            kill(node)

    return on_record


def kill(node: subprocess.Popen[bytes]) -> None:
    """Kill all processes of a node at once, as if its machine were gone."""
    for process in (*process_tree.descendants(node.pid), node.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    node.wait()


if __name__ == "__main__":
    main()
