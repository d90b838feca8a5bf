"""The clusters of `ray up`: what Ray itself makes of their YAMLs, offline."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start
from ray.util import get_node_ip_address

from cluster.jobs import OURS
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
SPECS = ROOT / "cluster" / "specs"
BIN = Path(sys.executable).parent
NAMES = ["aws", "gcp", "local"]
CLOUDS = ["aws", "gcp"]


def load(name):
    return yaml.safe_load((SPECS / f"{name}.yaml").read_text())


def start_commands(name):
    """Return the commands with which Ray is started, on the head and on the others."""
    config = load(name)
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


def flags(command):
    """Return the arguments of `ray start`, what the shell would put in replaced."""
    told = command.split("ray start", 1)[1].replace("$RAY_HEAD_IP", "10.0.0.1")
    return shlex.split(told.replace("$(nproc)", "4").replace("$gpus", "1"))


@pytest.mark.parametrize("name", NAMES)
def test_ray_takes_the_cluster(name):
    prepared = prepare_config(load(name))
    validate_config(prepared)
    assert (
        prepared["head_setup_commands"][: len(load(name)["setup_commands"])]
        == (load(name)["setup_commands"])
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_key_is_refused(name):
    config = load(name)
    config["setup_command"] = config.pop("setup_commands")
    with pytest.raises(ValidationError, match="setup_command"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", CLOUDS)
def test_a_misspelt_key_of_a_node_type_is_refused(name):
    config = load(name)
    actors = config["available_node_types"]["actors"]
    actors["max_worker"] = actors.pop("max_workers")
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", CLOUDS)
def test_each_kind_of_work_has_nodes_that_nothing_else_is_placed_on(name):
    types = prepare_config(load(name))["available_node_types"]
    offers = {kind: set(one["resources"]) - {"CPU", "GPU"} for kind, one in types.items()}
    assert offers == {
        "learner": {"learner"},
        "world_model": {"world_model"},
        "actors": {"sim"},
        "actors_spot": {"sim"},
    }
    assert (
        types["world_model"]["resources"]["GPU"] == types["world_model"]["resources"]["world_model"]
    )
    assert types["actors_spot"]["resources"] == types["actors"]["resources"]
    assert types["actors_spot"]["priority"] > types["actors"].get("priority", 0)
    spot = types["actors_spot"]["node_config"]
    assert spot != types["actors"]["node_config"]
    assert re.search("spot|preemptible", json.dumps(spot))


@pytest.mark.parametrize("name", NAMES)
def test_all_of_the_code_goes_along_and_nothing_else_does(name):
    mounts = load(name)["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert mounts == {f"~/drive/{local}": local for local in mounts.values()}
    assert set(mounts.values()) == {*OURS, "pyproject.toml", "README.md"}
    assert all((ROOT / local).exists() for local in mounts.values())


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_well_formed_for_the_shell_and_for_ray(name):
    config = load(name)
    lists = [value for key, value in config.items() if key.endswith("_commands")]
    for command in chain.from_iterable(lists):
        subprocess.run(["bash", "-n", "-c", command], check=True)
    for command in start_commands(name):
        given = start.make_context("start", flags(command)).params
        if resources := given["resources"]:
            assert set(json.loads(resources)) <= {"learner", "sim", "world_model"}
    with pytest.raises(click.NoSuchOption):
        start.make_context("start", [*flags(start_commands(name)[0]), "--dashbord-host=0.0.0.0"])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_open_and_the_token_is_asked_for(name):
    text = (SPECS / f"{name}.yaml").read_text()
    code = "\n".join(line.partition("#")[0] for line in text.splitlines())
    assert "0.0.0.0" not in code
    assert "IpPermissions" not in code
    assert "RAY_AUTH_TOKEN" not in code
    head, *workers = start_commands(name)
    assert workers
    for command in (head, *workers):
        assert "RAY_AUTH_MODE=token " in command.partition("ray start")[0]
    assert start.make_context("start", flags(head)).params["dashboard_host"] == "127.0.0.1"
    assert "chmod 600 ~/.ray/auth_token" in load(name)["setup_commands"]


PORTS = ("port", "object-manager-port", "metrics-export-port", "dashboard-port")
PORTS += ("ray-client-server-port", "dashboard-agent-listen-port")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_head_listens_where_it_should_and_turns_strangers_away(tmp_path):
    homes = {"friend": "the right token", "stranger": "another token"}
    for name, token in homes.items():
        (tmp_path / name / ".ray").mkdir(parents=True)
        (tmp_path / name / ".ray" / "auth_token").write_text(token)
    # As in the spec, but for what a machine has only one of: ports, and much memory.
    ports = {name: free_port() for name in PORTS}
    kept = [flag for flag in flags(start_commands("aws")[0]) if "autoscaling-config" not in flag]
    kept = [flag for flag in kept if flag.lstrip("-").partition("=")[0] not in ports]
    others = [f"--{name}={port}" for name, port in ports.items()]
    others += ["--num-cpus=1", "--object-store-memory=80000000", "--block"]
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        head = run_as(
            tmp_path / "friend",
            [f"{BIN}/ray", "start", *kept, *others, f"--temp-dir={folder}"],
            stdout=(tmp_path / "log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while "Ray runtime started" not in (said := (tmp_path / "log").read_text()):
                assert head.poll() is None, said
                time.sleep(0.5)
            dashboard, client = ports["dashboard-port"], ports["ray-client-server-port"]
            while not (listening(dashboard) and listening(client)):
                assert head.poll() is None, said
                time.sleep(0.5)
            assert listening(dashboard) == {"127.0.0.1"}
            assert not listening(client) & {"0.0.0.0", "::"}
            program = "import ray, sys; ray.init(sys.argv[1]); print(len(ray.nodes()), 'node')"
            address = f"{get_node_ip_address()}:{ports['port']}"
            connect = [sys.executable, "-c", program, address]
            friend, stranger = (
                run_as(tmp_path / name, connect, stdout=-1, stderr=-1).communicate(timeout=300)
                for name in homes
            )
            assert friend[0] == "1 node\n", friend[1]
            assert stranger[0] == ""
            assert "uthenticat" in stranger[1]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGTERM)
            head.wait(120)


def run_as(home, command, **options):
    """Start a process for whom no more is known of Ray than what is in its home."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    known |= {"HOME": str(home), "RAY_AUTH_MODE": "token"}
    return subprocess.Popen(command, env=known, text=True, **options)


def listening(port):
    """Return the addresses on which a port of this machine is listened to."""
    connections: Any = psutil.net_connections("tcp")
    return {
        one.laddr.ip
        for one in connections
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port
    }
