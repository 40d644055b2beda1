"""Vision-language models in this process: a tiny LLaVA of transformers, and the host's own Qwen3-VL at a small size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.host import InProcessHost
from harness.vlm import TINY_VISION, save_tiny_llava, tiny_qwen


def picture(height: int = 40, width: int = 60, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def llava(host: InProcessHost) -> Path:
    return save_tiny_llava(host.models / "LLM" / "tiny-llava")


def load(name: str = "tiny-llava", **options: Any) -> Any:
    from realisr.nodes.vlm import LoadLocalVLM

    widgets = {"weight_dtype": "default", "temperature": 2.0, "max_tokens": 400, "image_size": 1024, **options}
    return InProcessHost.run(LoadLocalVLM, model_name=name, **widgets)[0]


def caption(vlm: Any, image: torch.Tensor | None = None, **options: Any) -> str:
    from realisr.nodes.agent import CaptionForRestoration

    widgets = {"style": "tags (VICR-Faithful)", "seed": 5, "max_length": 5000, **options}
    image = picture() if image is None else image
    return InProcessHost.run(CaptionForRestoration, image=image, vlm=vlm, **widgets)[0]


def refine(vlm: Any, **inputs: Any) -> tuple[str, str, str]:
    from realisr.nodes.agent import AgentPromptRefiner

    widgets = {"previous_prompt": "a red door", "seed": 5, "max_length": 5000, "on_failure": "stop", **inputs}
    return InProcessHost.run(AgentPromptRefiner, image=picture(), vlm=vlm, **widgets)


def test_the_folder_is_offered(llava):
    from realisr.host.vlm_folders import vlm_choices

    assert "tiny-llava" in vlm_choices()


def test_folders_of_other_models_are_not(host):
    from realisr.host.vlm_folders import vlm_choices

    for name, config in (("language-only", {"model_type": "llama"}), ("pure", {"model_type": "chameleon"})):
        (host.models / "LLM" / name).mkdir(parents=True)
        (host.models / "LLM" / name / "config.json").write_text(json.dumps(config))
    assert {"language-only", "pure"}.isdisjoint(vlm_choices())


def test_the_answer_is_transformers_own(llava):
    """Greedy, so that it can be compared with the library used as its documentation says."""
    from PIL import Image
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    from realisr.services.vlm.questions import refine_question

    vlm = load(temperature=0.0, max_tokens=24)
    low, previous = picture(seed=1)[0], picture(60, 90, seed=2)[0]
    question = refine_question(low, "a red door", previous)
    text, complete = vlm.local.answer(question, torch.device("cpu"), lambda: None)

    processor = LlavaProcessor.from_pretrained(llava)
    network = LlavaForConditionalGeneration.from_pretrained(llava)
    images = [Image.fromarray((each * 255).round().byte().numpy()) for each in (low, previous)]
    prompt = f"USER: <image>\n<image>\n{question.as_one_text} ASSISTANT:"
    inputs = processor(images=images, text=prompt, return_tensors="pt")
    inputs.pop("token_type_ids", None)  # of transformers 4's tokenizers, for other networks than this
    expected = network.generate(**inputs, do_sample=False, max_new_tokens=24)[0, inputs["input_ids"].shape[1] :]
    assert text == processor.decode(expected, skip_special_tokens=True)
    assert complete == (len(expected) < 24)
    named = network.config.to_dict()
    shown = named.get("image_token_id", named.get("image_token_index"))  # as transformers 4 calls it
    assert int((inputs["input_ids"] == shown).sum()) == 2 * 4


@pytest.mark.parametrize("chat_template", [True, False])
def test_captions_and_refines(host, chat_template):
    save_tiny_llava(host.models / "LLM" / f"written_{chat_template}", chat_template=chat_template)
    vlm = load(f"written_{chat_template}")
    found = caption(vlm)
    assert found == caption(vlm)
    assert len({found, caption(vlm, seed=6), caption(vlm, seed=7), caption(vlm, seed=8)}) > 1
    prompt, changes, reason = refine(vlm, previous_result=picture(80, 120))
    assert prompt
    assert (changes, reason) == ("", "")


def test_sampling_leaves_the_global_generator_alone(llava):
    vlm = load()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    caption(vlm)
    assert torch.equal(torch.rand(3), expected)


def test_the_host_manages_the_network(llava):
    import comfy.model_management

    vlm = load()
    caption(vlm)
    assert vlm.patcher in [loaded.model for loaded in comfy.model_management.current_loaded_models]
    assert vlm.patcher.model_size() > 0
    comfy.model_management.unload_all_models()
    assert vlm.patcher not in [loaded.model for loaded in comfy.model_management.current_loaded_models]
    assert caption(vlm)


@pytest.mark.parametrize(("name", "dtype"), [("default", torch.float32), ("bf16", torch.bfloat16)])
def test_the_precision_of_the_weights(llava, name, dtype):
    vlm = load(weight_dtype=name)
    assert vlm.local.network.dtype == dtype
    assert caption(vlm)


def test_cancel_stops_between_two_tokens(host):
    import comfy.model_management
    import comfy.utils

    save_tiny_llava(host.models / "LLM" / "endless", stop_often=False)
    vlm = load("endless", max_tokens=2000)
    seen: list[int] = []

    def cancel_at_the_first(value: int, total: int, *_: Any, **__: Any) -> None:
        seen.append(value)
        if len(seen) == 2:  # after the start of the node
            comfy.model_management.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(cancel_at_the_first)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            caption(vlm)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)
    assert len(seen) == 2 and seen[1] == 1


def test_an_answer_without_an_end_is_no_prompt(host):
    save_tiny_llava(host.models / "LLM" / "endless", stop_often=False)
    with pytest.raises(ValueError, match=r"Caption for Restoration: .*did not come to an end within 16 tokens"):
        caption(load("endless", max_tokens=16))


def copy_of(llava: Path, name: str) -> Path:
    return Path(shutil.copytree(llava, llava.parent / name, dirs_exist_ok=True))


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("tokenizer.json", r"lacks tokenizer\.json or tokenizer\.model"),
        ("processor_config.json", r"lacks preprocessor_config\.json or processor_config\.json"),
        ("model.safetensors", r"lacks model\.safetensors or model\.safetensors\.index\.json"),
    ],
)
def test_a_missing_file_is_named(llava, file, named):
    folder = copy_of(llava, f"without_{file}")
    (folder / file).unlink()
    if file == "processor_config.json":  # transformers 4 writes both
        (folder / "preprocessor_config.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=rf"without_{file} is incomplete.*{named}"):
        load(folder.name)


def test_a_missing_shard_is_named(llava):
    folder = copy_of(llava, "sharded")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00002\.safetensors\."):
        load("sharded")


def test_a_missing_tensor_is_named(llava):
    folder = copy_of(llava, "holed")
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if key.endswith("layers.1.mlp.up_proj.weight"))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fit its config\.json: 1 tensors .*up_proj\.weight"):
        load("holed")


def test_a_damaged_file_is_named(llava):
    folder = copy_of(llava, "damaged")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="transformers cannot load damaged"):
        load("damaged")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load("damaged")


def test_code_inside_a_folder_is_not_run(llava):
    folder = copy_of(llava, "with_code")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="transformers cannot load with_code"):
        load("with_code")
    assert not (folder / "ran").exists()


def test_an_unknown_folder(host):
    with pytest.raises(ValueError, match=r"no folder elsewhere of a vision-language model in .*LLM"):
        load("elsewhere")


@pytest.fixture(scope="module")
def qwen(host: InProcessHost):
    from comfy.text_encoders import qwen3vl

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(qwen3vl.QWEN3VL_VISION, "qwen3vl_4b", TINY_VISION)
        yield tiny_qwen()


def test_a_host_encoder_captions_and_refines(qwen):
    found = caption(qwen)
    assert found
    assert found == caption(qwen)
    assert found != caption(qwen, seed=6)
    prompt, _, _ = refine(qwen, previous_result=picture(80, 120))
    assert prompt


def test_a_host_encoder_sees_each_picture_at_its_own_size(qwen):
    from realisr.host.vlm import images_in, see

    images = [picture(64, 96)[0], picture(128, 192)[0]]
    tokens = see(qwen, "What is in {these} (pictures:1.3)?", images)
    assert images_in(tokens) == 2
    (row,) = tokens["qwen3vl_4b"]
    seen = [token[0]["data"] for token in row if isinstance(token[0], dict)]
    assert [tuple(each.shape) for each in seen] == [(1, 64, 96, 3), (1, 128, 192, 3)]
    assert torch.equal(seen[0][0], images[0])
    text = qwen.tokenizer.decode([token[0] for token in row if not isinstance(token[0], dict)])
    assert "What is in {these} (pictures:1.3)?" in text


def test_a_host_encoder_writes_as_generate_text_does(qwen):
    """The same tokens and settings through the core node's own calls."""
    from realisr.host.vlm import SAMPLING, generate_text

    image = picture(64, 96)
    text, complete = generate_text(qwen, "Describe it.", [image[0]], 300, 0.7, 9)
    tokens = qwen.tokenize("Describe it.", image=image, skip_template=False, min_length=1, thinking=False)
    ids = qwen.generate(tokens, do_sample=True, max_length=300, temperature=0.7, seed=9, **SAMPLING)
    assert text == qwen.decode(ids)
    assert complete
    _, complete = generate_text(qwen, "Describe it.", [image[0]], len(ids) - 1, 0.7, 9)
    assert not complete


def test_an_encoder_that_takes_one_image_gets_them_side_by_side(host):
    """Qwen-Image's tokenizer has room for one picture in its template."""
    from comfy.text_encoders.qwen_image import QwenImageTokenizer

    from realisr.host.vlm import GAP, images_in, see

    class Encoder:
        tokenizer = QwenImageTokenizer()
        cond_stage_model = torch.nn.Identity()

        def tokenize(self, text: str, **options: Any) -> Any:
            return self.tokenizer.tokenize_with_weights(text, **options)

    tokens = see(Encoder(), "What?", [torch.zeros(32, 48, 3), torch.ones(64, 96, 3)])
    assert images_in(tokens) == 1
    (seen,) = [token[0]["data"] for token in tokens["qwen25_7b"][0] if isinstance(token[0], dict)]
    assert tuple(seen.shape) == (1, 64, 96 + GAP + 96, 3)
    assert seen[:, :, :96].max() == 0
    assert seen[:, :, 96:].min() == 1


def test_an_encoder_that_cannot_write_says_so(host):
    import comfy.sd
    from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer

    class Target:
        params: dict = {}
        clip = SD1ClipModel
        tokenizer = SD1Tokenizer

    clip = comfy.sd.CLIP(Target, disable_dynamic=True)
    with pytest.raises(ValueError, match=r"\(SD1ClipModel\) encodes text and cannot write"):
        caption(clip)


def test_an_encoder_that_cannot_see_says_so(qwen):
    from comfy.text_encoders.z_image import ZImageTokenizer

    blind = qwen.clone()
    blind.tokenizer = ZImageTokenizer()
    with pytest.raises(ValueError, match="writes and cannot see"):
        caption(blind)
