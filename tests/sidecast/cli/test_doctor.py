"""`sidecast doctor`."""

from pathlib import Path

from tests.serving.api_kit import Parlour
from tests.sidecast.cli.house import NOBODY, House
from tests.sidecast.cli_kit import Ran, done, sidecast
from tests.vision.folders import make_model, save


def checks_of(ran: Ran) -> dict[str, tuple[str, str]]:
    return {each["check"]: (each["state"], each["detail"]) for each in ran.document["checks"]}


def test_doctor_finds_all_well(house: House, parlour: Parlour) -> None:
    words = ["doctor", "--backbone", house / "t5", "--registry", house / "registry", "--server", parlour.address]
    found = checks_of(done(*words, "--json"))
    assert {name for name, (state, _) in found.items() if state != "ok"} == {"speed", "vision"}
    assert found["vision"] == ("skipped", "give --vision to check it")
    assert found["backbone"][1].startswith("t5: 3+2 blocks, width 32")
    assert found["registry"][1] == "generation 2, 1 tasks, 2 versions"
    assert found["server"][1] == "ready, 4 tasks"
    shown = done(*words).out
    assert [line.split()[1] for line in shown.splitlines()] == ["state"] + ["ok"] * 3 + ["skipped"] * 2 + ["ok"] * 3


def test_doctor_says_what_is_wrong(house: House) -> None:
    words = ["--backbone", house / "other-t5", "--registry", house / "registry", "--server", NOBODY]
    ran = sidecast("doctor", *words, "--device", "cuda:99", "--json")
    assert (ran.code, ran.err, ran.document["healthy"]) == (1, "", False)
    found = checks_of(ran)
    assert [name for name, (state, _) in found.items() if state == "wrong"] == ["device", "fit", "server"]
    assert "--device cuda:99 cannot be used here" in found["device"][1]
    assert found["fit"][1] == "trained on another backbone, or with another --quantize: letters@production"
    assert found["server"][1].startswith(f"no answer from {NOBODY}")


def test_doctor_loads_a_vision_encoder(house: House, tmp_path: Path) -> None:
    folder = save(tmp_path / "dino", "dinov2", make_model("dinov2"))
    found = checks_of(sidecast("doctor", "--vision", folder, "--vision-layer", 2, "--json"))
    assert found["vision"][0] == "ok"
    assert found["vision"][1].startswith("dino: 0 M weights, 4 x 4 tokens, width 16, sha256:")
    found = checks_of(sidecast("doctor", "--vision", tmp_path / "gone", "--json"))
    assert found["vision"] == ("wrong", f"{tmp_path}/gone has no config.json; give the folder of a vision encoder")


def test_doctor_skips_what_is_not_named(house: House) -> None:
    ran = done("doctor")
    assert [line.split()[1] for line in ran.out.splitlines()[1:]] == ["ok", "ok"] + ["skipped"] * 6
    found = checks_of(sidecast("doctor", "--registry", house / "nothing", "--json"))
    assert found["registry"][0] == "wrong"
    assert "there is no registry at" in found["registry"][1]
