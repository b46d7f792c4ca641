"""The trust policy: which table decides, what it lets in, and files that it cannot be."""

from pathlib import Path

import pytest

from serving.access import TrustPolicy
from serving.errors import UnusableFile
from side_registry.signing import SigningKey
from tests.side_registry.signing.signing_kit import make_key

DIGESTS = {"manifest.json": "1" * 64, "side_network.safetensors": "2" * 64}


def test_the_first_table_that_matches_decides(tmp_path: Path) -> None:
    a, b = make_key(tmp_path, "a"), make_key(tmp_path, "b")
    path = tmp_path / "trust.toml"
    path.write_text(
        '[[trust]]\ntasks = "team-a-*"\nkeys = ["a.pub.pem"]\n'
        '[[trust]]\ntasks = "team-*"\nkeys = ["a.pub.pem", "b.pub.pem"]\nunsigned = true\n'
        '[[trust]]\ntasks = "open"\nunsigned = true\n'
    )
    policy = TrustPolicy(path)
    by_a, by_b = (SigningKey(key=pair.private).sign("x", DIGESTS) for pair in (a, b))
    assert policy.fault("team-a-sst2", DIGESTS, [by_a]) == ""
    assert policy.fault("team-a-sst2", DIGESTS, [by_b, by_a]) == ""
    assert "not trusted for this task" in policy.fault("team-a-sst2", DIGESTS, [by_b])
    assert policy.fault("team-a-sst2", DIGESTS, []) == "it has no signature"
    assert policy.fault("team-b", DIGESTS, [by_b]) == ""
    assert policy.fault("team-b", DIGESTS, []) == ""
    assert "not trusted" in policy.fault("team-b", DIGESTS, [SigningKey(key=_other(tmp_path)).sign("x", DIGESTS)])
    assert policy.fault("team-b", DIGESTS | {"more": "3" * 64}, [by_b]) != ""
    assert policy.fault("open", DIGESTS, [by_a]) == ""
    assert "no table" in policy.fault("sst2", DIGESTS, [by_a])


def _other(folder: Path) -> Path:
    return make_key(folder, "other").private


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"\[\[trust\]\]"),
        ("[trust]\ntasks = 'a'", r"\[\[trust\]\]"),
        ("trust = [1]", "must be a table"),
        ("[[trust]]\ntasks = 'a'", "names no keys"),
        ("[[trust]]\ntasks = 'a b'\nunsigned = true", "pattern"),
        ("[[trust]]\ntasks = 'a'\nunsigned = 'yes'", "true or false"),
        ("[[trust]]\ntasks = 'a'\nkeys = 'a.pem'", "list of files"),
        ("[[trust]]\ntasks = 'a'\nkey = ['a.pem']", "unknown keys"),
        ("[[trust]]\ntasks = 'a'\nkeys = ['none.pem']", "none.pem"),
        ("[[trust]", "trust policy"),
    ],
)
def test_a_policy_that_breaks_a_rule_stops_the_start(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "trust.toml"
    path.write_text(text)
    with pytest.raises(UnusableFile, match=words):
        TrustPolicy(path)
    with pytest.raises(UnusableFile, match="No such file"):
        TrustPolicy(tmp_path / "none.toml")
