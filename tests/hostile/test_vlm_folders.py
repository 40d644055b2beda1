"""Folders in `LLM` and `diffusion_models` that were made to end the host: when it lists, loads or uses them."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import pure
from harness.host import InProcessHost
from harness.vlm import CHAT_TEMPLATE, save_tiny_llava

pytestmark = pytest.mark.timeout(300)

ODD: dict[str, Callable[[Path], object]] = {
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "pipe": os.mkfifo if hasattr(os, "mkfifo") else Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "file that fails": lambda path: path.symlink_to("/proc/self/mem"),
    "folder of folders": lambda path: path.symlink_to(path.parent.parent),
    "large": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**40),
}
"""What stands in place of a file, and cannot be read."""


@pytest.fixture
def models(host: InProcessHost) -> Iterator[Path]:
    """The host's model folders, without what a test has put there."""
    folders = [host.models / name for name in ("LLM", "diffusion_models")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    before = {path for folder in folders for path in folder.iterdir()}
    yield host.models
    for path in {path for folder in folders for path in folder.iterdir()} - before:
        path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)


def schemas() -> dict[str, list[str]]:
    """Choices of every loader that lists folders, as the host asks for them at its start."""
    from realisr.nodes.pure_loaders import LoadARRestorer
    from realisr.nodes.vlm import LoadLocalVLM
    from realisr.nodes.vosr_loaders import LoadVOSRModel

    return {
        node.__name__: next(each.options for each in node.define_schema().inputs if each.id == "model_name")
        for node in (LoadLocalVLM, LoadARRestorer, LoadVOSRModel)
    }


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_file_is_left_out_with_a_line_in_the_log(models: Path, caplog: pytest.LogCaptureFixture, name: str):
    caplog.set_level(logging.WARNING)
    folder = models / "LLM" / f"odd {name}"
    folder.mkdir()
    ODD[name](folder / "config.json")
    listed = schemas() | schemas()
    assert not [choice for choices in listed.values() for choice in choices if folder.name in choice]
    lines = [record.getMessage() for record in caplog.records if folder.name in record.getMessage()]
    assert len(lines) == 1
    assert "is not offered as a model" in lines[0]


def test_one_odd_folder_hides_no_other(models: Path):
    for name in sorted(ODD):
        folder = models / "LLM" / "many" / name
        folder.mkdir(parents=True)
        ODD[name](folder / "config.json")
    (models / "LLM" / "loop").symlink_to(models / "LLM" / "loop")
    (models / "LLM" / "self").symlink_to(models / "LLM")
    (models / "LLM" / "file").write_text("no folder")
    good = models / "LLM" / "many" / "z good"
    good.mkdir()
    (good / "config.json").write_text('{"vision_config": {}}')
    assert "many/z good" in schemas()["LoadLocalVLM"]


@pytest.mark.parametrize("name", ODD)
def test_args_json_too(models: Path, name: str):
    folder = models / "diffusion_models" / f"odd {name}"
    folder.mkdir()
    ODD[name](folder / "args.json")
    assert schemas()["LoadVOSRModel"]


CONFIGS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"vision_config"',
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"1" * 10_000,
]


@pytest.mark.parametrize("content", CONFIGS, ids=lambda content: repr(content[:12]))
def test_a_damaged_config_is_offered_and_says_so_when_it_is_loaded(models: Path, content: bytes):
    from realisr.host.vlm_folders import find_vlm

    folder = models / "LLM" / "bad config"
    folder.mkdir()
    (folder / "config.json").write_bytes(content)
    for name in ("tokenizer.json", "processor_config.json", "model.safetensors"):
        (folder / name).touch()
    assert "bad config" in schemas()["LoadLocalVLM"]
    with pytest.raises(ValueError, match=r"config\.json (is not valid JSON|holds a)"):
        find_vlm("bad config")


INDEXES = [
    "[]",
    "{}",
    '{"weight_map": []}',
    '{"weight_map": {"a": 1}}',
    '{"weight_map": {"a": ["x"]}}',
    '{"weight_map": 5}',
]
INDEXES += [
    '{"weight_map": {"a": "../x.safetensors"}}',
    '{"weight_map": {"a": "/etc/passwd"}}',
    '{"weight_map": {"a": ""}}',
]


@pytest.mark.parametrize("index", INDEXES)
def test_an_odd_index_is_named(models: Path, index: str):
    from realisr.host.pure.files import find_restorer
    from realisr.host.vlm_folders import find_vlm

    folder = models / "LLM" / "indexed"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(index)
    for name in ("tokenizer.json", "processor_config.json"):
        (folder / name).touch()
    for config, find in (({"vision_config": {}}, find_vlm), ({"model_type": "chameleon"}, find_restorer)):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json (has no|lists|holds)"):
            find("indexed")


def tokenizer(**parts: Any) -> str:
    """A tokenizer.json of one word, with these parts."""
    model = {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"}
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return json.dumps({"version": "1.0", "added_tokens": [], **empty, "model": model, **parts})


def split_by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def charsmap(content: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


AT_ONCE = {
    "a table that is cut": tokenizer(normalizer=charsmap(b"\1")),
    "a table of another size": tokenizer(normalizer=charsmap(b"\xff\xff\xff\x7fabc")),
    "a prefix longer than its words": tokenizer(
        model={
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": ["a b"],
            "continuing_subword_prefix": "abcd",
        }
    ),
    "words that are not there": tokenizer(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}),
    "no words": tokenizer(model={"type": "Unigram", "unk_id": 0, "vocab": []}),
    "a pattern that is none": tokenizer(pre_tokenizer=split_by("(")),
    "no JSON": "{",
    "lists in lists": "[" * 100_000,
}
WHEN_USED = {
    "a table that points outside": tokenizer(normalizer=charsmap(b"\x04\0\0\0\xff\xff\xff\xff")),
    "a pattern that searches without an end": tokenizer(pre_tokenizer=split_by("(a+)+$")),
    "pieces of no length": tokenizer(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "no word for the unknown": tokenizer(model={"type": "WordLevel", "vocab": {"b": 0}, "unk_token": "<x>"}),
}


@pytest.mark.parametrize("name", [*AT_ONCE, *WHEN_USED])
def test_a_tokenizer_that_panics_is_an_error_that_names_it(tmp_path: Path, host: InProcessHost, name: str):
    """A panic is a BaseException: it would end the thread in which the host runs prompts."""
    from realisr.host.pure.tokenizer import TextTokenizer

    path = tmp_path / "tokenizer.json"
    path.write_text({**AT_ONCE, **WHEN_USED}[name])
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer file"):
        TextTokenizer(path).encode("a" * 40 + "! b")


def replaced(before: dict[str, str], after: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": before, "content": after}


TWICE = replaced({"String": "a"}, "aa")
MULTIPLYING = {
    "forty that double": {"normalizer": {"type": "Sequence", "normalizers": [TWICE] * 40}},
    "sequences in sequences": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Sequence", "normalizers": [TWICE] * 5} for _ in range(8)],
        }
    },
    "one that is long": {"normalizer": replaced({"String": "a"}, "b" * 10**6)},
    "a pattern": {"normalizer": replaced({"Regex": "[a-z]"}, "b" * 10**6)},
    "what comes first": {"normalizer": {"type": "Prepend", "prepend": "a" * 10**7}},
    "before it is cut": {"pre_tokenizer": {"type": "Metaspace", "replacement": "ab" * 999, "prepend_scheme": "always"}},
    "when it is put together": {"decoder": {"type": "Sequence", "decoders": [TWICE] * 40}},
    "a template": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 10**5,
            "pair": [],
            "special_tokens": {},
        }
    },
    "a long word": {"model": {"type": "WordLevel", "vocab": {"a" * 10**6: 0}, "unk_token": "a" * 10**6}},
}


@pytest.mark.parametrize("name", MULTIPLYING)
def test_a_tokenizer_that_makes_much_of_little(tmp_path: Path, host: InProcessHost, name: str):
    """Refused before the library has it, which neither stops nor says how far it is."""
    from realisr.host.pure.tokenizer import TextTokenizer

    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer(**MULTIPLYING[name]))
    with pytest.raises(
        ValueError, match=r"tokenizer\.json is not a tokenizer file \((the rules|the templates|.*token of)"
    ):
        TextTokenizer(path)


ORDINARY = {
    "as LLaMA": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, replaced({"String": " "}, "\u2581")],
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                replaced({"String": "\u2581"}, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    },
    "as BERT": {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    },
    "as T5": {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, replaced({"Regex": " {2,}"}, "\u2581")]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"},
    },
}


@pytest.mark.parametrize("name", ORDINARY)
def test_rules_of_released_tokenizers_are_taken(tmp_path: Path, host: InProcessHost, name: str):
    from realisr.host.pure.tokenizer import TextTokenizer

    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer(**ORDINARY[name]))
    TextTokenizer(path).decode(TextTokenizer(path).encode("a a b"))


def test_a_vision_language_model_that_makes_much_of_little(models: Path, llava: Path):
    folder = Path(shutil.copytree(llava, models / "LLM" / "multiplies"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = MULTIPLYING["forty that double"]["normalizer"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"the rules of the normalizer in tokenizer\.json make 1\.1e\+12 characters"):
        load("multiplies")


def test_a_tokenizer_that_fills_up_or_cuts(tmp_path: Path, host: InProcessHost):
    """The file may ask for prompts of a thousand million tokens."""
    from realisr.host.pure.tokenizer import TextTokenizer

    padding = {"strategy": {"Fixed": 10**6}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer(padding=padding, truncation=cut, pre_tokenizer={"type": "Whitespace"}))
    assert TextTokenizer(path).encode("a a b") == [1, 1, 0]


def test_a_restorer_with_such_a_tokenizer(models: Path):
    from realisr.host.pure.loader import load_ar_restorer

    folder = models / "LLM" / "panics"
    pure.save_pure_folder(folder, pure.backbone(), pure.Sizes().config())
    (folder / "tokenizer.json").write_text(AT_ONCE["a table that is cut"])
    (folder / "vq_ds8_c2i.pt").touch()
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer file"):
        load_ar_restorer("panics", "auto (vq_ds8_c2i)", "auto")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory, host: InProcessHost) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("llava") / "llava")


def load(name: str) -> Any:
    from realisr.nodes.vlm import LoadLocalVLM

    widgets = {"weight_dtype": "default", "temperature": 0.0, "max_tokens": 16, "image_size": 64}
    return InProcessHost.run(LoadLocalVLM, model_name=name, **widgets)[0]


def inputs_of(vlm: Any) -> Any:
    from realisr.services.vlm.questions import caption_question

    return vlm.local.answer(caption_question(torch.rand(8, 8, 3), "tags"), torch.device("cpu"), lambda: None)


@pytest.mark.parametrize("name", AT_ONCE)
def test_a_vision_language_model_with_such_a_tokenizer(models: Path, llava: Path, name: str):
    folder = Path(shutil.copytree(llava, models / "LLM" / "panics"))
    (folder / "tokenizer.json").write_text(AT_ONCE[name])
    with pytest.raises(ValueError, match=r"transformers cannot load|processor of this model"):
        inputs_of(load("panics"))


USED = {"normalizer": charsmap(b"\x04\0\0\0\xff\xff\xff\xff"), "pre_tokenizer": {"type": "FixedLength", "length": 0}}


@pytest.mark.parametrize("part", USED)
def test_a_tokenizer_that_panics_when_it_is_used(models: Path, llava: Path, part: str):
    folder = Path(shutil.copytree(llava, models / "LLM" / "panics"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content[part] = USED[part]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"transformers cannot load|processor of this model"):
        inputs_of(load("panics"))


def test_a_template_that_runs_for_days(models: Path, llava: Path):
    folder = Path(shutil.copytree(llava, models / "LLM" / "for days"))
    loops = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    (folder / "chat_template.jinja").write_text(loops + CHAT_TEMPLATE)
    with pytest.raises(ValueError, match="chat template in the model's folder cannot be used"):
        inputs_of(load("for days"))


def with_number(folder: Path, file: str, *names: str, value: Any) -> None:
    table = json.loads((folder / file).read_text())
    inner = table
    for name in names[:-1]:
        inner = inner[name]
    inner[names[-1]] = value
    (folder / file).write_text(json.dumps(table))


HUGE = 10**9
NUMBERS: dict[tuple[str, ...], Any] = {
    ("config.json", "text_config", "num_hidden_layers"): HUGE,
    ("config.json", "vision_config", "num_hidden_layers"): float(HUGE),
    ("config.json", "text_config", "hidden_size"): HUGE,
    ("config.json", "vision_config", "image_size"): HUGE,
    ("config.json", "vision_feature_layer"): HUGE,
    ("processor_config.json", "num_additional_image_tokens"): HUGE,
    ("processor_config.json", "image_processor", "size", "shortest_edge"): HUGE,
    ("processor_config.json", "image_processor", "crop_size", "width"): 10**5,
    ("processor_config.json", "image_processor", "resample"): HUGE,
}


@pytest.mark.parametrize("names", NUMBERS, ids=lambda names: names[-1])
def test_a_number_that_is_too_large(models: Path, llava: Path, names: tuple[str, ...]):
    folder = Path(shutil.copytree(llava, models / "LLM" / "large"))
    with_number(folder, *names, value=NUMBERS[names])
    with pytest.raises(ValueError, match=r"in large asks for|transformers cannot load large|fails with the settings"):
        inputs_of(load("large"))


@pytest.mark.parametrize("layers", [65, 2000])
def test_no_more_layers_than_tensors(models: Path, llava: Path, layers: int):
    from realisr.host.vlm_folders import find_vlm, tensor_count

    folder = Path(shutil.copytree(llava, models / "LLM" / "deep"))
    assert tensor_count(folder) == 64
    with_number(folder, "config.json", "text_config", "num_hidden_layers", value=layers)
    with pytest.raises(ValueError, match=rf"asks for {layers} layers \(num_hidden_layers\).*enough for 64"):
        find_vlm("deep")


def test_a_size_that_counts_pixels(models: Path, llava: Path):
    from realisr.host.vlm_folders import find_vlm

    folder = Path(shutil.copytree(llava, models / "LLM" / "pixels"))
    size = {"longest_edge": 16777216, "shortest_edge": 65536}
    with_number(folder, "processor_config.json", "image_processor", "size", value=size)
    assert find_vlm("pixels") == folder


@pytest.mark.parametrize("seed", range(2))
def test_damaged_folders_of_a_vision_language_model(models: Path, llava: Path, seed: int):
    """One text file of the folder at a time, with bytes changed, cut or taken out."""
    draw = random.Random(seed)
    texts = sorted(path.name for path in llava.iterdir() if path.suffix in (".json", ".jinja"))
    survived = 0
    turns = int(os.environ.get("REALISR_ATTACKS") or 12)
    for turn in range(turns):
        folder = Path(shutil.copytree(llava, models / "LLM" / f"damaged {turn}"))
        path = folder / draw.choice(texts)
        content = bytearray(path.read_bytes())
        for _ in range(draw.randrange(1, 4)):
            start = draw.randrange(len(content))
            content[start : start + draw.randrange(40)] = draw.randbytes(draw.randrange(4))
        path.write_bytes(content)
        with contextlib.suppress(ValueError):
            inputs_of(load(folder.name))
            survived += 1
    assert survived < turns
