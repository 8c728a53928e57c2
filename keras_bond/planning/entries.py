"""Memory entries of a training step."""

import dataclasses

import keras

from keras_bond import rewards
from keras_bond.rollouts import sizes

# The passes of a step, in their order: completions, their log-probabilities by
# anchor and reference, and the gradient.
PASSES = ("decoding", "log-probs", "learning")
ROLLOUT = PASSES[:2]


@dataclasses.dataclass(frozen=True)
class Entry:
    """Something that takes memory.

    Attributes:
        name: str.
        bytes: int.
        passes: tuple of str. When it is there: `"decoding"` of completions,
            `"log-probs"` of these by the anchor and the reference,
            `"learning"` from them.
        explanation: str. What it is made of.
    """

    name: str
    bytes: int
    passes: tuple
    explanation: str


class Shapes:
    """Rows and tokens of each pass, of a trainer with these `Settings`."""

    def __init__(self, bond, settings):
        prompts, p = settings.rollout_prompts, bond.num_policy_samples
        draws = bond.rollout.plan_draws(
            {}, {"policy": p, "anchor": bond.num_anchor_samples}
        )
        drawn = max(sum(counts.values()) for counts in draws)
        batch = _Targets(bond).compute_output_spec(learning_batch(bond, 2))
        learned = batch["completion_ids"].shape[1]
        self.reader = bond.reader
        # Rows with images are read whole, and any prompt may have some.
        self.may_have_images = bond.encoder.image_reader is not None
        self.prompts = dict(zip(PASSES, (prompts,) * 2))
        self.prompts["learning"] = settings.learning_prompts
        self.samples = dict(zip(PASSES, (drawn, p, learned)))
        self.rows = {k: n * self.samples[k] for k, n in self.prompts.items()}
        self.prompt_rows = prompts * max(len(counts) for counts in draws)
        self.prompt_length = bond.max_prompt_length
        self.completion_length = bond.max_completion_length
        self.length = self.prompt_length + self.completion_length

    def shares_prompts(self, name):
        """Whether a parallel pass reads a prompt once for its completions."""
        return not self.may_have_images and self.reader.shares_prompts(
            self.prompts[name], self.samples[name], self.prompt_length
        )

    def reads(self, name):
        """`(rows, tokens, context)` of all that a parallel pass reads."""
        rows, length = self.rows[name], self.prompt_length
        if not self.shares_prompts(name):
            return [(rows, self.length, self.length)]
        completions = (rows, self.completion_length, self.length)
        return [(self.prompts[name], length, length), completions]

    def describe(self, name):
        """`"16 rows x 512 tokens"`, the most that a pass handles at a time."""
        rows, length = f"{self.rows[name]:,} rows", self.length
        if name != "decoding" and self.shares_prompts(name):
            prompts = f"{self.prompts[name]:,} rows x {self.prompt_length:,}"
            return f"{prompts} and {rows} x {self.completion_length:,} tokens"
        return f"{rows} x {length:,} tokens"


class _Targets(keras.Operation):
    """A trainer's `targets`, of which Keras infers the shapes."""

    def __init__(self, bond):
        super().__init__()
        self.bond = bond

    def call(self, batch):
        return self.bond.targets(batch)


def learning_batch(bond, batch_size):
    """What a step learns from, as a dict of `keras.KerasTensor`."""
    p, samples = bond.num_policy_samples, bond.num_anchor_samples
    samples += p
    shapes = {
        "prompt_ids": ((bond.max_prompt_length,), "int32"),
        "prompt_lengths": ((), "int32"),
        "completion_ids": ((samples, bond.max_completion_length), "int32"),
        "mask": ((samples, bond.max_completion_length), "bool"),
        "terminated": ((samples,), "bool"),
        "tie_breakers": ((samples,), "float32"),
        "entropies": ((p,), "float32"),
        "sampling_log_probs": ((samples,), "float32"),
        "anchor_log_probs": ((samples,), "float32"),
        "reference_log_probs": ((p,), "float32"),
        "rewards": ((samples,), "float32"),
        "reward_residuals": ((samples,), "float32"),
        "ranks": ((samples,), "float32"),
        "present": ((), "bool"),
        "valid": ((), "bool"),
    }
    if bond.weight_sets.reference is None:
        del shapes["reference_log_probs"]
    return {
        name: keras.KerasTensor((batch_size, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }


def entries_of(bond, settings, network):
    """Lists what a step needs, largest arrays only.

    Args:
        bond: a `keras_bond` trainer.
        settings: a `Settings`.
        network: a `Network`.

    Returns:
        list of `Entry`, none of them empty.
    """
    shapes = Shapes(bond, settings)
    entries = [
        *_weights(bond),
        *_copies(bond.policy),
        *_rollout(bond, shapes, network),
        *_learning(bond, settings, shapes, network),
    ]
    return [entry for entry in entries if entry.bytes]


def _weights(bond):
    """What is in memory all the time."""
    policy = bond.policy.variables
    names = bond.weight_sets.others
    sets = {name: getattr(bond.weight_sets, name).values for name in names}
    counted = {id(v) for values in [policy, *sets.values()] for v in values}
    scorer = rewards.get(bond.reward, bond.reward_weights)
    others = [*bond.variables, *scorer.variables()]
    others = [variable for variable in others if id(variable) not in counted]
    if getattr(bond, "optimizer", None) is None:
        num_bytes = 2 * sizes.num_bytes(bond.trainable_variables)
        text = "not compiled yet: counted as Adam"
        optimizer = Entry("optimizer", num_bytes, PASSES, text)
    else:
        name = type(bond.optimizer).__name__
        optimizer = _variables("optimizer", bond.optimizer.variables, name)
    return [
        _variables("weights", policy),
        *(_variables(name, values) for name, values in sets.items()),
        optimizer,
        _variables("other models", others, "rewards, logs"),
    ]


def _variables(name, variables, what=None):
    dtypes = ", ".join(sorted({variable.dtype for variable in variables}))
    text = f"{sizes.num_values(variables):,} values, {dtypes}"
    text = f"{what}: {text}" if what else text
    return Entry(name, sizes.num_bytes(variables), PASSES, text)


def _copies(policy):
    """Copies of weights that a pass makes before it can use them."""
    trained = policy.trainable_variables
    low = policy.backbone.compute_dtype
    cast = [
        variable
        for variable in policy.variables
        if sizes.itemsize(variable.dtype) > sizes.itemsize(low)
    ]
    adapted = {
        variable.path.rpartition("/")[0]
        for variable in trained
        if "/lora_kernel" in variable.path
    }
    merged = [
        variable
        for variable in policy.variables
        # Those of quantized layers stay apart from their adapters.
        if variable.path.endswith("/kernel")
        and keras.backend.is_float_dtype(variable.dtype)
        and variable.path.rpartition("/")[0] in adapted
    ]
    low_set = [v for v in trained if v.dtype != "float32"]
    kernels = f"{len(merged)} kernels with their adapters added"
    of_set = "anchor or reference in the dtype of the policy"
    computed = f"what is computed with, in {low}"
    return [
        Entry("cast weight set", sizes.num_bytes(low_set), ROLLOUT, of_set),
        Entry("cast weights", sizes.num_bytes(cast, low), PASSES, computed),
        Entry("merged kernels", sizes.num_bytes(merged, low), PASSES, kernels),
    ]


def _rollout(bond, shapes, network):
    """What the passes without a gradient make."""
    cache, rows = bond.decoder.cache_builder, shapes.rows
    prompts, length = shapes.prompt_rows, shapes.prompt_length
    prefilled = cache.num_bytes(prompts, length)
    then = f"{prompts:,} rows x {length:,} tokens, then copied"
    grown = cache.num_bytes(rows["decoding"], shapes.length)
    read = network.passing_bytes(shapes.reads("log-probs"))
    block = f"1 block, {shapes.describe('log-probs')}"
    return [
        Entry("prompt cache", prefilled, ("decoding",), then),
        Entry("cache", grown, ("decoding",), shapes.describe("decoding")),
        _logits(bond, rows["decoding"], "decoding", 2, ", and probabilities"),
        Entry("activations, log-probs", read, ("log-probs",), block),
        _logits(bond, _at_once(bond, shapes, "log-probs"), "log-probs", 1),
    ]


def _learning(bond, settings, shapes, network):
    """What the pass with a gradient makes."""
    reads = shapes.reads("learning")
    again = settings.rematerialize and network.rematerializes
    tokens = _at_once(bond, shapes, "learning")
    logits = _logits(bond, tokens, "learning", 2, ", and gradient")
    gradients = sizes.num_bytes(bond.trainable_variables)
    if settings.gradient_accumulation_steps > 1:
        gradients, text = 2 * gradients, "one per value, and their sum"
    else:
        # Looked up at the start and multiplied by at the end.
        embedding = bond.head.embedding.trainable_variables
        gradients += sizes.num_bytes(embedding)
        text = "one per value, two for a trained embedding"
    # The backward pass is through the head before it enters the blocks.
    working = network.working_bytes(reads, again) - logits.bytes
    kept = network.kept_bytes(reads, again)
    if shapes.shares_prompts("learning"):
        # The prompts' keys and values, once for each completion.
        kept += bond.decoder.cache_builder.num_bytes(
            shapes.rows["learning"], shapes.prompt_length
        )
    blocks = f"{network.num_layers} {'inputs of ' if again else ''}blocks"
    return [
        Entry("gradients", gradients, ("learning",), text),
        logits,
        Entry(
            "activations",
            kept + max(0, working),
            ("learning",),
            f"{blocks}, {shapes.describe('learning')}",
        ),
    ]


def _logits(bond, tokens, name, arrays, more=""):
    vocabulary = bond.head.embedding.input_dim
    text = f"{arrays} x {tokens:,} tokens x {vocabulary:,} x 4{more}"
    num_bytes = arrays * tokens * vocabulary * 4
    return Entry(f"logits, {name}", num_bytes, (name,), text)


def _at_once(bond, shapes, name):
    """Tokens whose logits are in memory at a time."""
    tokens = shapes.rows[name] * shapes.completion_length
    return min(tokens, bond.head.tokens_at_once())
