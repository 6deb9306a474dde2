"""Files for containers say what is true: options, addresses, files and numbers that they name
exist, images have versions, and nothing runs as root or writes where it need not."""
import inspect
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "tools" / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
KUBERNETES = {found["kind"]: found for found in yaml.safe_load_all(
    (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))}
POD = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]


def instructions():
    "(word, rest) of each instruction of the Dockerfile."
    text = re.sub(r"(?m)^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def of(word):
    return [rest for found, rest in instructions() if found == word]


def addresses():
    "Addresses of the service that are asked with GET."
    from sftbook.serving import _addresses
    from unittest.mock import MagicMock
    return {path for method, path, *_ in _addresses(MagicMock()) if method == "GET"}


def check_options(words):
    "The words are what `sftbook serve` understands."
    from sftbook.serve_command import serve
    known = {"--" + name.replace("_", "-") for name in inspect.signature(serve).parameters}
    asked = {word for word in words if word.startswith("--")}
    assert asked <= known, asked - known


# ---- the image

def test_images_have_whole_versions():
    bases = [rest.split()[0] for rest in of("FROM")]
    images = [*bases, *(service["image"] for service in COMPOSE.values()), CONTAINER["image"]]
    assert all(re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+[\w.-]*", image) for image in images), images
    version = re.search(r"(?m)^version = (\S+)", (ROOT / "settings.ini").read_text())[1]
    ours = {image for image in images if image.startswith("sftbook")}
    assert ours == {f"sftbook:{version}"}


def test_what_is_copied_exists_and_is_let_through():
    named = [shlex.split(rest) for rest in of("COPY") if not rest.startswith("--from")]
    wanted = {Path(name).name for words in named for name in words[:-1]}
    let_through = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert wanted == {line[1:] for line in let_through if line.startswith("!")}
    assert all((ROOT / name).exists() for name in wanted)


def test_the_image_is_not_roots_and_starts_the_service():
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", of("USER")[-1])
    [entry] = map(json.loads, of("ENTRYPOINT"))
    assert entry[:2] == ["sftbook", "serve"]
    check_options(entry)
    port = entry[entry.index("--port") + 1]
    assert of("EXPOSE") == [port] and f"127.0.0.1:{port}/livez" in of("HEALTHCHECK")[0]
    assert "/livez" in addresses()


def test_the_check_of_health_is_a_program():
    [health] = of("HEALTHCHECK")
    words = json.loads(health.split("CMD ", 1)[1])
    compile(words[2], "<health>", "exec")


@pytest.mark.skipif(subprocess.call(["docker", "info"], stdout=-3, stderr=-3) != 0
                    if shutil.which("docker") else True, reason="no engine is at hand")
def test_an_engine_finds_the_dockerfile_in_order():
    command = ["docker", "build", "--check", "--file", str(DEPLOY / "Dockerfile"), str(ROOT)]
    assert subprocess.run(command, capture_output=True).returncode == 0


# ---- beside others

@pytest.mark.parametrize("name", COMPOSE)
def test_a_container_may_do_no_more_than_it_has_to(name):
    service = COMPOSE[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged") and "network_mode" not in service
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", COMPOSE)
def test_files_that_are_mounted_exist_and_are_only_read(name):
    for volume in COMPOSE[name].get("volumes", []):
        if volume.startswith("./"):
            source, _, rest = volume.partition(":")
            assert (DEPLOY / source).is_file() and rest.endswith(":ro"), volume


def test_runs_are_only_read_and_ends_are_waited_for():
    from sftbook.service_limits import ServiceLimits
    ours = COMPOSE["sftbook"]
    assert ours["volumes"][0].endswith(":/runs:ro")
    check_options(ours["command"])
    grace = int(ours["stop_grace_period"].removesuffix("s"))
    assert min(grace, POD["terminationGracePeriodSeconds"]) > ServiceLimits().seconds + 5


def test_secrets_are_not_written_down():
    for path in DEPLOY.rglob("*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if found := re.match(r"\s+\w*(?:KEYS?|PASSWORD)\w*: (.+)", line):
                assert found[1].startswith('"${'), line


# ---- replicas

def test_a_pod_may_do_no_more_than_it_has_to():
    context = CONTAINER["securityContext"]
    assert POD["securityContext"]["runAsNonRoot"] and not POD["automountServiceAccountToken"]
    assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    written = [m["mountPath"] for m in CONTAINER["volumeMounts"] if not m.get("readOnly")]
    assert written == ["/tmp"]
    assert str(POD["securityContext"]["runAsUser"]) == of("USER")[-1].split(":")[0]


def test_probes_ask_addresses_that_there_are():
    probes = {name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness",
                                                                      "liveness")}
    assert {probe["path"] for probe in probes.values()} <= addresses()
    assert probes["liveness"]["path"] == "/livez" != probes["readiness"]["path"]
    assert [str(port["containerPort"]) for port in CONTAINER["ports"]] == of("EXPOSE")
    check_options(CONTAINER["args"])


def test_labels_and_names_belong_together():
    labels = KUBERNETES["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert KUBERNETES["Service"]["spec"]["selector"] == labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert KUBERNETES[kind]["spec"]["selector"]["matchLabels"] == labels
    target = KUBERNETES["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == KUBERNETES["Deployment"]["metadata"]["name"]
    mounted = {m["name"] for m in CONTAINER["volumeMounts"]}
    assert mounted == {v["name"] for v in POD["volumes"]}
    assert "cpu" in CONTAINER["resources"]["requests"], "without it nothing can be scaled by it"


# ---- numbers

def counted():
    "Names of the numbers that a service tells, and labels of each."
    from sftbook.service_metrics import ServiceMetrics
    metrics = ServiceMetrics()
    metrics.look_at([type("Model", (), dict(name="m", batcher=[], ready=True, loaded=None))])
    metrics.saw_request({}, 200, 0.1)
    metrics.saw_batch("m", [1], 0.1)
    return set(re.findall(r"(?m)^(sftbook_\w+)", metrics.text().decode()))


def expressions():
    board = json.loads((DEPLOY / "grafana/sftbook.json").read_text(encoding="utf-8"))
    yield from (target["expr"] for panel in board["panels"] for target in panel["targets"])
    alerts = yaml.safe_load((DEPLOY / "alerts.yaml").read_text(encoding="utf-8"))
    yield from (rule["expr"] for group in alerts["groups"] for rule in group["rules"])


def test_pictures_and_alerts_ask_for_numbers_that_there_are():
    asked = {name for text in expressions() for name in re.findall(r"sftbook_\w+", text)}
    assert len(asked) > 5 and asked <= counted(), asked - counted()


def test_alerts_say_what_to_do():
    alerts = yaml.safe_load((DEPLOY / "alerts.yaml").read_text(encoding="utf-8"))
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    assert all({"summary", "remedy"} <= set(rule["annotations"]) for rule in rules)


def test_prometheus_asks_the_service_with_its_key():
    [job] = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"]
    assert job["metrics_path"] in addresses()
    assert job["static_configs"] == [{"targets": ["sftbook:8000"]}]
    secret = job["authorization"]["credentials_file"].removeprefix("/run/secrets/")
    assert COMPOSE["prometheus"]["secrets"] == [secret]


def test_the_board_and_its_source_belong_together():
    board = json.loads((DEPLOY / "grafana/sftbook.json").read_text(encoding="utf-8"))
    [source] = yaml.safe_load((DEPLOY / "grafana/datasources.yaml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}
    identities = [panel["id"] for panel in board["panels"]]
    assert len(set(identities)) == len(identities)
