"""A tiny model in the folder of Hugging Face that the documentation names."""

from tests.hugging_face.folders import write_folder

TEMPLATE = "{% for turn in messages %}{{ turn['content'] }}{% endfor %}"


def write(folder):
    tokens = {"chat_template": TEMPLATE}
    write_folder(folder / "SmolLM2-135M-Instruct", tokens=tokens)
