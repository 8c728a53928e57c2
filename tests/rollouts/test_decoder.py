"""The decoder draws exactly from the policy that is trained."""

import keras
import numpy as np
import pytest
from keras import ops
from keras import tree

from keras_bond import rollouts
from keras_bond.formulas import masks
from keras_bond.rollouts.decoder import inverse_cdf_sample
from tests.numeric import chi_square_p_value
from tests.tiny import make_policy

LENGTHS = np.array([3, 1, 5, 6], "int32")
STOPS = (1, 4)
FAMILIES = ["gemma", "gemma3"]


def ragged_prompts():
    generator = np.random.default_rng(0)
    prompts = generator.integers(5, 40, (4, 6)).astype("int32")
    prompts[np.arange(6) >= LENGTHS[:, None]] = 0
    return ops.convert_to_tensor(prompts), ops.convert_to_tensor(LENGTHS)


def draw(policy, num_samples=2, length=8, temperature=1.0, stops=STOPS, seed=0):
    decoder = rollouts.Decoder(policy, length, stops, temperature)
    rows = ops.arange(4, dtype="int32")
    uniforms = rollouts.uniform(seed, "policy", rows, num_samples, length)
    return decoder(*ragged_prompts(), uniforms)


def parallel_log_probs(policy, draws, num_samples, temperature, stops=STOPS):
    prompts, lengths = ragged_prompts()
    ids = ops.reshape(draws["completion_ids"], (4 * num_samples, -1))
    log_probs = rollouts.completion_log_probs(
        policy,
        ops.repeat(prompts, num_samples, axis=0),
        ops.repeat(lengths, num_samples, axis=0),
        ids,
        masks.completion_mask(ids, stops),
        temperature,
    )
    return ops.convert_to_numpy(log_probs).reshape(4, num_samples)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_and_parallel_log_probs_agree(family, temperature):
    """1e-4 a token, ragged prompts, a sliding window below the length.

    An off-by-one in the cache, the window or the temperature shows here.
    """
    window = {"sliding_window_size": 4} if family == "gemma3" else {}
    policy = make_policy(family, scale=3.0, **window)
    draws = draw(policy, temperature=temperature)
    np.testing.assert_allclose(
        ops.convert_to_numpy(draws["log_probs"]),
        parallel_log_probs(policy, draws, 2, temperature),
        atol=8e-4,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_near_zero_temperature_is_kerashubs_greedy_generate(family):
    """Token for token, ragged prompts, as KerasHub itself decodes."""
    policy = make_policy(family, scale=3.0)
    policy.compile(sampler="greedy")
    prompts, _ = ragged_prompts()
    mask = np.arange(14) < LENGTHS[:, None]
    ids = np.pad(ops.convert_to_numpy(prompts), [(0, 0), (0, 8)])
    generate = policy.make_generate_function()
    expected = ops.convert_to_numpy(
        generate({"token_ids": ids, "padding_mask": mask}, None)["token_ids"]
    )
    actual = ops.convert_to_numpy(
        draw(policy, 1, temperature=1e-4, stops=())["completion_ids"]
    )[:, 0]
    for row, length in enumerate(LENGTHS):
        tokens = expected[row, length : length + 8]
        assert tokens.tolist() == actual[row].tolist()


def test_first_two_tokens_follow_the_exact_distribution():
    """Chi-square of 4,000 pairs; false alarm with probability 1e-4."""
    policy = make_policy(scale=4.0)
    draws = draw(policy, num_samples=1000, length=2, stops=())
    ids = ops.convert_to_numpy(draws["completion_ids"])[0]
    size = policy.backbone.vocabulary_size
    first = exact_next(policy, [[]])[0]
    second = exact_next(policy, [[token] for token in range(size)])
    pairs = np.zeros((size, size))
    np.add.at(pairs, (ids[:, 0], ids[:, 1]), 1)
    assert chi_square_p_value(pairs, first[:, None] * second) > 1e-4


def exact_next(policy, continuations):
    """Next-token distribution of the plain model after the first prompt."""
    prompts, lengths = ragged_prompts()
    start = ops.convert_to_numpy(prompts)[0, : int(lengths[0])].tolist()
    ids = np.array([start + tokens for tokens in continuations], "int32")
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids, bool)}
    return ops.convert_to_numpy(ops.softmax(policy(inputs)[:, -1], axis=-1))


def test_a_row_ends_at_its_first_stop_token():
    """Zeros follow it; a stop token in the PROMPT does not end a row."""
    policy = make_policy(seed=1)
    stops = (*range(5, 25),)
    ids = ops.convert_to_numpy(draw(policy, 8, stops=stops)["completion_ids"])
    ends = np.isin(ids, stops)
    assert ends.any(axis=-1).mean() > 0.5
    after = np.cumsum(ends, axis=-1) - ends > 0
    assert (ids[after] == 0).all()
    # The first prompts contain stop tokens, and are completed nevertheless.
    lengths = (~after).sum(axis=-1)
    assert lengths.min() == 1 and lengths.max() > 3


def test_splitting_the_batch_changes_no_completion():
    """Rows must not depend on their neighbors, nor on when those end."""
    policy = make_policy(scale=3.0)
    decoder = rollouts.Decoder(policy, 8, STOPS)
    prompts, lengths = ragged_prompts()
    uniforms = rollouts.uniform(0, "policy", ops.arange(4, dtype="int32"), 2, 8)
    whole = decoder(prompts, lengths, uniforms)["completion_ids"]
    halves = [
        decoder(prompts[i:j], lengths[i:j], uniforms[i:j])["completion_ids"]
        for i, j in ((0, 2), (2, 4))
    ]
    np.testing.assert_array_equal(
        ops.convert_to_numpy(whole),
        np.concatenate([ops.convert_to_numpy(half) for half in halves]),
    )


def test_prompts_are_read_once_at_their_own_length():
    """Pins: a prefill of every sample, or into a cache of the whole length.

    Shapes are recorded while the loop is traced, or at every token.
    """
    policy, calls = make_policy(), []
    plain = policy.call_with_cache

    def recorded(token_ids, cache, *arguments):
        leaf = tree.flatten(cache)[0]
        calls.append((token_ids.shape, leaf.shape[:2]))
        logits, hidden, cache = plain(token_ids, cache, *arguments)
        assert len(calls) > 1 or logits.shape == hidden.shape, "head computed"
        return logits, hidden, cache

    decoder = rollouts.Decoder(policy, 8, STOPS)
    policy.call_with_cache = recorded
    decoder(*ragged_prompts(), ops.full((4, 3, 8), 0.5))
    assert calls[0] == ((4, 6), (4, 6))
    assert calls[1] == ((12, 1), (12, 14))
    rows = {shape[0] for shape, _ in calls[1:]}
    assert max(rows) == 12 and all(shape[1] == 1 for shape, _ in calls[1:])


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="shapes are free on PyTorch only"
)
def test_pytorch_drops_ended_rows_and_copies_no_cache(monkeypatch):
    """Fewer rows, the same completions; one block of memory for each cache."""
    from keras_bond.backend import torch as torch_backend

    policy, seen = make_policy("gemma3", seed=1), []
    plain = policy.call_with_cache

    def recorded(token_ids, cache, *arguments):
        result = plain(token_ids, cache, *arguments)
        before, after = (tree.flatten(c)[0] for c in (cache, result[2]))
        seen.append((token_ids.shape[0], before.data_ptr(), after.data_ptr()))
        return result

    decoder = rollouts.Decoder(policy, 8, range(5, 25))
    rows = ops.arange(4, dtype="int32")
    uniforms = rollouts.uniform(0, "policy", rows, 8, 8)
    monkeypatch.setattr(torch_backend, "WORTH_DROPPING", 2.0)
    whole = decoder(*ragged_prompts(), uniforms)
    monkeypatch.setattr(torch_backend, "WORTH_DROPPING", 0.1)
    monkeypatch.setattr(torch_backend, "CHECK_EVERY", 1)
    policy.call_with_cache = recorded
    dropping = decoder(*ragged_prompts(), uniforms)
    for name, tensor in whole.items():
        np.testing.assert_allclose(
            ops.convert_to_numpy(dropping[name]),
            ops.convert_to_numpy(tensor),
            rtol=1e-5,
        )
    rows = [row for row, _, _ in seen[1:]]
    assert rows[0] == 32 and rows[-1] < 16 and rows == sorted(rows)[::-1]
    assert all(before == after for _, before, after in seen[1:])


def test_one_token_completions():
    policy = make_policy()
    assert draw(policy, 1, length=1)["completion_ids"].shape == (4, 1, 1)


def test_entropy_is_the_mean_over_the_completion():
    """Nearly uniform next-token distributions have entropy log(vocabulary)."""
    policy = make_policy(scale=0.01)
    entropies = ops.convert_to_numpy(draw(policy)["entropies"])
    vocabulary = policy.backbone.vocabulary_size
    np.testing.assert_allclose(entropies, np.log(vocabulary), atol=1e-3)


def test_inverse_cdf_gives_shares_and_shuns_impossible_tokens():
    """Evenly spaced numbers give each token its share, within rounding."""
    probs = np.array([0.0, 0.5, 0.0, 0.3, 0.2, 0.0], "float32")
    with np.errstate(divide="ignore"):
        log_probs = np.tile(np.log(probs), (1000, 1))
    uniforms = (np.arange(1000) / 1000).astype("float32")
    uniforms[-1] = 1 - 2**-24
    drawn = ops.convert_to_numpy(
        inverse_cdf_sample(
            ops.convert_to_tensor(log_probs.astype("float32")),
            ops.convert_to_tensor(uniforms),
        )[0]
    )
    counts = np.bincount(drawn, minlength=6) / 1000
    np.testing.assert_allclose(counts, probs, atol=2e-3)
    assert counts[probs == 0].sum() == 0
