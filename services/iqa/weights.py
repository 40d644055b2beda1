"""The weight files of pyiqa's metrics: which a metric needs, where they are published, and which are missing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .metrics import MetricInfo

HUGGING_FACE = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
OPENAI_CLIP = "https://openaipublic.azureedge.net/clip/models/"
RN50 = OPENAI_CLIP + "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt"
TORCHVISION = "https://download.pytorch.org/models/"
ALEXNET, VGG16 = TORCHVISION + "alexnet-owt-7be5be79.pth", TORCHVISION + "vgg16-397923af.pth"
VIT_B_32 = OPENAI_CLIP + "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt"

WEIGHT_URLS: Mapping[str, tuple[str, ...]] = {
    "liqe": (HUGGING_FACE + "liqe_koniq.pt", VIT_B_32),
    "liqe_mix": (HUGGING_FACE + "liqe_mix.pt", VIT_B_32),
    "musiq": (HUGGING_FACE + "musiq_koniq_ckpt-e95806b9.pth",),
    "musiq-ava": (HUGGING_FACE + "musiq_ava_ckpt-e8d3f067.pth",),
    "musiq-spaq": (HUGGING_FACE + "musiq_spaq_ckpt-358bb6af.pth",),
    "musiq-paq2piq": (HUGGING_FACE + "musiq_paq2piq_ckpt-364c0c84.pth",),
    "maniqa": (HUGGING_FACE + "ckpt_koniq10k.pt",),
    "maniqa-kadid": (HUGGING_FACE + "ckpt_kadid10k.pt",),
    "maniqa-pipal": (HUGGING_FACE + "MANIQA_PIPAL-ae6d356b.pth",),
    "clipiqa": (RN50,),
    "clipiqa+": (HUGGING_FACE + "CLIP-IQA%2B_learned_prompts-603f3273.pth", RN50),
    "topiq_nr": (HUGGING_FACE + "cfanet_nr_koniq_res50-9a73138b.pth",),
    "topiq_nr-flive": (HUGGING_FACE + "cfanet_nr_flive_res50-ded1c74e.pth",),
    "topiq_nr-spaq": (HUGGING_FACE + "cfanet_nr_spaq_res50-a7f799ac.pth",),
    "niqe": (HUGGING_FACE + "niqe_modelparameters.mat",),
    "brisque": (HUGGING_FACE + "brisque_svm_weights.pth",),
    "lpips": (HUGGING_FACE + "LPIPS_v0.1_alex-df73285e.pth", ALEXNET),
    "lpips-vgg": (HUGGING_FACE + "LPIPS_v0.1_vgg-a78928a0.pth", VGG16),
    "dists": (HUGGING_FACE + "DISTS_weights-f5e65c96.pth", VGG16),
    "topiq_fr": (HUGGING_FACE + "cfanet_fr_kadid_res50-2c4cc61d.pth",),
    "fid": (HUGGING_FACE + "pt_inception-2015-12-05-6726825d.pth",),
}
"""Only what can be said before a run; other metrics say which file they miss when they are loaded."""


WITHOUT_FILES = ("piqe", "entropy")
"""pyiqa's no-reference metrics that are formulas: they need no file."""


class UnpublishedWeights(ValueError):
    """A file that is only opened when it is the published one, and is not."""


def find_file(url: str, folder: Path) -> Path | None:
    """The file of an address in `folder`, or where torch.hub keeps it below (`checkpoints/`); None where it is not."""
    name = url.rpartition("/")[2]
    return next((path for path in (folder / name, folder / "checkpoints" / name) if path.is_file()), None)


def published_hash(url: str) -> str:
    """The SHA-256 that an address names in its path, as OpenAI's do; "" where it names none."""
    folder = url.rpartition("/")[0].rpartition("/")[2].lower()
    return folder if re.fullmatch("[0-9a-f]{64}", folder) else ""


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def require_published(path: Path, url: str) -> None:
    """Raises UnpublishedWeights unless `path` is byte for byte what is published under `url`.

    CLIP's archives are TorchScript, programs that run when they are read and may write files; so only the known ones
    are opened.
    """
    found = file_hash(path)
    if found != published_hash(url):
        raise UnpublishedWeights(
            f"{path} is not the file that OpenAI publishes (its SHA-256 is {found[:12]}..., "
            f"{published_hash(url)[:12] or 'none'}... was expected), so it was not opened: files of this kind can run "
            f"code. Download it again from {url}"
        )


class MissingWeights(ValueError):
    """Weight files of metrics are not on this machine; the message says which ones, from where, and where they go.

    missing: name of a metric -> addresses of its files that are not in `folder`.
    """

    def __init__(self, missing: Mapping[str, Sequence[str]], folder: Path):
        several = len(missing) > 1
        names = ", ".join(f"'{name}'" for name in missing)
        needs = f"The metrics {names} need" if several else f"The metric {names} needs"
        urls = dict.fromkeys(url for each in missing.values() for url in each)
        files = "; ".join(f"{url.rpartition('/')[2]} from {url}" for url in urls)
        super().__init__(
            f"{needs} weights that are not in {folder}. Download and put there: {files}. "
            f"Nothing is downloaded on its own. Or take the metric{'s' if several else ''} out of the list."
        )


def require_weights(metrics: Sequence[MetricInfo], folder: Path) -> None:
    """Raise MissingWeights where files of these metrics, as far as they are known, are not in `folder`."""
    missing = {}
    for metric in metrics:
        urls = WEIGHT_URLS.get(metric.name, ())
        missing[metric.name] = [url for url in urls if find_file(url, folder) is None]
    if any(missing.values()):
        raise MissingWeights({name: urls for name, urls in missing.items() if urls}, folder)
