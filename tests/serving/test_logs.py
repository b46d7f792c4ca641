"""The log: ids of requests at every door, both forms, and nothing that a caller wrote."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

from protos import sidecast_pb2 as pb
from protos import sidecast_pb2_grpc
from serving import logs
from serving.client import Client, InvalidInputError
from serving.logs import AuditFormatter, HumanFormatter, JsonFormatter, write_audit
from tests.serving.api_kit import SST2, Parlour

TEXT = "nobody else may read this"


@pytest.fixture(scope="module")
def parlour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parlour]:
    with Parlour(tmp_path_factory.mktemp("logs"), [SST2], http_port=None).open() as opened:
        yield opened


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Lines of JSON of all that is logged."""
    found: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(JsonFormatter().format(record))

    caplog.set_level(logging.DEBUG)
    keeper = Keeper()
    logging.getLogger().addHandler(keeper)
    yield found
    logging.getLogger().removeHandler(keeper)


def test_grpc_takes_and_echoes_the_id_and_logs_no_text(parlour: Parlour, lines: list[str]) -> None:
    parlour.service.trouble["sst2"] = RuntimeError("boom")
    request = pb.PredictRequest(task="sst2", rows=[pb.Row(text=TEXT)])
    with grpc.insecure_channel(parlour.address) as channel:
        predict = sidecast_pb2_grpc.SidecastStub(channel).Predict
        with pytest.raises(grpc.RpcError) as failed:
            predict(request, metadata=[("x-request-id", "job-7")])
        parlour.service.trouble.clear()
        _, good = predict.with_call(request, metadata=[("x-request-id", "job-8")])
        _, unnamed = predict.with_call(request)
    told: Any = failed.value
    assert dict(told.trailing_metadata())["x-request-id"] == "job-7"
    assert "see job-7 in the server's log" in told.details()
    assert dict(good.trailing_metadata())["x-request-id"] == "job-8"
    assert len(dict(unnamed.trailing_metadata())["x-request-id"]) == 16
    [error] = [line for line in map(json.loads, lines) if line["level"] == "ERROR"]
    assert error["request_id"] == "job-7"
    assert not [line for line in lines if TEXT in line]


def test_an_error_of_the_caller_has_the_id_too(parlour: Parlour) -> None:
    with Client(parlour.address) as client, pytest.raises(InvalidInputError) as caught:
        client.predict("sst2", [{"other": TEXT}])
    assert caught.value.request_id


def test_http_takes_and_echoes_the_id_and_logs_no_text(parlour: Parlour, lines: list[str]) -> None:
    parlour.service.trouble["sst2"] = RuntimeError("boom")
    url = f"http://127.0.0.1:{parlour.server.http_port}/v1/tasks/sst2:predict"
    answer = requests.post(url, json={"inputs": [TEXT]}, headers={"X-Request-Id": "job-9"}, timeout=30)
    parlour.service.trouble.clear()
    assert answer.headers["X-Request-Id"] == answer.json()["request_id"] == "job-9"
    [error] = [line for line in map(json.loads, lines) if line["level"] == "ERROR"]
    assert error["request_id"] == "job-9"
    assert not [line for line in lines if TEXT in line]


def test_a_change_is_an_ordinary_line_for_people_and_json_in_a_file(
    parlour: Parlour, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs.log, "handlers", [])
    monkeypatch.setattr(logs.log, "propagate", True)
    write_audit("")
    with Client(parlour.address) as client:
        client.promote("sst2", 1)
        [record] = [record for record in caplog.records if record.name == "sidecast.audit"]
        line = HumanFormatter().format(record)
        assert " INFO sidecast.audit: change publish by unknown: OK " in line
        assert " tasks=sst2 " in line
        assert json.loads(JsonFormatter().format(record))["tasks"] == ["sst2"]
        write_audit(str(tmp_path / "audit.jsonl"))
        client.promote("sst2", 1)
    assert len([record for record in caplog.records if record.name == "sidecast.audit"]) == 1
    logs.log.handlers[0].close()
    [written] = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert written == json.loads(AuditFormatter().format(record)) | {
        "time": written["time"],
        "request_id": written["request_id"],
        "peer": written["peer"],
    }


def test_lines_name_the_request_and_the_traceback() -> None:
    token = logs.request_id.set("job-7")
    try:
        raise ValueError("boom")
    except ValueError as error:
        record = logging.LogRecord(
            "serving.api", logging.ERROR, "", 1, "it %s", ("failed",), (type(error), error, None)
        )
    assert HumanFormatter().format(record).splitlines()[0].endswith(" ERROR serving.api: it failed [request job-7]")
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["logger"], line["message"], line["request_id"]) == (
        "ERROR",
        "serving.api",
        "it failed",
        "job-7",
    )
    assert line["exception"] == "ValueError: boom"
    logs.request_id.reset(token)
