"""Tokens as transformers makes them, the tokenizer of `tiny`, and encoders that cannot be used."""

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from server.errors import UserError
from server.model_folder import Padding
from tests.support.data import AG_NEWS, labelled, needs_ag_news, write, write_csv
from tests.support.datasets import make, refusal
from trainer.data.dataset import SPLITS
from trainer.data.tokenizer import check_model, is_local, load_tokenizer, train_tokenizer

ENCODER = os.environ.get("PRETRAINED_ENCODER", "")
"""Folder of a pretrained encoder with the uncased vocabulary, where there is one."""


@pytest.fixture
def left(tmp_path: Path, encoder: Path) -> Path:
    """An encoder whose tokenizer.json pads to a fixed length and truncates, both on the left."""
    folder = shutil.copytree(encoder, tmp_path / "left")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=60, direction="left", pad_id=1, pad_token="[UNK]")  # noqa: S106 - a token of a vocabulary
    tokenizer.enable_truncation(4, direction="left")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    write(folder / "tokenizer_config.json", json.dumps(config | {"pad_token": "[UNK]"}))
    return folder


def test_a_tokenizer_pads_and_truncates_on_its_side_but_to_no_length_of_its_own(tmp_path: Path, left: Path) -> None:
    dataset = make("sample:100", tmp_path / "dataset", model=str(left), max_length=24)
    assert dataset.padding == Padding(token_id=1, side="left", truncation_side="left")
    kept = json.loads((dataset.tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert (kept["padding"], kept["truncation"]) == (None, None)


def test_kinds_of_tokens_are_no_input_whatever_the_tokenizer_says(tmp_path: Path, encoder: Path) -> None:
    """XLNet's gives 2 to its [CLS]; training, export and server leave them out, and so do other programs with our folder."""
    folder = shutil.copytree(encoder, tmp_path / "kinds")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [SEP] [CLS]:2", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    inputs = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    write(folder / "tokenizer_config.json", json.dumps(config | inputs))
    assert AutoTokenizer.from_pretrained(folder)("a")["token_type_ids"][-1] == 2
    kept = make("sample:100", tmp_path / "dataset", model=str(folder), max_length=24).tokenizer_folder
    assert AutoTokenizer.from_pretrained(kept)("a").keys() == {"input_ids", "attention_mask"}


def test_tokens_equal_those_of_transformers(tmp_path: Path, encoder: Path, left: Path) -> None:
    came_in = [(f"{text} {'again ' * (number % 40)}", label) for number, (text, label) in enumerate(labelled(200))]
    path = write_csv(tmp_path / "rows.csv", [*came_in, ("Ünknown 世界 🌍!", "good"), ("ENDS[SEP]here", "bad")])
    for model in ("tiny", str(encoder), str(left)):
        dataset = make(path, tmp_path / f"dataset of {Path(model).name}", model=model, max_length=24)
        tokenizer = AutoTokenizer.from_pretrained(dataset.tokenizer_folder)
        truncated = 0
        for split in (dataset.train, dataset.validation, dataset.test):
            texts = [split.text(row) for row in range(len(split))]
            expected = tokenizer(texts, truncation=True, max_length=24)["input_ids"]
            assert [split.tokens(row).tolist() for row in range(len(split))] == expected
            assert split.lengths.tolist() == [len(tokens) for tokens in expected]
            truncated += sum(len(tokens) > 24 for tokens in tokenizer(texts)["input_ids"])
        assert truncated > 20
        assert sum(dataset.info["splits"][name]["truncated"] for name in SPLITS) == truncated
        assert dataset.vocabulary_size == len(tokenizer)
        assert dataset.padding.token_id == tokenizer.pad_token_id


def test_the_tokenizer_of_tiny_learns_from_training_rows_alone(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "rows.csv", [(f"{text} w{number}w", label) for number, (text, label) in enumerate(labelled(60))]
    )
    dataset = make(path, tmp_path / "dataset")
    learnt = AutoTokenizer.from_pretrained(dataset.tokenizer_folder).get_vocab()
    for split in (dataset.train, dataset.validation, dataset.test):
        words = [split.text(row).split()[-1] for row in range(len(split))]
        assert {word in learnt for word in words} == {split is dataset.train}


def test_the_tokenizer_of_tiny_knows_the_most_frequent_words_and_every_character() -> None:
    texts = ["Seldom SELDOM often often often", "same name", *(f"w{number}" for number in range(10_000))]
    vocabulary = train_tokenizer(iter(texts), max_length=32).get_vocab()
    assert len(vocabulary) == 8192
    by_number = sorted(vocabulary, key=vocabulary.__getitem__)
    characters = sorted(set("seldomoftensamenamew0123456789"))
    assert by_number[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert by_number[5 : 5 + 2 * len(characters)] == [*characters, *("##" + character for character in characters)]
    assert by_number[5 + 2 * len(characters) :][:6] == ["often", "seldom", "name", "same", "w0", "w1"]


@needs_ag_news
@pytest.mark.skipif(not ENCODER, reason="needs the folder of an encoder in PRETRAINED_ENCODER")
def test_the_real_test_split_has_as_many_tokens_as_the_uncased_vocabulary_gives(tmp_path: Path) -> None:
    file = str(AG_NEWS / "test.csv")
    test = make(file, tmp_path / "dataset", test_data=file, model=ENCODER).info["splits"]["test"]
    assert test["rows"] == 7600
    assert test["tokens"] / 7600 == pytest.approx(52.3, rel=0.01)
    assert test["truncated"] / 7600 == pytest.approx(0.007, abs=0.0005)
    assert list(test["length_percentiles"].values()) == pytest.approx([31, 50, 79, 121], abs=1)


@pytest.mark.parametrize("model", ["./absent", "/no/such/model", "~/model", "a/b/c"])
def test_an_encoder_that_can_only_be_a_folder_must_be_there(model: str, tmp_path: Path) -> None:
    assert refusal("sample", tmp_path / "dataset", model=model) == f"--model {model}: no such folder"


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    assert "holds no config.json, so it is no encoder" in refusal("sample", tmp_path / "dataset", model=str(tmp_path))


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (None, ""),
        (HfHubHTTPError("mirror", response=httpx2.Response(500, request=httpx2.Request("GET", "http://hub"))), ""),
        (HFValidationError("name"), "neither a folder here nor a model of https://huggingface.co: give a folder with"),
        (OfflineModeIsEnabled("set"), r"no such folder, and https://huggingface.co cannot be reached \(OfflineModeI"),
    ],
)
def test_an_encoder_may_be_named_by_its_id_which_the_hub_is_asked_for_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, refused: str
) -> None:
    asked = Mock(side_effect=error)
    monkeypatch.setattr(HfApi, "model_info", asked)
    is_local.cache_clear()
    with pytest.raises(UserError, match=f"^--model nomodel: {refused}") if refused else nullcontext():
        check_model("nomodel")
    asked.assert_called_once()
    is_local.cache_clear()


def test_an_encoder_in_the_cache_is_used_where_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, "model_info", Mock(side_effect=OfflineModeIsEnabled("set")))
    monkeypatch.setattr("trainer.data.tokenizer.try_to_load_from_cache", lambda *_: "/cache/config.json")
    assert is_local.__wrapped__("someone/encoder")


def test_an_encoder_without_its_vocabulary_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "config.json", json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"its tokenizer has no vocabulary; is tokenizer\.json or vocab\.txt missing\?"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "{}", '{"model": 5, "added_tokens": []}'])
def test_a_broken_tokenizer_is_refused_with_one_line(tmp_path: Path, encoder: Path, content: str) -> None:
    folder = shutil.copytree(encoder, tmp_path / "encoder")
    write(folder / "tokenizer.json", content)
    output = refusal("sample", tmp_path / "dataset", model=str(folder))
    assert output.startswith(f"--model {folder}: its tokenizer cannot be loaded: ")
