"""Check the built wheel: its content, and that it works installed, from an empty folder and from the checkout.

Usage: python .ci/check_wheel.py WORK_FOLDER CHECKOUT
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

PACKAGES = {
    "fedsim": Path("fedsim"),
    "fedsim_attacks": Path("attacks/fedsim_attacks"),
    "fedsim_defenses": Path("defenses/fedsim_defenses"),
}
SCENARIOS = "fedsim/scenarios"  # where those of the checkout are in the wheel


def call(*command: str | Path, cwd: Path) -> None:
    """Run a command, and stop with its output if it fails."""
    print(f"  {cwd.name}$ {' '.join(map(str, command))}", flush=True)
    done = subprocess.run(list(map(str, command)), cwd=cwd, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")


def shipped(root: Path) -> set[str]:
    """Return the names that the wheel must hold: every file of the three packages, and the scenarios."""
    found = set()
    for name, folder in {**PACKAGES, SCENARIOS: Path("scenarios")}.items():
        for path in (root / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"{name}/{path.relative_to(root / folder).as_posix()}")
    return found


def check_content(wheel: Path, root: Path) -> None:
    """Compare the wheel's files with the tree's."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    content = {name for name in names if ".dist-info/" not in name}
    top = {name.partition("/")[0] for name in content}
    assert top == set(PACKAGES), f"top level of the wheel: {sorted(top)}"
    assert content == shipped(root), f"differs from the tree: {sorted(content ^ shipped(root))}"
    for package in PACKAGES:
        assert f"{package}/py.typed" in content, f"{package} lacks py.typed"


def check_installed(python: Path, root: Path, work: Path) -> None:
    """Run the installed product from an empty folder and from the checkout, inline and on Ray."""
    check_script(python, work)
    out = work / f"{python.parent.parent.name}-module"
    call(python, "-m", "fedsim", "run", "smoke", "--out", out, cwd=root)
    out = work / f"{python.parent.parent.name}-ray"
    smoke = root / "scenarios" / "smoke.yaml"
    call(python.parent / "fedsim", "run", smoke, "--engine", "ray", "--out", out, cwd=root)
    assert '"status": "found"' in (out / "records.jsonl").read_text()


def check_script(python: Path, work: Path) -> None:
    """Run the command from an empty folder; of an editable installation that is all, since the tests run all else there."""
    empty, script = work / "empty", python.parent / "fedsim"
    empty.mkdir(exist_ok=True)
    call(script, "list", "attacks", cwd=empty)
    call(script, "run", "smoke", "--out", work / f"{python.parent.parent.name}-script", cwd=empty)


def main() -> None:
    """Build and check; exits non-zero with the reason."""
    work, root = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    call(sys.executable, "-m", "build", "--wheel", "--outdir", work / "dist", root, cwd=work)
    (wheel,) = (work / "dist").glob("*.whl")
    check_content(wheel, root)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    installed = work / "installed"
    venv.create(installed, with_pip=True)
    call(installed / "bin" / "pip", "install", "--quiet", wheel, cwd=work)
    check_installed(installed / "bin" / "python", root, work)
    editable = Path(sys.executable)
    check_script(editable, work)
    typed = work / "typed.py"
    typed.write_text("import fedsim, fedsim_attacks, fedsim_defenses\n\nreveal: str = fedsim.__version__\n")
    call(editable, "-m", "mypy", "--strict", "--config-file=", typed, cwd=work)
    print(f"wheel check passed: {wheel.name}")


if __name__ == "__main__":
    main()
