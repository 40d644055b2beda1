"""Vision-language models of transformers (LLaVA and others) from a local folder. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..panics import panics_as_errors
from ..tokenizer_rules import require_bounded
from .pictures import to_pil
from .protocol import Question, SetupError

INSTALL = "pip install transformers"


@dataclass(frozen=True)
class LocalVLM:
    """A network with the processor that makes its inputs."""

    network: nn.Module
    processor: Any
    temperature: float = 0.2
    """0 always takes the likeliest token."""
    max_tokens: int = 512
    """Of one answer."""
    image_size: int = 1024
    """Longest side in pixels of a picture that is shown."""

    def answer(self, question: Question, device: torch.device, advance: Callable[[], None]) -> tuple[str, bool]:
        """The text written on `device`, where the network is, and whether it came to its end.

        advance: called after every token; raises to give up.
        """
        return self.answers([question], device, advance)[0]

    def answers(
        self, questions: Sequence[Question], device: torch.device, advance: Callable[[], None]
    ) -> list[tuple[str, bool]]:
        """`answer` for several questions, written together; one by one where the tokenizer has nothing to pad with.

        The first question's seed is that of all.
        """
        if len(questions) > 1 and self.processor.tokenizer.pad_token is None:
            return [self.answer(question, device, advance) for question in questions]
        network: Any = self.network
        with _damage_named("processor"):
            inputs = self._inputs(questions).to(device, dtype=network.dtype)
        sampling = (
            {"do_sample": True, "temperature": self.temperature}
            if self.temperature > 0
            else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        )
        kind = device.type if device.type in ("cuda", "xpu") else "cuda"
        devices = [device] if device.type == kind else []
        rng = torch.random.fork_rng(devices, device_type=kind)
        with torch.inference_mode(), rng, _damage_named("network", OF_SETTINGS):
            torch.manual_seed(questions[0].seed or 0)
            tokens = network.generate(
                **inputs, **sampling, max_new_tokens=self.max_tokens, stopping_criteria=_calling(advance)
            )
        return [self._written(row) for row in tokens[:, inputs["input_ids"].shape[1] :].tolist()]

    def _written(self, tokens: list[int]) -> tuple[str, bool]:
        """The text of an answer up to its end, and whether it came to one."""
        stops = set(_stop_tokens(self.network))
        length = next((count for count, token in enumerate(tokens, 1) if token in stops), None)
        complete = length is not None or len(tokens) < self.max_tokens
        return self.processor.tokenizer.decode(tokens[:length], skip_special_tokens=True), complete

    def _inputs(self, questions: Sequence[Question]) -> Any:
        """Tensors of the pictures and the texts, in the model's chat template or, where it has none, LLaVA's."""
        pictures = [[to_pil(picture.image, self.image_size) for picture in each.pictures] for each in questions]
        # Answers are written on after the last token, so a shorter question is filled up in front.
        padding = {"padding": True, "padding_side": "left"} if len(questions) > 1 else {}
        template = _chat_template(self.processor)
        if template is None:
            mark = getattr(self.processor, "image_token", "<image>")
            texts = [
                "USER: " + f"{mark}\n" * len(shown) + f"{question.as_one_text} ASSISTANT:"
                for question, shown in zip(questions, pictures, strict=True)
            ]
            together = [picture for shown in pictures for picture in shown]
            return taken_by(self.network, self.processor(images=together, text=texts, return_tensors="pt", **padding))
        # jinja is there where transformers is, and nothing else at start-up needs it.
        from .chat_template import render

        conversations = []
        for question, shown in zip(questions, pictures, strict=True):
            parts = [{"type": "image", "image": picture} for picture in shown]
            content = [*parts, {"type": "text", "text": question.as_one_text}]
            said = [*({"type": "image"} for _ in shown), content[-1]]
            text = render(template, [{"role": "user", "content": said}], self.processor.tokenizer.special_tokens_map)
            conversations.append([{"role": "user", "content": content, "rendered": text}])
        # The text is there already; the library adds what it knows of pictures and of special tokens.
        made = self.processor.apply_chat_template(
            conversations,
            chat_template="{{ messages[0]['rendered'] }}",
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **_template_options(self.processor, padding),
        )
        return taken_by(self.network, made)


def taken_by(network: Any, inputs: Any) -> Any:
    """The inputs without the token types that some tokenizers number and only networks of BERT's kind read."""
    if "token_type_ids" in inputs and "token_type_ids" not in signature(network.forward).parameters:
        del inputs["token_type_ids"]
    return inputs


OF_SETTINGS = (LookupError, TypeError, AttributeError, ZeroDivisionError)
"""What a network raises for settings that do not go together. Other errors are of the run: memory, cancel."""


@contextmanager
def _damage_named(part: str, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Raises ValueError in words for what a library raises because of a folder's files, panics included."""
    try:
        with panics_as_errors():
            yield
    except ValueError:
        raise
    except kinds as error:
        said = " ".join(str(error).strip().splitlines()[:1])
        raise ValueError(
            f"The {part} of this model fails with the settings in its folder ({type(error).__name__}: {said[:200]}). "
            "Download the folder again, from where it was published."
        ) from error


def load_local_vlm(
    folder: Path, dtype: torch.dtype, temperature: float = 0.2, max_tokens: int = 512, image_size: int = 1024
) -> LocalVLM:
    """The model of a whole transformers folder, on the CPU. Code inside the folder is never run.

    Raises SetupError when transformers is missing, ValueError for a folder it cannot load completely.
    """
    try:
        from transformers import AutoModelForImageTextToText, AutoProcessor
    except ImportError:
        raise SetupError(
            f"Local vision-language models need transformers. Install it into ComfyUI's Python ({INSTALL}) and restart."
        ) from None
    try:
        with panics_as_errors():
            require_bounded(folder / "tokenizer.json")
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            network, info = AutoModelForImageTextToText.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **{_dtype_name(): dtype},
            )
    except Exception as error:  # the library raises anything for a damaged folder
        said = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(
            f"transformers cannot load {folder.name}: {said[0]}. It needs a complete folder of an image-text-to-text "
            "model, such as huggingface.co/llava-hf/llava-1.5-7b-hf."
        ) from error
    missing = sorted(map(str, info["missing_keys"])) + sorted(str(each) for each in info["mismatched_keys"])
    if missing:
        raise ValueError(
            f"The weights in {folder.name} do not fit its config.json: {len(missing)} tensors are missing or of "
            f"another shape, such as {missing[0]}. Download the whole folder again, from where it was published."
        )
    return LocalVLM(network.eval(), processor, temperature, max_tokens, image_size)


def _chat_template(processor: Any) -> str | None:
    """The template in which the model was taught to be asked; a folder may hold several, by name."""
    template = getattr(processor, "chat_template", None)
    return template.get("default") if isinstance(template, dict) else template


def _dtype_name() -> str:
    """The parameter for the weights' precision, which transformers renamed."""
    import transformers
    from packaging.version import Version

    return "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"


def _template_options(processor: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options of the processor as apply_chat_template takes them, which transformers changed."""
    takes_table = "processor_kwargs" in signature(processor.apply_chat_template).parameters
    return {"processor_kwargs": options} if options and takes_table else options


def _calling(advance: Callable[[], None]) -> Any:
    """Stopping criteria that never stop, but call `advance` after every token."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Each(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
            advance()
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([Each()])


def _stop_tokens(network: Any) -> list[int]:
    stop = network.generation_config.eos_token_id
    return stop if isinstance(stop, list) else [] if stop is None else [stop]
