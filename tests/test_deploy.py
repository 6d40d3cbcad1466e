"""What deploys the service: metrics that exist, alerts that fire, manifests that the published schemas accept."""

import json
import re
import shutil
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from service.scoring.scores import Scores
from service.serving.metrics import Metrics
from service.settings import Settings
from service.web.observe import REASONS
from tests.models import digits
from tests.tools import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("hpa", "keda", "volume", "s3")
OWN_SCHEMAS = {"ScaledObject", "ServingRuntime", "InferenceService", "Kustomization"}  # of programs beside Kubernetes
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "vouch.json").read_text())
COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())


def expressions():
    yield from (alert["expr"] for alert in ALERTS)
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    yield (KUBERNETES / "keda" / "scaledobject.yaml").read_text()


def families(digit_scorer) -> dict[str, str]:
    metrics = Metrics()
    scores = digit_scorer.score(digits()[:4])
    assert isinstance(scores, Scores)
    metrics.count_scores("m@1", scores)
    return {family.name: family.type for family in metrics.registry.collect()}


def test_every_metric_that_is_drawn_or_alarmed_by_is_there(digit_scorer):
    known = families(digit_scorer)
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    names = {name + ending for name, kind in known.items() for ending in endings[kind]}
    used = {name for text in expressions() for name in re.findall(r"\bvouch_\w+", text)}
    assert len(used) >= 14
    assert used <= names, used - names


def test_labels_that_are_asked_for_are_there():
    text = " ".join(expressions())
    assert set(re.findall(r'reason="([^"]+)"', text)) <= set(REASONS.values())
    assert set(re.findall(r'side!?="([^"]+)"', text)) <= {"below", "inside", "above"}
    assert set(re.findall(r'path="([^"]+)"', text)) <= {"/score"}


def test_every_alert_says_what_it_means():
    assert len(ALERTS) == len({alert["alert"] for alert in ALERTS}) >= 8
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert set(alert["annotations"]) == {"summary", "what"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on this machine")
def test_prometheus_reads_the_rules_and_they_fire_when_they_should():
    for command in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ):
        done = subprocess.run(
            ["promtool", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_s_panels_do_not_overlap_and_have_what_they_draw():
    cells = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in own) < 24
        assert not own & cells, panel["title"]
        cells |= own
    text = " ".join(panel["title"] for panel in DASHBOARD["panels"])
    for shown in ("Requests", "Time", "queue", "Verdicts", "log p(x) over time", "Drift"):
        assert shown in text


def test_compose_runs_all_four_and_what_it_mounts_is_there():
    services = COMPOSE["services"]
    assert set(services) == {"vouch", "gate", "prometheus", "grafana"}
    for service in services.values():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (REPOSITORY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        if "build" in service:
            assert (REPOSITORY / service["build"].get("dockerfile", "Dockerfile")).exists()
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
        else:
            assert re.fullmatch(r"\S+:v?\d+\.\d+\.\d+", service["image"])
    check_variables(services["vouch"]["environment"])


def check_variables(environment):
    for name, value in environment.items():
        if name.startswith("VOUCH_"):
            field = name.removeprefix("VOUCH_").lower()
            assert field in Settings.model_fields, name
            Settings(**{field: json.loads(value) if value.startswith("[") else value})


def test_what_the_images_copy_is_there_and_not_ignored():
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    for dockerfile in ("Dockerfile", "examples/gate/Dockerfile"):
        for line in re.findall(r"^COPY (?!--from)(.+)$", (REPOSITORY / dockerfile).read_text(), re.MULTILINE):
            *sources, _ = [word for word in line.split() if not word.startswith("--")]
            for source in sources:
                assert (REPOSITORY / source).exists(), source
                assert any(source == one or source.startswith(f"{one}/") for one in kept), source


def test_the_image_and_the_manifests_have_the_project_s_version():
    version = re.search(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f'image.version="{version}"' in (REPOSITORY / "Dockerfile").read_text()
    base = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text())
    assert base["images"][0]["newTag"] == version
    runtime = yaml.safe_load((KUBERNETES / "kserve" / "servingruntime.yaml").read_text())
    assert runtime["spec"]["containers"][0]["image"] == f"vouch:{version}"


# Kubernetes


def documents(folder):
    for path in sorted((KUBERNETES / folder).glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


@pytest.fixture(scope="module")
def rendered():
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on this machine")

    def render(overlay):
        command = ["kubectl", "kustomize", str(KUBERNETES / overlay)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {document["kind"]: document for document in yaml.safe_load_all(printed)}

    return render


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rendered_manifests_fit_the_published_schemas(rendered, overlay):
    kinds = rendered(overlay)
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"} <= set(kinds)
    for kind, document in kinds.items():
        if kind not in OWN_SCHEMAS:
            kubernetes_validate.validate(document, "1.30", strict=True)


def test_the_plain_files_fit_them_too():
    for folder in ("base", "hpa"):
        for document in documents(folder):
            if document["kind"] not in OWN_SCHEMAS and document["kind"] not in ("Deployment", "Service"):
                kubernetes_validate.validate(document, "1.30", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_matters_of_a_pod(rendered, overlay):
    kinds = rendered(overlay)
    deployment = kinds["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    assert deployment["selector"]["matchLabels"].items() <= deployment["template"]["metadata"]["labels"].items()
    assert kinds["Service"]["spec"]["selector"] == deployment["selector"]["matchLabels"]
    check_restricted(pod)
    (vouch,) = [one for one in pod["containers"] if one["name"] == "vouch"]
    paths = {name: vouch[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert (
        vouch["lifecycle"]["preStop"]["exec"]["command"][0] == "python3"
    )  # the image has no sleep of its own to rely on
    check_variables({entry["name"]: entry["value"] for entry in vouch["env"]})
    assert set(vouch["resources"]) == {"requests", "limits"}
    drain = Settings.model_fields["drain_s"].default + Settings.model_fields["request_timeout_s"].default
    assert pod["terminationGracePeriodSeconds"] >= drain + 5 + 5
    assert {one["topologyKey"] for one in pod["topologySpreadConstraints"]} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    mounted = {
        mount["name"] for one in (*pod["containers"], *pod.get("initContainers", [])) for mount in one["volumeMounts"]
    }
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def check_restricted(pod):
    """Kubernetes' pod security standard `restricted`."""
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["containers"], *pod.get("initContainers", [])):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_scaling_aims_at_the_deployment_and_no_two_ways_at_once(rendered):
    by_cpu, by_queue = rendered("hpa"), rendered("keda")
    assert (
        by_cpu["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == by_cpu["Deployment"]["metadata"]["name"]
    )
    assert "HorizontalPodAutoscaler" not in by_queue
    scaled = by_queue["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == by_queue["Deployment"]["metadata"]["name"]
    assert scaled["minReplicaCount"] >= 2
    assert scaled["triggers"][0]["metadata"]["query"]
    assert (
        by_cpu["PodDisruptionBudget"]["spec"]["minAvailable"] < by_cpu["HorizontalPodAutoscaler"]["spec"]["minReplicas"]
    )


def test_only_a_store_afar_lets_the_service_ask_anyone(rendered):
    assert rendered("hpa")["NetworkPolicy"]["spec"]["egress"] == []
    egress = rendered("s3")["NetworkPolicy"]["spec"]["egress"]
    assert {port["port"] for rule in egress for port in rule["ports"]} == {53, 443}


def test_the_serving_runtime_has_what_kserve_asks_for():
    runtime, service = (
        yaml.safe_load((KUBERNETES / "kserve" / f"{name}.yaml").read_text())
        for name in ("servingruntime", "inferenceservice")
    )
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
    assert runtime["spec"]["protocolVersions"] == ["v2", "v1"]
    check_variables({entry["name"]: entry["value"] for entry in container["env"]})
    ports = {entry["name"]: entry["value"] for entry in container["env"]}
    assert int(ports["VOUCH_PORT"]) == container["ports"][0]["containerPort"]
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] == runtime["spec"]["supportedModelFormats"][0]["name"]


def test_the_demo_image_copies_all_that_the_client_imports(tmp_path):
    lines = (REPOSITORY / "examples" / "gate" / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY service/") for name in line.split()[1:-1]]
    (tmp_path / "service").mkdir()
    for name in copied:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, tmp_path / name)
    subprocess.run([sys.executable, "-c", "import service.client"], check=True, cwd=tmp_path)
