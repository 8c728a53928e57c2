"""Outputs of a server: a C++ session without XLA, see `stand_in`."""

import numpy as np
import pytest
from keras import ops

import keras_bond
from keras_bond.data.tokenizer import TextTokenizer
from tests.export.conftest import LENGTHS
from tests.tiny import PROMPTS

STOPS = (1, 4)
TOTAL = sum(LENGTHS.values())


@pytest.fixture(params=["served", "plain"])
def model(request):
    return request.getfixturevalue(request.param)


def next_log_probs(policy, ids):
    """Log-probabilities of what follows each position, without a cache.

    All rows are padded to one length, so that it is compiled once.
    """
    inputs = {
        "token_ids": np.array([ids + [0] * (TOTAL - len(ids))], "int32"),
        "padding_mask": np.arange(TOTAL)[None] < len(ids),
    }
    logits = ops.convert_to_numpy(policy(inputs, training=False))[0]
    logits = logits[: len(ids)].astype("float64")
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def greedy_by_hand(policy, ids):
    drawn = []
    while len(drawn) < LENGTHS["max_new_tokens"]:
        drawn.append(int(next_log_probs(policy, ids + drawn)[-1].argmax()))
        if drawn[-1] in STOPS:
            break
    return drawn


def test_greedy_text_is_that_of_generate(model):
    """Strings in, strings out; the policy's own `generate` says the same."""
    prompts = PROMPTS[:2]
    answers = model.rest({"instances": prompts})["predictions"]
    for prompt, ids, answer in zip(
        model.texts(prompts), model.encode(prompts), answers
    ):
        expected = model.policy.generate(
            prompt,
            max_length=len(ids) + LENGTHS["max_new_tokens"],
            stop_token_ids=STOPS,
            strip_prompt=True,
        )
        assert answer == expected.replace("<end_of_turn>", "")


def test_greedy_tokens_are_the_likeliest(model):
    ids = model.encode(PROMPTS[:3])
    answer = model.ask(
        "generate_tokens",
        # What a server pads with is anything: only lengths count.
        prompt_ids=[row + [row[0]] * (40 - len(row)) for row in ids],
        prompt_lengths=[len(row) for row in ids],
        temperature=[0.0] * 3,
        seed=[0] * 3,
    )
    for row, drawn, length in zip(
        ids, answer["completion_ids"], answer["completion_lengths"]
    ):
        assert drawn[:length] == greedy_by_hand(model.policy, row)
        assert not any(drawn[length:])


def test_scores_are_log_probabilities(model):
    """By hand, from one forward pass over prompt and completion."""
    prompt, completion = model.encode(["the quick"])[0], [20, 33, 7, 1]
    answer = model.ask(
        "score_tokens",
        prompt_ids=[prompt] * 2,
        prompt_lengths=[len(prompt)] * 2,
        completion_ids=[completion, completion],
        completion_lengths=[4, 2],
    )
    rows = next_log_probs(model.policy, prompt + completion)[len(prompt) - 1 :]
    tokens = [rows[i, token] for i, token in enumerate(completion)]
    ends = np.log(np.exp(rows[:, STOPS]).sum(-1))
    np.testing.assert_allclose(
        answer["log_probs"], [sum(tokens), sum(tokens[:2])], rtol=1e-4
    )
    np.testing.assert_allclose(
        answer["end_log_probs"], [ends[4], ends[2]], rtol=1e-4
    )


def test_scores_of_text_are_those_of_its_tokens(served):
    prompts, completions = ["fox", "the quick"], ["jumps over", ""]
    answer = served.ask("score", prompts=prompts, completions=completions)
    tokenizer = TextTokenizer(served.policy.preprocessor)
    rows = [row[1:] for row in tokenizer.encode(completions)]
    ids = served.encode(prompts)
    width = max(map(len, ids))
    by_tokens = served.ask(
        "score_tokens",
        prompt_ids=[row + [0] * (width - len(row)) for row in ids],
        prompt_lengths=[len(row) for row in ids],
        completion_ids=[row + [0] * (8 - len(row)) for row in rows],
        completion_lengths=[len(row) for row in rows],
    )
    assert answer == by_tokens and answer["log_probs"][1] == 0


def test_a_seed_draws_what_the_trainer_draws(served):
    """The server and `generate` share distribution and random numbers."""
    bond = keras_bond.JBond(
        served.policy,
        lambda prompts, completions: [0.0] * len(prompts),
        max_prompt_length=LENGTHS["max_prompt_length"],
        max_completion_length=LENGTHS["max_new_tokens"],
    )
    for seed, prompt in enumerate(PROMPTS[:3]):
        expected = bond.generate(
            served.texts([prompt]), num_samples=4, seed=seed
        )
        request = {"prompts": [prompt], "temperature": [1.0], "seed": [seed]}
        answer = served.ask("sample", **request)
        assert answer["completions"][0] == list(expected[0])
        assert served.ask("generate", **request) == expected[0][0:1]


def test_rows_do_not_depend_on_their_neighbours(model):
    temperature = [0.0, 0.5, 1.0, 2.0] * 2
    seeds = list(range(8))
    together = model.ask(
        "generate", prompts=PROMPTS, temperature=temperature, seed=seeds
    )
    alone = [
        model.ask("generate", prompts=[p], temperature=[t], seed=[s])[0]
        for p, t, s in zip(PROMPTS, temperature, seeds)
    ]
    assert together == alone and len(set(together)) == 8
    other = model.ask(
        "generate", prompts=PROMPTS, temperature=temperature, seed=seeds[::-1]
    )
    assert other[0] == together[0] and other[1:4] != together[1:4]


def test_the_best_of_n_is_that_of_the_reward(served):
    """Rewards and log-probabilities belong to the samples beside them."""
    sampling = {"temperature": [1.0], "seed": [3]}
    answer = served.ask("sample", prompts=["fox"], **sampling)
    (ids,) = served.encode(["fox"])
    first = served.ask(
        "generate_tokens",
        prompt_ids=[ids],
        prompt_lengths=[len(ids)],
        **sampling,
    )
    drawn = first["completion_ids"][0][: first["completion_lengths"][0]]
    inputs = {
        "token_ids": np.array([ids + drawn], "int32"),
        "padding_mask": np.ones((1, len(ids + drawn)), bool),
    }
    reward = float(ops.convert_to_numpy(served.reward(inputs))[0])
    rows = next_log_probs(served.policy, ids + drawn)[len(ids) - 1 :]
    log_prob = sum(rows[i, token] for i, token in enumerate(drawn))
    (texts,), (rewards,) = answer["completions"], answer["rewards"]
    assert rewards[0] == pytest.approx(reward, rel=1e-4)
    assert answer["log_probs"][0][0] == pytest.approx(log_prob, rel=1e-4)
    assert len(set(rewards)) == 4
    assert answer["best"] == [texts[int(np.argmax(rewards))]]


def test_requests_that_do_not_fit_are_refused(model):
    text = "the quick brown fox jumps over the lazy dog " * 2
    assert "at most 32 tokens each" in model.rest({"instances": [text]})
    request = {"prompt_ids": [[2, 5]], "temperature": [0.0], "seed": [0]}
    for length, message in ((3, "must not exceed"), (0, "at least 1")):
        body = {
            "signature_name": "generate_tokens",
            "inputs": {**request, "prompt_lengths": [length]},
        }
        assert message in model.rest(body)
