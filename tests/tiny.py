"""Policies, prompts and a reward so small that every test can afford them."""

import functools
import io
import string

import keras
import keras_hub
import numpy as np
import sentencepiece

# For `compile` where XLA is not what is tested: TensorFlow's graphs are made in
# half the time without it. On the others Keras's own models listen to it, too.
COMPILED_QUICKLY = (
    {"jit_compile": False} if keras.config.backend() == "tensorflow" else {}
)
PROMPTS = [
    "the quick",
    "fox",
    "a b c",
    "lazy dog",
    "over the",
    "jumps",
    "dog 1 2",
    "brown fox",
]


@functools.cache
def vocabulary():
    """A SentencePiece model of about 50 pieces, as Gemma's tokenizers want."""
    sentences = [
        "the quick brown fox jumps over the lazy dog",
        "a b c d e f g 1 2 3 4 5 6 7 8 9 0",
    ]
    return train_vocabulary(
        sentences * 10,
        vocab_size=60,
        model_type="BPE",
        user_defined_symbols=["<end_of_turn>"],
    )


@functools.cache
def chat_vocabulary(markers=("<start_of_turn>", "<end_of_turn>")):
    """Characters, and the markers of a chat format, which have ids from 4."""
    return train_vocabulary(
        [string.printable.replace("\n", " ")] * 10,
        vocab_size=200,
        model_type="CHAR",
        user_defined_symbols=[*markers, "\n"],
    )


def train_vocabulary(sentences, **arguments):
    """A SentencePiece model with the special tokens where Gemma has them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        hard_vocab_limit=False,
        minloglevel=2,
        **arguments,
    )
    return model.getvalue()


def make_policy(
    family="gemma3", seed=0, scale=1.0, dtype=None, proto=None, **backbone
):
    """Builds a Gemma or Gemma 3 of about 5,000 parameters.

    Args:
        family: `"gemma"` or `"gemma3"`.
        seed: int. Seed of the weights, which are the same on all backends.
        scale: float. Standard deviation of the weights times ten; above 1 the
            next-token distributions are far from uniform.
        dtype: dtype policy, or `None`.
        proto: bytes, or `None` for that of `vocabulary`.
        **backbone: arguments of the backbone to change.
    """
    models = keras_hub.models
    if family == "gemma3":
        tokenizer = models.Gemma3Tokenizer(
            proto=proto or vocabulary(), has_vision_tokens=False
        )
        arguments = dict(
            num_query_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            sliding_window_size=8,
            image_size=None,
            vision_encoder=None,
        )
        classes = (
            models.Gemma3Backbone,
            models.Gemma3CausalLMPreprocessor,
            models.Gemma3CausalLM,
        )
    else:
        tokenizer = models.GemmaTokenizer(proto=proto or vocabulary())
        arguments = dict(num_query_heads=2, num_key_value_heads=1, head_dim=8)
        classes = (
            models.GemmaBackbone,
            models.GemmaCausalLMPreprocessor,
            models.GemmaCausalLM,
        )
    arguments.update(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=2,
        hidden_dim=16,
        intermediate_dim=32,
        dtype=dtype,
    )
    arguments.update(backbone)
    backbone_class, preprocessor_class, task_class = classes
    policy = task_class(
        backbone=backbone_class(**arguments),
        preprocessor=preprocessor_class(
            tokenizer=tokenizer, sequence_length=24
        ),
    )
    generator = np.random.default_rng(seed)
    for variable in policy.variables:
        noise = generator.normal(size=variable.shape) * 0.1 * scale
        variable.assign(noise.astype("float32"))
    return policy


def length_reward(prompts, completions):
    """Longer is better: cheap, deterministic, with a few ties."""
    return [float(len(completion)) for completion in completions]
