"""Tiny Hugging Face folders, and their logits in NumPy."""

import json

import numpy as np
import tokenizers
from safetensors.numpy import save_file

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-2,
    "rope_theta": 100.0,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
IDS = np.array([[5, 250, 17, 3, 99, 120, 8, 41, 260, 7, 13, 77]])
TEXT = "It's 1234567  foxes\n\n  and </s> more"


def write_folder(path, extra=None, tokens=None, **config):
    """Writes a Llama of about 10,000 weights; returns weights and config."""
    path.mkdir(exist_ok=True)
    config = {**CONFIG, **config}
    config = {k: v for k, v in config.items() if v is not None}
    weights = {**make_weights(config), **(extra or {})}
    (path / "config.json").write_text(json.dumps(config))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(path, **(tokens or {}))
    return weights, config


def write_tokenizer(path, post_processor=None, **tokens):
    """Byte-level BPE that keeps digits apart, as SmolLM2 does."""
    spec = json.loads(make_tokenizer(post_processor).to_str())
    # A merge that the split before it never lets happen.
    spec["model"]["vocab"]["12"] = len(spec["model"]["vocab"])
    spec["model"]["merges"].append(["1", "2"])
    (path / "tokenizer.json").write_text(json.dumps(spec))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", **tokens}
    (path / "tokenizer_config.json").write_text(json.dumps(tokens))


def make_tokenizer(post_processor=None, **model):
    """See `write_tokenizer`."""
    pre_tokenizers = tokenizers.pre_tokenizers
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<pad>", "<s>", "</s>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the quick brown fox jumps over the lazy dog, it's 1234567"
    tokenizer.train_from_iterator([text] * 3, trainer)
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


def make_weights(config):
    generator = np.random.default_rng(0)
    width, inner = config["hidden_size"], config["intermediate_size"]
    size = width // config["num_attention_heads"]
    keys = config["num_key_value_heads"] * size

    def draw(*shape):
        scale = 0.3 if len(shape) > 1 else 1.0
        return (generator.normal(size=shape) * scale).astype("float32")

    vocabulary = (config["vocab_size"], width)
    weights = {"model.embed_tokens.weight": draw(*vocabulary)}
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = draw(*vocabulary)
    weights["model.norm.weight"] = draw(width)
    shapes = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    for i in range(config["num_hidden_layers"]):
        for name, shape in shapes.items():
            weights[f"model.layers.{i}.{name}.weight"] = draw(*shape)
    return weights


def logits(weights, config, ids):
    """What Transformers computes for a row of ids, in NumPy."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads

    def norm(x, name):
        variance = np.mean(x**2, axis=-1, keepdims=True)
        scale = weights[f"{name}.weight"]
        return x / np.sqrt(variance + config["rms_norm_eps"]) * scale

    def project(x, name, heads):
        y = x @ weights[f"{name}.weight"].T
        return y.reshape(len(x), heads, size).swapaxes(0, 1)

    def turn(x):
        angles = np.arange(x.shape[1])[:, None] * frequencies(config, size)
        cos, sin = (np.tile(f(angles), 2) for f in (np.cos, np.sin))
        first, second = np.split(x, 2, axis=-1)
        return x * cos + np.concatenate([-second, first], axis=-1) * sin

    hidden = weights["model.embed_tokens.weight"][ids]
    future = np.triu(np.ones((len(ids), len(ids)), bool), 1)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        x = norm(hidden, f"{layer}.input_layernorm")
        q = turn(project(x, f"{layer}.self_attn.q_proj", heads))
        k = turn(project(x, f"{layer}.self_attn.k_proj", groups))
        v = project(x, f"{layer}.self_attn.v_proj", groups)
        k, v = (np.repeat(x, heads // groups, axis=0) for x in (k, v))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(size)
        scores = np.exp(np.where(future, -np.inf, scores))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ v
        mixed = mixed.swapaxes(0, 1).reshape(len(ids), -1)
        hidden = hidden + mixed @ weights[f"{layer}.self_attn.o_proj.weight"].T
        x = norm(hidden, f"{layer}.post_attention_layernorm")
        gate = x @ weights[f"{layer}.mlp.gate_proj.weight"].T
        up = x @ weights[f"{layer}.mlp.up_proj.weight"].T
        inner = gate / (1 + np.exp(-gate)) * up
        hidden = hidden + inner @ weights[f"{layer}.mlp.down_proj.weight"].T
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(hidden, "model.norm") @ head.T


def frequencies(config, size):
    """Of rotary embeddings, scaled as Llama 3.1 has them or not."""
    rope = config.get("rope_parameters") or config
    found = 1.0 / rope["rope_theta"] ** (np.arange(0, size, 2) / size)
    if rope.get("rope_type") != "llama3":
        return found
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    waves = rope["original_max_position_embeddings"] * found / (2 * np.pi)
    smooth = np.clip((waves - low) / (high - low), 0, 1)
    return found * (smooth + (1 - smooth) / rope["factor"])
