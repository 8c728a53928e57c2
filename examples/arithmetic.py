"""The same with a reward of only two values: right or wrong.

    python examples/arithmetic.py [--backend jax|tensorflow|torch]
                                  [--trainer bond|jbond] [--seed 0]

The policy solves one-step word problems and was taught with mostly wrong
answers. Many prompts have only right or only wrong samples, so that the rule
for ties matters: counting them as half a win (`Bond`) or breaking them at
random (`--trainer jbond`) lets the policy learn. Under the paper's strict rule
a failure hardly ever loses: it has 1 % of the right signal at 5 % success, see
`docs/estimators.md`.
"""

import demo

if __name__ == "__main__":
    arguments = demo.parse_arguments(__doc__)

    import word_problems

    import keras_bond

    task = demo.Task(
        world=word_problems,
        reward=word_problems.is_correct,
        preset="word_problems",
        max_prompt_length=24,
        max_completion_length=17,
        learning_rate=3e-4,
        anchor=keras_bond.callbacks.AnchorEMA(0.02),
        kl_weight=0.0,
        epochs=5,
        trainer=demo.TRAINERS[arguments.trainer],
        steps_per_epoch=30,
    )
    demo.run(task, arguments)
