"""Settings: three sources in their order, and faults that name the setting, its value and the rule."""

from pathlib import Path
from typing import Any

import pytest

from serving.config import ConfigError, ServeConfig, read_config, setting_names

NEEDED = {"backbone": "flan", "registry": "r"}


def test_flags_go_over_the_environment_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('backbone = "from-file"\nregistry = "r"\nport = 1\ngrace_s = 5\n[batch]\nmax_batch_rows = 7\n')
    environ = {"SIDECAST_PORT": "2", "SIDECAST_MAX_WAIT_S": "0.5", "SIDECAST_OTHER_TOOL": "x"}
    config = read_config({"port": 3, "host": None}, environ=environ, file=file)
    assert (config.backbone, config.port, config.host, config.grace_s) == ("from-file", 3, "127.0.0.1", 5.0)
    assert (config.batch.max_batch_rows, config.batch.max_wait_s) == (7, 0.5)


@pytest.mark.parametrize(("word", "value"), [("true", True), ("0", False), ("No", False)])
def test_booleans_read_from_the_environment(word: str, value: bool) -> None:
    config = read_config(NEEDED, environ={"SIDECAST_REPLAY_EXAMPLES": word})
    assert config.load.replay_examples is value


def test_a_number_without_a_default_is_none_where_it_is_not_given(tmp_path: Path) -> None:
    given = NEEDED | {"vision": "encoder"}
    assert read_config(given, environ={}).images.vision_layer is None
    assert read_config(given, environ={"SIDECAST_VISION_LAYER": "-1"}).images.vision_layer == -1
    file = tmp_path / "serve.toml"
    file.write_text('[images]\nvision = "encoder"\nvision_layer = 0\n')
    assert read_config(NEEDED, environ={}, file=file).images.vision_layer == 0


def test_a_path_is_as_good_as_its_text() -> None:
    assert read_config(NEEDED | {"backbone": Path("a/b")}, environ={}).backbone == str(Path("a/b"))


def test_every_setting_has_a_flat_name_of_its_own() -> None:
    names = setting_names()
    assert len(set(names)) == len(names)
    assert {"backbone", "max_batch_tokens", "max_side_bytes", "max_request_rows"} <= set(names)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 70000}, "port must be within 0..65535, got 70000"),
        ({"port": 9, "metrics_port": 9}, "must differ"),
        ({"max_batch_rows": 0}, "max_batch_rows must be >= 1, got 0"),
        ({"poll_s": 0.0}, "poll_s must be > 0"),
        ({"replay_bytes": -1}, "replay_bytes must be >= 0, got -1"),
        ({"max_wait_s": float("nan")}, "max_wait_s must be >= 0"),
        ({"dtype": "int3"}, "dtype must be one of"),
        ({"backbone": ""}, "backbone must not be empty"),
        ({"port": "eighty"}, "port must be of type int, got 'eighty'"),
        ({"port": True}, "port must be of type int"),
        ({"host": 3}, "host must be of type str"),
        ({"max_shadow_rows": -1}, "max_shadow_rows must be >= 0, got -1"),
        ({"max_running_shadows": 0}, "max_running_shadows must be >= 1, got 0"),
        ({"shadow_turn_s": 0.0}, "shadow_turn_s must be > 0, got 0.0"),
        ({"image_batch": 0}, "image_batch must be >= 1, got 0"),
        ({"image_cache_bytes": -1}, "image_cache_bytes must be >= 0, got -1"),
        ({"vision": "v", "vision_layer": "last"}, "vision_layer must be of type int, got 'last'"),
        ({"vision_layer": 0}, "vision_layer and vision_size are settings of an encoder; give vision"),
        ({"vision_size": 98}, "give vision, its folder, too"),
        ({"keep_inputs": "perhaps"}, "keep_inputs must be of type bool"),
        ({"prot": 3}, r"unknown settings \['prot'\]"),
        ({"batch": {}}, "unknown settings"),
        ({"tenant_header": "X-Tenant"}, "tenant_header must be empty or a gRPC metadata key .* got 'X-Tenant'"),
        ({"tenant_header": "grpc-tenant"}, "tenant_header must be empty"),
        ({"tenant_header": "tenant-bin"}, "tenant_header must be empty"),
    ],
)
def test_a_wrong_setting_is_named_with_its_rule(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeConfig.from_values(NEEDED | values)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="registry"):
        read_config({"backbone": "flan"}, environ={})


@pytest.mark.parametrize("text", ["port = ", "port = 'x'\n[batch]\nrows = 3", "\udcff"])
def test_an_unusable_file_is_a_config_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ConfigError):
        read_config(NEEDED, environ={}, file=file)


def test_a_file_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_config(NEEDED, environ={}, file=tmp_path / "nothing.toml")
