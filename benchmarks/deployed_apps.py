"""The example apps on a SuperLink with two SuperNodes, real processes on loopback, audited afterwards and scored.

    python benchmarks/deployed_apps.py                       # all of them
    python benchmarks/deployed_apps.py quickstart vit_head
    python benchmarks/deployed_apps.py guarded:warn guarded:add

`guarded:POLICY` is tests/flower_apps/guarded with that policy of leak_guard; the lines of its clients' logs are printed, and
the server's attacks are the two that the guard tries. Each app runs one round and is then audited by `fedsim audit --truth`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomli_w

from fedsim import api
from fedsim.deployment import commands, network
from fedsim.deployment.processes import Processes

APPS = Path(__file__).parents[1] / "tests" / "flower_apps"
_NODES = 2
_PATIENCE = 900.0  # seconds for each process to start, and for the run


def main() -> None:
    """Print a row for each client and attack of each app."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("apps", nargs="*", default=["quickstart", "vit_head", "guarded:warn", "guarded:add"])
    print("| app | client | attack | score | best blind control | verdict |\n|---|---|---|---|---|---|")
    for named in parser.parse_args().apps:
        name, _, policy = named.partition(":")
        with tempfile.TemporaryDirectory(prefix="deployed-apps-") as scratch:
            folder, logs = Path(scratch) / "run", Path(scratch) / "logs"
            logs.mkdir()
            began = time.perf_counter()
            deploy(name, {"num-server-rounds": 1, "fedsim-folder": str(folder), **guarding(policy, logs)})
            took = time.perf_counter() - began
            for row in audited(name, folder):
                print(f"| {named} | {' | '.join(row)} |", flush=True)
            print(f"{named}: {took:.0f} s, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
            for log in sorted(logs.iterdir()):
                for line in map(json.loads, log.read_text().splitlines()):
                    print(f"  {log.stem}: {line}", file=sys.stderr)


def guarding(policy: str, logs: Path) -> dict[str, str]:
    """Return the part of a run configuration that belongs to leak_guard."""
    return {"policy": policy, "guard-log": str(logs)} if policy else {}


def deploy(name: str, config: dict[str, Any]) -> None:
    """Run an app on a SuperLink and SuperNodes of its own."""
    with Processes(commands.environment()) as processes:
        network.start(processes, _NODES, None, _PATIENCE)
        stated = processes.folder / "config-of-run.toml"
        stated.write_text(tomli_w.dumps(config), encoding="utf-8")
        # The exit code of `flwr run` tells nothing of the run: the observer's folder does.
        network.call(processes, "run", commands.run(APPS / name, stated), _PATIENCE)
        if not Path(config["fedsim-folder"]).is_dir():
            raise SystemExit(f"{name}: nothing was observed. flwr run said:\n{processes.said('run')}")


def audited(name: str, folder: Path) -> list[tuple[str, ...]]:
    """Audit what was observed as a user does, and return the rows of its summary: client, attack, score, control, verdict."""
    command = [sys.executable, "-m", "fedsim", "audit", str(folder), "--truth", f"{name}_app.truth:batches"]
    if name == "guarded":
        command += ["--attack", "label_count", "--attack", "patch_embedding"]
    environment = {**os.environ, "PYTHONPATH": path()}
    done = subprocess.run(command, cwd=APPS / name, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: fedsim audit failed:\n{done.stdout}\n{done.stderr}")
    entries: Any = api.load(folder).summary["attacks"]
    return [
        (
            str(one["client"]),
            one["attack"],
            f"{one['metric']} {one['value']:.2f}" if one["metric"] else "",
            f"{one['control']['name']} {one['control']['value']:.2f}" if one["control"] else "",
            one["verdict"],
        )
        for one in entries
    ]


def path() -> str:
    """Return this process's PYTHONPATH with the working directory of the audit first, where the app is."""
    return os.pathsep.join([".", *filter(None, [os.environ.get("PYTHONPATH")])])


if __name__ == "__main__":
    main()
