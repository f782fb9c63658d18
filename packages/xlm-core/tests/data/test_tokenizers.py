from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from xlm.data import tokenizers
from xlm.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    PretrainedTokenizer,
    WordTokenizer,
    encode,
    is_lossless,
    load,
)
from xlm.errors import UserError

HARD = "[MASK] <|endoftext|> [PAD]\r\n\0 \ufeff\tnaïve e\u0301 \U0001f469\u200d\U0001f469\u200d\U0001f467  אבג [UNK]"
TEXTS = [HARD, "the cat sat on the mat", "the dog"]
LOSSLESS = [ByteTokenizer(), CharTokenizer(), BPETokenizer(vocab_size=300)]
TEST_DATA = os.environ.get("XLM_TEST_DATA")
needs_data = pytest.mark.skipif(not TEST_DATA, reason="XLM_TEST_DATA names no folder with tokenizers/")


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return encode(tokenizer, [text])[0].ids


def control_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return [tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]


def name(factory: object) -> str:
    return type(factory).__name__


@pytest.mark.parametrize("factory", LOSSLESS, ids=name)
def test_any_text_comes_back_as_it_was_and_never_holds_a_control_token(factory):
    tokenizer = factory.build(TEXTS)
    assert tokenizer.decode(ids(tokenizer, HARD)) == HARD
    assert not set(ids(tokenizer, HARD)) & set(control_ids(tokenizer))
    assert is_lossless(tokenizer)


@pytest.mark.parametrize("factory", [*LOSSLESS, WordTokenizer()], ids=name)
def test_a_saved_tokenizer_is_the_same_when_loaded(factory, tmp_path):
    tokenizer = factory.build(TEXTS)
    tokenizer.save_pretrained(str(tmp_path))
    loaded = load(tmp_path)
    assert ids(loaded, HARD) == ids(tokenizer, HARD) == loaded.encode(HARD, add_special_tokens=False)
    assert (len(loaded), control_ids(loaded)) == (len(tokenizer), control_ids(tokenizer))
    assert is_lossless(loaded) == is_lossless(tokenizer)


def test_the_id_of_a_byte_is_its_value_and_control_tokens_follow():
    tokenizer = ByteTokenizer().build(())
    assert ids(tokenizer, "aé\U0001f600") == [*"aé\U0001f600".encode()]
    assert control_ids(tokenizer) == [256, 257, 258, 259]


def test_a_line_of_a_megabyte_comes_back():
    line = "x " * 500_000
    tokenizer = ByteTokenizer().build(())
    assert tokenizer.decode(ids(tokenizer, line)) == line


def test_half_a_surrogate_pair_is_named():
    with pytest.raises(UserError, match=r"is no Unicode text \('x\\ud800'\)"):
        encode(ByteTokenizer().build(()), ["fine", "x\ud800"])


def test_characters_are_numbered_by_frequency_and_unseen_ones_are_unknown():
    tokenizer = CharTokenizer().build(["bba", "b\n"])
    assert ids(tokenizer, "b") == [1]
    assert ids(tokenizer, "z") == [tokenizer.unk_token_id] == [0]
    assert len(tokenizer) == 1 + 3 + 4


def test_words_are_numbered_by_frequency_and_control_names_are_no_words():
    tokenizer = WordTokenizer().build(["b a b [MASK] [MASK] [MASK]"])
    assert ids(tokenizer, "b\n a") == [1, 2]
    assert tokenizer.decode([1, 2, 1]) == "b a b"
    assert ids(tokenizer, "[MASK]") == [tokenizer.unk_token_id]
    assert not is_lossless(tokenizer)


def test_a_word_vocabulary_keeps_to_its_size():
    assert len(WordTokenizer(vocab_size=7).build(["a a b b c d e"])) == 7


def test_bpe_merges_the_most_frequent_pair_first_and_keeps_to_its_size():
    tokenizer = BPETokenizer(vocab_size=261).build(["xy xy xy ab"])
    assert len(tokenizer) == 261
    assert tokenizer.convert_ids_to_tokens(256) == "xy"


def test_bpe_of_the_same_text_is_the_same_in_every_process():
    code = (
        "from xlm.data.tokenizers import BPETokenizer\n"
        "texts = [f'{a} and {b}' for a in range(30) for b in 'abcdef']\n"
        "print(hash('x') and BPETokenizer(vocab_size=320).build(texts).backend_tokenizer.to_str())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        for seed in "12"
    ]
    assert runs[0].stdout == runs[1].stdout != b""


@pytest.mark.parametrize(("factory", "size"), [(BPETokenizer, 259), (WordTokenizer, 5)])
def test_a_vocabulary_without_room_for_control_tokens_is_refused(factory, size):
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size"):
        factory(vocab_size=size)


def gpt2_folder(folder: Path) -> Path:
    symbols = tokenizers._byte_symbols()
    vocabulary = {symbol: i for i, symbol in enumerate([*symbols, "he", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\n")
    return folder


def bert_folder(folder: Path) -> Path:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "##s", "[", "]"]))
    return folder


def test_gpt2_files_alone_make_a_tokenizer_and_missing_tokens_become_new_ids(tmp_path, caplog):
    tokenizer = PretrainedTokenizer(name=str(gpt2_folder(tmp_path))).build(())
    assert ids(tokenizer, "he") == [256]
    assert control_ids(tokenizer) == [258, 259, 257, 257]
    assert "[PAD] = 258, [MASK] = 259" in caplog.text
    assert 257 not in ids(tokenizer, "<|endoftext|>")


def test_a_bert_vocabulary_alone_makes_a_lower_casing_tokenizer(tmp_path):
    tokenizer = PretrainedTokenizer(name=str(bert_folder(tmp_path))).build(())
    assert ids(tokenizer, "Cats") == [5, 6]
    assert control_ids(tokenizer) == [0, 4, 9, 10]
    assert tokenizer.cls_token_id == 2
    assert 4 not in ids(tokenizer, "[MASK]")
    assert not is_lossless(tokenizer)


def test_missing_control_tokens_can_be_made_an_error_that_names_them(tmp_path):
    with pytest.raises(UserError, match="no pad_token and no mask_token"):
        PretrainedTokenizer(name=str(gpt2_folder(tmp_path)), add_missing=False).build(())


def test_padding_that_shares_its_id_with_the_end_gets_its_own(tmp_path):
    backend = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    shared = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    shared.save_pretrained(str(tmp_path))
    tokenizer = PretrainedTokenizer(name=str(tmp_path)).build(())
    assert tokenizer.eos_token_id == 1
    assert len(set(control_ids(tokenizer))) == 4


def test_truncation_stored_with_a_tokenizer_cuts_nothing(tmp_path):
    tokenizer = ByteTokenizer().build(())
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.save_pretrained(str(tmp_path))
    assert ids(load(tmp_path), "abcd") == [*b"abcd"]


@pytest.mark.parametrize("files", [{}, {"README.md": "x"}, {"tokenizer.json": "{broken"}, {"vocab.json": "{}"}])
def test_a_folder_without_a_whole_tokenizer_is_refused(tmp_path, files):
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.name"):
        PretrainedTokenizer(name=str(tmp_path)).build(())


@pytest.mark.parametrize("bad", ["../secret", "/nowhere", "a/b/c", "x\n", "https://x.y/z"])
def test_a_name_that_cannot_be_on_the_hub_is_refused_without_asking(bad, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: pytest.fail("asked the Hub"))
    with pytest.raises(UserError, match="neither a folder nor a Hub name"):
        PretrainedTokenizer(name=bad).build(())


def unreachable(*args: object, **kwargs: object) -> None:
    raise ConnectionError("no network")


def test_a_hub_tokenizer_that_is_cached_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--someone--cats" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    bert_folder(snapshot)
    refs = tmp_path / "models--someone--cats" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    assert ids(PretrainedTokenizer(name="someone/cats").build(()), "cats") == [5, 6]


def test_a_hub_tokenizer_that_is_nowhere_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"no network in tokenizer\.name \(someone/cats\)"):
        PretrainedTokenizer(name="someone/cats").build(())


@pytest.mark.slow
def test_a_hub_that_accepts_and_says_nothing_is_given_up_within_ten_seconds(tmp_path):
    code = (
        "import sys, time\nfrom xlm.data.tokenizers import PretrainedTokenizer\nfrom xlm.errors import UserError\n"
        "start = time.monotonic()\n"
        "try:\n    PretrainedTokenizer(name='someone/cats').build(())\n"
        "except UserError:\n    print(time.monotonic() - start)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        proxies = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        environment = {**os.environ, **proxies, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
        environment["HF_HUB_OFFLINE"] = "0"  # whatever the session says
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert 1 < float(done.stdout) < 10, done.stderr


@needs_data
def test_gpt2s_own_files_give_gpt2s_own_ids():
    tokenizer = PretrainedTokenizer(name=f"{TEST_DATA}/tokenizers/gpt2").build(())
    assert ids(tokenizer, "Hello world") == [15496, 995]
    assert tokenizer.decode(ids(tokenizer, HARD)) == HARD
    assert control_ids(tokenizer) == [50257, 50258, 50256, 50256]


@needs_data
def test_berts_own_vocabulary_gives_berts_own_ids():
    tokenizer = PretrainedTokenizer(name=f"{TEST_DATA}/tokenizers/bert-base-uncased").build(())
    assert ids(tokenizer, "Hello world") == [7592, 2088]
    assert tokenizer.mask_token_id == 103
    assert not set(ids(tokenizer, HARD)) & set(control_ids(tokenizer))


@needs_data
def test_real_text_comes_back_from_a_trained_bpe_within_seconds():
    text = Path(f"{TEST_DATA}/text/tinyshakespeare.txt").read_text(encoding="utf-8")
    start = time.monotonic()
    tokenizer = BPETokenizer(vocab_size=1024).build(text.split("\n\n"))
    assert tokenizer.decode(ids(tokenizer, text)) == text
    assert time.monotonic() - start < 30
