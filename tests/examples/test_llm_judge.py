"""The example of an LLM judge, which asks a stub of a server."""

import contextlib
import http.server
import json
import pathlib
import re
import sys
import threading

import numpy as np
import pytest

import keras_bond
from tests.tiny import PROMPTS
from tests.tiny import make_policy

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples"))

import llm_judge


class Stub(http.server.ThreadingHTTPServer):
    """Answers as an OpenAI-compatible server does.

    Args:
        reply: function of the text of a request that returns the reply.
        failures: int. Requests that are refused first.
    """

    def __init__(self, reply, failures=0):
        self.reply = reply
        self.failures = failures
        self.requests = []
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        stub = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            stub.requests.append((self.path, self.headers, body))
            is_refused = len(stub.requests) <= stub.failures
        if is_refused:
            self.send_error(503)
            return
        content = stub.reply(body["messages"][-1]["content"])
        message = {"role": "assistant", "content": content}
        reply = json.dumps({"choices": [{"message": message}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *arguments):
        """Nothing: the default writes to standard error."""


@contextlib.contextmanager
def serving(*arguments, **keywords):
    with Stub(*arguments, **keywords) as stub:
        thread = threading.Thread(target=stub.serve_forever, daemon=True)
        thread.start()
        yield stub
        stub.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def length_in(text):
    """Rates a completion by its length."""
    (completion,) = re.findall("Sentence: (.*)\n", text)
    return f"Rating: {min(1 + len(completion), 10)}/10"


def test_what_is_asked_and_read(monkeypatch):
    """Pins: a completion with braces, which `str.format` would read."""
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    with serving(lambda text: "7") as stub:
        judge = llm_judge.Judge(stub.url, "small", "{prompt}|{completion}")
        assert judge(["{completion}"], ["{prompt} {0}"]) == [7.0]
    ((path, headers, body),) = stub.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer a-key"
    assert body["model"] == "small" and body["temperature"] == 0
    content = "{completion}|{prompt} {0}"
    assert body["messages"] == [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "reply, rating",
    [
        ("8", 8),
        (" 8.5.", 8.5),
        ("**10**/10", 10),
        ("Rating: 3 of 10", 3),
        ("0", None),
        ("11", None),
        ("-3", None),
        ("none", None),
        ("", None),
    ],
)
def test_ratings(reply, rating):
    assert llm_judge.rating_in(reply) == rating


def test_answers_are_kept_and_failures_repeated(tmp_path):
    path = tmp_path / "scores.sqlite"
    with serving(length_in, failures=1) as stub:
        reward = llm_judge.make_reward(llm_judge.Judge(stub.url, "m"), path)
        reward.retry_delay = 0.01
        bond = keras_bond.Bond(
            make_policy(),
            reward,
            max_prompt_length=12,
            max_completion_length=4,
        )
        samples, rewards = bond.draw_scored(PROMPTS[:3], num_samples=2)
        expected = [min(1 + len(text), 10) for text in samples.completions]
        assert rewards.ravel().tolist() == expected
        assert "Authorization" not in stub.requests[0][1]
        count = len(stub.requests)
        assert count >= 2
        bond.draw_scored(PROMPTS[:3], num_samples=2)
        assert len(stub.requests) == count
    replay = keras_bond.rewards.Cached(None, path)
    bond.reward = replay
    _, again = bond.draw_scored(PROMPTS[:3], num_samples=2)
    assert again.tolist() == rewards.tolist()


@pytest.mark.filterwarnings("ignore:The reward `Judge` failed")
def test_a_server_that_is_gone_costs_prompts_only():
    with serving(length_in) as stub:
        judge = llm_judge.Judge(stub.url, "m", timeout=5.0)
    reward = llm_judge.make_reward(judge)
    reward.retry_delay = 0.01
    bond = keras_bond.Bond(
        make_policy(), reward, max_prompt_length=12, max_completion_length=4
    )
    _, rewards = bond.draw_scored(PROMPTS[:1], num_samples=2)
    assert np.isnan(rewards).all()
    assert reward.dropped == {"URLError": 1}
