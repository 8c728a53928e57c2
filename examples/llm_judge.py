"""Trains a policy with an LLM as judge, behind an OpenAI-compatible server.

    python examples/llm_judge.py --url http://localhost:8000/v1 --model NAME
        [--backend jax|tensorflow|torch] [--steps 8] [--scores scores.sqlite]

Servers of this kind are those of llama.cpp, Ollama and vLLM, and of most
providers; `OPENAI_API_KEY` is sent if it is set. Nothing but Python's standard
library talks to them.

The policy turns facts about a hiking trail into a sentence. The judge rates
each sentence from 1 to 10. Several requests run at a time, failed ones are
repeated, and each answer is kept in a file: a second run asks for nothing
twice. How well the judge agrees with the rule that counts facts is printed
before the training, because a judge that does not is not worth its price.
"""

import argparse
import json
import os
import re
import urllib.error
import urllib.request

import demo

QUESTION = """\
Facts about a trail: {prompt}
Sentence: {completion}
How many of the facts does the sentence state rightly? Rate it from 1 (none) to
10 (all). Reply with the number only."""
NUMBER = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?")
MOST = 10
BATCH_SIZE, SAMPLES, HELD_OUT = 8, 4, 16


class Judge:
    """Asks a server to rate completions: a reward function.

    Args:
        url: str. Address of the API, such as `"http://localhost:8000/v1"`.
        model: str. Name of the model on the server.
        question: str, with `{prompt}` and `{completion}` in it.
        timeout: float. Seconds for one request.
    """

    def __init__(self, url, model, question=QUESTION, timeout=60.0):
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.model = model
        self.question = question
        self.timeout = timeout

    def __call__(self, prompts, completions):
        return [self.rate(*pair) for pair in zip(prompts, completions)]

    def rate(self, prompt, completion):
        """The rating of one completion, `None` if the reply has none."""
        # Not `str.format`, which would look for braces in what it fills in.
        texts = {"{prompt}": prompt, "{completion}": completion}
        text = re.sub(
            r"\{(prompt|completion)\}", lambda m: texts[m[0]], self.question
        )
        return rating_in(self.ask(text))

    def ask(self, text):
        """The reply of the server to one message.

        Raises:
            OSError: if the server cannot be reached or refuses.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": 8,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            self.url, json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as file:
                reply = json.load(file)
        except urllib.error.HTTPError as error:
            # It holds the connection for as long as the error is kept.
            error.close()
            raise
        return reply["choices"][0]["message"]["content"] or ""


def rating_in(reply):
    """The first number of a reply, `None` if it is not from 1 to `MOST`."""
    found = NUMBER.search(reply)
    value = float(found[0]) if found else 0.0
    return value if 1 <= value <= MOST else None


def make_reward(judge, path=None):
    """Calls a judge from several threads, and keeps its answers in a file."""
    from keras_bond import rewards

    return rewards.ConcurrentReward(
        rewards.Cached(judge, path),
        max_workers=8,
        retries=2,
        on_failure="drop",
    )


def parse_arguments():
    """Reads the command line and sets the backend."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    backends = ("jax", "tensorflow", "torch")
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--backend", choices=backends, default="jax")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--scores", default=None)
    arguments = parser.parse_args()
    demo.set_backend(arguments.backend)
    return arguments


def run(judge, steps, path=None):
    """Trains with a judge.

    Args:
        judge: a `Judge`.
        steps: int. Steps of training.
        path: path of the file that keeps the scores, or `None`.

    Returns:
        dict of float: `agreement`, the share of pairs of samples that judge
        and rule order alike, and the mean of the rule `before` and `after`.
    """
    import data_to_text
    import keras
    import numpy as np

    import keras_bond
    from keras_bond.evaluation import comparison

    bond = keras_bond.Bond(
        demo.load_preset("data_to_text"),
        make_reward(judge, path),
        max_prompt_length=32,
        max_completion_length=50,
        seed=0,
    )
    # From 0 to the rate within two steps, so that the first step moves.
    schedule = keras.optimizers.schedules.CosineDecay(
        1e-4, max(1, steps), warmup_target=2e-4, warmup_steps=2
    )
    bond.compile(keras.optimizers.Adam(schedule))
    held_out = data_to_text.held_out_prompts(HELD_OUT, seed=1)
    samples, rated = bond.draw_scored(held_out, SAMPLES)
    facts = data_to_text.fact_coverage(samples.prompts, samples.completions)
    facts = np.array(facts).reshape(rated.shape)
    print(f"{np.isfinite(rated).sum()} of {rated.size} samples have a rating")
    scored = np.isfinite(rated).all(axis=1)
    results = {
        "agreement": comparison.agreement(rated[scored], facts[scored]),
        "before": float(facts.mean()),
    }
    print(", ".join(f"{name} {value:.3f}" for name, value in results.items()))

    prompts = data_to_text.make_examples(steps * BATCH_SIZE, seed=0)["prompts"]
    bond.fit(prompts, batch_size=BATCH_SIZE, verbose=2)
    texts = sum(bond.generate(held_out, SAMPLES), [])
    facts = data_to_text.fact_coverage(samples.prompts, texts)
    results["after"] = float(np.mean(facts))
    print(f"after {results['after']:.3f}")
    return results


if __name__ == "__main__":
    arguments = parse_arguments()
    judge = Judge(arguments.url, arguments.model)
    run(judge, arguments.steps, arguments.scores)
