"""The manifests of KubeRay: as the operator, Ray and Serve read them."""

import copy
import itertools
import json
import re
import shlex
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from jsonschema import Draft7Validator
from ray._common.utils import import_attr
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from cluster.config import ConfigError
from cluster.main import parse
from drive_envs.network_file import NetworkFileError
from tests.world_model.conftest import opening, random_model, random_tokenizer, step_of
from world_model.model_file import save_world_model

ROOT = Path(__file__).parents[2]
SPECS = ROOT / "cluster" / "specs"
# The operator's CRDs of v1.7, which are not part of this project.
CRDS = ROOT.parent / "shared" / "data" / "kuberay"
CLUSTERS = {
    "raycluster": ("spec",),
    "rayjob": ("spec", "rayClusterSpec"),
    "rayservice": ("spec", "rayClusterConfig"),
}
LABELS = {"app": "drive"}

needs_crds = pytest.mark.skipif(not CRDS.exists(), reason=f"KubeRay's CRDs are not in {CRDS}")


def load(name):
    return yaml.safe_load((SPECS / f"{name}.yaml").read_text())


def cluster(name):
    """Return the part of a manifest that describes a Ray cluster."""
    part = load(name)
    for key in CLUSTERS[name]:
        part = part[key]
    return part


def pods(name):
    """Return the pod templates of a manifest."""
    part = cluster(name)
    templates = [part["headGroupSpec"], *part["workerGroupSpecs"]]
    found = [group["template"] for group in templates]
    if submitter := load(name)["spec"].get("submitterPodTemplate"):
        found.append(submitter)
    return found


@cache
def schema(kind) -> Any:
    """Return what the operator knows of a kind, closed: what is not named is an error."""
    text = (CRDS / f"ray.io_{kind}s.yaml").read_text()
    crd = yaml.load(text, yaml.CSafeLoader)
    version = next(one for one in crd["spec"]["versions"] if one["name"] == "v1")
    return closed(version["schema"]["openAPIV3Schema"])


def closed(node: Any) -> Any:
    """Turn a structural schema of Kubernetes into one of JSON Schema without unknown fields."""
    if isinstance(node, list):
        return [closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    found = {
        key: closed(value) for key, value in node.items() if not key.startswith("x-kubernetes")
    }
    if node.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    is_open = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and node.get("type") == "object" and not is_open:
        found["additionalProperties"] = False
    return found


def problems(kind, manifest):
    """Return what the operator's schema has against a manifest."""
    errors = Draft7Validator(schema(kind)).iter_errors(manifest)
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in errors]


@needs_crds
@pytest.mark.parametrize("name", CLUSTERS)
def test_the_operator_knows_every_field(name):
    assert problems(name, load(name)) == []


@needs_crds
@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ((), {"enableInTreeAutoscalling": True}),
        (("authOptions",), {"mode": "tokens"}),
        (("autoscalerOptions",), {"version": "v3"}),
        (("headGroupSpec", "template", "spec"), {"restartPolice": "Never"}),
        (("workerGroupSpecs", 0), {"maxReplicas": "60"}),
        (("workerGroupSpecs", 0, "template", "spec", "containers", 0), {"imagePull": "Always"}),
        (("workerGroupSpecs", 0, "template", "spec", "securityContext"), {"runAsRoot": False}),
        (
            ("workerGroupSpecs", 1, "template", "spec", "containers", 0, "resources", "limits"),
            {"memory": "60 GB"},
        ),
    ],
)
@pytest.mark.parametrize("name", CLUSTERS)
def test_a_misspelt_field_is_refused(name, path, wrong):
    manifest = load(name)
    part = manifest
    for key in (*CLUSTERS[name], *path):
        part = part[key]
    part |= wrong
    said = problems(name, manifest)  # once for each place that shares the part
    assert said
    assert all(next(iter(wrong)) in one for one in said)


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_sees_what_each_pod_offers(name):
    manifest = {"metadata": {"name": "drive", "namespace": "default"}, "spec": cluster(name)}
    types = _derive_autoscaling_config_from_ray_cr(copy.deepcopy(manifest))["available_node_types"]
    offers = {
        kind: {key: value for key, value in one["resources"].items() if key != "memory"}
        for kind, one in types.items()
    }
    assert offers == {
        "headgroup": {"CPU": 8, "GPU": 1, "learner": 1},
        "world-model": {"CPU": 8, "GPU": 1, "world_model": 1},
        "actors": {"CPU": 30, "sim": 30},
        "actors-spot": {"CPU": 30, "sim": 30},
    }
    assert types["actors-spot"]["priority"] > types["actors"].get("priority", 0)
    # On a pod, the shell reads them.
    for group in cluster(name)["workerGroupSpecs"]:
        [written] = shlex.split(group["rayStartParams"]["resources"])
        assert json.loads(written).items() <= offers[group["groupName"]].items()


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_pod_that_is_lost_is_not_begun_again_and_may_do_little(name):
    spec = cluster(name)
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["rayVersion"] == ray.__version__
    for pod in pods(name):
        assert pod["spec"]["restartPolicy"] == "Never"
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        for container in pod["spec"]["containers"]:
            locked = container["securityContext"]
            assert locked == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            gpus = {side.get("nvidia.com/gpu") for side in container["resources"].values()}
            assert len(gpus) == 1
    images = {one["image"] for pod in pods(name) for one in pod["spec"]["containers"]}
    [image] = images
    assert re.fullmatch(r".+:\d+\.\d+\.\d+", image)


@pytest.mark.parametrize("name", CLUSTERS)
def test_nothing_is_open_and_the_token_is_a_secret(name):
    spec = cluster(name)
    assert spec["authOptions"] == {"mode": "token", "secretName": "drive-ray-token"}
    head = spec["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert not {"enableIngress", "ingressOptions"} & head.keys()
    text = (SPECS / f"{name}.yaml").read_text()
    code = "\n".join(line.partition("#")[0] for line in text.splitlines())
    assert not re.search("hostNetwork|hostPort|LoadBalancer|NodePort|RAY_AUTH_TOKEN", code)
    policy = load("network_policy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["podSelector"] == {"matchLabels": LABELS}
    for pod in pods(name):
        assert pod["metadata"]["labels"].items() >= LABELS.items()
    own, operator = policy["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": LABELS}}]}
    [peer] = operator["from"]
    assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    assert 10001 not in {port["port"] for port in operator["ports"]}


def test_the_job_is_one_that_drive_knows():
    folder, command = load("rayjob")["spec"]["entrypoint"].split(" && ")
    first, *words = shlex.split(command)
    assert (folder, first) == ("cd /opt/drive", "drive")
    assert (ROOT / parse(words).path).exists()
    assert load("rayjob")["spec"]["shutdownAfterJobFinishes"]


def serve_config():
    return yaml.safe_load(load("rayservice")["spec"]["serveConfigV2"])


def build(application, **others):
    """Build an application as Serve does on the cluster."""
    args = application["args"] | others
    return call_user_app_builder_with_args_if_necessary(
        import_attr(application["import_path"]), args
    )


def test_serve_takes_its_configuration_to_the_last_key():
    config = serve_config()
    # Serve overlooks what it does not know; nothing of this may be overlooked.
    assert ServeDeploySchema.model_validate(config).model_dump(exclude_unset=True) == config


def test_the_application_is_built_as_it_is_configured(tmp_path):
    save_world_model(random_model(0), random_tokenizer(), tmp_path)
    [application] = serve_config()["applications"]
    deployment = build(application, model=str(tmp_path))._bound_deployment
    [overridden] = application["deployments"]
    assert deployment.name == overridden["name"]
    assert deployment.num_replicas == application["args"]["num_replicas"]
    options: Any = deployment.ray_actor_options
    assert {key: options[key] for key in ("num_cpus", "num_gpus", "resources")} == {
        key: application["args"][key] for key in ("num_cpus", "num_gpus", "resources")
    }
    args: Any = deployment.init_args
    [config] = args
    assert config.sampler.num_steps == application["args"]["sampler"]["num_steps"]
    assert config.engine.capacity == application["args"]["engine"]["capacity"]
    assert overridden["user_config"]["model"] == application["args"]["model"]


def test_a_wrong_key_and_a_missing_model_are_said(tmp_path):
    [application] = serve_config()["applications"]
    with pytest.raises(ConfigError, match=r"args\.engine\.capasity.*did you mean 'capacity'"):
        build(application, engine={"capasity": 1})
    with pytest.raises(NetworkFileError, match="no world model"):
        build(application, model=str(tmp_path))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_serve_deploys_it_and_takes_other_weights_over_without_a_break(tmp_path):
    from ray import serve
    from ray.serve.context import _get_global_client

    from drive_learner.local_cluster import local_cluster
    from world_model.service import ServiceConnection, is_running

    for seed in range(2):
        save_world_model(random_model(seed), random_tokenizer(), tmp_path / str(seed))
    config = serve_config()
    [application] = config["applications"]
    # The model and the machine of a test are small; the rest is as it is shipped.
    small = {"num_replicas": 1, "num_cpus": 0.5, "num_gpus": 0, "resources": {}, "num_threads": 1}
    application["args"] |= small | {"model": str(tmp_path / "0"), "sampler": {"num_steps": 1}}
    application["deployments"][0]["user_config"] = {"model": str(tmp_path / "0")}
    with local_cluster(num_cpus=2, object_store_mb=200):
        serve.start(proxy_location="Disabled")  # its port would be any machine's to reach
        client = _get_global_client()
        assert client is not None
        client.deploy_apps(ServeDeploySchema.model_validate(config))
        wait_until(lambda: is_running("world-model"))
        connection, request = ServiceConnection("world-model", timeout=300.0), opening("a")

        def first_frame(session):
            other = replace(request, session=session)
            connection.open(other).result()
            views = connection.step(step_of(other, 1)).result()
            if session != "a":
                connection.close(session)
            assert views.images is not None
            return views.images

        before, names = first_frame("a"), (f"b{number}" for number in itertools.count())
        assert np.array_equal(first_frame(next(names)), before)
        application["deployments"][0]["user_config"] = {"model": str(tmp_path / "1")}
        client.deploy_apps(ServeDeploySchema.model_validate(config))
        wait_until(lambda: not np.array_equal(first_frame(next(names)), before))
        connection.step(step_of(request, 2)).result()  # the session is still there


def wait_until(is_true):
    """Wait for Serve, which does what it is told a while later."""
    deadline = time.monotonic() + 600
    while not is_true():
        assert time.monotonic() < deadline, "Serve has not done it in ten minutes"
        time.sleep(0.5)
