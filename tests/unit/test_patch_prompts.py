"""Patch prompts as questions and as text, answers that are remembered, and questions answered in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from realisr.services.vlm.chat.endpoint import ChatEndpoint
from realisr.services.vlm.memory import AnswerMemory, KeyedQuestion
from realisr.services.vlm.patch_prompts import PatchCaptioning, prompts_text, read_prompts, tile_places
from realisr.services.vlm.protocol import Answer, AnswerError, Question, UnusableAnswer, in_batches

PROMPTS = ["sky", "a roof, red tiles", "", "=== tile 1 ===", "# grass", "water\nand reeds"]
TEXT = prompts_text("A house by a lake.", PROMPTS, 2, 3)


def test_places_count_row_by_row():
    assert [str(place) for place in tile_places(2, 2)] == [
        "tile 1 (row 1, column 1)",
        "tile 2 (row 1, column 2)",
        "tile 3 (row 2, column 1)",
        "tile 4 (row 2, column 2)",
    ]


def test_a_text_gives_its_prompts_back():
    assert read_prompts(TEXT, 2, 3) == ("A house by a lake.", PROMPTS)
    assert read_prompts(TEXT.replace("\n", "\r\n"), 2, 3) == ("A house by a lake.", PROMPTS)


def test_blocks_may_be_in_any_order_and_without_row_and_column():
    text = "\n=== Tile 2 ===\n b \n=== WHOLE PICTURE ===\nall\n\n===tile 1===  \na\n"
    assert read_prompts(text, 1, 2) == ("all", ["a", "b"])
    assert read_prompts(text, 2, 1) == ("all", ["a", "b"])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("=== tile 2 (row 1, column 2) ===\n", "", r"2 rows of 3.*it lacks tile 2 \(row 1, column 2\)\."),
        ("tile 6 (row 2, column 3)", "tile 7", r"lacks tile 6 \(row 2, column 3\); the grid has no tile 7\."),
        ("tile 6 (row 2, column 3)", "tile 0", r"the grid has no tile 0\."),
        ("tile 5 (row 2, column 2)", "tile 4", r"tile 4 is there twice, in lines 13 and 16\."),
        ("=== tile 5 (", "=== tlie 5 (", r"line 16 begins with === and is no heading: '=== tlie 5"),
        ("=== whole picture ===\n", "", r"line 1 is before the first heading: 'A house by a lake\.'"),
        ("=== whole picture ===\nA house by a lake.\n", "", r"it lacks the whole picture\. Add"),
        (
            "tile 4 (row 2, column 1)",
            "tile 4 (row 1, column 4)",
            r"line 13 names tile 4 \(row 1, column 4\), but in the grid it is tile 4 \(row 2, column 1\)",
        ),
    ],
)
def test_a_text_that_does_not_fit_the_grid_is_told_why(old, new, told):
    assert old in TEXT
    with pytest.raises(ValueError, match=told):
        read_prompts(TEXT.replace(old, new), 2, 3)


def test_a_text_of_another_grid_with_as_many_tiles():
    with pytest.raises(ValueError, match=r"names tile 3 \(row 1, column 3\), but in the grid it is tile 3 \(row 2"):
        read_prompts(TEXT, 3, 2)


def test_many_missing_tiles_are_counted():
    with pytest.raises(ValueError, match=r"it lacks tile 7 .* and 22 more\."):
        read_prompts(TEXT, 5, 8)


def picture(seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(seed)) / 255


def keys(asking: PatchCaptioning, whole: str, by_model: bool, tile: torch.Tensor | None = None) -> object:
    tile = picture() if tile is None else tile
    (question,) = asking.tile_questions([tile], 1, 1, whole, by_model)
    return question.key


def test_a_tile_is_told_its_place_and_what_the_whole_shows():
    asking = PatchCaptioning(tell_global_prompt=True)
    first, *_, last = asking.tile_questions([picture()] * 6, 2, 3, "A house\nby a lake.", True)
    assert "The whole photograph shows: A house by a lake." in last.question.text
    assert "row 2 of 2" in last.question.text
    assert "column 3 of 3" in last.question.text
    assert "only a part" in last.question.instruction
    assert first.key != last.key, "the same pixels at another place are another question"


def test_what_makes_another_tile_question():
    asking = PatchCaptioning(300, 5, tell_global_prompt=True)
    same = keys(asking, "A house.", True)
    assert keys(asking, "A small house.", True) == same, "the wording of a model is no reason to ask again"
    assert keys(asking, "A house.", True, picture() + 0.001) == same, "equal as 8-bit pixels"
    others = [
        keys(asking, "A house.", True, picture(1)),
        keys(asking, "A house.", False),
        keys(asking, "A small house.", False),
        keys(replace(asking, seed=6), "A house.", True),
        keys(replace(asking, max_length=301), "A house.", True),
        keys(replace(asking, tile_instruction="Nouns."), "A house.", True),
        keys(replace(asking, whole_instruction="Nouns."), "A house.", True),
        keys(replace(asking, whole_instruction="given: A house."), "A house.", True),
        keys(replace(asking, tell_global_prompt=False), "A house.", True),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_a_tile_that_is_not_told_the_global_prompt_does_not_depend_on_it():
    asking = PatchCaptioning(300, 5)
    (question,) = asking.tile_questions([picture()], 1, 1, "A house.", True)
    assert "house" not in question.question.as_one_text
    same = keys(asking, "A house.", True)
    assert keys(asking, "A lake.", False) == same
    assert keys(replace(asking, whole_instruction="Nouns."), "A house.", True) == same
    assert keys(asking, "A house.", True, picture(1)) != same


def test_instructions_can_be_replaced():
    asking = PatchCaptioning(77, None, "Whole in {max_length}.", "Part in {max_length} {words}.")
    assert asking.whole_question(picture()).question.instruction == "Whole in 77."
    (tile,) = asking.tile_questions([picture()], 1, 1, "", True)
    assert tile.question.instruction == "Part in 77 {words}."
    assert "at most 77 characters" in PatchCaptioning(77).whole_question(picture()).question.instruction


def test_answers_are_read_and_measured():
    question = PatchCaptioning(10).whole_question(picture()).question
    assert question.read('{"prompt": "a roof"}') == "a roof"
    with pytest.raises(UnusableAnswer, match="at most 10 are allowed"):
        question.read("a roof with red tiles")


class Echo:
    """Answers with the question's text, and refuses what begins with "no"."""

    def __init__(self, identity: object = "echo"):
        self.identity = identity
        self.asked: list[str] = []

    def answers(self, questions: Sequence[Question], poll: object, in_flight: int = 1) -> Iterator[Answer]:
        for index in reversed(range(len(questions))):
            text = questions[index].text
            self.asked.append(text)
            yield Answer(index, AnswerError(text) if text.startswith("no") else text)


def keyed(*texts: str) -> list[KeyedQuestion]:
    return [KeyedQuestion(Question("", text), text) for text in texts]


def answered(memory: AnswerMemory, model: Echo, *texts: str) -> dict[int, str]:
    return {answer.index: str(answer.value) for answer in memory.answers(model, keyed(*texts), lambda: None)}


def test_only_what_is_new_or_failed_is_asked():
    memory, model = AnswerMemory(), Echo()
    assert answered(memory, model, "a", "no b", "c") == {0: "a", 1: "no b", 2: "c"}
    model.asked.clear()
    assert answered(memory, model, "d", "c", "no b", "a") == {0: "d", 1: "c", 2: "no b", 3: "a"}
    assert model.asked == ["no b", "d"]


def test_other_models_are_asked_for_themselves():
    memory, other = AnswerMemory(), Echo("another")
    answered(memory, Echo(), "a")
    answered(memory, other, "a")
    assert other.asked == ["a"]


def test_what_came_before_the_caller_gave_up_is_kept():
    memory, model = AnswerMemory(), Echo()
    for answer in memory.answers(model, keyed("a", "b", "c"), lambda: None):
        if answer.value == "b":
            break
    model.asked.clear()
    answered(memory, model, "a", "b", "c")
    assert model.asked == ["a"]


def test_the_least_recently_used_are_forgotten():
    memory, model = AnswerMemory(2), Echo()
    for texts in (("a",), ("b",), ("a",), ("c",)):
        answered(memory, model, *texts)
    assert len(memory) == 2
    model.asked.clear()
    answered(memory, model, "a", "c", "b")
    assert model.asked == ["b"]


def test_endpoints_that_answer_alike():
    def identity(**options: object) -> object:
        return ChatEndpoint("localhost:1", "m", **options).identity

    assert identity() == identity(timeout=5.0, retries=9, max_tokens=99, key_variable="MY_KEY")
    others = [
        identity(temperature=0.5),
        identity(image_size=99),
        identity(jpeg_quality=50),
        identity(image_detail="low"),
        ChatEndpoint("localhost:1", "n").identity,
        ChatEndpoint("localhost:2", "m").identity,
    ]
    assert len({identity(), *others}) == 1 + len(others)


def test_batches_are_full_and_what_failed_goes_into_a_later_one():
    batches: list[list[tuple[str, int | None]]] = []

    def read(text: str) -> str:
        if text == "bad":
            raise UnusableAnswer("That is bad.")
        return text

    def write(batch: Sequence[Question]) -> list[str | AnswerError]:
        batches.append([(question.text, question.seed) for question in batch])
        return [
            "bad" if question.text in "bd" else AnswerError("cut") if question.text == "c" else question.text[:1]
            for question in batch
        ]

    questions = [Question("", text, read=read, seed=7) for text in "abcde"]
    found = {answer.index: answer.value for answer in in_batches(questions, 2, write, lambda: None)}
    told = "Your last answer could not be used. That is bad."
    assert batches == [
        [("a", 7), ("b", 7)],
        [("c", 7), ("d", 7)],
        [("e", 7), (f"b\n\n{told}", 8)],
        [(f"d\n\n{told}", 8)],
    ]
    assert [found[index] for index in (0, 1, 3, 4)] == ["a", "b", "d", "e"]
    assert isinstance(found[2], AnswerError)
