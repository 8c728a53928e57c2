"""Tasks of the study of pace: a policy, its prompts and their reward."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

import restaurants
from restaurants import demo


class Task:
    """A policy, its prompts and their reward.

    Attributes:
        held_out: list of prompts to measure on.
        samples: int. Samples for each of them, of either policy.
    """

    samples = 64

    def make_bond(self, policy, seed, **options):
        """A trainer whose anchor and reference are `policy` as it is."""
        import keras_bond

        trainer = keras_bond.Bond
        if "updates" in options:
            from several_updates import SeveralUpdates as trainer
        return trainer(
            policy,
            self.reward,
            max_prompt_length=self.max_prompt_length,
            max_completion_length=self.max_completion_length,
            reference=True,
            seed=seed,
            **options,
        )


class Example(Task):
    """A world with a tiny policy, a preset of `examples/` or any folder."""

    def __init__(self, world, reward, preset, max_prompt, max_completion):
        self.world, self.reward, self.preset = world, reward, preset
        self.max_prompt_length = max_prompt
        self.max_completion_length = max_completion
        self.held_out = world.held_out_prompts(64, seed=1)

    def load_policy(self, seed):
        return demo.load_preset(self.preset)

    def prompts(self, count, seed):
        return self.world.make_examples(count, seed=100 + seed)["prompts"]


class RealModel(Task):
    """SmolLM2 with LoRA, asked for one short sentence."""

    samples = 24
    max_completion_length = 24

    def __init__(self):
        import real_model

        self.reward, self.ask = real_model.reward, real_model.ask
        self.topics, held_out = real_model.TOPICS, real_model.HELD_OUT_TOPICS
        self.held_out = self.ask(held_out)[:32]
        self.questions = self.ask([t for t in self.topics if t not in held_out])

    def load_policy(self, seed):
        import keras
        import smollm2

        import keras_bond

        keras.utils.set_random_seed(seed)
        policy = smollm2.load_policy()
        policy.backbone.enable_lora(8)
        tokenizer = policy.preprocessor.tokenizer
        self.max_prompt_length = 1 + max(
            len(tokenizer(keras_bond.data.render_chat(chat, policy)))
            for chat in self.ask(self.topics)
        )
        return policy

    def prompts(self, count, seed):
        import numpy as np

        order = np.random.default_rng(seed).permutation(len(self.questions))
        return [self.questions[i] for i in np.resize(order, count)]


def load_task(name, preset=None, data=None):
    """A task of `pace_settings.BY_TASK`.

    Args:
        preset: path. Another policy than that of the task.
        data: path. Where the data of the restaurants are, see there.
    """
    if name == "real":
        return RealModel()
    if name == "restaurants":
        world = restaurants.load_world(data)
        preset = preset or restaurants.teach(world)
        length = restaurants.MAX_LENGTH
        return Example(world, world.slot_coverage, preset, length, length)
    if name == "facts":
        import data_to_text as world

        preset = preset or "data_to_text"
        return Example(world, world.fact_coverage, preset, 32, 50)
    import word_problems as world

    return Example(world, world.is_correct, preset or "word_problems", 24, 17)
