"""Who may do what, whatever the call came by; and who may listen to other machines."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from serving.access import ANYBODY, Access, check_exposure, request_id_of
from serving.access import audit as audit_module
from serving.access.audit import Audit
from serving.access.tokens import create_token
from serving.config import AccessConfig, ConfigError, ServeConfig
from serving.errors import Exposed, PermissionDenied, RateLimited, Unauthenticated


@pytest.fixture
def access(tmp_path: Path) -> tuple[Access, dict[str, str]]:
    file = tmp_path / "tokens.toml"
    token = create_token(file, name="ci", scopes=["predict:sst2*"], tenant="a")
    config = AccessConfig(tokens=str(file), caller_requests_per_s=1, caller_burst_s=2)
    return Access(config), {"authorization": f"Bearer {token}"}


async def test_a_caller_may_do_what_its_scopes_say(access: tuple[Access, dict[str, str]]) -> None:
    made, headers = access
    caller = await made.check(headers, "10.0.0.1", "predict", ["sst2"])
    assert (caller.name, caller.tenant) == ("ci", "a")
    with pytest.raises(PermissionDenied) as caught:
        await made.check(headers, "10.0.0.1", "predict", ["sst2", "cola", "mrpc"])
    assert str(caught.value) == "ci may not predict cola, mrpc; ask for a token with a scope such as predict:cola"
    await made.check(headers, "10.0.0.1", "read", [])
    with pytest.raises(PermissionDenied, match="read all tasks"):
        await made.check(headers, "10.0.0.1", "read", None)
    with pytest.raises(PermissionDenied, match="ci may not admin"):
        await made.check(headers, "10.0.0.1", "admin", [])


@pytest.mark.parametrize("value", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer x", "Bearer é", "a.b.c"])
async def test_without_a_good_token_a_caller_is_not_known(
    access: tuple[Access, dict[str, str]], value: str | None
) -> None:
    with pytest.raises(Unauthenticated):
        await access[0].check({} if value is None else {"authorization": value}, "", "read", [])


async def test_requests_beyond_the_callers_rate_are_refused(access: tuple[Access, dict[str, str]]) -> None:
    made, headers = access
    for _ in range(2):
        await made.check(headers, "", "predict", ["sst2"], rows=3)
    with pytest.raises(RateLimited, match="ci may send 1 requests a second to sst2"):
        await made.check(headers, "", "predict", ["sst2"], rows=3)
    await made.check(headers, "", "predict", ["sst2b"], rows=3)


async def test_without_tokens_everybody_may_do_everything() -> None:
    made = Access(AccessConfig(caller_requests_per_s=1, caller_burst_s=1))
    assert await made.check({}, "10.0.0.1", "admin", None) is ANYBODY
    await made.check({}, "10.0.0.1", "predict", ["sst2"], rows=1)
    with pytest.raises(RateLimited, match=r"anybody at 10\.0\.0\.1 may send"):
        await made.check({}, "10.0.0.1", "predict", ["sst2"], rows=1)
    await made.check({}, "10.0.0.2", "predict", ["sst2"], rows=1)


TLS = {"tls_cert": "c", "tls_key": "k"}


@pytest.mark.parametrize(
    ("host", "config", "missing"),
    [
        ("0.0.0.0", {}, "no TLS and no callers' tokens"),
        ("::", TLS, "no callers' tokens"),
        ("10.0.0.7", {"tokens": "t"}, "no TLS"),
        ("server.example", {}, "no TLS"),
        ("0.0.0.0", TLS | {"tokens": "t"}, ""),
        ("0.0.0.0", TLS | {"jwt_keys": "j", "jwt_issuer": "i", "jwt_audience": "a"}, ""),
        ("0.0.0.0", {"insecure": True}, ""),
        ("127.0.0.1", {}, ""),
        ("127.8.8.8", {}, ""),
        ("localhost", {}, ""),
        ("::1", {}, ""),
        ("127.0.0.1.evil.example", {}, "no TLS"),
    ],
)
def test_other_machines_are_served_with_tls_and_tokens(host: str, config: dict[str, Any], missing: str) -> None:
    made = AccessConfig(**config)
    if not missing:
        check_exposure(host, made)
        return
    with pytest.raises(Exposed, match=f"reach host {host}, and the server has {missing}.*--insecure"):
        check_exposure(host, made)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tls_cert": "c"}, "give both"),
        ({"tls_client_ca": "a"}, "needs tls_cert"),
        ({"jwt_keys": "k"}, "needs jwt_issuer and jwt_audience"),
        ({"jwt_keys": "http://i.example/k", "jwt_issuer": "i", "jwt_audience": "a"}, "a file or an https URL"),
        ({"admin_port": 70000}, "admin_port must be within"),
        ({"admin_port": 8001}, "admin_port must differ"),
        ({"admin_host": "127.0.0.1"}, "give admin_port, too"),
        ({"caller_rows_per_s": -1.0}, "caller_rows_per_s must be >= 0"),
        ({"tokens": "t", "tenant_header": "x-tenant"}, "a caller's token says its tenant"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeConfig.from_values({"backbone": "b", "registry": "r"} | values)


def test_a_request_id_is_the_callers_where_it_is_a_safe_word() -> None:
    assert request_id_of({"x-request-id": "abc-1"}) == "abc-1"
    assert len({request_id_of({"x-request-id": bad}) for bad in ("", "a b", "x" * 65, '"')}) == 4


LINE = {
    "caller": "ci",
    "tenant": "a",
    "peer": "10.0.0.1",
    "verb": "publish",
    "method": "/m",
    "tasks": ("sst2",),
    "result": "OK",
    "request_id": "1",
}


def test_an_audit_line_is_json_that_no_caller_can_break(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sidecast.audit"):
        Audit().change(**LINE | {"tasks": ('a"\n{}' * 100,) * 30})
    (record,) = caplog.records
    document = json.loads(record.getMessage())
    assert "\n" not in record.getMessage()
    assert (document["event"], document["caller"], len(document["tasks"])) == ("change", "ci", 20)
    assert len(document["tasks"][0]) == 200


def test_a_flood_of_refusals_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(audit_module.time, "monotonic", lambda: now[0])
    audit = Audit()
    with caplog.at_level(logging.INFO, "sidecast.audit"):
        for _ in range(1000):
            audit.refusal(**LINE)
        assert len(caplog.records) == audit_module.REFUSALS_PER_S
        audit.change(**LINE)
        now[0] += 1
        audit.refusal(**LINE)
    assert len(caplog.records) == audit_module.REFUSALS_PER_S + 2
    assert json.loads(caplog.records[-1].getMessage())["left_out"] == 900
