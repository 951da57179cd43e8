"""One word-level vocabulary for all pillars.

Append only: shipped checkpoints depend on the ids, and a test pins them.  New words take the place
of reserved entries, from the first one on.
"""

from functools import cache

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK, IMAGE = "<pad>", "<bos>", "<eos>", "<unk>", "<image>"
TAGS = (
    "<think> </think> <answer> </answer> <tool> </tool> <box> </box> <point> </point> <obs> "
    "<frame> <boi> <eoi> <action> </action> <caption> <question> <draw> <sep>"
).split()
NUMBERS = [str(i) for i in range(100)]
COLOURS = "red green blue yellow purple cyan grey white black orange pink brown".split()
SHAPES = "circle square triangle diamond cross ring star heart ball box key door goal lava".split()
PLURALS = "circles squares triangles diamonds crosses rings stars hearts balls boxes".split() + [
    "keys",
    "doors",
    "things",
    "objects",
    "shapes",
    "digits",
]
WORDS = (
    "a an the of in on at to and or not no yes is are there has have with than then what which "
    "how many much more fewer less most least same different any all each other both only "
    "thing object shape color size position digit number sum plus minus equals total count "
    "large small big tiny left right above below over under front behind between next near far "
    "inside outside top bottom middle center corner first second third last before after "
    "up down forward backward turn move go pick drop put open close toggle push pull reach grasp "
    "release stop wait done click type scroll press drag select button link text field menu icon "
    "checkbox slider tab page window screen submit cancel search "
    "moving still fast slow direction speed bounce appear vanish frame video view depth "
    "closer farther sphere cube cone draw describe image picture scene question answer "
    "it this that one none you your room wall floor block hand target "
    "caption colors do does look find show me i we his its as by for from into out true false "
    "correct wrong equal even odd larger smaller sequence order nothing something background empty"
).split()
PUNCTUATION = list("?.,:;=+-*/()[]{}!'\"%&#@_|<>")
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
LOCATIONS = [f"<loc_{i}>" for i in range(64)]  # bins of a coordinate, for boxes and clicks
ACTIONS = [f"<act_{i}>" for i in range(64)]  # discrete commands and bins of continuous ones
CODES = [f"<code_{i}>" for i in range(256)]  # image codes of the VQ tokenizer
RESERVED = [f"<reserved_{i}>" for i in range(64)]


def tokens() -> list[str]:
    """Every token in id order."""
    everything = [PAD, BOS, EOS, UNK, IMAGE, *TAGS, *NUMBERS, *COLOURS, *SHAPES, *PLURALS, *WORDS]
    everything += [*PUNCTUATION, *LETTERS, *LOCATIONS, *ACTIONS, *CODES, *RESERVED]
    return list(dict.fromkeys(everything))


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """The shared tokenizer: tags, words and punctuation marks are one token each.

    Prompts are padded on the left, so that every prompt of a batch ends in the same column.
    """
    vocabulary = {token: index for index, token in enumerate(tokens())}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    backend.normalizer = normalizers.Lowercase()
    pieces = Regex(r"<[^<>\s]+>|\w+|[^\w\s]")
    backend.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=512,
    )
