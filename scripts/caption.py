"""Write the texts that training photos need, by a vision-language model: a chat endpoint or a local LLaVA.

python scripts/caption.py photos --kind caption --endpoint http://localhost:11434/v1 --model qwen3-vl:8b
python scripts/caption.py photos --kind tags --local models/LLM/llava-1.5-7b-hf
python scripts/caption.py photos --kind dreamsr --crops 4 --config training/configs/dreamsr_control.yaml --local ...
python scripts/caption.py photos --kind pure --out data/pure --endpoint ... --model ...

caption, tags   of the photo as the model will see it, degraded as in training: photo.txt (VICR)
dreamsr         a prompt for the photo and one for each of some crops: photo.crops.json (DreamSR)
pure            levels of degradation and a description of crops, with the crops: conversations.json in --out (PURE)

Photos whose file is there already are left out, so the same command goes on where it stopped. What failed is told at
the end, and the exit status is then 1. Keys come from environment variables, as in the Chat Endpoint node.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from _pack import load_pack

load_pack()
from realisr.services.vlm.protocol import SetupError, VisionLanguageModel  # noqa: E402
from realisr.training.captions.conversations import Conversations  # noqa: E402
from realisr.training.captions.kinds import Caption, CropCaptions, Kind, Options, Photo  # noqa: E402
from realisr.training.captions.run import Captioner, Report  # noqa: E402
from realisr.training.data.config import DataSettings  # noqa: E402
from realisr.training.data.sources import folder_images  # noqa: E402
from realisr.training.engine.config import explain  # noqa: E402

KINDS = ("caption", "tags", "dreamsr", "pure")
INTERRUPTED = 130


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", type=Path, nargs="*", help="folders of photos; default: those of the run's settings")
    add("--kind", choices=KINDS, required=True)
    add("--config", type=Path, help="a run's YAML, for its `data`: degradation, crops, endings of the files")
    add("--endpoint", metavar="URL", help="address of an OpenAI-compatible chat endpoint")
    add("--model", help="its model, one that reads images")
    add("--key-variable", default="OPENAI_API_KEY", help="environment variable with its key (default: %(default)s)")
    add("--local", type=Path, metavar="FOLDER", help="a LLaVA of transformers in place of an endpoint")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="for --local (default: %(default)s)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="for --local (default: bfloat16, on the CPU float32)",
    )
    add("--temperature", type=float, default=0.2, help="0 is the most repeatable (default: %(default)s)")
    add("--max-tokens", type=positive, help="of an answer (default: 4096, for --local 512)")
    add("--jobs", type=positive, default=4, help="questions at a time; --local answers them as a batch (default: 4)")
    add("--crops", type=positive, default=1, help="of a photo, for dreamsr and pure (default: 1)")
    add("--crop", type=positive, help="side of a crop in pixels (default: the settings', 512)")
    add("--ending", help="of the file beside a photo (default: the settings', .txt or .crops.json)")
    add("--out", type=Path, help="folder of what `pure` makes")
    add("--clean", action="store_true", help="show the model clean photos, not degraded ones (not for pure)")
    add("--max-length", type=positive, default=1500, help="characters of a text (default: %(default)s)")
    add("--instruction", type=Path, metavar="FILE", help="what the model is told, in place of the pack's own text")
    add("--seed", type=int, default=0, help="of the crops and the degradation (default: %(default)s)")
    add("--again", action="store_true", help="also describe what is described already")
    add("--give-up", type=positive, default=20, help="failures in a row after which to stop (default: %(default)s)")
    options = parser.parse_args(argv)
    if (options.endpoint is None) == (options.local is None):
        parser.error("give --endpoint with --model, or --local")
    if options.endpoint and not options.model:
        parser.error("--endpoint needs --model")
    if (options.kind == "pure") != (options.out is not None):
        parser.error("--out is for --kind pure, which needs it")
    if options.kind == "pure" and options.clean:
        parser.error("--clean is not for --kind pure: it shows the degraded crop and the clean one")
    if not options.folders and not options.config:
        parser.error("give folders of photos, or --config with the run that names them")
    return options


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def read_data(options: argparse.Namespace) -> DataSettings:
    """The `data` part of the run's settings, with the options on top. Raises ValueError saying what is wrong."""
    from pydantic import ValidationError

    content: dict[str, Any] = {"sources": [{"folder": str(folder)} for folder in options.folders]}
    if options.config is not None:
        try:
            run = yaml.safe_load(options.config.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{options.config} is not YAML: {error}") from error
        if not isinstance(run, dict) or not isinstance(run.get("data"), dict):
            raise ValueError(f"{options.config} has no part `data`")
        content = {**run["data"], **({} if not options.folders else content)}
    if options.crop is not None:
        content["crop"] = options.crop
    if options.ending is not None:
        content["crop_prompts" if options.kind == "dreamsr" else "prompts"] = options.ending
    try:
        return DataSettings.model_validate(content)
    except ValidationError as error:
        raise ValueError("the data's settings:\n" + "\n".join(explain(error, DataSettings))) from error


def find_photos(data: DataSettings, out: Path | None) -> list[Photo]:
    """Every photo of the settings' folders. Raises ValueError where there are none, and for an `out` inside of one."""
    folders = [source.folder for source in data.sources if source.folder is not None]
    if not folders:
        raise ValueError("the run reads no folder, and only photos in folders can have files beside them")
    if out is not None and any(out.resolve().is_relative_to(folder.resolve()) for folder in folders):
        raise ValueError(f"--out {out} is inside a folder of photos: what is written there would be taken for photos")
    return [Photo(path, folder) for folder in folders for path in folder_images(folder)]


def make_kind(options: argparse.Namespace, data: DataSettings) -> Kind:
    told = options.instruction.read_text(encoding="utf-8") if options.instruction else ""
    settings = Options(
        data, options.seed, options.clean, max_length=options.max_length, crops=options.crops, instruction=told
    )
    if options.kind == "dreamsr":
        return CropCaptions(settings)
    if options.kind == "pure":
        return Conversations(settings, options.out)
    return Caption(settings, "tags" if options.kind == "tags" else "sentences")


def make_model(options: argparse.Namespace) -> VisionLanguageModel:
    """The model that is asked. Raises SetupError or ValueError with what to do."""
    if options.endpoint:
        from realisr.services.vlm.chat.endpoint import ChatEndpoint

        temperature, tokens = options.temperature, options.max_tokens or 4096
        return ChatEndpoint(
            options.endpoint, options.model, options.key_variable, temperature=temperature, max_tokens=tokens
        )
    from realisr.services.vlm.transformers import load_local_vlm
    from realisr.training.captions.local import DeviceVLM

    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    local = load_local_vlm(options.local, dtype, options.temperature, options.max_tokens or 512)
    local.network.to(device)
    return DeviceVLM(local, device)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every photo has its file, 1 when some have not, 130 after Ctrl-C."""
    options = parse(argv)
    try:
        data = read_data(options)
        photos = find_photos(data, options.out)
        kind, model = make_kind(options, data), make_model(options)
        waiting = len(photos) if options.again else sum(not kind.is_done(photo) for photo in photos)
        with tqdm(total=waiting, unit="photo", disable=None) as bar:
            captioner = Captioner(kind, model, options.jobs, options.give_up, bar.update)
            try:
                captioner.run(photos, options.again)
            except KeyboardInterrupt:
                bar.close()
                kind.finish(photos)
                say(f"stopped; {captioner.report.done} photos done. The same command goes on.")
                return INTERRUPTED
        made = kind.finish(photos)
    except (SetupError, ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        say(f"error: {error}")
        return 1
    return tell(captioner.report, made)


def tell(report: Report, made: Sequence[Path]) -> int:
    """Print what became of the photos; the exit status."""
    by_reason: dict[str, list[Path]] = {}
    for path, reason in report.failed.items():
        by_reason.setdefault(reason, []).append(path)
    for reason, paths in by_reason.items():
        say(f"failed: {reason}")
        for path in paths:
            say(f"    {path}")
    for path in made:
        say(f"wrote {path}")
    say(f"{report.done} photos done, {report.there} were there already, {len(report.failed)} failed")
    if report.given_up:
        say(f"stopped because too many failed in a row; {report.given_up} photos were not tried")
    return 1 if report.failed or report.given_up else 0


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
