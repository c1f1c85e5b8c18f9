"""The image and the manifest are consistent, and use only settings of the service."""

import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.support.service import ROOT

DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
MANIFEST = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "astralog.yaml").read_text()))


def find(kind: str, name: str = "astralog") -> dict[str, Any]:
    """Return the only object of a kind with that name."""
    (found,) = [one for one in MANIFEST if one["kind"] == kind and one["metadata"]["name"] == name]
    spec: dict[str, Any] = found["spec"]
    return spec


SET = find("StatefulSet")
POD: dict[str, Any] = SET["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENVIRON = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}


def test_the_objects_find_each_other() -> None:
    """Services, budget and set select the labels of the pods."""
    labels = SET["template"]["metadata"]["labels"]
    assert labels == SET["selector"]["matchLabels"]
    assert labels == find("PodDisruptionBudget")["selector"]["matchLabels"]
    for name in ("astralog", SET["serviceName"]):
        service = find("Service", name)
        assert labels == service["selector"]
        (port,) = service["ports"]
        assert port["targetPort"] in [one["name"] for one in CONTAINER["ports"]]
    assert "None" == find("Service", SET["serviceName"])["clusterIP"]


def test_probes_use_the_services_paths() -> None:
    """Only /ready removes a pod from the Service; a full disk does not restart it."""
    probes = {name: probe for name, probe in CONTAINER.items() if name.endswith("Probe")}
    expected = {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    paths = {name.removesuffix("Probe"): one["httpGet"]["path"] for name, one in probes.items()}
    assert expected == paths
    assert {"http"} == {probe["httpGet"]["port"] for probe in probes.values()}


def test_every_mount_has_its_volume() -> None:
    """The data is on its own claim, and nothing else is written except /tmp."""
    claims = {claim["metadata"]["name"] for claim in SET["volumeClaimTemplates"]}
    volumes = {volume["name"] for volume in POD["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert set(mounts.values()) == claims | volumes
    assert mounts[ENVIRON["ASTRALOG_DATA_DIR"]] in claims
    directory, _, _ = ENVIRON["ASTRALOG_TOKENS_FILE"].rpartition("/")
    assert directory in mounts


def test_every_variable_is_a_setting() -> None:
    """Variables of the image and the manifest are in the table of settings."""
    table = (ROOT / "docs" / "configuration.md").read_text()
    known = set(re.findall(r"^\| `(ASTRALOG_\w+)`", table, re.MULTILINE))
    assert set(ENVIRON) <= known
    in_image = set(re.findall(r"(ASTRALOG_\w+)=", DOCKERFILE))
    assert {"ASTRALOG_BIND", "ASTRALOG_DATA_DIR"} == in_image & known == in_image


def test_pod_runs_as_the_user_of_the_image() -> None:
    """It has no privileges, and stops in time."""
    context = POD["securityContext"]
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert int(user) == context["runAsUser"] == context["fsGroup"]
    assert context["runAsNonRoot"] is True
    assert ["ALL"] == CONTAINER["securityContext"]["capabilities"]["drop"]
    assert POD["enableServiceLinks"] is False
    (_, seconds) = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert POD["terminationGracePeriodSeconds"] > int(seconds) + 10


def test_image_copies_files_of_the_repository() -> None:
    """Copied files exist and are not ignored; tokens and data are ignored."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    assert sent == set(copied)
    assert [] == [name for name in copied if not (ROOT / name).exists()]
    assert "--require-hashes -r requirements/base.lock" in DOCKERFILE


def test_health_check_fails_without_a_service() -> None:
    """Its exit status is not 0 if nothing responds."""
    (code,) = re.findall(r'"-c", "(.*)"\]', DOCKERFILE)
    code = code.replace("8080", "1")
    done = subprocess.run(["python3", "-c", code], capture_output=True, check=False, timeout=30)
    assert 0 != done.returncode


@pytest.mark.parametrize(
    "one", MANIFEST, ids=lambda one: f"{one['kind']} {one['metadata']['name']}"
)
def test_every_object_is_named_and_versioned(one: dict[str, Any]) -> None:
    """Kubernetes requires both."""
    assert re.fullmatch(r"(\w+/)?v1", one["apiVersion"])
    assert one["metadata"]["name"].startswith("astralog")
    assert one["spec"]
