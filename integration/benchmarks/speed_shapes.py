"""What one step of training works on: a network and a batch of prompts."""

import dataclasses
import pathlib
import sys

import numpy as np

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"


@dataclasses.dataclass(frozen=True)
class Shape:
    """A network, what it is asked, and how it is trained.

    All prompts are as long as they may be and, unless `stop_share` says
    otherwise, no token ends a completion, so that every contender computes the
    same number of tokens.

    Attributes:
        vocabulary: int. Entries of the embedding.
        layers, width, intermediate: int. Blocks, model width, width inside the
            feed-forward part.
        heads, kv_heads, head_dim: int. Query heads, key-value heads, width of
            a head.
        prompts: int. Prompts a step.
        prompt_length, completion_length: int. Tokens.
        policy_samples, anchor_samples: int. Completions a prompt.
        trainer: `"jbond"`, or `"bond"` for any number of samples.
        lora_rank: int. 0 trains all weights.
        reference: bool. Whether a reference is kept where it is small, with
            LoRA: its log-probabilities are for the logs only.
        family: `"gemma3"`, random weights; or `"smollm2"`, the real model of
            examples/smollm2.py, which has this shape.
        stop_share: float. Share of the vocabulary that ends a completion: the
            weights are random, so that lengths are about geometric.
    """

    vocabulary: int
    layers: int
    width: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    prompts: int = 8
    prompt_length: int = 64
    completion_length: int = 64
    policy_samples: int = 1
    anchor_samples: int = 2
    trainer: str = "jbond"
    lora_rank: int = 0
    reference: bool = True
    family: str = "gemma3"
    stop_share: float = 0.0

    @property
    def samples(self):
        """Completions a prompt."""
        return self.policy_samples + self.anchor_samples

    @property
    def learned_samples(self):
        """Completions a prompt that the loss reads: J-BOND keeps the best
        anchor sample only."""
        if self.trainer == "jbond":
            return self.policy_samples + 1
        return self.samples

    @property
    def length(self):
        """Tokens of prompt and completion."""
        return self.prompt_length + self.completion_length

    @property
    def generated_tokens(self):
        """Tokens drawn in a step, on average."""
        length, p = self.completion_length, self.stop_share
        if p:
            length = (1 - (1 - p) ** length) / p
        return self.prompts * self.samples * length

    @property
    def layer_weights(self):
        """Entries of the kernels of one block."""
        attention = 2 * self.width * self.head_dim
        attention *= self.heads + self.kv_heads
        return attention + 3 * self.width * self.intermediate

    @property
    def embedding_weights(self):
        return self.vocabulary * self.width

    @property
    def parameters(self):
        """Weights of the model, the scales of its norms included."""
        norms = 4 * self.width + 2 * self.head_dim
        if self.family == "smollm2":
            norms = 2 * self.width
        blocks = self.layers * (self.layer_weights + norms)
        return self.embedding_weights + blocks + self.width

    @property
    def trained_parameters(self):
        """Weights that learn; KerasHub has adapters at queries and values,
        and gives every head a down projection of its own."""
        if not self.lora_rank:
            return self.parameters
        down = (self.heads + self.kv_heads) * self.width
        return self.layers * self.lora_rank * (down + 2 * self.head_dim)

    def with_mode(self, mode):
        """The same shape in `"full"` fine-tuning or with `"lora"`."""
        return dataclasses.replace(self, lora_rank=8 if mode == "lora" else 0)


SIZES = {
    "0.02M": Shape(256, 2, 32, 64, 2, 1, 16),
    "0.5M": Shape(2048, 6, 64, 256, 4, 1, 16),
    "14M": Shape(32_000, 6, 256, 1024, 4, 1, 64),
    "100M": Shape(32_000, 14, 640, 2048, 4, 1, 256),
    "135M": Shape(49_152, 30, 576, 1536, 9, 3, 64),
    "smollm2": Shape(49_152, 30, 576, 1536, 9, 3, 64, family="smollm2"),
}
# The start token, and the first token that a prompt may hold otherwise.
START_TOKEN, FIRST_TOKEN = 2, 4
BATCHES_AN_EPOCH = 2


def build_policy(shape, seed=0):
    """Builds a network of KerasHub whose weights every backend shares.

    Args:
        shape: a `speed_shapes.Shape`.
        seed: int. Of random weights.

    Returns:
        a `keras_hub.models.Gemma3CausalLM`, or SmolLM2 as KerasHub's Llama 3.
    """
    if shape.family == "smollm2":
        sys.path.append(str(EXAMPLES))
        import smollm2

        policy = smollm2.load_policy()
    else:
        policy = _build_gemma3(shape)
    if shape.lora_rank:
        policy.backbone.enable_lora(shape.lora_rank)
    generator = np.random.default_rng(seed)
    for variable in policy.variables:
        noise = generator.standard_normal(variable.shape, "float32")
        if shape.family == "gemma3" or "lora" in variable.path:
            variable.assign(0.02 * noise)
    return policy


def _build_gemma3(shape):
    import keras_hub

    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=shape.vocabulary,
        image_size=None,
        num_layers=shape.layers,
        num_query_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        hidden_dim=shape.width,
        intermediate_dim=shape.intermediate,
        head_dim=shape.head_dim,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        use_sliding_window_attention=True,
        sliding_window_size=512,
        vision_encoder=None,
        dtype="float32",
    )
    return keras_hub.models.Gemma3CausalLM(backbone=backbone, preprocessor=None)


def draw_prompts(shape, seed=0):
    """Prompts of one epoch.

    Returns:
        int32 array `(2 * prompts, prompt_length)`.
    """
    generator = np.random.default_rng(seed)
    rows = BATCHES_AN_EPOCH * shape.prompts
    ids = generator.integers(
        FIRST_TOKEN, shape.vocabulary, (rows, shape.prompt_length)
    )
    ids[:, 0] = START_TOKEN
    return ids.astype("int32")


def score(completion_ids):
    """The reward of all contenders: costs nothing, and seldom ties.

    Args:
        completion_ids: int array `(rows, completion_length)`.

    Returns:
        float32 array `(rows,)`.
    """
    return (np.asarray(completion_ids) % 97).mean(axis=1).astype("float32")
