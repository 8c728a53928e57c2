"""Tokenizers of chat models, their templates, and conversations.

The templates are those of the published models, reduced to text.
"""

import keras_hub
import pytest

from keras_bond import data
from tests.tiny import chat_vocabulary

BYTES = [chr(i) for i in [*range(33, 127), *range(161, 173), *range(174, 324)]]


def byte_pairs(kind, *special, **arguments):
    """A KerasHub tokenizer of bytes, with special tokens."""
    tokens = [*special, *BYTES, "th"]
    return kind(
        vocabulary={token: i for i, token in enumerate(tokens)},
        merges=["t h"],
        **arguments,
    )


def gemma(kind="Gemma3", markers=("<start_of_turn>", "<end_of_turn>")):
    options = {
        "Gemma": {},
        "Gemma3": {"has_vision_tokens": False},
        "Gemma4": {"has_vision_tokens": False, "has_video_tokens": False},
    }
    make = getattr(keras_hub.models, f"{kind}Tokenizer")
    return make(proto=chat_vocabulary(markers), **options[kind])


def gemma_4():
    return gemma("Gemma4", ("<|turn>", "<turn|>", "<|channel>", "<channel|>"))


def llama_3():
    tokens = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return byte_pairs(
        keras_hub.models.Llama3Tokenizer,
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *tokens,
        misc_special_tokens=set(tokens),
    )


def smollm2():
    """As KerasHub's converter makes it, with the turns' marker as the start."""
    tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return byte_pairs(
        keras_hub.models.Llama3Tokenizer,
        *tokens,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        misc_special_tokens=set(tokens),
    )


def qwen(name="Qwen", *more):
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    make = getattr(keras_hub.models, f"{name}Tokenizer")
    return byte_pairs(make, *tokens, unsplittable_tokens=tokens)


def qwen_3():
    return qwen("Qwen3", "<think>", "</think>")


LLAMA_3 = (
    "{% for message in messages %}{{ bos_token if loop.first }}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN_3 = CHATML.replace(
    "m.content",
    "(m.content if m.role == 'user' or loop.last else "
    "m.content.split('</think>')[-1].lstrip('\\n'))",
)
GEMMA_3 = """
{{- bos_token }}
{%- set prefix = '' %}
{%- if messages[0].role == 'system' %}
    {%- set prefix = messages[0].content + '\n\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if m.role == 'assistant' else m.role %}
    {{- '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}
    {{- m.content | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
GEMMA_4 = """
{%- macro strip_thinking(text) %}
    {%- set ns = namespace(kept='') %}
    {%- for part in text.split('<channel|>') %}
        {%- set ns.kept = ns.kept + part.split('<|channel>')[0] %}
    {%- endfor %}
    {{- ns.kept | trim }}
{%- endmacro %}
{{- bos_token }}
{%- for m in messages %}
    {%- set role = 'model' if m.role == 'assistant' else m.role %}
    {{- '<|turn>' + role + '\n' }}
    {%- if role == 'model' and not loop.last %}
        {{- strip_thinking(m.content) }}
    {%- else %}
        {{- m.content | trim }}
    {%- endif %}
    {{- '<turn|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"""

# A tokenizer, its template, its stop tokens.
FAMILIES = {
    "Gemma": (lambda: gemma("Gemma"), GEMMA_3, {"<eos>", "<end_of_turn>"}),
    "Gemma 3": (gemma, GEMMA_3, {"<eos>", "<end_of_turn>"}),
    "Gemma 4": (gemma_4, GEMMA_4, {"<eos>", "<turn|>"}),
    "Llama 3": (llama_3, LLAMA_3, {"<|end_of_text|>", "<|eot_id|>"}),
    "SmolLM2": (smollm2, CHATML, {"<|im_end|>"}),
    "Qwen": (qwen, CHATML, {"<|endoftext|>", "<|im_end|>"}),
    "Qwen 3": (qwen_3, QWEN_3, {"<|im_end|>"}),
}


def turns(*contents):
    roles = ("user", "assistant") * len(contents)
    if len(contents) > 1 and contents[0] == "Be short.":
        roles = ("system", *roles)
    return [{"role": r, "content": c} for r, c in zip(roles, contents)]


THOUGHTS = {
    "Gemma 4": "<|channel>thought\nhm\n<channel|>Yes?",
    "Qwen 3": "<think>\nhm\n</think>\n\nYes?",
}
CHATS = [
    turns("Hi"),
    turns(" Hi ", " Yes? ", "Why?\n"),
    turns("Be short.", "Hi", "Yes?", "Why?"),
    turns("Hi", "Once upon"),
    turns("Be short.", "Hi", " Once upon "),
    turns("Hi", ""),
]


def fails(error, text, *arguments, **keywords):
    with pytest.raises(error, match=text):
        data.render_chat(*arguments, **keywords)
