"""Checks of data and callbacks before `fit` and `evaluate` begin."""

from keras_bond.callbacks import anchor as anchor_rules


class FitChecks:
    """Mixin for `keras.Model` that fits data, anchor rule and trainer together.

    It uses `anchor`, `scorer`, `num_policy_samples`, and `_sources`, the data
    of `fit` and `evaluate`.
    """

    default_anchor_rule = anchor_rules.AnchorEMA
    _default_rule_announced = False

    def needs_other_prompts(self):
        """Whether the baseline of a prompt is computed from other prompts."""
        return False

    def check_batch(self, batches):
        """Raises an error if a batch is too small to compute a baseline.

        Args:
            batches: a `PromptBatches` or `PromptStream`.
        """
        if batches.num_batches is None or not self.needs_other_prompts():
            return
        if batches.prompts_per_batch < 2:
            raise ValueError(
                "A batch must have at least 2 prompts: the baseline of one is "
                "the mean of the OTHERS of the batch. Raise `batch_size`, or "
                "use `keras_bond.Bond` with several policy samples per prompt. "
                f"Received: batches of {batches.prompts_per_batch} prompt"
            )

    def complete_callbacks(self, callbacks):
        """Adds the default anchor rule if `callbacks` has none."""
        completed = anchor_rules.with_anchor_rule(
            callbacks,
            self.default_anchor_rule(),
            announce=not self._default_rule_announced,
        )
        self._default_rule_announced = True
        rule = anchor_rules.rule_of(completed)
        for batches in self._sources.values():
            if batches is not None:
                self.check_given(batches, rule.update_rate)
        return completed

    def check_given(self, batches, update_rate=0.0):
        """Raises an error if given completions are no samples of the anchor.

        Args:
            batches: a `PromptBatches` or `PromptStream`.
            update_rate: float. How the anchor is going to follow the policy.

        Raises:
            ValueError: if the anchor moves, or rewards cannot be compared.
        """
        if not batches.given:
            return
        if update_rate > 0:
            raise ValueError(
                "Completions that are given are samples of the initial policy, "
                "so the anchor must stay there: pass "
                "callbacks=[keras_bond.callbacks.AnchorFixed()]. Received: an "
                f"anchor rule with update_rate={update_rate}"
            )
        anchor = self.anchor
        has_moved = int(anchor.updates_seen) >= int(anchor.every)
        if has_moved and float(anchor.update_rate) > 0:
            raise ValueError(
                "Completions that are given are samples of the anchor, which "
                "has moved away from the initial policy: build a new trainer "
                "on the policy that drew them. Received: an anchor that "
                f"followed the policy for {int(anchor.updates_seen)} updates"
            )
        has_rewards = "rewards" in batches.given
        if has_rewards and self.num_policy_samples and self.scorer.compares:
            raise ValueError(
                "Rewards that are given cannot be compared with those of the "
                "policy's samples if the score of a completion depends on the "
                "others of its prompt: leave out the column `rewards`, so that "
                "all are scored together, or set num_policy_samples=0. "
                f"Received: reward=`{self.scorer.name}`"
            )
