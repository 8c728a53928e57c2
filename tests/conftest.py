"""Small policies that every test can afford, on the backend of the run.

The backend is that of `KERAS_BACKEND`; `tests/run.py` runs all three.
"""

import functools
import io
import os
import tempfile

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Eight devices where there is one processor; without a distribution JAX uses
# the first. Models this small are compiled for longer than they run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0",
)
# Many tests compile the same programs: JAX keeps them for the others. Without a
# limit to their size, for which it would look at all files at each write.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(tempfile.gettempdir(), "keras_bond_compiled"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import keras
import keras_hub
import numpy as np
import pytest
import scipy.stats
import sentencepiece

if keras.config.backend() == "torch":
    import torch

    # On models this small its threads wait longer for each other than they
    # compute.
    torch.set_num_threads(1)

# For `compile` where XLA is not what is tested: TensorFlow's graphs are made in
# half the time without it. The other backends do not listen.
COMPILED_QUICKLY = {"jit_compile": False}
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


def make_policy(family="gemma3", seed=0, scale=1.0, dtype=None, **backbone):
    """Builds a Gemma or Gemma 3 of about 5,000 parameters.

    Args:
        family: `"gemma"` or `"gemma3"`.
        seed: int. Seed of the weights, which are the same on all backends.
        scale: float. Standard deviation of the weights times ten; above 1 the
            next-token distributions are far from uniform.
        dtype: dtype policy, or `None`.
        **backbone: arguments of the backbone to change.
    """
    models = keras_hub.models
    if family == "gemma3":
        tokenizer = models.Gemma3Tokenizer(
            proto=vocabulary(), has_vision_tokens=False
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
        tokenizer = models.GemmaTokenizer(proto=vocabulary())
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


@pytest.fixture
def policy():
    return make_policy()


@pytest.fixture
def prompts():
    return list(PROMPTS)


def values_of(variables):
    """NumPy copies of variables."""
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def gradient(function, point):
    """Gradient of a scalar function at a NumPy array, by the backend."""

    def safe(x):
        # PyTorch and TensorFlow object to a loss without any gradient.
        return function(x) + 0.0 * keras.ops.sum(x)

    x = keras.ops.convert_to_tensor(point, "float32")
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        result = jax.grad(safe)(x)
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = safe(x)
        result = tape.gradient(loss, x)
    else:
        import torch

        x = x.detach().requires_grad_()
        result = torch.autograd.grad(safe(x), x)[0]
    return keras.ops.convert_to_numpy(result)


def variable_gradients(loss, variables):
    """A loss without arguments and its gradients, compiled as in training.

    Returns:
        `(value, gradients)`: float, and list of arrays.
    """
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        def stateless(values):
            mapping = list(zip(variables, values))
            with keras.StatelessScope(state_mapping=mapping):
                return loss()

        values = [v.value for v in variables]
        value, gradients = jax.jit(jax.value_and_grad(stateless))(values)
    elif backend == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True, autograph=False)
        def compiled():
            sources = [v.value for v in variables]
            with tf.GradientTape() as tape:
                value = loss()
            gradients = tape.gradient(value, sources)
            return value, [tf.convert_to_tensor(g) for g in gradients]

        value, gradients = compiled()
    else:
        import torch

        value = loss()
        gradients = torch.autograd.grad(value, [v.value for v in variables])
    return float(value), [ops_to_numpy(g) for g in gradients]


def ops_to_numpy(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor))


def chi_square_p_value(observed, probabilities):
    """How likely counts at least this far from their law are.

    Cells expected fewer than 5 times are pooled into one.
    """
    observed = np.asarray(observed, "float64").ravel()
    expected = np.asarray(probabilities, "float64").ravel() * observed.sum()
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] == 0:
        assert observed[-1] == 0, "something of probability 0 happened"
        observed, expected = observed[:-1], expected[:-1]
    statistic = np.sum((observed - expected) ** 2 / expected)
    return float(scipy.stats.chi2.sf(statistic, len(expected) - 1))
