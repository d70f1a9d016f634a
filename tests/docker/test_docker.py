"""The files under docker/: no container engine is needed to see that they fit Flower, fedsim, each other and the repository."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from flower_cli import parsed

ROOT = Path(__file__).parent.parent.parent
DOCKER = ROOT / "docker"
# Of https://github.com/compose-spec/compose-spec/blob/main/spec.md: what these files use.
TOP = {"name", "services", "networks", "volumes"}
SERVICE = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "healthcheck",
    "image",
    "init",
    "network_mode",
    "networks",
    "profiles",
    "restart",
    "security_opt",
    "volumes",
}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


def read(name):
    content = yaml.safe_load((DOCKER / name).read_text())
    return {key: value for key, value in content.items() if not key.startswith("x-")}


def merged(base, over):
    """Return two files as compose merges them: commands and tests are replaced, other lists are joined, mappings merged."""
    found = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            found[key] = merged(found[key], value)
        elif isinstance(value, list) and key not in ("command", "test") and key in found:
            found[key] = [*found[key], *value]
        else:
            found[key] = value
    return found


PLAIN = read("compose.yaml")
TLS = merged(PLAIN, read("with-tls.yaml"))
BOTH = pytest.mark.parametrize("compose", [PLAIN, TLS], ids=["compose", "with-tls"])


def substituted(text):
    return re.sub(r"\$\{\w+:-(\w+)\}", r"\1", text)


def commands(compose):
    """Yield service and command line of all programs that containers start; those of shell scripts line by line."""
    for name, service in compose["services"].items():
        command = [substituted(part) for part in service["command"]]
        if command[:2] == ["sh", "-ec"]:
            yield from ((name, shlex.split(line)) for line in command[2].splitlines() if not line.startswith("if "))
        else:
            yield name, command


def parsed_by_fedsim(command):
    import typer

    from fedsim.cli import app

    group = typer.main.get_command(app)
    with group.make_context("fedsim", command[1:], resilient_parsing=True) as context:
        _, found, arguments = group.resolve_command(context, command[1:])
        return found.make_context("fedsim", arguments).params


def dockerfile():
    """Return the instructions of the Dockerfile, their lines joined."""
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def copied():
    """Return the sources that the image is built from."""
    for kind, rest in dockerfile():
        *sources, _ = rest.split()
        if kind == "COPY" and not sources[0].startswith("--from"):
            yield from sources


@BOTH
def test_every_command_line_is_one_that_its_program_takes(compose):
    programs = []
    for _, command in commands(compose):
        programs.append(command[0])
        if command[0] == "fedsim":
            parsed_by_fedsim(command)
        elif command[0] != "cp":
            parsed(command)
    assert {"flower-superlink", "flower-supernode", "fedsim"} <= set(programs)


@pytest.mark.parametrize(
    "command", [["flower-supernode", "--superlink-address", "a"], ["flower-superlink", "--port", "x"]]
)
def test_a_command_line_that_flower_does_not_take_is_seen(command):
    with pytest.raises(SystemExit):
        parsed(command)


@BOTH
def test_the_files_use_keys_of_the_specification_and_refer_to_what_is_there(compose):
    assert set(compose) <= TOP
    for name, service in compose["services"].items():
        assert set(service) <= SERVICE, name
        assert service["image"] == "fedsim" and service["init"] is True
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert set(service.get("networks", ())) <= set(compose["networks"])
        assert ("networks" in service) != ("network_mode" in service)
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] in CONDITIONS
            if how["condition"] == "service_healthy":
                assert "healthcheck" in compose["services"][needed]
            assert needed in compose["services"]
    assert "ports" not in str(compose), "nothing is reachable from outside"


@BOTH
def test_volumes_are_declared_and_their_places_belong_to_the_user_of_the_image(compose):
    (made,) = (rest for kind, rest in dockerfile() if kind == "RUN" and "install -d" in rest)
    owned = re.search(r"install -d -o fedsim .*?((?: /\S+)+)$", made).group(1).split()
    used = set()
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source, target = volume.split(":")
            assert source in compose["volumes"] and target in owned
            used.add(source)
    assert used == set(compose["volumes"])


@BOTH
def test_the_roles_reach_one_another(compose):
    nodes = []
    for name, command in commands(compose):
        if command[0] == "fedsim" and command[1] == "run":
            given = parsed_by_fedsim(command)
            assert given["superlink"] == "superlink:8000" and given["engine"] == "deployment"
            places = [volume.split(":")[1] for volume in compose["services"]["superlink"]["volumes"]]
            assert str(Path(given["out"]).parent) in places, "the ServerApp writes the run folder of the auditor"
        elif command[0] == "flower-supernode":
            given = parsed(command)
            assert given["superlink"] == "superlink:8000"
            nodes.append((name, given["node_config"]))
        elif command[0] == "flower-superlink":
            assert (name, parsed(command)["host"], parsed(command)["port"]) == ("superlink", "0.0.0.0", 8000)
    assert nodes == [(f"supernode-{client}", f"partition-id={client} num-partitions=2") for client in (0, 1)]
    from fedsim import scenario, shipped

    assert scenario.load(shipped.find("smoke"))[0].federation.clients == len(nodes)


def test_with_tls_each_role_has_the_files_that_it_names_and_no_key_of_another():
    given, made = {}, ()
    for _, command in commands(TLS):
        if command[:2] == ["fedsim", "certs"]:
            params = parsed_by_fedsim(command)
            assert list(params["name"]) == ["superlink"] and params["clients"] == 2
            folder = str(params["folder"])
            keys = [f"node-{client}{end}" for client in range(2) for end in ("", ".pub")]
            made = {f"{folder}/{file}" for file in ("ca.crt", "server.crt", "server.key", *keys)}
        elif command[0] == "cp":
            assert set(command[1:-1]) <= set(made)
            given[command[-1]] = {Path(file).name for file in command[1:-1]}
    private = {"server.key", "node-0", "node-1"}
    assert {place: files & private for place, files in given.items()} == {
        "/tls/superlink": {"server.key"},
        "/tls/node-0": {"node-0"},
        "/tls/node-1": {"node-1"},
        "/tls/public": set(),
    }
    for name, command in commands(TLS):
        if name != "certificates":
            places = [volume.split(":")[1] for volume in TLS["services"][name].get("volumes", ())]
            for file in re.findall(r"/tls/\S+", " ".join(command)):
                folder = file if file in given else str(Path(file).parent)
                assert folder in places and (file in given or Path(file).name in given[folder])
            assert "--insecure" not in command


def test_the_image_is_pinned_runs_without_rights_and_installs_a_wheel_alone():
    steps = dockerfile()
    bases = [rest.split()[0] for kind, rest in steps if kind == "FROM"]
    assert len(set(bases)) == 1 and re.fullmatch(r"python:3\.11\.\d+-slim-\w+", bases[0])
    users = [rest for kind, rest in steps if kind == "USER"]
    assert users == ["fedsim"]
    final = steps[max(n for n, (kind, _) in enumerate(steps) if kind == "FROM") :]
    installs = [rest for kind, rest in final if kind == "RUN" and "pip install" in rest]
    assert installs and all("--only-binary=:all:" in install for install in installs)
    assert all(rest.startswith("--from=build /wheels/") for kind, rest in final if kind == "COPY")
    environment = " ".join(rest for kind, rest in steps if kind == "ENV")
    assert "FLWR_TELEMETRY_ENABLED=0" in environment and "FLWR_DISABLE_UPDATE_CHECK=1" in environment


def test_what_the_dockerfile_copies_is_there_and_not_ignored():
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().split()
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert lines[0] == "*"
    for source in copied():
        assert (ROOT / source).exists() and any(fnmatch.fnmatch(source, pattern) for pattern in kept), source


def test_the_wheel_is_built_from_what_the_dockerfile_copies(tmp_path):
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    source.mkdir()
    for name in copied():
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, source)
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    assert {"fedsim/flower_app/server.py", "fedsim/deployment/keeper.py", "fedsim/scenarios/smoke.yaml"} <= set(names)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {Path(p).name for p in packages}


def test_the_readme_names_files_and_services_that_are_there():
    text = (DOCKER / "README.md").read_text()
    for file in re.findall(r"-f (docker/\S+)", text):
        assert (ROOT / file.rstrip("`")).is_file(), file
    for service in re.findall(r"run --rm (\w+)", text):
        assert service in PLAIN["services"] or service == "fedsim"
