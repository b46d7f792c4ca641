"""The table of what each gRPC method needs: it has every method, and reads tasks and rows of every request."""

from typing import Any

import pytest
from google.protobuf import descriptor_pool

from protos import open_inference_pb2 as oip
from protos import sidecast_pb2 as pb
from serving.access import ADMIN, PREDICT, PUBLISH, READ
from serving.api import SERVICES, path_of
from serving.api.permissions import RULES
from serving.api.reflection import V1, V1ALPHA, _describe_v1
from side_registry.errors import ArtifactError
from side_registry.manifest import MAX_MANIFEST_BYTES

SIDECAST, ADMIN_SERVICE, OPEN = "/sidecast.v1.Sidecast/", "/sidecast.v1.Admin/", "/inference.GRPCInferenceService/"


def methods() -> list[Any]:
    _describe_v1()
    pool = descriptor_pool.Default()
    services = [*SERVICES, pool.FindServiceByName(V1), pool.FindServiceByName(V1ALPHA)]
    return [method for service in services for method in service.methods]


def test_every_method_of_every_service_is_in_the_table() -> None:
    assert not {path_of(method) for method in methods()} - set(RULES)


def test_only_health_is_open() -> None:
    is_open = {path.rpartition("/")[2] for path, rule in RULES.items() if rule.verb is None}
    assert is_open == {"Check", "List", "Watch", "ServerLive", "ServerReady"}
    assert RULES[ADMIN_SERVICE + "Watch"].verb == READ


def test_every_method_that_takes_a_task_reads_it() -> None:
    """A request's field that names a task is what the rule checks."""
    for method in methods():
        rule = RULES[path_of(method)]
        names = [name for name in ("task", "model_name") if name in method.input_type.fields_by_name]
        if rule.verb is None or not names:
            continue
        from google.protobuf.message_factory import GetMessageClass

        request = GetMessageClass(method.input_type)(**{names[0]: "sst2"})
        assert [task for task, _ in rule.tasks(request) or ()] == ["sst2"], method.full_name


def test_every_change_is_in_the_audit_log_and_needs_more_than_read() -> None:
    changes = {path for path, rule in RULES.items() if rule.is_change}
    of_groups = ("SetGroup", "RollbackGroup", "DeleteGroup")
    assert changes == {ADMIN_SERVICE + name for name in ("Publish", "SetRoute", "Rollback", "Retire", *of_groups)}
    assert {RULES[path].verb for path in changes} == {PUBLISH, ADMIN}


def test_every_prediction_counts_against_the_callers_limits() -> None:
    assert {path for path, rule in RULES.items() if rule.verb == PREDICT} == {
        path for path, rule in RULES.items() if rule.is_limited
    }


def tensor(*shape: int) -> oip.ModelInferRequest.InferInputTensor:
    return oip.ModelInferRequest.InferInputTensor(shape=shape)


@pytest.mark.parametrize(
    ("path", "request_", "charges"),
    [
        (SIDECAST + "Predict", pb.PredictRequest(task="a", rows=[pb.Row()] * 3), (("a", 3),)),
        (
            SIDECAST + "PredictTasks",
            pb.PredictTasksRequest(tasks=[pb.TaskRef(task="a"), pb.TaskRef(task="b", version=1)], rows=[pb.Row()] * 2),
            (("a", 2), ("b", 2)),
        ),
        (SIDECAST + "PredictTasks", pb.PredictTasksRequest(group="a", rows=[pb.Row()]), None),
        (OPEN + "ModelInfer", oip.ModelInferRequest(model_name="group/a"), None),
        (OPEN + "RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name="group/a"), (("group/a", 0),)),
        (ADMIN_SERVICE + "SetGroup", pb.SetGroupRequest(group="a", tasks=[pb.TaskRef(task="b")]), (("", 0),)),
        (SIDECAST + "Generate", pb.GenerateRequest(task="a"), (("a", 1),)),
        (OPEN + "ModelInfer", oip.ModelInferRequest(model_name="a", inputs=[tensor(1), tensor(4, 1)]), (("a", 4),)),
        (OPEN + "ModelInfer", oip.ModelInferRequest(model_name="a", inputs=[tensor()]), (("a", 0),)),
        (OPEN + "ModelStatistics", oip.ModelStatisticsRequest(), ()),
        (OPEN + "ModelMetadata", oip.ModelMetadataRequest(name="a"), (("a", 0),)),
        (ADMIN_SERVICE + "History", pb.HistoryRequest(), ()),
        (ADMIN_SERVICE + "GetTask", pb.GetTaskRequest(), (("", 0),)),
        (ADMIN_SERVICE + "Publish", pb.PublishRequest(chunk=pb.PublishRequest.Chunk()), None),
    ],
)
def test_tasks_and_rows_of_a_request(path: str, request_: Any, charges: Any) -> None:
    assert RULES[path].tasks(request_) == charges


def test_texts_that_were_kept_are_for_admins() -> None:
    rule = RULES[ADMIN_SERVICE + "GetComparison"]
    assert rule.verb_of
    assert rule.verb_of(pb.GetComparisonRequest(task="a")) == READ
    assert rule.verb_of(pb.GetComparisonRequest(task="a", disagreements=1)) == ADMIN


@pytest.mark.parametrize("manifest", [b"{}", b"[" * 1000, b"x" * (MAX_MANIFEST_BYTES + 1)])
def test_an_upload_whose_manifest_names_no_task_is_no_upload(manifest: bytes) -> None:
    header = pb.PublishRequest.Header(manifest=manifest)
    with pytest.raises(ArtifactError):
        RULES[ADMIN_SERVICE + "Publish"].tasks(pb.PublishRequest(header=header))


def test_lists_keep_what_a_caller_may_read() -> None:
    def may_read(task: str) -> bool:
        return task == "b"

    def shown(path: str, response: Any) -> Any:
        hide = RULES[path].hide
        assert hide
        hide(response, may_read)
        return response

    tasks = pb.ListTasksResponse(tasks=[pb.TaskInfo(task=name) for name in "abc"])
    assert [task.task for task in shown(ADMIN_SERVICE + "ListTasks", tasks).tasks] == ["b"]
    actions = [[pb.Action(task="a"), pb.Action(task="b")], [pb.Action(task="c")]]
    history = pb.HistoryResponse(commits=[pb.Commit(generation=i, actions=a) for i, a in enumerate(actions)])
    (commit,) = shown(ADMIN_SERVICE + "History", history).commits
    assert (commit.generation, [action.task for action in commit.actions]) == (0, ["b"])
    groups = [pb.Group(group=name, tasks=[pb.TaskRef(task=task) for task in name]) for name in ("ab", "b", "bb")]
    assert [g.group for g in shown(ADMIN_SERVICE + "ListGroups", pb.ListGroupsResponse(groups=groups)).groups] == [
        "b",
        "bb",
    ]
    event = pb.WatchEvent(changed=[pb.Served(task=name) for name in "ab"])
    assert [served.task for served in shown(ADMIN_SERVICE + "Watch", event).changed] == ["b"]
    index = oip.RepositoryIndexResponse(
        models=[oip.RepositoryIndexResponse.ModelIndex(name=name, version="1") for name in "ab"]
    )
    assert [model.name for model in shown(OPEN + "RepositoryIndex", index).models] == ["b"]
    statistics = oip.ModelStatisticsResponse(model_stats=[oip.ModelStatistics(name=name) for name in "ab"])
    assert [model.name for model in shown(OPEN + "ModelStatistics", statistics).model_stats] == ["b"]
