"""A tiny data-to-text world: facts about a hiking trail become a sentence.

A prompt lists three to six facts, and a completion should state all of them:

    length: 12 km, view: lake, season: autumn =>
    The walk covers 12 km and faces the lake. It is best in autumn.

The reference texts are flawed on purpose, as those that people write are:
facts are left out, contradicted or told twice. A policy taught with them
copies the flaws, so its single samples are mediocre while the best of several
is good. That gap is what Best-of-N distillation closes.

Everything here is plain Python. The same `seed` gives the same data
everywhere.
"""

import random
import re
import zlib

# No value occurs within another value, a template or a connecting word, so
# a value that is found in a text was meant.
VALUES = {
    "length": ("4 km", "7 km", "9 km", "12 km", "15 km", "20 km"),
    "level": ("easy", "moderate", "demanding", "strenuous"),
    "view": ("lake", "glacier", "valley", "coast", "waterfall", "vineyards"),
    "start": (
        "old mill",
        "chapel",
        "car park",
        "station",
        "harbour",
        "bus stop",
    ),
    "season": ("spring", "summer", "autumn", "winter"),
    "rest": ("mountain hut", "picnic table", "tea house", "fire pit", "bakery"),
}
TEMPLATES = {
    "length": ("is {} long", "covers {}", "runs for {}"),
    "level": ("is {}", "is rated {}", "counts as {}"),
    "view": ("overlooks the {}", "faces the {}", "looks over the {}"),
    "start": ("starts at the {}", "begins by the {}", "sets out from the {}"),
    "season": ("is best in {}", "shines in {}", "is made for {}"),
    "rest": ("passes a {}", "leads to a {}", "has a {} on the way"),
}
SUBJECTS = ("This trail", "The trail", "The hike", "The walk", "The path")
PRONOUNS = ("It", "The route", "This route")
CONJUNCTIONS = ("and", "and it", "and also")

# What a reference text does with a fact, and how often.
TREATMENTS = {
    "state": 0.58,
    "leave out": 0.18,
    "contradict": 0.18,
    "repeat": 0.06,
}
MAX_CLAUSES = 7

# Fact lists whose checksum is a multiple of this are never trained on.
HELD_OUT_EVERY = 10
MAX_HELD_OUT_PROMPTS = 4000


def make_examples(count, seed):
    """Makes `count` prompts for training, with a flawed reference for each.

    Args:
        count: int. The number of examples.
        seed: int. The same seed gives the same examples.

    Returns:
        A dictionary of two lists of `count` strings, `"prompts"` and
        `"responses"`: what `keras_hub.models.CausalLM.fit` takes.

    Example:

    ```python
    examples = make_examples(1000, seed=0)
    examples["prompts"][2]  # "season: autumn, view: coast, level: easy =>"
    ```
    """
    rng = random.Random(seed)
    prompts, responses = [], []
    while len(prompts) < count:
        facts = _draw_facts(rng)
        if not _is_held_out(facts):
            prompts.append(format_prompt(facts))
            responses.append(_write_reference(facts, rng))
    return {"prompts": prompts, "responses": responses}


def held_out_prompts(count, seed):
    """Makes `count` different prompts that `make_examples` can never return.

    A fact list belongs to either the training or the held-out lists, ten to
    one, by a checksum of its facts. Neither their order nor `seed` matters.

    Args:
        count: int. The number of prompts, at most 4,000.
        seed: int. The same seed gives the same prompts.

    Returns:
        A list of `count` strings. No two list the same facts.

    Raises:
        ValueError: If `count` is larger than 4,000.
    """
    if count > MAX_HELD_OUT_PROMPTS:
        raise ValueError(
            f"`count` must be at most {MAX_HELD_OUT_PROMPTS}, because there "
            f"are only so many held-out fact lists. Received: count={count}"
        )
    rng = random.Random(seed)
    prompts = {}
    while len(prompts) < count:
        facts = _draw_facts(rng)
        if _is_held_out(facts):
            prompts.setdefault(_checksum(facts), format_prompt(facts))
    return list(prompts.values())


def fact_coverage(prompts, completions, **columns):
    """Rewards a completion for stating the facts of its prompt.

    A fact is right if its value is in the completion and no other value of
    the same attribute is. Listing all values therefore earns nothing.

    Args:
        prompts: list of str. Fact lists, as `make_examples` writes them.
        completions: list of str. One text for each prompt.
        **columns: Ignored. The prompt holds all that is needed.

    Returns:
        A list of float between 0 and 1, the share of the facts that is right.

    Example:

    ```python
    fact_coverage(
        ["length: 7 km, level: easy, view: lake =>"],
        ["The hike covers 7 km and is easy. It faces the coast."],
    )  # [0.666...]
    ```
    """
    return [
        _share_right(parse_prompt(prompt), completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def format_prompt(facts):
    """Writes a dictionary of facts as a prompt. Undone by `parse_prompt`."""
    return (
        ", ".join(f"{name}: {value}" for name, value in facts.items()) + " =>"
    )


def parse_prompt(prompt):
    """Reads the facts of a prompt back, as a dictionary in the prompt's order.

    Raises:
        ValueError: If an attribute or a value is not one of `VALUES`.
    """
    pairs = [
        fact.partition(": ") for fact in prompt.removesuffix(" =>").split(", ")
    ]
    facts = {name: value for name, _, value in pairs}
    for name, value in facts.items():
        if value not in VALUES.get(name, ()):
            raise ValueError(
                "A prompt must list facts of `VALUES`, such as 'level: easy, "
                f"view: lake =>'. Received: prompt={prompt!r}"
            )
    return facts


def _draw_facts(rng):
    """Draws three to six attributes in random order, and a value for each."""
    names = rng.sample(list(VALUES), rng.randint(3, 6))
    return {name: rng.choice(VALUES[name]) for name in names}


def _checksum(facts):
    """A number that depends on the facts but not on their order."""
    return zlib.crc32(repr(sorted(facts.items())).encode())


def _is_held_out(facts):
    return _checksum(facts) % HELD_OUT_EVERY == 0


def _write_reference(facts, rng):
    """Writes one or two sentences about most of the facts, some wrongly."""
    clauses = []
    while not clauses:
        clauses = [
            c for fact in facts.items() for c in _write_clauses(*fact, rng)
        ]
    rng.shuffle(clauses)
    clauses = clauses[:MAX_CLAUSES]
    first = (
        len(clauses) if len(clauses) < 4 else rng.randint(2, len(clauses) - 1)
    )
    text = _write_sentence(rng.choice(SUBJECTS), clauses[:first], rng)
    if clauses[first:]:
        text += " " + _write_sentence(
            rng.choice(PRONOUNS), clauses[first:], rng
        )
    return text


def _write_clauses(name, value, rng):
    """Writes no, one or two clauses for a fact, as its treatment asks."""
    (treatment,) = rng.choices(list(TREATMENTS), weights=TREATMENTS.values())
    if treatment == "contradict":
        value = rng.choice([other for other in VALUES[name] if other != value])
    number = {"leave out": 0, "repeat": 2}.get(treatment, 1)
    return [
        template.format(value)
        for template in rng.sample(TEMPLATES[name], number)
    ]


def _write_sentence(subject, clauses, rng):
    """Joins a subject and clauses: "It is easy, shines in spring and ..."."""
    *head, last = clauses
    if head:
        last = f"{', '.join(head)} {rng.choice(CONJUNCTIONS)} {last}"
    return f"{subject} {last}."


def _share_right(facts, text):
    """The share of `facts` whose value, and no other, stands in `text`."""
    right = sum(_stated(name, text) == {value} for name, value in facts.items())
    return right / len(facts)


def _stated(name, text):
    """The set of values of the attribute `name` that stand in `text`."""
    return set(re.findall(rf"\b(?:{'|'.join(VALUES[name])})\b", text))
