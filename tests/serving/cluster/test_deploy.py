"""What is sent to a Ray cluster, whether it has room, and what its answers say. No cluster here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cluster import deploy as deploying
from serving.cluster.serve_config import (
    ADD_SERVICES,
    TooBig,
    Wanted,
    app_args,
    check_room,
    kept_ports,
    merged,
    serve_config,
    settings_of,
)
from serving.cluster.status import read, root_cause, state_in_words
from serving.config import ConfigError, ImageConfig, ServeConfig, read_config, setting_names

FRAME = '  File "/somewhere/replica.py", line 7, in initialize\n    raise it\n    ^^^^^^^^\n'
RAYS = (
    "A replica failed to start with exception. Retrying 1 more time(s). Error:\n\x1b[36mray::Server.start()\x1b[39m\n"
)


def wanted(replicas: int | None = 2, cpus: float = 1, gpus: float = 0, surge: int = 100, **scaling: int) -> Wanted:
    config = ServeConfig(backbone="google/flan-t5-small", registry="s3://bucket/registry", max_message_bytes=2048)
    args = app_args(config, cpus=cpus, gpus=gpus, max_ongoing_requests=None, autoscaling=scaling or None)
    fixed = None if scaling else replicas
    return Wanted(name="sidecast", args=args, replicas=fixed, surge=surge, host="127.0.0.1", port=8001, http_port=8000)


def running(*, status: str = "RUNNING", message: str = "", app: dict | None = None, **others: dict) -> dict:
    """As Serve's REST interface tells it."""
    replica = {"replica_id": "abc", "node_ip": "10.0.0.1", "pid": 7, "state": "RUNNING", "start_time_s": 1.5}
    server = {"target_num_replicas": 2, "replicas": [replica], "message": message}
    config = app or serve_config(wanted())["applications"][0]
    ours = {
        "status": status,
        "message": "Failed to update the deployments ['Server'].",
        "route_prefix": "/",
        "deployed_app_config": config,
        "deployments": {"Server": server},
    }
    return {
        "applications": {"sidecast": ours, **others},
        "proxies": {"n": {"node_ip": "10.0.0.1", "status": "HEALTHY"}},
        "grpc_options": {"port": 8001, "grpc_servicer_functions": [ADD_SERVICES]},
        "http_options": {"host": "0.0.0.0", "port": 8000},
    }


def other(name: str, route: str = "/other") -> dict:
    return {"route_prefix": route, "deployed_app_config": {"name": name, "import_path": "x:y"}}


def test_only_what_differs_is_sent_and_it_reads_back_the_same(tmp_path: Path):
    file = tmp_path / "serve.toml"
    file.write_text(
        'backbone = "b/c"\nregistry = "s3://r"\n[limits]\nmax_task_rows = 5\n[limits.sst2]\nmax_task_rows = 9'
    )
    config = read_config({"poll_s": 0.5, "port": 9000, "grace_s": 7.0}, environ={"SIDECAST_COMPILE": "yes"}, file=file)
    sent = settings_of(config)
    assert set(sent) == {"backbone", "registry", "poll_s", "compile", "max_task_rows", "task_limits"}
    assert set(sent) <= set(setting_names())
    again = ServeConfig.from_values(json.loads(json.dumps(sent)))
    assert (again.load, again.limits, again.engine) == (config.load, config.limits, config.engine)


def test_folders_are_sent_as_absolute_paths_and_hub_ids_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models" / "t5").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def sent(backbone: str, registry: str) -> tuple[str, str]:
        found = settings_of(ServeConfig(backbone=backbone, registry=registry))
        return found["backbone"], found["registry"]

    assert sent("models/t5", "reg") == (str(tmp_path / "models/t5"), str(tmp_path / "reg"))
    assert sent("google/flan-t5-small", "gs://b/r") == ("google/flan-t5-small", "gs://b/r")
    assert sent("./gone", "../reg") == (str(tmp_path / "gone"), str(tmp_path.parent / "reg"))
    images = ImageConfig(vision="models/dino", vision_layer=0, image_threads=3)
    found = settings_of(ServeConfig(backbone="t5", registry="s3://r", images=images))
    assert found["vision"] == str(tmp_path / "models/dino")
    assert (found["vision_layer"], found["image_threads"]) == (0, 3)
    assert ServeConfig.from_values(found).images == replace(images, vision=found["vision"])


def test_a_fixed_number_is_no_argument_so_that_scaling_restarts_nothing():
    two, three = serve_config(wanted(2))["applications"][0], serve_config(wanted(3))["applications"][0]
    assert two["args"] == three["args"]
    assert three["deployments"] == [{"name": "Server", "max_surge_percent": 100, "num_replicas": 3}]
    scaled = serve_config(wanted(min_replicas=0, max_replicas=4))["applications"][0]
    assert scaled["args"]["autoscaling"] == {"min_replicas": 0, "max_replicas": 4}
    assert "num_replicas" not in scaled["deployments"][0]


def test_other_applications_stay_and_the_ports_that_serve_has():
    found = merged(serve_config(wanted()), running(theirs=other("theirs")))
    assert [each["name"] for each in found["applications"]] == ["theirs", "sidecast"]
    assert found["http_options"]["host"] == "0.0.0.0"


def test_that_serve_keeps_its_doors_is_told():
    assert "listening on 0.0.0.0 with HTTP port 8000" in kept_ports(wanted(), running())
    same = running() | {"http_options": {"host": "127.0.0.1", "port": 8000}}
    assert kept_ports(wanted(), same) == ""
    assert "HTTP port 9000" in kept_ports(wanted(), running() | {"http_options": {"host": "127.0.0.1", "port": 9000}})
    assert kept_ports(wanted(), {"http_options": {"host": "0.0.0.0", "port": 1}}) == ""  # Serve does not run yet


class Answer:
    def __init__(self, status_code: int, text: str = "") -> None:
        self.status_code, self.text = status_code, text


def test_a_removal_is_refused_aloud_and_need_not_be_waited_for(monkeypatch: pytest.MonkeyPatch):
    cluster = object.__new__(deploying.Cluster)
    monkeypatch.setattr(cluster, "details", running, raising=False)
    monkeypatch.setattr(cluster, "_ask", lambda *_, **__: Answer(500, "no\nleader"))
    with pytest.raises(deploying.DeployFailed, match="the cluster refused the removal: no leader"):
        cluster.remove("sidecast", 5)
    monkeypatch.setattr(cluster, "_ask", lambda *_, **__: Answer(200))
    assert cluster.remove("sidecast", 0)
    with pytest.raises(deploying.DeployFailed, match="still being removed"):
        cluster.remove("sidecast", 1e-9)


def test_what_cannot_stand_beside_what_runs_is_refused():
    with pytest.raises(ConfigError, match="'theirs' answers on this cluster's ports"):
        merged(serve_config(wanted()), running(theirs=other("theirs", "/")))
    has = running() | {"grpc_options": {"port": 9000, "grpc_servicer_functions": []}}
    with pytest.raises(ConfigError, match="gRPC port 9000 and no services"):
        merged(serve_config(wanted()), has)


def test_a_failed_config_is_tried_anew_and_one_that_runs_is_left_alone():
    def sent(before: dict) -> dict:
        return merged(serve_config(wanted()), before)["applications"][0]

    assert "runtime_env" not in sent(running())
    second = sent(running(status="DEPLOY_FAILED"))
    assert second["runtime_env"] == {"env_vars": {"SIDECAST_ATTEMPT": "1"}}
    assert sent(running(app=second)) == second  # it came to run: the same again changes nothing
    assert sent(running(status="DEPLOY_FAILED", app=second))["runtime_env"]["env_vars"]["SIDECAST_ATTEMPT"] == "2"


@pytest.mark.parametrize(
    ("replicas", "cpus", "gpus", "nodes", "fits"),
    [
        (2, 1, 0, [{"CPU": 2}], True),
        (3, 1, 0, [{"CPU": 2}], False),
        (2, 3, 0, [{"CPU": 4}, {"CPU": 4}], True),
        (2, 3, 0, [{"CPU": 5}, {"CPU": 1}], False),  # 6 cores in all, no node has 3 twice
        (4, 1, 0.25, [{"CPU": 8, "GPU": 1}], True),
        (1, 1, 1, [{"CPU": 8}], False),
        (3, 0, 0, [{}], True),
    ],
)
def test_a_replica_fits_on_one_node_or_not_at_all(replicas: int, cpus: float, gpus: float, nodes: list, fits: bool):
    asked = wanted(replicas, cpus, gpus)
    if fits:
        check_room(asked, nodes, {})
        return
    with pytest.raises(TooBig, match=f"{replicas} are asked for"):
        check_room(asked, nodes, {})


def test_an_update_needs_room_beside_what_runs_and_scaling_does_not():
    nodes, before = [{"CPU": 2}], running()
    check_room(wanted(2), nodes, before)  # the same settings: nothing restarts
    with pytest.raises(TooBig, match="--surge 0"):
        check_room(wanted(1, cpus=1.5), nodes, before)
    check_room(wanted(1, cpus=1.5, surge=0), nodes, before)
    check_room(wanted(1, cpus=0.5), nodes, before)


def test_the_smallest_number_by_load_must_fit():
    assert wanted(min_replicas=3, max_replicas=9).most == 3
    assert wanted(min_replicas=0, max_replicas=9).most == 1
    assert wanted(min_replicas=1, initial_replicas=4, max_replicas=9).most == 4


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (RAYS + FRAME + "RuntimeError: Traceback (most recent call last):\n" + FRAME
         + "ladder.errors.BackboneError: no folder /x; give one", "BackboneError: no folder /x; give one"),
        (RAYS + FRAME + "a.b.ValidationError: 1 error\ncpus\n  too few", "ValidationError: 1 error cpus too few"),
        (RAYS + FRAME + "KeyboardInterrupt", "KeyboardInterrupt"),
        (RAYS + '  File "cut off', 'File "cut off'),
        ("A replica's health check\nfailed.", "A replica's health check failed."),
        ("", ""),
    ],
)  # fmt: skip
def test_of_a_traceback_what_was_raised_is_told(message: str, cause: str):
    assert root_cause(message) == cause


@given(st.text())
def test_any_message_is_told_in_one_line(message: str):
    assert len(root_cause(message).splitlines()) <= 1


def test_an_application_is_read_with_what_its_replicas_tell():
    told = [{"id": "abc", "generation": 4}, {"id": "gone", "generation": 1}]
    found = read(running(status="DEPLOY_FAILED", message=RAYS + FRAME + "x.Bad: worse"), "sidecast", told)
    assert found is not None
    assert (found.status, found.message, found.wanted, found.running) == ("DEPLOY_FAILED", "Bad: worse", 2, 1)
    [replica] = found.replicas
    assert (replica.id, replica.pid, replica.since) == ("abc", 7, "1970-01-01T00:00:01Z")
    assert replica.own == told[0]
    assert state_in_words(found) == "deploy_failed: 1 running, 2 wanted; Bad: worse"
    assert json.dumps(found.document)
    assert read(running(), "another") is None
