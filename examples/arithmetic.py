"""The same with a reward of only two values: right or wrong.

    python examples/arithmetic.py [--backend jax|tensorflow|torch]
                                  [--trainer jbond|bond] [--seed 0]

The policy solves one-step word problems and was taught with mostly wrong
answers. Many prompts have three right or three wrong samples: breaking ties at
random, as theorem 1 of the paper needs, is what lets J-BOND learn here
(`ties="strict"` hardly does).
"""

import demo

if __name__ == "__main__":
    arguments = demo.parse_arguments(__doc__)

    import word_problems

    task = demo.Task(
        world=word_problems,
        reward=word_problems.is_correct,
        preset="word_problems",
        max_prompt_length=24,
        max_completion_length=17,
        learning_rate=3e-4,
        update_rate=0.02,
        kl_weight=0.0,
        epochs=5,
        trainer=demo.TRAINERS[arguments.trainer],
        steps_per_epoch=30,
    )
    demo.run(task, arguments)
