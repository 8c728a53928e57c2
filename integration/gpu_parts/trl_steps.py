"""Steps of TRL's RLOO on the same shape."""

import statistics
import tempfile
import time

import numpy as np

from gpu_parts.figures import figure
from gpu_parts.figures import peak_bytes
from gpu_parts.figures import wait
from gpu_parts.shapes import QUICK
from gpu_parts.shapes import SHAPES

# The first one sets memory aside.
STEPS = 4


def run_trl(quick):
    """A step of TRL's RLOO on the same shape; it draws as many completions."""
    import datasets
    import peft
    import tokenizers
    import torch
    import transformers
    import trl

    shape = QUICK if quick else SHAPES["step"]
    words = {f"w{i}": i for i in range(shape.vocabulary + 1)}
    model = tokenizers.models.WordLevel(words, unk_token="w3")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    config = transformers.Gemma3TextConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=shape.head_dim,
        sliding_window=512,
        pad_token_id=0,
        # The tokenizer has one more word than the model: it is never drawn.
        eos_token_id=shape.vocabulary,
        bos_token_id=2,
    )
    on_gpu = torch.cuda.is_available()
    ids = np.random.default_rng(0).integers(
        4, shape.vocabulary, (STEPS * shape.prompts, shape.length)
    )
    prompts = [" ".join(f"w{i}" for i in row) for row in ids]
    times = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *arguments, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, *arguments, **kwargs):
            wait(None)
            times.append(time.perf_counter() - self.start)

    with tempfile.TemporaryDirectory() as folder:
        transformers.Gemma3ForCausalLM(config).to(
            torch.bfloat16 if on_gpu else torch.float32
        ).save_pretrained(folder)
        trainer = trl.RLOOTrainer(
            model=folder,
            reward_funcs=lambda completion_ids, **kwargs: [
                sum(i % 97 for i in row) / len(row) for row in completion_ids
            ],
            args=trl.RLOOConfig(
                output_dir=folder,
                num_generations=2 * shape.samples,
                per_device_train_batch_size=shape.rows,
                max_completion_length=shape.length,
                max_steps=STEPS,
                bf16=on_gpu,
                gradient_checkpointing=on_gpu,
                use_cpu=not on_gpu,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
            processing_class=transformers.PreTrainedTokenizerFast(
                tokenizer_object=tokenizer,
                pad_token="w0",
                eos_token=f"w{shape.vocabulary}",
                unk_token="w3",
                padding_side="left",
            ),
            peft_config=peft.LoraConfig(
                r=8, target_modules=["q_proj", "v_proj"]
            ),
            callbacks=[Clock()],
        )
        trainer.train()
    figure("trl", "step", statistics.median(times[1:]), "s", shape=shape.name)
    if (peak := peak_bytes()) is not None:
        figure("trl", "peak", peak, "bytes")
