"""Chat formats of model families, by the special tokens of the tokenizer."""

import dataclasses

from keras_bond.turns import check_turns
from keras_bond.turns import is_answer

# Of Gemma 4: what the system turn begins with if the model shall think, and
# what begins an answer without thoughts.
THINK = "<|think|>"
EMPTY_THOUGHT = "<|channel>thought\n<channel|>"


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """How a family of models writes a conversation.

    A turn is `header + content + end_of_turn + separator`.

    Attributes:
        name: str. For messages.
        markers: tuple of str. The tokens by which the format is recognized.
        header: str, with `{role}`.
        end_of_turn: str. The token that ends a turn.
        separator: str. What stands between two turns.
        answer: str. The role of the model.
        has_system: bool. Whether there are system turns. Their text is
            otherwise put before that of the next user turn.
        strips: bool. Whether spaces around a content are removed.
        thought: the two tokens around a thought, or `None`. Thoughts in
            answers before the last user turn are left out.
        prefix: str. What follows the header of an answer that begins without
            thoughts.
    """

    name: str
    markers: tuple
    header: str
    end_of_turn: str
    separator: str = "\n"
    answer: str = "assistant"
    has_system: bool = True
    strips: bool = True
    thought: tuple | None = None
    prefix: str = ""

    def render(self, turns):
        """Writes a conversation up to where the model's answer continues.

        Args:
            turns: list of dicts, see `keras_bond.data.render_chat`.

        Returns:
            str.

        Raises:
            TypeError, ValueError: see `keras_bond.data.render_chat`.
        """
        check_turns(turns)
        asked = max(
            (i for i, turn in enumerate(turns) if turn["role"] == "user"),
            default=0,
        )
        text, system = "", ""
        for i, turn in enumerate(turns):
            content = turn["content"]
            if is_answer(turn) and i < asked:
                content = self._without_thought(content)
            if turn["role"] == "system" and not self.has_system:
                system += content + "\n\n"
                continue
            content = content.strip() if self.strips else content
            if turn["role"] == "user":
                content, system = system + content, ""
            closed = content + self.end_of_turn + self.separator
            text += self._header(turn) + closed
        if system:
            raise ValueError(
                "A system turn must come before a turn of the user, which it "
                f"is put into. Received: {turns!r}"
            )
        if is_answer(turns[-1]):
            return text.removesuffix(self.end_of_turn + self.separator)
        thinks = turns[0]["content"].lstrip().startswith(THINK)
        prefix = "" if thinks else self.prefix
        return text + self.header.format(role=self.answer) + prefix

    def _header(self, turn):
        role = self.answer if is_answer(turn) else turn["role"]
        return self.header.format(role=role)

    def _without_thought(self, content):
        if self.thought is None:
            return content
        start, end = self.thought
        kept = [part.partition(start)[0] for part in content.split(end)]
        return "".join(kept).lstrip("\n")


GEMMA = ChatFormat(
    "Gemma",
    ("<start_of_turn>", "<end_of_turn>"),
    "<start_of_turn>{role}\n",
    "<end_of_turn>",
    answer="model",
    has_system=False,
)
GEMMA_4 = ChatFormat(
    "Gemma 4",
    ("<|turn>", "<turn|>"),
    "<|turn>{role}\n",
    "<turn|>",
    answer="model",
    thought=("<|channel>", "<channel|>"),
)
CHATML = ChatFormat(
    "ChatML",
    ("<|im_start|>", "<|im_end|>"),
    "<|im_start|>{role}\n",
    "<|im_end|>",
    strips=False,
)
LLAMA_3 = ChatFormat(
    "Llama 3",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|start_header_id|>{role}<|end_header_id|>\n\n",
    "<|eot_id|>",
    separator="",
)
FORMATS = (GEMMA_4, GEMMA, LLAMA_3, CHATML)
# Tokens that stand before every turn.
OPENERS = {chat_format.markers[0] for chat_format in FORMATS}


def find(vocabulary, backbone=None):
    """Finds the format whose markers are tokens of a vocabulary.

    Args:
        vocabulary: collection of str.
        backbone: KerasHub backbone, or `None`. Gemma 4 without embeddings per
            layer (12B and larger) begins answers with an empty thought.

    Returns:
        a `ChatFormat`, or `None`.
    """
    for chat_format in FORMATS:
        if all(marker in vocabulary for marker in chat_format.markers):
            return _adapted(chat_format, vocabulary, backbone)
    return None


def _adapted(chat_format, vocabulary, backbone):
    """The format with what differs between the models of one family."""
    if chat_format is CHATML and "<think>" in vocabulary:
        # Qwen 3.
        return dataclasses.replace(CHATML, thought=("<think>", "</think>"))
    if chat_format is GEMMA_4:
        width = getattr(backbone, "hidden_size_per_layer_input", None)
        if width == 0:
            return dataclasses.replace(GEMMA_4, prefix=EMPTY_THOUGHT)
    return chat_format
