"""Human preferences: section 6 of the paper at small scale, with a real model.

    python integration/preferences.py [--data FOLDER] [--seed 0] [--quick]
                                      [--backend jax|tensorflow|torch]

SmolLM2-135M-Instruct becomes a reward model by training on pairs of answers,
of which people preferred one (HH-RLHF, helpful-base). It is the reward of
BOND, which trains the same model as the policy. What counts is another model,
the held-out judge: it learned from other pairs, and training never sees it.

The pairs are not part of this repository: KERAS_BOND_DATA or `--data` names a
folder that holds `hh-rlhf/`. Only those are used that fit in a few tokens, so
that all of it takes 40 CPU minutes.
"""

import argparse
import dataclasses
import gzip
import json
import os
import pathlib
import sys
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import demo
import real_model

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILE = pathlib.Path("hh-rlhf") / "helpful-base.test.jsonl.gz"
FOLDER_VARIABLE = "KERAS_BOND_DATA"
COLUMNS = {
    "reward": "reward model",
    "judge": "judge",
    "judge_win_rate": "judge's win rate",
    "kl": "KL to the initial policy",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the run.

    Attributes:
        max_pair_length: int. Tokens of a conversation; longer pairs are left
            out.
        pairs_per_step: int.
        reward_learning_rate: float.
        checked_pairs: int. Pairs of the other half on which a model is tested.
        policy: settings of `real_model`.
    """

    max_pair_length: int = 80
    pairs_per_step: int = 8
    reward_learning_rate: float = 1e-3
    checked_pairs: int = 120
    max_prompt_length: int = 32
    policy: real_model.Settings = real_model.Settings(
        steps=20,
        learning_rate=2e-3,
        max_completion_length=32,
        held_out=32,
        pool_size=16,
        num_samples=8,
    )


QUICK = Settings(
    max_pair_length=160,
    checked_pairs=8,
    max_prompt_length=80,
    policy=real_model.QUICK,
)


def parse_arguments(argv=None):
    """Reads the command line and sets the backend, before Keras is imported."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    backends = ("jax", "tensorflow", "torch")
    parser.add_argument("--backend", choices=backends, default="jax")
    parser.add_argument("--data", help="folder that holds hh-rlhf/")
    parser.add_argument("--policy", help="a KerasHub preset; default: SmolLM2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tiny network")
    default = ROOT / "integration" / "runs" / "preferences"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    arguments = parser.parse_args(argv)
    demo.set_backend(arguments.backend)
    return arguments


def main(argv=None):
    """Trains reward model and judge, then the policy; measures all three.

    Returns:
        `(accuracies, rows)`: of reward model and judge on pairs that they have
        not seen, and the rows of the table.
    """
    arguments = parse_arguments(argv)
    try:
        file = find_data(arguments.data)
    except FileNotFoundError as error:
        sys.exit(str(error))
    settings = QUICK if arguments.quick else Settings()
    started = time.process_time()
    policy = real_model.load_policy(arguments)
    pairs, other_prompts = read_pairs(file, policy, settings)
    halves = pairs[::2], pairs[1::2]

    models, accuracies = [], {}
    for i, name in enumerate(("reward model", "judge")):
        print(f"Training the {name} on {len(halves[i])} pairs ...")
        models.append(train_reward_model(halves[i], settings, arguments))
        unseen = halves[1 - i][: settings.checked_pairs]
        accuracies[name] = accuracy(models[i], unseen)
        value, error = accuracies[name]
        print(f"The {name} is right on {value:.3f} ± {error:.3f} of new pairs.")

    reward_model, judge = models
    bond = build(policy, reward_model, settings, arguments.seed)
    held_out = other_prompts[: settings.policy.held_out]
    rows = run(bond, pairs, held_out, judge, settings.policy, arguments.seed)
    table = real_model.format_table(rows, COLUMNS)
    print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "table.md").write_text(table, encoding="utf-8")
    minutes = (time.process_time() - started) / 60
    print(f"Wrote {arguments.output} after {minutes:.0f} CPU minutes.")
    return accuracies, rows


def find_data(folder=None):
    """Returns the file of preference pairs.

    Args:
        folder: path, or `None` for the environment variable KERAS_BOND_DATA.

    Raises:
        FileNotFoundError: if the pairs are not there.
    """
    beside = ROOT.parent / "shared" / "data"
    found = pathlib.Path(folder or os.environ.get(FOLDER_VARIABLE) or beside)
    if not (found / FILE).exists():
        raise FileNotFoundError(
            f"HH-RLHF not found: pass --data or set {FOLDER_VARIABLE} to a "
            f"folder that holds {FILE}. Received: {folder}"
        )
    return found / FILE


def read_pairs(file, policy, settings):
    """Reads the pairs, and says how many are short enough.

    Returns:
        `(pairs, other_prompts)`: dicts with `prompt`, `chosen` and `rejected`,
        all of them conversations; and short prompts of the other pairs.
    """
    lengths = Lengths(policy)
    pairs, others, kept, count = [], [], [], 0
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            count += 1
            pair = to_pair(**json.loads(line))
            if pair is None:
                continue
            sizes = lengths.of_pair(pair)
            if sizes[0] > settings.max_prompt_length:
                continue
            if sizes[0] + max(sizes[1:]) <= settings.max_pair_length:
                pairs.append(pair)
                kept.append(sizes)
            else:
                others.append(pair["prompt"])
    prompts, chosen, rejected = (sorted(column) for column in zip(*kept))
    middle = len(pairs) // 2
    print(
        f"{len(pairs)} of {count} pairs have at most "
        f"{settings.max_prompt_length} tokens in the prompt and "
        f"{settings.max_pair_length} in all. Shortest, median and longest: "
        f"prompt {prompts[0]}, {prompts[middle]}, {prompts[-1]}; "
        f"chosen {chosen[0]}, {chosen[middle]}, {chosen[-1]}; "
        f"rejected {rejected[0]}, {rejected[middle]}, {rejected[-1]}."
    )
    return pairs, others


class Lengths:
    """Counts tokens as the policy reads them."""

    def __init__(self, policy):
        self.policy = policy
        self.tokenizer = policy.preprocessor.tokenizer

    def of_pair(self, pair):
        """Tokens of prompt, chosen and rejected, with start and end tokens."""
        from keras_bond.data import render_chat

        texts = [render_chat(pair["prompt"], self.policy)]
        texts += [pair[name][0]["content"] for name in ("chosen", "rejected")]
        return [1 + len(self.tokenizer(text)) for text in texts]


def to_pair(chosen, rejected):
    """Splits two transcripts into the common prompt and two answers.

    Returns:
        a dict, or `None` if the two do not answer the same.
    """
    prompt, answer = split_answer(chosen)
    other_prompt, other_answer = split_answer(rejected)
    if prompt != other_prompt or not answer or not other_answer:
        return None
    return {
        "prompt": to_turns(prompt),
        "chosen": [{"role": "assistant", "content": answer}],
        "rejected": [{"role": "assistant", "content": other_answer}],
    }


def split_answer(transcript):
    """Splits a transcript before its last answer."""
    prompt, _, answer = transcript.rpartition("\n\nAssistant:")
    return prompt, answer.strip()


def to_turns(transcript):
    """Turns of a transcript of `Human:` and `Assistant:`."""
    turns = []
    for part in transcript.split("\n\nHuman:")[1:]:
        question, *answers = part.split("\n\nAssistant:")
        turns.append({"role": "user", "content": question.strip()})
        for answer in answers:
            turns.append({"role": "assistant", "content": answer.strip()})
    return turns


def train_reward_model(pairs, settings, arguments):
    """The initial policy with a scalar head and adapters, fitted to pairs."""
    import keras

    import keras_bond

    model = real_model.load_policy(arguments)
    real_model.add_adapters(model, settings.policy.lora_rank)
    reward_model = keras_bond.RewardModel(
        model,
        max_length=settings.max_pair_length,
        center_rewards_coefficient=0.01,
    )
    steps = -(-len(pairs) // settings.pairs_per_step)
    rate = keras.optimizers.schedules.CosineDecay(
        settings.reward_learning_rate, decay_steps=steps, alpha=0.05
    )
    reward_model.compile(keras.optimizers.Adam(rate))
    reward_model.fit(pairs, batch_size=settings.pairs_per_step)
    return reward_model


def accuracy(reward_model, pairs):
    """How often the preferred answer scores higher, and its standard error."""
    logs = reward_model.evaluate(
        pairs, batch_size=8, return_dict=True, verbose=0
    )
    p = logs["accuracy"]
    return p, (p * (1.0 - p) / len(pairs)) ** 0.5


def build(policy, reward_model, settings, seed):
    """A trainer with the default settings."""
    real_model.add_adapters(policy, settings.policy.lora_rank)
    return real_model.make_bond(
        policy,
        reward_model,
        settings.max_prompt_length,
        settings.policy,
        seed,
    )


def run(bond, pairs, held_out, judge, settings, seed):
    """Measures, trains and measures again; returns the rows of the table."""
    import numpy as np

    import keras_bond

    print(f"Before: {settings.pool_size} answers to {len(held_out)} prompts")
    before = real_model.measure(
        bond, held_out, settings.pool_size, weights="reference"
    )
    judged_before = score(judge, held_out, before)
    print(f"Training: {settings.steps} steps, of which the first compiles")
    anchor = keras_bond.callbacks.AnchorEMA(0.05)
    prompts = [pair["prompt"] for pair in pairs]
    real_model.train(bond, prompts, settings, seed, anchor)
    print(f"After: {settings.num_samples} answers to each prompt")
    after = real_model.measure(bond, held_out, settings.num_samples)
    judged_after = score(judge, held_out, after)
    real_model.show_samples(held_out, before, after)

    quantiles = quantiles_in(judged_before, judged_before)
    rows = []
    for n, row in zip(demo.CURVE, real_model.best_of_n(before)):
        weights = best_of_n_weights(before.rewards, n)
        judged = (weights * judged_before).sum(axis=1)
        wins = (weights * quantiles).sum(axis=1)
        rows.append(row | judged_row(judged, wins))
    wins = quantiles_in(judged_after, judged_before)
    rows.append(
        real_model.compare(after, before)
        | judged_row(judged_after.mean(axis=1), wins.mean(axis=1))
    )
    gain = np.mean(judged_after) - np.mean(judged_before)
    print(f"\nThe judge's mean score changed by {gain:+.3f}.")
    return rows


def judged_row(scores, win_rates):
    """What the judge says, as entries of a row."""
    return {
        "judge": demo.mean_and_error(scores),
        "judge_win_rate": demo.mean_and_error(win_rates),
    }


def score(judge, prompts, answers):
    """The judge's scores of `real_model.Answers`, of the same shape."""
    texts = [text for group in answers.texts for text in group]
    asked = [
        prompt for prompt, group in zip(prompts, answers.texts) for _ in group
    ]
    scores = judge.predict(asked, texts, batch_size=16)
    return scores.reshape(answers.rewards.shape)


def quantiles_in(scores, pool):
    """Share of the pool of the same prompt below each score, ties one half.

    A sample of the pool itself counts as one half.
    """
    others = pool[:, None, :]
    below = (others < scores[:, :, None]).mean(axis=2)
    return below + 0.5 * (others == scores[:, :, None]).mean(axis=2)


def best_of_n_weights(rewards, n):
    """Probability of each sample to be the best of n of its pool."""
    import numpy as np

    from keras_bond.formulas import best_of_n_weights

    return np.asarray(best_of_n_weights(rewards, n), "float64")


if __name__ == "__main__":
    main()
