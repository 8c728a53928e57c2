"""Text classifiers as rewards."""

import math

import keras
import numpy as np

from keras_bond.rewards.scores import RewardTypeError
from keras_bond.rewards.scores import RewardValueError
from keras_bond.rewards.scores import as_number
from keras_bond.rewards.scores import to_host
from keras_bond.rewards.text import as_texts


@keras.saving.register_keras_serializable(package="keras_bond")
class Classifier:
    """Scores completions by a text classifier.

    An ordinary reward function around a callable that takes a list of texts: a
    KerasHub classifier's `predict`, a Hugging Face pipeline, a sentiment
    lexicon.

    Args:
        classify: callable that takes a list of str and returns for each a
            number; an array of scores; a dict of scores by label; or what
            pipelines return, dicts with `"label"` and `"score"`, one or a list
            of them. If it returns only the best label, that must be `label`.
        label: str, or int for arrays: the label whose score is the reward. Not
            needed for numbers. Defaults to `None`.
        with_prompt: bool. Whether prompt and completion are classified
            together. Defaults to False: the completion alone.

    Raises:
        ValueError: when scoring, if the label is not among the scores.
        TypeError: when scoring, if the classifier returns anything else.

    Example:

    ```python
    def classify(texts):
        return [{"good": t.count("good"), "bad": t.count("bad")} for t in texts]


    reward = keras_bond.rewards.Classifier(classify, label="good")
    reward(["How was it?"], ["good, very good"])  # [2.0]
    ```
    """

    def __init__(self, classify, label=None, with_prompt=False):
        self.classify = classify
        self.label = label
        self.with_prompt = with_prompt

    @property
    def __name__(self):
        return type(self).__name__

    def __call__(self, prompts, completions, **columns):
        texts = as_texts(completions)
        if self.with_prompt:
            heads = as_texts(prompts)
            texts = [head + text for head, text in zip(heads, texts)]
        return [self._score(to_host(a)) for a in to_host(self.classify(texts))]

    def _score(self, answer):
        if isinstance(answer, dict) and {"label", "score"} <= set(answer):
            answer = [answer]
        if isinstance(answer, list) and all(
            isinstance(part, dict) for part in answer
        ):
            answer = {part["label"]: part["score"] for part in answer}
        # Classifiers of one class return `(texts, 1)`: a number for each.
        if math.prod(getattr(answer, "shape", ())) != 1 and isinstance(
            self.label, int
        ):
            answer = dict(enumerate(answer))
        if isinstance(answer, dict):
            answer = self._of_label(answer)
        if answer is None or np.ma.is_masked(answer):
            return None
        try:
            return as_number(answer)
        except Exception as error:
            raise RewardTypeError(
                "`classify` must return a number, scores by label, or an array "
                "of scores with `label` an int. "
                f"Received: {answer!r} with label={self.label!r}"
            ) from error

    def _of_label(self, scores):
        if self.label not in scores:
            raise RewardValueError(
                "`label` must be among those of the classifier; a pipeline "
                "returns all of them with top_k=None. "
                f"Received: label={self.label!r}, labels {list(scores)}"
            )
        return scores[self.label]

    def get_config(self):
        return {
            "classify": keras.saving.serialize_keras_object(self.classify),
            "label": self.label,
            "with_prompt": self.with_prompt,
        }

    @classmethod
    def from_config(cls, config):
        classify = keras.saving.deserialize_keras_object(config["classify"])
        return cls(**{**config, "classify": classify})
