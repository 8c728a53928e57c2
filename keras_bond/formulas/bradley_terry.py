"""The loss of preference pairs."""

from keras import ops


def preference_loss(chosen, rejected, margin=0.0, center_coefficient=0.0):
    """`-log σ(r_c - r_r - m) + λ (r_c + r_r)²`: Bradley-Terry, centered.

    The probability that `chosen` is preferred is `σ(r_c - r_r)` (Bradley &
    Terry, 1952). A margin `m` asks for more where the preference is clearer
    (Touvron et al., 2023, arXiv 2307.09288, eq. 2). The loss does not change
    when all rewards of a prompt are shifted; the second term, of coefficient
    `λ`, keeps them around 0 (Eisenstein et al., 2023, arXiv 2312.09244).

    Args:
        chosen: float tensor `(pairs,)`, rewards of the better completions.
        rejected: float tensor `(pairs,)`, of the worse ones.
        margin: float, or tensor `(pairs,)`.
        center_coefficient: float.

    Returns:
        float tensor `(pairs,)`.
    """
    lead = chosen - rejected - ops.cast(margin, chosen.dtype)
    center = center_coefficient * ops.square(chosen + rejected)
    return ops.softplus(-lead) + center
