"""Every kind of vocabulary gives the ids of the library that made it; start and end tokens stand where they must."""

import base64
import json
import shutil
import threading
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, ByT5Tokenizer
from transformers.utils import sentencepiece_model_pb2_new

from ladder import BackboneError, load_tokenizer
from side_registry.specs.task import TaskSpec
from tests import families, tiny

TEXTS = ("the cat sat", "a gripping film, indeed: twice", "naïve 🐈 über", "", "  two  spaces\nand a line ")


@pytest.fixture
def folder_of(tmp_path):
    """A folder with a tokenizer alone, for a model_type."""

    def make(model_type: str, **files: bytes) -> object:
        (tmp_path / "config.json").write_text(json.dumps(CONFIGS[model_type] | {"model_type": model_type}))
        for name, data in files.items():
            (tmp_path / name.replace("__", ".")).write_bytes(data)
        return tmp_path

    return make


CONFIGS = dict.fromkeys(("t5", "mt5", "umt5"), families.T5_SHAPE) | {"bart": families.BART_SHAPE}


@pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5"])
@pytest.mark.parametrize("name", ["spiece__model", "sentencepiece.bpe__model"])
def test_a_bare_sentencepiece_model_gives_its_own_ids(folder_of, model_type, name):
    tokenizer = load_tokenizer(folder_of(model_type, **{name: families.sentence_piece()}))
    theirs = SentencePieceProcessor(model_proto=families.sentence_piece())
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert ids == [*theirs.encode(text), 1]
        assert tokenizer.decode(ids) == theirs.decode(theirs.encode(text)).replace(" \N{DOUBLE QUESTION MARK} ", "")
    assert tokenizer.decode([5000, 0, 1]) == ""


def test_byt5_is_the_bytes(folder_of):
    tokenizer = load_tokenizer(folder_of("t5", tokenizer_config__json=b'{"tokenizer_class": "ByT5Tokenizer"}'))
    theirs = ByT5Tokenizer()
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert ids == theirs(text)["input_ids"] == [*(byte + 3 for byte in text.encode()), 1]
        assert tokenizer.decode(ids) == text == theirs.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode([0, 300, 383, 2, 1]) == ""
    assert tokenizer.decode([3 + 0xC3]) == ""  # half a character


@pytest.mark.parametrize(
    "files", [{}, {"tokenizer_config__json": b'{"extra_ids": 125}'}], ids=["alone", "with settings"]
)
def test_byt5_may_be_named_in_config_json(folder_of, files):
    folder = folder_of("t5", **files)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tokenizer_class": "ByT5Tokenizer"}))
    assert load_tokenizer(folder).encode("ab") == ByT5Tokenizer()("ab")["input_ids"]


def test_bytes_need_no_file_and_have_one_fingerprint(folder_of, tmp_path):
    plain = load_tokenizer(folder_of("t5", tokenizer_config__json=b'{"tokenizer_class": "ByT5Tokenizer"}'))
    saved = tmp_path / "saved"
    ByT5Tokenizer().save_pretrained(saved)
    shutil.copy(tmp_path / "config.json", saved)
    assert load_tokenizer(saved).fingerprint == plain.fingerprint
    assert plain.fingerprint.startswith("sha256:")


def test_barts_prompts_begin_with_the_start_token_and_end_in_the_end_token(tmp_path):
    folder = families.make_bart(tmp_path / "bart")
    tokenizer, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert ids == theirs(text)["input_ids"]
        assert (ids[0], ids[-1]) == (0, 2)
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode_targets(["the cat"]) == [tokenizer.encode("the cat")[1:]]
    whole = tokenizer.encode(TEXTS[1])
    assert tokenizer.encode(TEXTS[1], 6) == [*whole[:5], 2]
    assert tokenizer.encode_targets([TEXTS[1]], 6) == [[*whole[1:6], 2]]
    assert len(tokenizer.encode("x y " * 200)) == len(tokenizer.encode("x y " * 200, 500)) == 64  # its positions


def test_barts_tokenizer_json_gives_the_same_ids_as_its_two_files(tmp_path):
    folder = families.make_bart(tmp_path / "bart")
    other = tmp_path / "other"
    AutoTokenizer.from_pretrained(folder).save_pretrained(other)
    shutil.copy(folder / "config.json", other)
    assert (other / "tokenizer.json").is_file()
    assert load_tokenizer(other).encode_batch(TEXTS) == load_tokenizer(folder).encode_batch(TEXTS)


def test_a_start_token_that_nobody_names_is_refused(folder_of):
    tiny.byte_tokenizer().save_pretrained(folder_of("bart"))
    with pytest.raises(BackboneError, match="start token"):
        load_tokenizer(folder_of("bart"))


def test_fingerprints_of_files_are_their_hashes(tmp_path, folder_of):
    """Published side networks name them."""
    tiny.byte_tokenizer().save_pretrained(folder_of("t5"))
    expected = "sha256:ceca77534293b0e46911fd5841e5a8a9f12b154e15861be98d7f57c8ce770420"
    assert load_tokenizer(tmp_path).fingerprint == expected
    folder_of("t5", spiece__model=families.sentence_piece())
    assert load_tokenizer(tmp_path).fingerprint == expected  # tokenizer.json goes first


@pytest.mark.parametrize(
    ("model_type", "files", "message"),
    [
        ("t5", {}, r"no tokenizer.json \(nor spiece.model"),
        ("bart", {"vocab__json": b"{}"}, r"nor vocab.json with merges.txt"),
        ("bart", {"spiece__model": families.sentence_piece()}, "no tokenizer.json"),
        ("mt5", {"spiece__model": b"no model"}, "does not load"),
        ("t5", {"tokenizer__json": b"{"}, "does not load"),
        ("t5", {"tokenizer_config__json": b'{"tokenizer_class": "T5Tokenizer"}'}, "no tokenizer.json"),
    ],
)
def test_folders_without_a_tokenizer_that_loads_say_so(folder_of, model_type, files, message):
    with pytest.raises(BackboneError, match=message):
        load_tokenizer(folder_of(model_type, **files))


@pytest.mark.parametrize("kind", ["mt5", "byt5", "bart"])
def test_many_threads_get_the_ids_that_one_gets(tmp_path, kind):
    tokenizer = load_tokenizer(families.make(kind, tmp_path / "model"))
    expected = [tokenizer.encode_batch(TEXTS, limit) for limit in range(3, 11)]
    found: dict[int, list[list[int]]] = {}
    threads = [
        threading.Thread(target=lambda place=place: found.update({place: tokenizer.encode_batch(TEXTS, place + 3)}))
        for place in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(8)] == expected


def as_sentence_piece(converted: dict[str, Any]) -> bytes:
    """The SentencePiece model that a T5's tokenizer.json was converted from: its pieces, its normalisation."""
    model = sentencepiece_model_pb2_new.ModelProto()
    kinds = {"<pad>": model.SentencePiece.CONTROL, "</s>": model.SentencePiece.CONTROL}
    kinds["<unk>"] = model.SentencePiece.UNKNOWN
    sentinels = 100  # stand behind the pieces
    for piece, score in converted["model"]["vocab"][:-sentinels]:
        model.pieces.add(piece=piece, score=score, type=kinds.get(piece, model.SentencePiece.NORMAL))
    model.trainer_spec.pad_id, model.trainer_spec.eos_id, model.trainer_spec.unk_id = 0, 1, 2
    model.trainer_spec.bos_id = -1
    normalizer = converted["normalizer"]
    [table] = [step for step in normalizer.get("normalizers", [normalizer]) if step["type"] == "Precompiled"]
    model.normalizer_spec.precompiled_charsmap = base64.b64decode(table["precompiled_charsmap"])
    return model.SerializeToString()


@pytest.mark.real_weights
@pytest.mark.timeout(900)  # the backbone may have to be downloaded first
def test_t5s_own_sentencepiece_model_and_tokenizer_json_agree(tmp_path, real_backbone):
    shutil.copy(real_backbone / "config.json", tmp_path)
    whole = json.loads((real_backbone / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "spiece.model").write_bytes(as_sentence_piece(whole))
    bare, converted = load_tokenizer(tmp_path), load_tokenizer(real_backbone)
    texts = [*TEXTS, *families.SENTENCES, "Is this review positive or negative?\n\nIt's “great”, isn’t it? 3.5/5 — ½"]
    assert bare.encode_batch(texts) == converted.encode_batch(texts)
    for ids in converted.encode_batch(texts):
        assert bare.decode(ids).split() == converted.decode(ids).split()


@pytest.mark.parametrize("kind", ["t5", "byt5", "mt5", "bart"])
def test_two_texts_are_found_among_the_tokens_of_their_prompt(tmp_path, kind):
    folder = tiny.make_t5(tmp_path / kind) if kind == "t5" else families.make(kind, tmp_path / kind)
    tokenizer = load_tokenizer(folder)
    spec = TaskSpec(name="mrpc", kind="classification", template="one: {one} two: {two}.", labels=("no", "yes"))
    rows = [{"one": "the cat sat", "two": "a gripping film"}, {"one": "a b", "two": "two: the cat"}]
    prompts, cuts = zip(*(spec.render_pair(row) for row in rows), strict=True)
    ids = tokenizer.encode_batch(prompts)
    for row, tokens, pair in zip(rows, ids, tokenizer.locate(prompts, cuts, ids), strict=True):
        for text, (first, after) in zip(row.values(), pair, strict=True):
            assert tokenizer.decode(tokens[first:after]).strip() == text
            assert after < len(tokens)
    short = tokenizer.encode_batch(prompts, 8)
    for tokens, (one, two) in zip(short, tokenizer.locate(prompts, cuts, short), strict=True):
        assert 0 <= one[0] <= one[1] <= two[0] <= two[1] <= len(tokens) - 1
