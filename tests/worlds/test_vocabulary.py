"""The vocabulary: pinned ids, no unknown word in any world, left padding, whole tags."""

import hashlib
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator
from transformers import PreTrainedTokenizerFast

from minivisrl import DATA
from minivisrl.mllm.pretraining import CAPTION, DESCRIBE, AnnotatorConfig, completion, describe
from minivisrl.worlds.digits import KINDS as DIGIT_KINDS
from minivisrl.worlds.digits import digit_prompts
from minivisrl.worlds.questions import KINDS, Question, question_prompts
from minivisrl.worlds.scenes import sample_scenes
from minivisrl.worlds.vocabulary import tokenizer, tokens

SPLITS = ("train", "heldout", "appearance", "composition")
PINNED, RESERVED = 797, 64
SHA256 = "cffc3368ea8fd491e14d636da2ee092dfea33920eab0bb1dcc440adfa8c5e76d"
SPOTS = {
    "<pad>": 0,
    "<bos>": 1,
    "<eos>": 2,
    "<unk>": 3,
    "<image>": 4,
    "<answer>": 7,
    "0": 25,
    "99": 124,
    "red": 125,
    "circle": 137,
    "a": 167,
    "?": 362,
    "z": 412,
    "<loc_0>": 413,
    "<act_0>": 477,
    "<code_0>": 541,
    "<code_255>": 796,
}


def test_ids_are_pinned():
    """Shipped checkpoints depend on them: a new word may only replace a reserved entry in place."""
    everything = tokens()
    assert len(everything) == len(set(everything)) == PINNED + RESERVED
    digest = hashlib.sha256("\n".join(everything[:PINNED]).encode()).hexdigest()
    assert digest == SHA256
    for place, token in enumerate(everything[PINNED:]):
        assert token == f"<reserved_{place}>" or not token.startswith("<reserved_")
    words = tokenizer()
    assert words.convert_tokens_to_ids(list(SPOTS)) == list(SPOTS.values())
    assert words.convert_tokens_to_ids(everything) == list(range(len(everything)))
    assert len(words) == PINNED + RESERVED
    assert (words.pad_token_id, words.eos_token_id, words.bos_token_id) == (0, 2, 1)


def everything_said():
    """Thousands of questions, answers, workings, captions and descriptions."""
    generator, random = Generator().manual_seed(0), Random(0)
    for split in SPLITS:
        sets = (
            question_prompts(300, tuple(KINDS), split, generator),
            digit_prompts(120, DIGIT_KINDS, split, generator),
        )
        for prompts in sets:
            columns = (prompts[name] for name in ("kind", "prompt", "answer", "steps"))
            for question in map(Question, *columns):
                yield from (
                    question.prompt,
                    completion(question, True),
                    completion(question, False),
                )
        for scene in sample_scenes(120, split, generator):
            yield from (scene.caption(), describe(scene, AnnotatorConfig(), random))
    yield from (CAPTION, DESCRIBE, describe(scene, AnnotatorConfig(forget=1.0), random))


def test_no_world_says_an_unknown_word():
    words, said = tokenizer(), list(everything_said())
    assert len(said) > 4_800
    unknown = words.unk_token_id
    for text, ids in zip(said, words(said).input_ids, strict=True):
        assert unknown not in ids, text
        assert words.decode(ids).split() == text.replace(",", " ,").split()  # round trip


def test_text_comes_back():
    words = tokenizer()
    for text in (
        "how many red things are there ?",
        "<think> red 2 blue 1 </think> <answer> 3 </answer>",
    ):
        assert words.decode(words(text).input_ids, skip_special_tokens=True) == text
    assert words("HOW many?").input_ids == words("how many ?").input_ids
    assert words("<answer>3</answer>").input_ids == words("<answer> 3 </answer>").input_ids
    ids = [*words("yes").input_ids, words.eos_token_id, words.pad_token_id]
    assert words.decode(ids, skip_special_tokens=True) == "yes"


def test_tags_are_one_token_and_no_token_is_split():
    words = tokenizer()
    for tag in "<think> </think> <answer> </answer> <tool> <box> <point> <image> <loc_63>".split():
        assert len(words(tag).input_ids) == 1
    single = words(tokens()).input_ids
    assert single == [[index] for index in range(len(tokens()))]


def test_prompts_are_padded_on_the_left():
    words = tokenizer()
    batch = words(["red ?", "how many red things are there ?"], return_tensors="pt", padding=True)
    assert batch["input_ids"][0].tolist() == [0] * 5 + words("red ?").input_ids
    assert batch["attention_mask"].tolist() == [[0] * 5 + [1] * 2, [1] * 7]


def test_a_saved_tokenizer_is_the_same(tmp_path):
    words, said = tokenizer(), tokens()[::7]
    words.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert loaded.get_vocab() == words.get_vocab()
    assert loaded(said).input_ids == words(said).input_ids
    assert loaded.padding_side == "left" and loaded.pad_token_id == words.pad_token_id
    assert loaded.all_special_ids == words.all_special_ids
    assert words.unk_token_id in loaded("zebra").input_ids


def test_shipped_checkpoints_speak_this_vocabulary():
    """Same ids, and the same cut of a text into words, for every checkpoint there is."""
    said = [*everything_said()][::40]
    for path in (DATA / "checkpoints").glob("*/tokenizer.json"):
        shipped = PreTrainedTokenizerFast.from_pretrained(path.parent)
        ids = shipped.get_vocab()
        assert [ids[token] for token in tokens()[:PINNED]] == list(range(PINNED)), path
        assert shipped(said).input_ids == tokenizer()(said).input_ids, path


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.text() | st.lists(st.sampled_from([*tokens(), "<", ">", "</", "\x00", "é"])).map("".join))
def test_no_text_breaks_it(text):
    """Untrusted text becomes ids of the vocabulary, and decodes again."""
    ids = tokenizer()(text).input_ids
    assert all(0 <= i < PINNED + RESERVED for i in ids)
    assert isinstance(tokenizer().decode(ids), str)
    assert len(ids) <= len(text)


def test_a_hyphen_is_a_token_of_its_own():
    """It is in the vocabulary; glued to its neighbours they must not be one unknown word."""
    words = tokenizer()
    glued, apart = words(["3-4", "left-right"]), words(["3 - 4", "left - right"])
    assert glued.input_ids == apart.input_ids
