"""Words that readers of the field would not know must not come back.

Each pattern stands with what to write in its place. A line that needs such a
word, such as the title of a paper, says `words: ok` in a comment. `python -m
tests.test_words` prints all that is found.
"""

import functools
import pathlib
import re

import pytest

pytestmark = pytest.mark.one_backend

ROOT = pathlib.Path(__file__).resolve().parents[1]
PLACES = (
    "keras_bond/**/*.py",
    "docs/**/*.md",
    "README.md",
    "examples/*.py",
    "tests/**/*.py",
    "integration/**/*.py",
    "integration/**/*.md",
)
# Identifiers count as words: `num_rivals` and `rivalX` are found by `rival`.
START, END = r"(?<![A-Za-z])", r"(?![A-Za-z])"


def word(pattern):
    return START + pattern + END


WORDS = {
    # The stage, its method and the quantile model. An LLM judge is a judge.
    r"def _?judge\((?!prompts)|\._?judge\(|\bjudged\[|judgement": (
        "score_with_anchor, or anchor log-probabilities"
    ),
    r"stage_name\(\"judge|\"rollout \w+\", \"judge": "score_with_anchor",
    r"[\"'](evaluate )?lay out[\"']": "collate",
    word("lots"): "tie-breakers",
    r"\blot\b(?! of)": "tie-breaker",
    word("laws?"): "distribution",
    word("rivals?"): "baselines, other methods",
    word("codec"): "tokenizer",
    word("TextCodec"): "tokenizer",
    r"own_log_probs": "sampling_log_probs",
    word("mine"): "policy",
    word("theirs"): "anchor",
    r"\b_?lay_out\b": "collate",
    r"\[\"(rows|places)\"\]": "prompt_index, index_in_batch",
    r"\b(the|its|their|of|from) start's\b|\bthe start says\b": (
        "the reference policy"
    ),
    r"\bKL (of the policy )?to the start\b|\bof the start\b": (
        "the reference policy"
    ),
    # The doctor's metaphor.
    word("(patients?|lessons?|examinations?)"): "test bed, step record, checks",
    word("(practise|stand_ins|stand-ins)"): "train briefly, fixtures",
    # Riddles and calques.
    r"\bNothing half-written\b": "atomic write",
    r"\b(nats|tokens|seconds|ms|bytes|samples|completions|updates) "
    r"a (sequence|prompt|token|step|second|sample|completion)\b": "per ...",
    r"\bRefuses what is no\b": "Raises an error if ... is not ...",
    r"\b(is|are|was) no (a )?(list|integer|number|string|function|model"
    r"|tokenizer|KerasHub|Keras)\b": "is not a ...",
    r"\bdrops? out\b|\bdropped out\b": "is masked out, is ignored",
    r"\bgoes on\b|\bgo on\b": "continues",
    r"\b(ends?|stops?|starts?|comes?|happens?|does|do) of itself\b": "itself",
    r"\b(is|are|was|were|be|being) cut\b|\bcut at\b": "truncated",
    r", for (it|they|this|that|there|these|he|she) "
    r"(is|are|was|were|has|have|had|would|does|do|did|can|could|may)\b": (
        "because"
    ),
    r"\bWhoever\b": "if someone, users who",
    r"\bimport beside\b|\bbeside\.\w+\(": "atomic",
    r"\bis mended\b|\bmends?\b": "fix",
    r"What a run survives|Going on for long|With drawing N samples"
    r"|How fast, and why|in the small\b|Rewards of few values": (
        "the headings of the word list"
    ),
    r"kl_efficiency|KLEfficiency": "excess_kl",
    r"kl_strength": "kl_weight",
    # American spelling, as in Keras.
    r"(?i)optimis(e|ing|ation)": "optimiz...",
    r"(?i)tokenis": "tokeniz...",
    r"(?i)regularis": "regulariz...",
    r"(?i)penalis": "penaliz...",
    r"(?i)normalis": "normaliz...",
    r"(?i)initialis": "initializ...",
    r"(?i)serialis": "serializ...",
    r"(?i)summaris": "summariz...",
    r"(?i)minimis(e|ing|ation)": "minimiz...",
    r"(?i)maximis(e|ing|ation)": "maximiz...",
    r"(?i)randomis": "randomiz...",
    r"(?i)standardis": "standardiz...",
    r"(?i)\bcentr(e|ed|es|ing)\b": "center",
    r"(?i)behaviour": "behavior",
    r"(?i)\bcolour": "color",
    r"(?i)\bfavour": "favor",
    r"(?i)\bneighbour": "neighbor",
    r"(?i)\blicence": "license",
    r"(?i)\banalys(e|es|ed|ing)\b": "analyze",
    r"(?i)\b(cancell|labell|modell|travell)(ed|ing)\b": "one l",
}
ALLOWED = "words: ok"


@functools.cache
def lines():
    """`(file:line, text)` of all that is read."""
    here = pathlib.Path(__file__).resolve()
    paths = [path for place in PLACES for path in sorted(ROOT.glob(place))]
    return [
        (f"{path.relative_to(ROOT)}:{number}", line.strip())
        for path in paths
        if path.resolve() != here
        for number, line in enumerate(path.read_text().splitlines(), 1)
    ]


def hits(pattern):
    """`file:line: the line` for each line that matches."""
    sought = re.compile(pattern)
    return [
        f"{place}: {line}"
        for place, line in lines()
        if sought.search(line) and ALLOWED not in line
    ]


@pytest.mark.parametrize("pattern", WORDS, ids=WORDS.get)
def test_no_house_word_comes_back(pattern):
    found = hits(pattern)
    assert not found, f"Write {WORDS[pattern]!r}:\n" + "\n".join(found)


def test_the_patterns_find_what_they_are_for():
    """A pattern that matches nothing is worse than none."""
    bad = [
        "num_rivals = 3",
        "the text codec",
        "def _judge(self):",
        "lots = uniforms",
        "2 nats a sequence",
        "Refuses what is no list",
        "a regulariser",
        "the start's reward",
        "how the optimiser counts",
    ]
    for line in bad:
        assert any(re.search(pattern, line) for pattern in WORDS), line
    good = [
        "an LLM judge behind an API",
        "a lot of memory",
        "nats per sequence",
        "determine the arrivals",
        "a codecs module",
        "undermine",
        "lawful slots",
    ]
    for line in good:
        for pattern in WORDS:
            assert not re.search(pattern, line), (pattern, line)


if __name__ == "__main__":
    for pattern in WORDS:
        for line in hits(pattern):
            print(line)
