"""The claims of the paper's figures, one function a figure.

Figures of BOND (Sessa et al., ICLR 2025, arXiv 2407.14622). What counts as
"held" is said in `paper_verdicts.py`.
"""

import numpy as np
import paper_runs
from paper_verdicts import agree
from paper_verdicts import larger
from paper_verdicts import last
from paper_verdicts import reward_at_equal_kl
from paper_verdicts import rise_time
from paper_verdicts import second_half
from paper_verdicts import straightness
from paper_verdicts import whole

LOG_16 = np.log(16.0)


def figure_2(curves):
    """β = 0.5 against β = 0 and 1, at each N; second half of the runs."""
    for n in paper_runs.SIZES:
        zero, half, one = (
            curves[f"N={n} beta={beta:g}"] for beta in paper_runs.BETAS
        )
        for kind in ("forward", "backward"):
            values = half[f"{kind}_kl"]
            yield larger(
                2,
                f"N = {n}: β = 0.5 lowers the {kind} KL (start > second half)",
                values[:, 0],
                second_half(values),
            )
        log_quantiles = [
            second_half(curve["log_quantile"]) for curve in (zero, half, one)
        ]
        yield larger(
            2,
            f"N = {n}: β = 0 lags on log-quantile (β = 0.5 > β = 0)",
            log_quantiles[1],
            log_quantiles[0],
        )
        yield agree(
            2,
            f"N = {n}: β = 1 matches β = 0.5 on log-quantile",
            log_quantiles[1],
            log_quantiles[2],
            log_quantiles[1] - half["log_quantile"][:, 0],
        )
        yield larger(
            2,
            f"N = {n}: β = 1 loses on forward KL (β = 1 > β = 0.5)",
            second_half(one["forward_kl"]),
            second_half(half["forward_kl"]),
        )


def figure_4(curves):
    """Fixed N saturates, iterative BOND continues at the same trade-off."""
    fixed = {n: curves[f"N={n} beta=0.5"]["reward"] for n in paper_runs.SIZES}
    for n, reward in fixed.items():
        yield agree(
            4,
            f"N = {n}: reward saturates (middle third ~ last sixth)",
            reward[:, reward.shape[1] // 3 : -(reward.shape[1] // 3)].mean(1),
            last(reward),
            last(reward) - reward[:, 0],
        )
    yield larger(
        4,
        "N = 4 saturates earlier than N = 16 (time to 90 % of its gain)",
        rise_time(fixed[16]),
        rise_time(fixed[4]),
    )
    for n in (2, 4):
        iterative = curves[f"iterative n={n}"]
        reward = iterative["reward"]
        third = reward.shape[1] // 3
        yield larger(
            4,
            f"iterative n = {n}: reward keeps improving (end > middle third)",
            last(reward),
            reward[:, third:-third].mean(axis=1),
        )
        for size in paper_runs.SIZES:
            yield larger(
                4,
                f"iterative n = {n} ends above fixed N = {size}",
                last(reward),
                last(fixed[size]),
            )
        other = curves["N=16 beta=0.5"]
        pair = reward_at_equal_kl(iterative, other)
        yield agree(
            4,
            f"iterative n = {n}: reward at equal KL is that of fixed N = 16",
            *pair,
            pair[1] - other["reward"][:, 0],
        )


def figure_5(curves):
    """EMA and refresh reach the same reward, the EMA at a lower KL."""
    ema, refresh = curves["jbond eta=0.02"], curves["jbond refresh=50"]
    yield agree(
        5,
        "EMA (η = 0.02) and refresh every 50 steps end at the same reward",
        last(ema["reward"]),
        last(refresh["reward"]),
        last(ema["reward"]) - ema["reward"][:, 0],
    )
    yield larger(
        5,
        "the EMA ends at a lower KL (refresh > EMA)",
        last(refresh["kl_start"]),
        last(ema["kl_start"]),
    )
    yield larger(
        5,
        "the EMA has the higher reward at equal KL",
        *reward_at_equal_kl(ema, refresh),
    )


def figure_6(curves):
    """What η and γ do."""
    rates, weights = paper_runs.RATES, paper_runs.KL_WEIGHTS
    by_rate = [curves[f"jbond eta={rate:g}"] for rate in rates]
    for i in range(len(rates) - 1):
        yield larger(
            6,
            f"η = {rates[i + 1]:g} raises reward faster than {rates[i]:g} "
            "(mean over the run)",
            whole(by_rate[i + 1]["reward"]),
            whole(by_rate[i]["reward"]),
        )
    by_weight = [by_rate[rates.index(0.02)]]
    by_weight += [curves[f"jbond gamma={weight:g}"] for weight in weights[1:]]
    for i in range(len(weights) - 1):
        names = f"γ = {weights[i + 1]:g}", f"{weights[i]:g}"
        yield larger(
            6,
            f"{names[0]}: KL grows slower than with {names[1]} "
            "(mean over the run)",
            whole(by_weight[i]["kl_start"]),
            whole(by_weight[i + 1]["kl_start"]),
        )
        yield larger(
            6,
            f"{names[0]}: more reward at equal KL than with {names[1]}",
            *reward_at_equal_kl(by_weight[i + 1], by_weight[i]),
        )


def figure_7(curves):
    """J-BOND against REINFORCE."""
    ours = curves["jbond eta=0.02"]
    for strength in paper_runs.STRENGTHS:
        other = curves[f"reinforce {strength:g}"]
        yield larger(
            7,
            f"J-BOND has more reward at equal KL than REINFORCE {strength:g}",
            *reward_at_equal_kl(ours, other),
        )
    straight = straightness(ours["kl_start"])
    yield larger(
        7,
        "J-BOND's KL grows near-linearly (R² of a line > 0.95)",
        straight,
        np.full_like(straight, 0.95),
    )
    for strength in paper_runs.STRENGTHS:
        yield larger(
            7,
            f"J-BOND's KL grows straighter (R²) than REINFORCE {strength:g}",
            straight,
            straightness(curves[f"reinforce {strength:g}"]["kl_start"]),
        )


def simulated_jbond_reward(p_le, num_draws=4000, seeds=5):
    """Mean of J-BOND's reward over draws of two anchors, `(seeds, points)`."""
    from keras import ops

    from keras_bond import formulas

    means = []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        anchors = generator.random((num_draws, len(p_le), 2), "float32")
        # The reward of a completion is its quantile: ranks are all that count.
        policy = np.broadcast_to(p_le.astype("float32"), anchors.shape[:2])
        penalized = formulas.is_penalized(
            ops.convert_to_tensor(policy.reshape(-1, 1)),
            ops.convert_to_tensor(anchors.reshape(-1, 2)),
        )
        rewards = ops.convert_to_numpy(formulas.jbond_reward(penalized))
        means.append(rewards.reshape(anchors.shape[:2]).mean(axis=0))
    return np.array(means)


def figure_8(curves):
    """The expected reward of J-BOND meets log p_le at one half."""
    p_le = np.array([0.3, 0.5, 0.7])
    means = simulated_jbond_reward(p_le)
    yield agree(
        8,
        "E[r_J] and log p_le meet at p_le = 0.5",
        means[:, 1],
        np.log(0.5),
        np.full(len(means), np.log(2)),
    )
    exact = -LOG_16 * (1 - p_le) ** 2
    yield agree(
        8,
        "E[r_J] = -log 16 (1 - p_le)², at p_le = 0.3, 0.5 and 0.7",
        means.mean(axis=1),
        exact.mean(),
        np.full(len(means), LOG_16),
    )


def figure_9(curves):
    """Learned quantiles against Monte-Carlo ones."""
    for n in paper_runs.LEARNED_SIZES:
        counted, learned = curves[f"N={n} beta=0.5"], curves[f"N={n} learned"]
        for metric in ("reward", "log_quantile"):
            start = counted[metric][:, 0]
            yield agree(
                9,
                f"N = {n}: learned quantiles end at the {metric} of counted "
                "ones".replace("_", "-"),
                last(learned[metric]),
                last(counted[metric]),
                last(counted[metric]) - start,
            )


CLAIMS = {
    2: figure_2,
    4: figure_4,
    5: figure_5,
    6: figure_6,
    7: figure_7,
    8: figure_8,
    9: figure_9,
}


def verdicts_of(figures, curves):
    """Decides every claim of the given figures.

    Returns:
        list of `paper_verdicts.Verdict`.
    """
    return [v for number in figures for v in CLAIMS[number](curves)]
