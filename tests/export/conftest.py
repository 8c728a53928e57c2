"""Two served models, one export each, and a stand-in server for them."""

import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest

import keras_bond
from keras_bond.data.tokenizer import TextTokenizer
from tests.export.rewards import make_reward
from tests.tiny import PROMPTS
from tests.tiny import make_policy

ROOT = pathlib.Path(__file__).parents[2]
LENGTHS = {"max_prompt_length": 32, "max_new_tokens": 8}
TEMPLATE = "a {prompt} b"


def make_adapted_policy():
    """A Gemma 3 whose LoRA adapters change what it says."""
    policy = make_policy("gemma3", scale=3.0)
    policy.backbone.enable_lora(2)
    generator = np.random.default_rng(5)
    for variable in policy.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    return policy


@dataclasses.dataclass
class Served:
    """A policy, what was exported of it, and a server's two ports."""

    policy: object
    path: pathlib.Path
    template: str
    ports: dict
    reward: object = None

    def rest(self, body):
        """The answer to a REST request, or the text of the error."""
        url = f"http://127.0.0.1:{self.ports['rest']}/v1/models/my_policy"
        try:
            data = json.dumps(body).encode()
            with urllib.request.urlopen(f"{url}:predict", data) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)["error"]

    def ask(self, signature, **inputs):
        """The outputs of one signature, as lists by name."""
        body = {"signature_name": signature, "inputs": inputs}
        return self.rest(body)["outputs"]

    def texts(self, prompts):
        """The prompts in their template."""
        return [self.template.replace("{prompt}", p) for p in prompts]

    def encode(self, prompts):
        tokenizer = TextTokenizer(self.policy.preprocessor)
        return tokenizer.encode(self.texts(prompts))


@contextlib.contextmanager
def standing_in(path):
    """Runs the stand-in server on a model; yields its ports."""
    script = ROOT / "integration" / "serving" / "stand_in.py"
    ports = ["--grpc-port", "0", "--rest-port", "0"]
    with subprocess.Popen(
        [sys.executable, script, path, *ports], stdout=subprocess.PIPE
    ) as process:
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """Gemma 3 with LoRA, a template, samples and a reward."""
    policy, reward = make_adapted_policy(), make_reward()
    path = keras_bond.export.export_saved_model(
        policy,
        tmp_path_factory.mktemp("served") / "my_policy",
        prompt_template=TEMPLATE,
        best_of_n=4,
        reward=reward,
        prompts=PROMPTS,
        verify=False,
        **LENGTHS,
    )
    path = pathlib.Path(path)
    with standing_in(path) as ports:
        yield Served(policy, path, TEMPLATE, ports, reward)


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """Gemma, and nothing that is optional."""
    policy = make_policy("gemma", scale=3.0)
    path = keras_bond.export.export_saved_model(
        policy,
        tmp_path_factory.mktemp("plain") / "my_policy",
        warmup=False,
        verify=False,
        **LENGTHS,
    )
    path = pathlib.Path(path)
    with standing_in(path) as ports:
        yield Served(policy, path, "{prompt}", ports)
