"""Trains the small supervised policies that the other examples start from.

    python examples/train_presets.py data_to_text
    python examples/train_presets.py word_problems

Each run makes a tokenizer and a tiny Gemma 3 (0.4 and 0.1 million parameters),
teaches it the flawed reference texts of its world with KerasHub's own `fit`,
measures it on held-out prompts and writes a preset of at most 2 MB to
`examples/presets/`. On two CPU cores the first takes about four minutes, the
second about one. The presets come with the examples, so run this only to
change them.
"""

import argparse
import io
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import data_to_text
import keras
import keras_hub
import numpy as np
import sentencepiece
import word_problems

SEED = 0
PRESETS = Path(__file__).parent / "presets"

BATCH_SIZE = 64
LEARNING_RATE = 3e-3
WARMUP_STEPS = 50

NUM_PROMPTS = 128
SAMPLES_PER_PROMPT = 64
BEST_OF = (1, 2, 4, 8)


@dataclass(frozen=True)
class World:
    """What differs between the worlds.

    Args:
        module: module or object. Makes examples and held-out prompts.
        reward: callable. Scores lists of prompts and completions.
        vocabulary_size: int. The number of pieces of the tokenizer.
        hidden_dim: int. The width of the model. All else scales with it.
        sequence_length: int. The tokens that a prompt and its response fill at
            most, with the start and the end token.
        steps: int. The number of training steps.
    """

    module: object
    reward: Callable
    vocabulary_size: int
    hidden_dim: int
    sequence_length: int
    steps: int


WORLDS = {
    "data_to_text": World(
        module=data_to_text,
        reward=data_to_text.fact_coverage,
        vocabulary_size=288,
        hidden_dim=128,
        sequence_length=80,
        steps=700,
    ),
    "word_problems": World(
        module=word_problems,
        reward=word_problems.is_correct,
        vocabulary_size=256,
        hidden_dim=64,
        sequence_length=40,
        steps=900,
    ),
}


def main():
    """Trains, measures and saves the policy of one world."""
    args = parse_args()
    world = WORLDS[args.world]
    if args.width:
        world = replace(world, hidden_dim=args.width)
    policy = make_policy(
        world, world.steps if args.steps is None else args.steps
    )
    report(policy, world)
    save(policy, Path(args.output or PRESETS / args.world))


def parse_args():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("world", choices=WORLDS)
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument(
        "--width", type=int, help="of the model, a multiple of 8"
    )
    parser.add_argument("--output", help="folder of the preset")
    return parser.parse_args()


def make_policy(world, steps):
    """Builds the policy of a `World` and teaches it for `steps` steps."""
    keras.utils.set_random_seed(SEED)
    examples = world.module.make_examples(steps * BATCH_SIZE, seed=SEED)
    policy = build_policy(world, examples)
    train(policy, examples, steps)
    return policy


def build_policy(world, examples):
    """Builds an untrained Gemma 3 with a tokenizer made for `examples`."""
    texts = examples["prompts"] + examples["responses"]
    proto = train_tokenizer(
        texts[:: len(texts) // 4000 + 1], world.vocabulary_size
    )
    tokenizer = keras_hub.models.Gemma3Tokenizer(proto, has_vision_tokens=False)
    return keras_hub.models.Gemma3CausalLM(
        backbone=keras_hub.models.Gemma3Backbone(
            vocabulary_size=tokenizer.vocabulary_size(),
            image_size=896,  # Required, but without meaning for text.
            num_layers=2,
            num_query_heads=4,
            num_key_value_heads=1,
            hidden_dim=world.hidden_dim,
            intermediate_dim=3 * world.hidden_dim,
            head_dim=world.hidden_dim // 4,
            use_post_ffw_norm=True,
            use_post_attention_norm=True,
            dtype="float32",
        ),
        preprocessor=keras_hub.models.Gemma3CausalLMPreprocessor(
            tokenizer, sequence_length=world.sequence_length
        ),
    )


def train_tokenizer(texts, vocabulary_size):
    """Trains a SentencePiece model with the pieces that Gemma 3 asks for.

    Text is taken as it is. Digits are split, so that the sums of numbers can
    be learnt digit by digit. `<end_of_turn>` must be a piece: without it,
    `generate` takes the unknown token for a stop token.

    Returns:
        The serialized model, as `bytes`.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary_size,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=["<end_of_turn>"],
        minloglevel=2,
    )
    return model.getvalue()


def train(policy, examples, steps):
    """Fits the policy to the responses and their end tokens, in one pass."""
    policy.compile(
        optimizer=keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(
                initial_learning_rate=0.0,
                warmup_target=LEARNING_RATE,
                warmup_steps=WARMUP_STEPS,
                decay_steps=max(1, steps - WARMUP_STEPS),
            )
        ),
        # A mean over the response tokens only, not over prompts and padding.
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
    )
    features = {name: np.array(texts) for name, texts in examples.items()}
    # The examples are drawn at random, and each is seen once: no shuffling.
    policy.fit(features, batch_size=BATCH_SIZE, epochs=1, shuffle=False)


def report(policy, world):
    """Prints how good and how varied samples for held-out prompts are."""
    prompts = world.module.held_out_prompts(NUM_PROMPTS, seed=SEED)
    samples = sample(policy, prompts)
    rewards = np.array(
        [world.reward(prompts, completions) for completions in zip(*samples)]
    ).T  # (prompts, samples)

    print(
        f"\n{NUM_PROMPTS} held-out prompts, {SAMPLES_PER_PROMPT} samples each"
    )
    for n in BEST_OF:
        mean, error = best_of_n(rewards, n)
        print(f"reward, best of {n}: {mean:.3f} ± {error:.3f}")
    print(f"completions with the full reward: {np.mean(rewards == 1.0):.3f}")
    distinct = (
        np.mean([len(set(texts)) for texts in samples]) / SAMPLES_PER_PROMPT
    )
    print(f"share of a prompt's samples that is distinct: {distinct:.3f}")
    for prompt, texts, scores in list(zip(prompts, samples, rewards))[:3]:
        print(f"\n{prompt!r}")
        for text, score in list(zip(texts, scores))[:3]:
            print(f"  {score:.2f}  {text!r}")


def sample(policy, prompts):
    """Samples completions from the policy's full distribution.

    Returns:
        For each prompt, a tuple of `SAMPLES_PER_PROMPT` strings.
    """
    policy.compile(sampler=keras_hub.samplers.RandomSampler(seed=SEED))
    draws = [
        policy.generate(prompts, stop_token_ids="auto", strip_prompt=True)
        for _ in range(SAMPLES_PER_PROMPT)
    ]
    return list(zip(*draws))


def best_of_n(rewards, n):
    """Estimates the mean reward of the best of `n` samples, without bias.

    Among all subsets of `n` of a prompt's M samples, the i-th smallest reward
    is the largest in C(i - 1, n - 1) of C(M, n).

    Args:
        rewards: array of shape (prompts, M).
        n: int. The number of samples to choose from, at most M.

    Returns:
        `(mean, error)`, floats. The standard error is over prompts.
    """
    total = rewards.shape[1]
    weights = [math.comb(i, n - 1) / math.comb(total, n) for i in range(total)]
    by_prompt = np.sort(rewards, axis=1) @ np.array(weights)
    error = by_prompt.std(ddof=1) / math.sqrt(len(by_prompt))
    return float(by_prompt.mean()), float(error)


def save(policy, folder):
    """Writes a preset beside `folder`, then puts it in its place.

    A run that stops halfway thus leaves the earlier preset as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fresh = Path(scratch) / folder.name
        policy.save_to_preset(str(fresh))
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    print(f"\nSaved to {folder}")


if __name__ == "__main__":
    main()
