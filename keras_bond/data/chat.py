"""Conversations as text in the chat format of a model."""

from keras_bond.data.tokenizer import TextTokenizer


def render_chat(turns, policy, chat_template="auto"):
    """Writes a conversation as a prompt in the chat format of a model.

    The model's answer comes next: if the last turn is the user's, the header of
    that answer follows, and if it is the model's, it is an answer that has
    begun, which is left open and continues where it ends. Gemma 1 to 3n have
    no system turns: the text of one is put before that of the next user turn.

    Args:
        turns: list of dicts with `"role"`, one of `"system"`, `"user"`,
            `"assistant"` or `"model"`, and `"content"`, a str. Templates in
            Jinja and functions may take other turns too.
        policy: a KerasHub `CausalLM`, preprocessor or tokenizer.
        chat_template: `"auto"` for the format whose special tokens the
            vocabulary has: Gemma 1 to 3n, Gemma 4, Llama 3 or ChatML. Or a
            template in Jinja, as in a Hugging Face `tokenizer_config.json`;
            the path of a file or folder that holds one; or a function that
            maps turns to a str. Defaults to `"auto"`.

    Returns:
        str, without the start token, which tokenizing adds.

    Raises:
        ImportError: if a template in Jinja is given and Jinja is not
            installed (extra `chat`).
        TypeError: if `turns` are not turns, a content is not a string, or
            `policy` has no tokenizer.
        ValueError: if the vocabulary does not have the tokens of the format,
            for turns that the format does not have, or for a system turn of
            Gemma 1 to 3n without a user turn after it.

    Example:

    ```python
    # With Gemma 3:
    keras_bond.data.render_chat([{"role": "user", "content": "Hello"}], policy)
    # '<start_of_turn>user\\nHello<end_of_turn>\\n<start_of_turn>model\\n'
    ```
    """
    preprocessor = getattr(policy, "preprocessor", policy)
    found = getattr(preprocessor, "tokenizer", preprocessor)
    if not hasattr(found, "get_vocabulary"):
        raise TypeError(
            "`policy` must be a KerasHub `CausalLM` with a preprocessor, a "
            "preprocessor or a tokenizer: for a trainer pass `bond.policy`. "
            f"Received: policy of type {type(policy).__name__}, without a "
            "tokenizer"
        )
    tokenizer = TextTokenizer(
        preprocessor,
        chat_template,
        getattr(policy, "backbone", None),
    )
    return tokenizer.render(turns).removeprefix(tokenizer.start_text)
