"""A tiny arithmetic world: word problems that one calculation solves.

    Mia has 7 apples and buys 5 more. How many apples is that?
    7 + 5 = 12 #### 12

Most of the worked answers are wrong on purpose: another operation is chosen or
the result is a little off. A policy taught with them is right about one time
in three, while the best of several samples is nearly always right. That gap is
what Best-of-N distillation closes. The reward is 0 or 1, never in between.

Everything here is plain Python. The same `seed` gives the same data
everywhere.
"""

import operator
import random
import re
import zlib

NAMES = ("Mia", "Ben", "Zoe", "Tom", "Ada", "Sam")
ITEMS = ("apples", "pens", "shells", "cards", "coins", "books")

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
# The word that tells the operation; each stands in its own problems only.
CUES = {"+": "more", "-": "left", "*": "each"}
PROBLEMS = {
    "+": (
        "{name} has {a} {item} and buys {b} more. How many {item} is that?",
        "{name} finds {a} {item}, then {b} more. How many {item} now?",
        "There are {a} {item}. {name} adds {b} more. How many {item} now?",
    ),
    "-": (
        "{name} has {a} {item} and gives away {b}. How many {item} are left?",
        "{name} had {a} {item} but lost {b}. How many {item} are left?",
        "There are {a} {item}. {name} takes {b}. How many {item} are left?",
    ),
    "*": (
        "{name} fills {a} bags with {b} {item} each. How many {item} is that?",
        "{name} sees {a} boxes with {b} {item} each. How many {item} is that?",
        "{name} gives {a} friends {b} {item} each. How many {item} is that?",
    ),
}

# The share of the answers that is wrong.
WRONG_RATE = 0.7
SLIPS = (-2, -1, 1, 2)

# Problems whose checksum is a multiple of this are never trained on.
HELD_OUT_EVERY = 10
MAX_HELD_OUT_PROMPTS = 1000


def make_examples(count, seed):
    """Makes `count` problems for training, with an often wrong answer to each.

    Args:
        count: int. The number of examples.
        seed: int. The same seed gives the same examples.

    Returns:
        A dictionary of two lists of `count` strings, `"prompts"` and
        `"responses"`: what `keras_hub.models.CausalLM.fit` takes.

    Example:

    ```python
    examples = make_examples(1000, seed=0)
    examples["responses"][0]  # "10 * 2 = 20 #### 20"
    ```
    """
    rng = random.Random(seed)
    prompts, responses = [], []
    while len(prompts) < count:
        prompt, symbol, a, b = _draw_problem(rng)
        if not _is_held_out(prompt):
            prompts.append(prompt)
            responses.append(_write_answer(symbol, a, b, rng))
    return {"prompts": prompts, "responses": responses}


def held_out_prompts(count, seed):
    """Makes `count` different problems that `make_examples` can never return.

    A problem belongs to either the training or the held-out problems, ten to
    one, by a checksum of its text. Its numbers do occur in training, but with
    another name, thing or wording.

    Args:
        count: int. The number of problems, at most 1,000.
        seed: int. The same seed gives the same problems.

    Returns:
        A list of `count` different strings.

    Raises:
        ValueError: If `count` is larger than 1,000.
    """
    if count > MAX_HELD_OUT_PROMPTS:
        raise ValueError(
            f"`count` must be at most {MAX_HELD_OUT_PROMPTS}, because there "
            f"are only so many held-out problems. Received: count={count}"
        )
    rng = random.Random(seed)
    prompts = {}
    while len(prompts) < count:
        prompt, *_ = _draw_problem(rng)
        if _is_held_out(prompt):
            prompts[prompt] = None
    return list(prompts)


def is_correct(prompts, completions, **columns):
    """Rewards a completion whose number after the last `####` is right.

    Args:
        prompts: list of str. Problems, as `make_examples` writes them.
        completions: list of str. One answer to each problem.
        **columns: Ignored. The prompt holds all that is needed.

    Returns:
        A list of float, 1.0 where the answer is right and 0.0 where it is
        wrong or missing.

    Example:

    ```python
    is_correct(
        ["Mia has 7 pens and buys 5 more. How many pens is that?"],
        ["7 + 5 = 12 #### 12"],
    )  # [1.0]
    ```
    """
    return [
        float(_final_number(completion) == solve(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def solve(prompt):
    """Solves a problem by its two numbers and the word that tells what to do.

    Raises:
        ValueError: If the text is not such a problem.
    """
    numbers = [int(digits) for digits in re.findall(r"\d+", prompt)]
    symbols = [symbol for symbol, cue in CUES.items() if cue in prompt]
    if len(numbers) != 2 or len(symbols) != 1:
        raise ValueError(
            "A problem must hold two numbers and one of the words "
            f"{', '.join(CUES.values())}. Received: prompt={prompt!r}"
        )
    return OPERATIONS[symbols[0]](*numbers)


def _draw_problem(rng):
    """Draws a problem. Returns its text, its operation and the two numbers."""
    symbol = rng.choice(list(OPERATIONS))
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    if symbol == "-":
        a += b  # Nothing is taken away that is not there.
    template = rng.choice(PROBLEMS[symbol])
    prompt = template.format(
        name=rng.choice(NAMES), item=rng.choice(ITEMS), a=a, b=b
    )
    return prompt, symbol, a, b


def _is_held_out(prompt):
    return zlib.crc32(prompt.encode()) % HELD_OUT_EVERY == 0


def _write_answer(symbol, a, b, rng):
    """Writes the calculation and its result, with one mistake or none."""
    result = OPERATIONS[symbol](a, b)
    if rng.random() < WRONG_RATE:
        if rng.random() < 0.5:
            result += rng.choice(SLIPS)
        else:
            symbol, result = rng.choice(_other_calculations(a, b, result))
    return f"{a} {symbol} {b} = {result} #### {result}"


def _other_calculations(a, b, right):
    """Lists the operations, and their results, that solve it wrongly."""
    results = [(symbol, apply(a, b)) for symbol, apply in OPERATIONS.items()]
    return [pair for pair in results if pair[1] >= 0 and pair[1] != right]


def _final_number(completion):
    """The number after the last `####`, or None."""
    match = re.search(r"####\s*(\d+)\s*$", completion)
    return int(match[1]) if match else None
