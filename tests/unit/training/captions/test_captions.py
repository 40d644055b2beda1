"""Captions for training, from a chat server on the loopback interface and from a tiny LLaVA."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import caption
from harness.chat_server import Answer, ChatRequest, ChatServer, Failure, Hang
from harness.vlm import save_tiny_llava
from realisr.models.pure.prompt import INSTRUCTION
from realisr.training.captions.kinds import Photo, place_of
from realisr.training.data.config import DataSettings
from realisr.training.data.crops import Crop, cut
from realisr.training.data.degradations import Degradations
from realisr.training.data.photos import Photos
from realisr.training.engine.draws import Draws

SIDE = 32


def smooth(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    small = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "photos"
    (found / "inside").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(smooth(number)).save(found / f"{number}.png")
    Image.fromarray(smooth(3)).save(found / "inside" / "3.png")
    return found


def run(*options: object) -> int:
    return caption.main([str(option) for option in options])


def asked(chat: ChatServer) -> tuple[str, ...]:
    return ("--endpoint", chat.url, "--model", "tests", "--jobs", "2")


def numbered(request: ChatRequest) -> Answer:
    """An answer that tells pictures apart."""
    return Answer(f"A picture with a mean of {np.asarray(request.images[0]).mean():.3f}.")


def texts(folder: Path, ending: str = ".txt") -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.rglob(f"*{ending}"))}


def test_captions_are_of_the_photo_as_training_degrades_it(folder, capsys):
    with ChatServer(default=numbered) as chat:
        assert run(folder, "--kind", "caption", *asked(chat)) == 0
    written = texts(folder)
    assert written.keys() == {"0.txt", "1.txt", "2.txt", "3.txt"} and len(set(written.values())) == 4
    data = DataSettings.model_validate({"sources": [{"folder": str(folder)}]})
    shown = {}
    for request in chat.requests:
        assert request.images[0].size == (24, 16)  # a quarter
        assert "caption" not in request.texts[0] and "two to four plain sentences" in request.texts[0]
        shown[request.body["seed"]] = np.asarray(request.images[0]).astype(float)
    for path in sorted(folder.rglob("*.png")):
        photo = Photo(path, folder)
        hq = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float() / 255
        low = Degradations(data.degradation).low(hq, Draws((0, photo.number), 0))
        expected = (low[0] * 255).permute(1, 2, 0).numpy()
        assert np.abs(shown[photo.number] - expected).mean() < 6  # it is sent as a JPEG
    assert "4 photos done, 0 were there already, 0 failed" in capsys.readouterr().err
    photos = Photos(data.model_copy(update={"crop": SIDE}), seed=0, needs_prompt=True)
    assert {photos[number]["prompt"] for number in range(8)} == {text.strip() for text in written.values()}
    assert not photos.skipped()


def test_tags_and_clean_photos_and_instructions_of_ones_own(folder, tmp_path):
    with ChatServer(default="dog, grass") as chat:
        assert run(folder, "--kind", "tags", "--clean", "--ending", ".tags.txt", *asked(chat)) == 0
        assert all(request.images[0].size == (96, 64) for request in chat.requests)
        assert all("comma-separated list" in request.texts[0] for request in chat.requests)
        (tmp_path / "told.txt").write_text("Name the {max_length} things.")
        chat.requests.clear()
        own = ("--instruction", tmp_path / "told.txt", "--max-length", 40)
        assert run(folder, "--kind", "tags", *own, *asked(chat)) == 0
        assert all("Name the 40 things." in request.texts[0] for request in chat.requests)
    assert set(texts(folder, ".tags.txt").values()) == {"dog, grass\n"}


def test_the_same_photos_are_shown_again_and_others_under_another_seed(folder):
    sent = []
    for seed in (0, 0, 1):
        with ChatServer(default=numbered) as chat:
            assert run(folder, "--kind", "caption", "--seed", seed, "--again", *asked(chat)) == 0
        sent.append(texts(folder))
    assert sent[0] == sent[1]
    assert all(sent[0][name] != sent[2][name] for name in sent[0])


def test_what_is_there_stays_and_what_failed_is_told_and_tried_again(folder, capsys):
    (folder / "0.txt").write_text("mine")
    (folder / "1.txt").write_text("")
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0")

    def unwilling(request: ChatRequest):
        return (
            Failure(400, "too blurred") if request.body["seed"] == Photo(folder / "2.png", folder).number else "A door."
        )

    with ChatServer(default=unwilling) as chat:
        assert run(folder, "--kind", "caption", *asked(chat)) == 1
        said = capsys.readouterr().err
        assert "too blurred" in said and str(folder / "2.png") in said
        assert "cannot be read" in said and str(folder / "torn.jpg") in said
        assert "2 photos done, 1 were there already, 2 failed" in said
    assert texts(folder) == {"0.txt": "mine", "1.txt": "A door.\n", "3.txt": "A door.\n"}
    (folder / "torn.jpg").unlink()
    with ChatServer(default="A wall.") as chat:
        assert run(folder, "--kind", "caption", *asked(chat)) == 0
        assert len(chat.requests) == 1
    assert texts(folder) == {"0.txt": "mine", "1.txt": "A door.\n", "2.txt": "A wall.\n", "3.txt": "A door.\n"}


def test_a_server_that_fails_always_is_not_asked_for_every_photo(folder, capsys):
    with ChatServer(default=Failure(400, "no pictures today")) as chat:
        options = ("--kind", "caption", "--endpoint", chat.url, "--model", "tests", "--jobs", "1", "--give-up", "2")
        for number in range(10, 30):
            Image.fromarray(smooth(number)).save(folder / f"{number}.png")
        assert run(folder, *options) == 1
        assert len(chat.requests) < 20
    said = capsys.readouterr().err
    assert "stopped because too many failed" in said and "20 photos were not tried" in said
    assert not texts(folder)


def test_ctrl_c_keeps_what_is_done(folder, capsys, monkeypatch):
    from realisr.training.captions.kinds import Caption

    write = Caption.write

    def interrupted(self, photo, answers):
        if len(texts(folder)) == 2:
            raise KeyboardInterrupt
        write(self, photo, answers)

    monkeypatch.setattr(Caption, "write", interrupted)
    with ChatServer(default="A door.") as chat:
        assert run(folder, "--kind", "caption", *asked(chat)) == 130
        assert len(texts(folder)) == 2 and "The same command goes on" in capsys.readouterr().err
        monkeypatch.undo()
        assert run(folder, "--kind", "caption", *asked(chat)) == 0
        assert len(texts(folder)) == 4
    assert not list(folder.rglob("*.partial"))


def test_questions_are_in_flight_together(folder):
    together = threading.Barrier(3, timeout=60)

    def waits(request: ChatRequest):
        together.wait()  # three must have come before one is answered
        return "A door."

    (folder / "inside" / "3.png").unlink()
    with ChatServer(default=waits) as chat:
        assert run(folder, "--kind", "caption", "--endpoint", chat.url, "--model", "tests", "--jobs", "3") == 0


def test_crops_have_prompts_that_photos_reads(folder):
    config = folder.parent / "run.yaml"
    config.write_text(
        f"out: x\nsteps: 1\ndata:\n  sources: [{{folder: {folder}}}]\n  crop: {SIDE}\n"
        "  resize: {short_side: 40, chance: 0.5}\n  degradation: [{kind: camera}]\n"
    )
    with ChatServer(default=numbered) as chat:
        assert run("--config", config, "--kind", "dreamsr", "--crops", 3, *asked(chat)) == 0
        assert len(chat.requests) == 16
    data = DataSettings.model_validate(
        {"sources": [{"folder": str(folder)}], "crop": SIDE, "degradation": [{"kind": "camera"}]}
    )
    sizes = set()
    for path in sorted(folder.rglob("*.png")):
        found = json.loads(path.with_name(path.stem + ".crops.json").read_text())
        photo = Photo(path, folder)
        by_mean = {f"A picture with a mean of {np.asarray(r.images[0]).mean():.3f}.": r for r in chat.requests}
        assert by_mean[found["prompt"]].images[0].size == (24, 16)
        assert len(found["crops"]) == 3
        for number, entry in enumerate(found["crops"], 1):
            crop = Crop(*(entry[name] for name in ("width", "height", "left", "top", "side")))
            sizes.add((crop.width, crop.height))
            request = by_mean[entry["prompt"]]
            assert place_of(crop) in request.texts[-1] or any(place_of(crop) in text for text in request.texts)
            hq = torch.from_numpy(cut(Image.open(path), crop)).permute(2, 0, 1)[None].float() / 255
            lq = Degradations(data.degradation)(hq, Draws((0, photo.number), number))
            expected = (lq[0] * 255).permute(1, 2, 0).numpy()
            assert np.abs(np.asarray(request.images[0]).astype(float) - expected).mean() < 4
    assert sizes == {(96, 64), (60, 40)}
    photos = Photos(data, seed=0, needs_crop_prompts=True)
    items = [photos[number] for number in range(12)]
    assert not photos.skipped() and len({item["crop_prompt"] for item in items}) > 6


def test_a_photo_smaller_than_the_crop_is_told(folder, capsys):
    with ChatServer(default="A door.") as chat:
        assert run(folder, "--kind", "dreamsr", "--crop", 80, *asked(chat)) == 1
        assert not chat.requests
    assert "96x64 pixels, smaller than the crop of 80" in capsys.readouterr().err


def rating(request: ChatRequest) -> str:
    if "rate two things" in request.texts[0]:
        return '{"blur": "Medium", "noise": "small"}'
    return "The image shows a door."


def test_pures_list_is_the_form_of_its_training(folder, tmp_path):
    out = tmp_path / "pure"
    with ChatServer(default=rating) as chat:
        assert run(folder, "--kind", "pure", "--crop", SIDE, "--crops", 2, "--out", out, *asked(chat)) == 0
        assert len(chat.requests) == 16
    items = json.loads((out / "conversations.json").read_text())
    assert len(items) == 8
    data = DataSettings.model_validate({"sources": [{"folder": str(folder)}], "crop": SIDE})
    clean = []
    for item in items:
        assert item["conversations"] == [
            {"from": "human", "value": f"{INSTRUCTION} <|image|>"},
            {"from": "gpt", "value": "Medium blur, small noise. The image shows a door. <|image|>"},
        ]
        lq, hq = (np.asarray(Image.open(out / name)) for name in item["image"])
        assert lq.shape == hq.shape == (SIDE, SIDE, 3) and "lq" in item["image"][0] and "hq" in item["image"][1]
        clean.append(hq)
        name = item["image"][0].removeprefix("lq/photos-")
        path = next(path for path in folder.rglob("*.png") if path.stem == name.split("-")[0])
        number = int(name.removesuffix(".png").rsplit("-", 1)[1])
        shown = torch.from_numpy(hq.copy()).permute(2, 0, 1)[None].float() / 255
        again = Degradations(data.degradation)(shown, Draws((0, Photo(path, folder).number), number + 1))
        assert np.array_equal((again[0] * 255).round().permute(1, 2, 0).numpy(), lq)
    sent = [request for request in chat.requests if "rate two things" not in request.texts[0]]
    for request in sent:  # descriptions are of the clean crop
        assert min(np.abs(np.asarray(request.images[0]).astype(float) - hq).mean() for hq in clean) < 4
    with ChatServer(default=rating) as chat:
        assert run(folder, "--kind", "pure", "--crop", SIDE, "--crops", 2, "--out", out, *asked(chat)) == 0
        assert not chat.requests
    assert json.loads((out / "conversations.json").read_text()) == items


def test_levels_that_are_none_are_asked_for_again(folder, tmp_path, capsys):
    answers = iter(['{"blur": "awful", "noise": "small"}'] * 100)

    def answer(request: ChatRequest) -> str:
        return next(answers) if "rate two things" in request.texts[0] else "The image shows a door."

    for number in (1, 2):
        (folder / f"{number}.png").unlink()
    (folder / "inside" / "3.png").unlink()
    with ChatServer(default=answer) as chat:
        options = ("--kind", "pure", "--crop", SIDE, "--out", tmp_path / "pure", *asked(chat))
        assert run(folder, *options) == 1
        assert sum("rate two things" in request.texts[0] for request in chat.requests) > 1
    assert "small, medium, large, not 'awful'" in capsys.readouterr().err
    assert json.loads((tmp_path / "pure" / "conversations.json").read_text()) == []
    with ChatServer(default=rating) as chat:
        assert run(folder, *options[:-6], *asked(chat)) == 0
    assert len(json.loads((tmp_path / "pure" / "conversations.json").read_text())) == 1


def test_a_local_llava(folder, tmp_path, capsys):
    model = save_tiny_llava(tmp_path / "llava")
    options = ("--kind", "caption", "--local", model, "--device", "cpu", "--temperature", 1, "--max-tokens", 60)
    status = run(folder, *options, "--jobs", 3)
    written = texts(folder)
    assert len(written) >= 2 and all(text.strip() for text in written.values())
    assert f"{len(written)} photos done, 0 were there already, {4 - len(written)} failed" in capsys.readouterr().err
    assert status == (0 if len(written) == 4 else 1)
    run(folder, *options, "--jobs", 1)
    assert texts(folder).items() >= written.items()
    with pytest.raises(SystemExit):
        run(folder, "--kind", "caption")
    assert run(folder, "--kind", "caption", "--again", "--local", tmp_path / "none") == 1
    assert "error: transformers cannot load none" in capsys.readouterr().err


def test_an_answer_of_a_local_model_that_was_cut_off_is_none(folder, tmp_path, capsys):
    model = save_tiny_llava(tmp_path / "llava", stop_often=False)
    assert run(folder, "--kind", "caption", "--local", model, "--device", "cpu", "--max-tokens", 4) == 1
    assert "did not come to an end within 4 tokens" in capsys.readouterr().err
    assert not texts(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "caption"], "--endpoint with --model, or --local"),
        (["--kind", "caption", "--endpoint", "http://127.0.0.1:1/v1"], "needs --model"),
        (["--kind", "pure", "--local", "x"], "--out is for"),
        (["--kind", "caption", "--local", "x", "--out", "y"], "--out is for"),
        (["--kind", "poem", "--local", "x"], "invalid choice"),
        (["--kind", "caption", "--local", "x", "--jobs", "0"], "1 or more"),
        (["--kind", "pure", "--local", "x", "--out", "y", "--clean"], "not for --kind pure"),
    ],
)
def test_options_that_do_not_go_together(folder, options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        run(folder, *options)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_settings_that_cannot_work_are_told(folder, tmp_path, capsys):
    reach = ("--endpoint", "http://127.0.0.1:1/v1", "--model", "x")
    assert run(tmp_path / "nowhere", "--kind", "caption", *reach) == 1
    assert "there is no folder" in capsys.readouterr().err
    config = tmp_path / "run.yaml"
    config.write_text("data: {sources: [{builtin: true}]}")
    assert run("--config", config, "--kind", "caption", *reach) == 1
    assert "reads no folder" in capsys.readouterr().err
    config.write_text("data: {sources: [{folder: x}], degradatoin: []}")
    assert run("--config", config, "--kind", "caption", *reach) == 1
    assert "did you mean 'degradation'" in capsys.readouterr().err
    config.write_text("steps: 3")
    assert run("--config", config, "--kind", "caption", *reach) == 1
    assert "no part `data`" in capsys.readouterr().err
    assert run(folder, "--kind", "pure", "--out", folder / "pure", *reach) == 1
    assert "inside a folder of photos" in capsys.readouterr().err
    assert run(folder, "--kind", "caption", "--endpoint", "ftp://x", "--model", "x") == 1
    assert "error:" in capsys.readouterr().err


def test_a_hanging_server_ends_with_its_timeout(folder, monkeypatch, capsys):
    from realisr.services.vlm.chat.endpoint import ChatEndpoint

    made = caption.make_model

    def impatient(options):
        model = made(options)
        assert isinstance(model, ChatEndpoint)
        return ChatEndpoint(model.base_url, model.model, timeout=0.3, retries=0)

    monkeypatch.setattr(caption, "make_model", impatient)
    with ChatServer(default=Hang()) as chat:
        assert run(folder, "--kind", "caption", *asked(chat)) == 1
    assert "4 failed" in capsys.readouterr().err
