"""infra/deploy: files of the right form, this project's versions, a token, loopback, no root, no secret written down.

What only a container engine or a Kubernetes cluster can show is not shown here; docs/cluster.md says so.
"""

from __future__ import annotations

import copy
import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from deploy_schemas import COMPOSE, RAY_CLUSTER, RAY_JOB

from pipelines.cli.runs import run as bam_run

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "infra" / "deploy"
OURS = "bam:0.1.0"
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]+\}")


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.fixture
def compose() -> dict[str, Any]:
    return load("compose.yaml")


@pytest.fixture
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return compose["services"]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return load("kuberay/raycluster.yaml")


@pytest.fixture
def job() -> dict[str, Any]:
    return load("kuberay/rayjob.yaml")


@pytest.fixture
def dockerfile() -> list[list[str]]:
    """Instructions in order, each as words."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.strip()]


def wanted(package: str) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [version] = [
        match[1] for line in project["dependencies"] if (match := re.fullmatch(rf"{package}(?:\[.*\])?==(.+)", line))
    ]
    return version


def accepts(command: click.Command, words: list[str]) -> dict[str, Any]:
    """The options as the command reads them. Raises click's error for one that it does not know."""
    return command.make_context(command.name, list(words)).params


class TestCompose:
    def test_has_the_form_of_a_compose_file(self, compose: dict[str, Any]) -> None:
        jsonschema.validate(compose, COMPOSE)

    @pytest.mark.parametrize(
        ("where", "key", "value"),
        [
            ((), "servces", {}),
            (("services", "head"), "port", ["8265:8265"]),
            (("services", "head"), "ports", ["8265:8265"]),
            (("services", "head", "depends_on"), "mlflow", {"condition": "service_well"}),
            (("services", "s3", "healthcheck"), "test", []),
        ],
    )
    def test_the_form_is_strict(self, compose: dict[str, Any], where: tuple[str, ...], key: str, value: Any) -> None:
        part = compose = copy.deepcopy(compose)
        for name in where:
            part = part[name]
        part[key] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(compose, COMPOSE)

    def test_names_what_is_there(self, compose: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
        for service in services.values():
            assert service.get("depends_on", {}).keys() <= services.keys()
            assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= compose["volumes"].keys()
            for name, wait in service.get("depends_on", {}).items():
                assert wait["condition"] != "service_healthy" or "healthcheck" in services[name]
            if "build" in service:
                assert service["image"] == OURS
                context = (DEPLOY / service["build"]["context"]).resolve()
                assert (context / service["build"]["dockerfile"]).is_file()
                assert context == ROOT

    def test_ports_are_on_loopback(self, services: dict[str, dict[str, Any]]) -> None:
        published = {name: service["ports"] for name, service in services.items() if "ports" in service}
        assert published.keys() == {"s3", "mlflow", "head"}
        assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)

    def test_images_are_pinned(self, services: dict[str, dict[str, Any]]) -> None:
        for service in services.values():
            assert re.search(r":(RELEASE\.)?\d[\w.-]*\d\w?$", service["image"]), service["image"]

    def test_secrets_come_from_the_environment_and_are_explained(self, services: dict[str, dict[str, Any]]) -> None:
        text = (DEPLOY / "compose.yaml").read_text()
        secret = re.compile(r"PASSWORD|SECRET|TOKEN")
        found = set()
        for service in services.values():
            for name, value in service.get("environment", {}).items():
                found |= set(REQUIRED.findall(value))
                assert not secret.search(name) or REQUIRED.fullmatch(value), name
        assert found == {"RAY_AUTH_TOKEN", "S3_PASSWORD", "DB_PASSWORD"}
        assert all(f"{name}=$(openssl rand" in text for name in found)
        assert "://mlflow:" not in REQUIRED.sub("", text).replace("://mlflow:@", "").replace("http://mlflow:5000", "")

    def test_ray_wants_a_token_and_the_head_trains_nothing(self, services: dict[str, dict[str, Any]]) -> None:
        from ray.scripts.scripts import start

        for name in ("head", "worker"):
            command, environment = services[name]["command"], services[name]["environment"]
            assert command[:2] == ["ray", "start"]
            assert environment["RAY_AUTH_MODE"] == "token"
            assert environment["AWS_ENDPOINT_URL"] == "http://s3:9000"
            options = accepts(start, command[2:])
            assert options["disable_usage_stats"]
            assert options["block"]
            assert options["num_cpus"] == (0 if name == "head" else 2)
        assert accepts(start, services["head"]["command"][2:])["head"]
        assert accepts(start, services["worker"]["command"][2:])["address"] == "head:6379"

    @pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")  # by importing MLflow's command line
    def test_mlflow_has_postgresql_and_no_weights_through_it(self, services: dict[str, dict[str, Any]]) -> None:
        from mlflow.cli import server

        service = services["mlflow"]
        assert service["command"][:2] == ["mlflow", "server"]
        assert accepts(server, service["command"][2:])["serve_artifacts"] is False
        environment = service["environment"]
        known = {option.envvar for option in server.params if isinstance(option, click.Option)}
        assert {"MLFLOW_BACKEND_STORE_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT"} <= known & environment.keys()
        assert environment["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql://")
        assert environment["MLFLOW_DEFAULT_ARTIFACT_ROOT"].startswith("s3://")
        assert "mlflow:5000" in environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(","), "the name that Ray's nodes use"

    def test_containers_may_gain_no_rights(self, services: dict[str, dict[str, Any]]) -> None:
        for service in services.values():
            assert "no-new-privileges:true" in service["security_opt"]
            assert service["image"] != OURS or service["cap_drop"] == ["ALL"]


class TestDockerfile:
    def test_is_not_root_at_the_end(self, dockerfile: list[list[str]]) -> None:
        last = [words for words in dockerfile if words[0] == "FROM"][-1]
        final = dockerfile[dockerfile.index(last, 2) :] if dockerfile.count(last) == 1 else dockerfile
        users = [words[1] for words in final if words[0] == "USER"]
        assert users == ["1000"]
        after = [words[0] for words in final[final.index(["USER", "1000"]) :]]
        assert "RUN" not in after

    def test_has_the_versions_of_this_project(self, dockerfile: list[list[str]]) -> None:
        text = (DEPLOY / "Dockerfile").read_text()
        assert f"torch=={wanted('torch')}" in text
        assert "PIP_CONSTRAINT=/bam/constraints.txt" in text
        [python] = [words[1] for words in dockerfile if words[0] == "ARG" and words[1].startswith("PYTHON=")]
        assert re.fullmatch(r"PYTHON=3\.11\.\d+-slim-bookworm", python)
        assert all(words[1] == "python:${PYTHON}" for words in dockerfile if words[0] == "FROM")
        installs = [word for words in dockerfile if words[:3] == ["RUN", "pip", "install"] for word in words[3:]]
        pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
        for word in installs:
            assert word.startswith(("-", '"', "http")) or "==" in word or word == "." or word in pinned, word

    def test_copies_what_is_there_and_what_is_let_in(self, dockerfile: list[list[str]]) -> None:
        sources = [
            source
            for words in dockerfile
            if words[0] == "COPY" and not words[1].startswith("--")
            for source in words[1:-1]
        ]
        assert {"bam_core", "infra", "pipelines", "constraints.txt"} <= set(sources)
        for source in sources:
            assert (ROOT / source).exists()
            assert not is_ignored(source), source

    @pytest.mark.parametrize(
        "path", [".git", ".venv", "bam_store", ".env", "tests", "docs", "infra/deploy", "bam_core/__pycache__", "a.pem"]
    )
    def test_nothing_else_is_sent(self, path: str) -> None:
        assert is_ignored(path)

    def test_wants_the_token_and_sends_no_statistics(self) -> None:
        text = (DEPLOY / "Dockerfile").read_text()
        for setting in ("RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0", "MLFLOW_DISABLE_TELEMETRY=true"):
            assert setting in text


class TestKubeRay:
    def test_have_the_form_of_their_kind(self, cluster: dict[str, Any], job: dict[str, Any]) -> None:
        jsonschema.validate(cluster, RAY_CLUSTER)
        jsonschema.validate(job, RAY_JOB)

    def test_the_form_is_strict(self, cluster: dict[str, Any]) -> None:
        cluster["spec"]["headGroupSpec"]["template"]["spec"]["container"] = []
        with pytest.raises(jsonschema.ValidationError, match="'container' was unexpected"):
            jsonschema.validate(cluster, RAY_CLUSTER)

    def test_a_job_has_the_same_cluster(self, cluster: dict[str, Any], job: dict[str, Any]) -> None:
        assert job["spec"]["rayClusterSpec"] == cluster["spec"]

    def test_wants_a_token_and_has_this_projects_ray(self, cluster: dict[str, Any]) -> None:
        assert cluster["spec"]["rayVersion"] == wanted("ray")
        assert cluster["spec"]["authOptions"] == {"mode": "token"}

    def test_the_head_trains_nothing_and_workers_have_no_rights_in_kubernetes(self, cluster: dict[str, Any]) -> None:
        assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        groups = cluster["spec"]["workerGroupSpecs"]
        assert [group["groupName"] for group in groups] == ["cpu", "gpu"]
        for group in groups:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            assert group["template"]["spec"]["automountServiceAccountToken"] is False
            resources = group["template"]["spec"]["containers"][0]["resources"]
            assert resources["requests"] == resources["limits"], "else Ray counts CPUs that it does not have"
            assert ("nvidia.com/gpu" in resources["limits"]) == (group["groupName"] == "gpu")

    def test_one_image_and_the_label_that_the_policy_fences(self, job: dict[str, Any]) -> None:
        spec = job["spec"]["rayClusterSpec"]
        pods = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
        pods.append(job["spec"]["submitterPodTemplate"])
        policy = load("kuberay/network_policy.yaml")
        assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
        fenced = policy["spec"]["podSelector"]["matchLabels"]
        assert all(pod["metadata"]["labels"].items() >= fenced.items() for pod in pods)
        assert len({pod["spec"]["containers"][0]["image"] for pod in pods}) == 1
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        own, operator = policy["spec"]["ingress"]
        assert own == {"from": [{"podSelector": {"matchLabels": fenced}}]}
        assert [port["port"] for port in operator["ports"]] == [8265]

    def test_the_job_runs_a_command_that_bam_has(self, job: dict[str, Any]) -> None:
        program, command, *words = shlex.split(job["spec"]["entrypoint"])
        assert (program, command) == ("bam", "run")
        options = accepts(bam_run, words)
        assert options["recipe"] == "quickstart"
        assert "s3://BUCKET/bam" in options.values(), "nodes share no disk"

    def test_no_secret_is_written_down(self) -> None:
        for file in (DEPLOY / "kuberay").glob("*.yaml"):
            for document in yaml.safe_load_all(file.read_text()):
                assert document["kind"] != "Secret"


def is_ignored(path: str) -> bool:
    """As Docker reads .dockerignore: the last pattern that matches the path or a folder above it decides."""
    ignored = False
    parts = Path(path).parts
    above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        names = [pattern, pattern.removeprefix("**/")]
        if any(fnmatch(one, name) and ("/" in name or "/" not in one) for one in above for name in names) or (
            pattern.startswith("**/") and any(fnmatch(part, names[1]) for part in parts)
        ):
            ignored = not line.startswith("!")
    return ignored
