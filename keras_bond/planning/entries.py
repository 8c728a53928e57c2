"""What is in memory during a step, piece by piece."""

import dataclasses

from keras_bond import rewards
from keras_bond.planning.activations import Network
from keras_bond.rollouts import sizes

# The passes of a step, in their order.
PASSES = ("reading", "decoding", "judging", "learning")
ROLLOUT = PASSES[:3]
LOGITS_DTYPE = "float32"


@dataclasses.dataclass(frozen=True)
class Entry:
    """Something that takes memory.

    Attributes:
        name: str.
        bytes: int.
        passes: tuple of str. When it is there: `"reading"` the prompts,
            `"decoding"` completions, `"judging"` them with the other weight
            sets, `"learning"` from them.
        explanation: str. What it is made of.
    """

    name: str
    bytes: int
    passes: tuple
    explanation: str


def entries_of(bond, settings, compiler):
    """Lists what a step needs, largest arrays only.

    Args:
        bond: a `keras_bond` trainer.
        settings: a `Settings`.
        compiler: a `Compiler`.

    Returns:
        list of `Entry`, none of them empty.
    """
    shapes = Shapes.of(bond, settings)
    network = Network.of(bond.policy, compiler)
    entries = [
        *_weights(bond),
        *_copies(bond),
        *_rollout(bond, shapes, network),
        *_learning(bond, settings, shapes, network),
    ]
    return [entry for entry in entries if entry.bytes]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Rows and tokens of each pass.

    Attributes:
        prompt_length, completion_length: int. Padded, in tokens.
        rows: dict from each of `PASSES` to int.
    """

    prompt_length: int
    completion_length: int
    rows: dict

    @classmethod
    def of(cls, bond, settings):
        prompts = settings.rollout_prompts
        drawn = max(bond.num_policy_samples, bond.num_anchor_samples)
        return cls(
            bond.max_prompt_length,
            bond.max_completion_length,
            {
                "reading": prompts,
                "decoding": prompts * drawn,
                "judging": prompts * bond.num_policy_samples,
                "learning": settings.learning_prompts * _learned_samples(bond),
            },
        )

    @property
    def length(self):
        """int. Tokens of a prompt with its completion."""
        return self.prompt_length + self.completion_length

    def describe(self, name):
        """`"16 rows x 512 tokens"`, the most that a pass handles at a time."""
        length = self.prompt_length if name == "reading" else self.length
        return f"{self.rows[name]:,} rows x {length:,} tokens"


def _learned_samples(bond):
    """Samples of a prompt that have a gradient."""
    estimators = getattr(bond, "estimators", None)
    if getattr(estimators, "forward", None) == "best_sample":
        return bond.num_policy_samples + 1
    return bond.num_policy_samples + bond.num_anchor_samples


def _weights(bond):
    """What is in memory all the time, and exact."""
    policy = bond.policy.variables
    scorer = rewards.get(bond.reward, bond.reward_weights)
    counted = {id(v) for v in policy}
    sets = {name: s.values for name, s in bond.weight_sets.items()}
    counted |= {id(v) for values in sets.values() for v in values}
    more = [
        variable
        for variable in [*bond.variables, *scorer.variables()]
        if id(variable) not in counted
    ]
    return [
        _variables("weights", policy),
        *(_variables(name, values) for name, values in sets.items()),
        _optimizer(bond),
        _variables("other models", more, "rewards, logs"),
    ]


def _variables(name, variables, explanation=None):
    count = f"{sizes.num_values(variables):,} values"
    dtypes = sorted({variable.dtype for variable in variables})
    text = f"{count}, {', '.join(dtypes)}"
    if explanation:
        text = f"{explanation}: {text}"
    return Entry(name, sizes.num_bytes(variables), PASSES, text)


def _optimizer(bond):
    trained = bond.trainable_variables
    if getattr(bond, "optimizer", None) is None:
        return Entry(
            "optimizer",
            2 * sizes.num_bytes(trained),
            PASSES,
            "not compiled yet: counted as Adam",
        )
    name = type(bond.optimizer).__name__
    return _variables("optimizer", bond.optimizer.variables, name)


def _copies(bond):
    """Copies of weights that a pass makes before it can use them."""
    policy = bond.policy
    trained = [v for v in policy.trainable_variables if v.dtype != LOGITS_DTYPE]
    low = policy.backbone.compute_dtype
    cast = [
        v
        for v in policy.variables
        if v.dtype != low and sizes.itemsize(v.dtype) > sizes.itemsize(low)
    ]
    merged = _kernels_with_adapters(policy)
    return [
        Entry(
            "cast weight set",
            sizes.num_bytes(trained),
            ROLLOUT,
            "anchor or reference in the dtype of the policy",
        ),
        Entry(
            "cast weights",
            sizes.num_bytes(cast, low),
            PASSES,
            f"what is computed with, in {low}",
        ),
        Entry(
            "merged kernels",
            sizes.num_bytes(merged, low),
            PASSES,
            f"{len(merged)} kernels with their adapters added",
        ),
    ]


def _kernels_with_adapters(policy):
    layers = {
        variable.path.rpartition("/")[0]
        for variable in policy.trainable_variables
        if "/lora_kernel" in variable.path
    }
    return [
        variable
        for variable in policy.variables
        if variable.path.endswith("/kernel")
        and variable.path.rpartition("/")[0] in layers
    ]


def _rollout(bond, shapes, network):
    """What the passes without a gradient make."""
    cache = bond.decoder.cache_builder
    prompts, rows = shapes.rows["reading"], shapes.rows["decoding"]
    read = cache.num_bytes(prompts, shapes.prompt_length)
    grown = cache.num_bytes(rows, shapes.length)
    return [
        Entry(
            "prompt cache",
            read,
            ("reading", "decoding"),
            f"{shapes.describe('reading')}, then copied",
        ),
        Entry(
            "cache",
            grown,
            ("decoding",),
            shapes.describe("decoding"),
        ),
        _logits(bond, rows, "decoding", 2, ", and probabilities"),
        *(
            Entry(
                f"activations, {name}",
                network.passing_bytes(shapes.rows[name], length),
                (name,),
                f"1 block, {shapes.describe(name)}",
            )
            for name, length in (
                ("reading", shapes.prompt_length),
                ("judging", shapes.length),
            )
        ),
        _logits(bond, _tokens_at_once(bond, shapes, "judging"), "judging", 1),
    ]


def _learning(bond, settings, shapes, network):
    """What the pass with a gradient makes."""
    rows, length = shapes.rows["learning"], shapes.length
    steps = settings.gradient_accumulation_steps
    again = settings.rematerialize and network.compiler.rematerializes
    arrays, what = 2, ", and gradient"
    if _has_exact_kl(bond):
        arrays, what = 4, ", anchor's, and gradients"
    logits = _logits(
        bond,
        _tokens_at_once(bond, shapes, "learning"),
        "learning",
        arrays,
        what,
    )
    # The backward pass is through the head before it enters the blocks.
    working = network.working_bytes(rows, length, again) - logits.bytes
    kept = "inputs of blocks" if again else "blocks"
    return [
        _gradients(bond, steps),
        logits,
        Entry(
            "activations kept",
            network.kept_bytes(rows, length, again),
            ("learning",),
            f"{network.num_layers} {kept}, {shapes.describe('learning')}",
        ),
        Entry(
            "activations made",
            max(0, working),
            ("learning",),
            "of 1 block, beyond the logits",
        ),
    ]


def _gradients(bond, steps):
    """Gradients; where they are added up, the sum and what comes to it."""
    num_bytes = sizes.num_bytes(bond.trainable_variables)
    text = "one a value"
    if steps > 1:
        num_bytes, text = 2 * num_bytes, f"{text}, and their sum"
    else:
        # Looked up at the start and multiplied by at the end.
        num_bytes += sizes.num_bytes(bond.head.embedding.trainable_variables)
        text = f"{text}, two for a trained embedding"
    return Entry("gradients", num_bytes, ("learning",), text)


def _logits(bond, tokens, name, arrays, more=""):
    vocabulary = bond.head.embedding.input_dim
    text = f"{arrays} x {tokens:,} tokens x {vocabulary:,} x 4{more}"
    num_bytes = arrays * tokens * vocabulary * sizes.itemsize(LOGITS_DTYPE)
    return Entry(f"logits, {name}", num_bytes, (name,), text)


def _tokens_at_once(bond, shapes, name):
    tokens = shapes.rows[name] * shapes.completion_length
    return min(tokens, bond.head.tokens_at_once())


def _has_exact_kl(bond):
    estimators = getattr(bond, "estimators", None)
    kind = getattr(estimators, "kl_estimator", None)
    return kind == "full_vocabulary" and bond.kl_weight > 0
