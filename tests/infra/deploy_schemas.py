"""What infra/deploy may say: of the Compose specification and of KubeRay's v1 the part that it uses, and no other key.

Written by hand. On 2026-11-24 the files had no fault either under the specification's own schema (compose-spec) and
the resource definitions of KubeRay's operator, made strict.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
WORDS: Schema = {"type": "array", "items": TEXT, "minItems": 1}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}


def only(required: str = "", **properties: Schema) -> Schema:
    """An object with these properties and no others. required: names, apart by spaces."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def some(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


_CONDITIONS = ["service_started", "service_healthy", "service_completed_successfully"]
_SERVICE = only(
    "image",
    image=TEXT,
    build=only("context dockerfile", context=TEXT, dockerfile=TEXT, args=TEXTS),
    command=WORDS,
    environment=TEXTS,
    ports=some({"type": "string", "pattern": r"^[0-9.]+:[0-9]+:[0-9]+$"}),
    volumes=some({"type": "string", "pattern": r"^[a-z0-9]+:/[a-z/]+$"}),
    healthcheck=only("test", test=WORDS, interval=TEXT, timeout=TEXT, retries=COUNT),
    depends_on={"type": "object", "additionalProperties": only("condition", condition={"enum": _CONDITIONS})},
    restart={"enum": ["no", "unless-stopped"]},
    init=FLAG,
    cap_drop=WORDS,
    security_opt=WORDS,
    shm_size=TEXT,
)
COMPOSE: Schema = only(
    "name services",
    name=TEXT,
    services={"type": "object", "additionalProperties": _SERVICE},
    volumes={"type": "object", "additionalProperties": only()},
) | {"patternProperties": {"^x-": {}}}

_METADATA = only(name=TEXT, generateName=TEXT, labels=TEXTS)
_AMOUNTS: Schema = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
_CONTAINER = only(
    "name image resources securityContext",
    name=TEXT,
    image=TEXT,
    env=some(only("name value", name=TEXT, value=TEXT)),
    envFrom=some(only("secretRef", secretRef=only("name", name=TEXT))),
    ports=some(only("containerPort name", containerPort=COUNT, name={"type": "string", "maxLength": 15})),
    resources=only("requests limits", requests=_AMOUNTS, limits=_AMOUNTS),
    securityContext=only(
        "allowPrivilegeEscalation capabilities",
        allowPrivilegeEscalation={"const": False},
        capabilities=only("drop", drop={"const": ["ALL"]}),
    ),
)
_POD = only(
    "spec",
    metadata=_METADATA,
    spec=only(
        "containers securityContext",
        containers=some(_CONTAINER),
        securityContext=only(
            "runAsNonRoot runAsUser seccompProfile",
            runAsNonRoot={"const": True},
            runAsUser={"type": "integer", "minimum": 1},
            fsGroup=COUNT,
            seccompProfile=only("type", type={"const": "RuntimeDefault"}),
        ),
        automountServiceAccountToken=FLAG,
        restartPolicy={"enum": ["Never", "OnFailure"]},
        terminationGracePeriodSeconds=COUNT,
        tolerations=some(only("key operator effect", key=TEXT, operator=TEXT, effect=TEXT)),
    ),
)
_CLUSTER = only(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    authOptions=only("mode", mode={"enum": ["token", "disabled"]}, secretName=TEXT),
    headGroupSpec=only("rayStartParams template", rayStartParams=TEXTS, template=_POD),
    workerGroupSpecs=some(
        only(
            "groupName replicas minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=_POD,
        )
    ),
)
_JOB = only(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    submitterPodTemplate=_POD,
    rayClusterSpec=_CLUSTER,
)


def resource(kind: str, spec: Schema) -> Schema:
    return only(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=_METADATA,
        spec=spec,
    )


RAY_CLUSTER, RAY_JOB = resource("RayCluster", _CLUSTER), resource("RayJob", _JOB)
