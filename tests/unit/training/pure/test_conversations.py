"""What a conversation becomes: tokens, and which of them are to be learnt."""

from __future__ import annotations

import json

import pytest
import torch

from harness.pure_training import INSTRUCTION
from oracles import pure_training as oracle
from parity import pure_golden
from parity.pure_tokenizer import ByteTokenizer
from realisr.models.pure.prompt import image_block
from realisr.models.pure.vocabulary import Vocabulary
from realisr.training.pure.conversations import Conversation, Turn, length, read_item, read_list, tokens

CONVERSATIONS = {
    "restoration": [("human", INSTRUCTION), ("gpt", "Medium blur, small noise. A test. <|image|>")],
    "no text": [("human", "<|image|>"), ("gpt", "<|image|>")],
    "two questions": [
        ("human", "<|image|> <|image|>?"),
        ("gpt", "Yes."),
        ("human", "Draw."),
        ("gpt", "<|image|> it is"),
    ],
    "no picture": [("human", "Good day."), ("gpt", "Good night.")],
}


def grids(count: int) -> list[torch.Tensor]:
    """Codes of `count` pictures, of both halves of the vocabulary, each of another shape."""
    generator = torch.Generator().manual_seed(count)
    shapes = [(4, 4), (8, 4), (4, 12)]
    return [torch.randint(16384, shapes[index % 3], generator=generator) for index in range(count)]


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_every_answer_token_is_a_target_and_no_other(turns):
    tokenizer = ByteTokenizer()
    pictures = grids(sum(text.count("<|image|>") for _, text in turns))
    blocks = [image_block(Vocabulary.formula().encode(grid)) for grid in pictures]
    conversation = Conversation(tuple(Turn(who == "gpt", text) for who, text in turns), (), "test")
    ids, labels = tokens(conversation, blocks, tokenizer)
    assert (ids, labels) == oracle.item(turns, [grid.tolist() for grid in pictures], tokenizer.encode)
    crops = [(8 * grid.shape[1], 8 * grid.shape[0]) for grid in pictures]
    assert length(conversation, crops, tokenizer) == len(ids)


@pytest.mark.parametrize("case", pure_golden.cases("lq_tokens", lambda case: "out.train_tokens" in case))
def test_tokens_and_labels_of_the_authors_code(case):
    block = case["out.tokens"].tolist()
    turns = (Turn(False, case.metadata["prompt"]), Turn(True, "Medium blur, small noise. A test. <|image|>"))
    ids, labels = tokens(Conversation(turns, (), "golden"), [block, block], ByteTokenizer())
    assert ids == case["out.train_tokens"].tolist()
    assert labels == case["out.train_labels"].tolist()


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"conversations": [{"from": "gpt", "value": "<|image|>"}], "image": []}, "0 pictures for 1"),
        ({"conversations": [{"from": "human", "value": "Why?"}], "image": []}, "nothing to learn"),
        ({"conversations": [{"from": "robot", "value": "Why?"}], "image": []}, "'robot'"),
        ({"conversations": [{"value": "Why?"}]}, "'from'"),
        (["human", "gpt"], "not {"),
    ],
)
def test_what_is_no_conversation_is_named(tmp_path, item, said):
    with pytest.raises(ValueError, match=r"list\.json:1") as error:
        read_item(item, tmp_path, "list.json:1")
    assert said in str(error.value)


def test_a_list_is_read_with_pictures_beside_it(tmp_path):
    turns = [{"from": "human", "value": "<|image|>"}, {"from": "gpt", "value": "Yes."}]
    item = {"conversations": turns, "image": ["a.png"]}
    path = tmp_path / "list.json"
    path.write_text(json.dumps([item]))
    (conversation,) = read_list(path)
    assert conversation.pictures == (tmp_path / "a.png",)
    assert [turn.answers for turn in conversation.turns] == [False, True]
    path.write_text("[")
    with pytest.raises(ValueError, match="not JSON"):
        read_list(path)
