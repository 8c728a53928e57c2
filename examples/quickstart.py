"""Trains a tiny Gemma 3 until one sample is as good as the best of several.

    python examples/quickstart.py [--backend jax|tensorflow|torch]
                                  [--trainer bond|jbond] [--seed 0] [--long]

The policy turns facts about a hiking trail into a sentence. It was taught with
flawed sentences, so that one sample states only about 60 % of the facts
rightly, while the best of several samples does much better. BOND closes the
gap to the best of 4 in 3 minutes on two CPU cores, and to the best of 8 with
`--long`; `--trainer jbond` takes the paper's settings, at the same number of
generated sequences.
"""

import demo

if __name__ == "__main__":
    arguments = demo.parse_arguments(
        __doc__, long="train on, to the best of 8 of the initial policy"
    )

    import data_to_text

    from keras_bond import callbacks

    is_paper = arguments.trainer == "jbond"
    ema, copies = callbacks.AnchorEMA(0.02), callbacks.AnchorRefresh(32)
    task = demo.Task(
        world=data_to_text,
        reward=data_to_text.fact_coverage,
        preset="data_to_text",
        max_prompt_length=32,
        max_completion_length=50,
        learning_rate=1.5e-4 if is_paper else 2e-4,
        anchor=ema if is_paper else copies,
        kl_weight=0.5 if is_paper else 0.0,
        epochs=10 if arguments.long else 6,
        trainer=demo.TRAINERS[arguments.trainer],
        steps_per_epoch=16 if arguments.long else 15,
        sequences_per_step=192,
    )
    demo.run(task, arguments)
