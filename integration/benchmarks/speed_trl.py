"""TRL's RLOO on a network of the same shape: PyTorch and transformers.

RLOO is no J-BOND: all its samples are the policy's, it learns from all three,
and a fixed reference model stands where J-BOND has its anchor. Its settings
are the fastest that it has on a CPU: float32, key-value cache, chunked head,
no gradient checkpointing, no clipping of gradients, no logging.
"""

import os
import tempfile

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import speed_shapes
import tokenizers
import torch
import transformers
import trl

NOTE = (
    "RLOO, as many generations, β 0.05, float32, batch of all rows, "
    "no gradient checkpointing, no gradient clipping, no logging"
)


def run(shape, channel):
    """Trains until there is nothing more to do.

    Args:
        shape: a `speed_shapes.Shape`.
        channel: a `speed_worker.Channel`.
    """
    channel.set_threads = torch.set_num_threads
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(shape, folder)
        trainer.channel = channel
        trainer.add_callback(Turns(channel))
        model = trainer.model
        if shape.lora_rank:
            model = model.get_base_model()
        channel.ready(parameters=model.num_parameters(), note=NOTE)
        trainer.train()


def make_trainer(shape, folder):
    """RLOO on random weights of the shape."""
    make_model(shape).save_pretrained(f"{folder}/model")
    rows = speed_shapes.draw_prompts(shape)
    prompts = [" ".join(f"w{token}" for token in row) for row in rows]
    return Trainer(
        model=f"{folder}/model",
        reward_funcs=reward,
        args=make_arguments(shape, folder),
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        processing_class=make_tokenizer(shape),
        peft_config=make_adapters(shape),
    )


def make_arguments(shape, folder):
    rows = shape.prompts * shape.samples
    return trl.RLOOConfig(
        output_dir=folder,
        num_generations=shape.samples,
        per_device_train_batch_size=rows,
        max_completion_length=shape.completion_length,
        beta=0.05,
        learning_rate=3e-6,
        lr_scheduler_type="constant",
        max_steps=10**6,
        max_grad_norm=0.0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


def make_model(shape):
    """A random network of the shape whose rows never end."""
    sizes = dict(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=max(1024, shape.length),
        pad_token_id=0,
        # The tokenizer has one more word than the model: it is never drawn.
        eos_token_id=shape.vocabulary,
        bos_token_id=speed_shapes.START_TOKEN,
        tie_word_embeddings=True,
    )
    if shape.family == "smollm2":
        # The weights do not matter for speed, where no row ends.
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    config = transformers.Gemma3TextConfig(
        **sizes, query_pre_attn_scalar=shape.head_dim, sliding_window=512
    )
    return transformers.Gemma3ForCausalLM(config)


def make_tokenizer(shape):
    """Words `w0`, `w1`, ...; the last one is the end, out of reach."""
    words = {f"w{i}": i for i in range(shape.vocabulary + 1)}
    model = tokenizers.models.WordLevel(words, unk_token="w3")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="w0",
        eos_token=f"w{shape.vocabulary}",
        unk_token="w3",
        padding_side="left",
    )


def make_adapters(shape):
    """LoRA on queries and values, as KerasHub's `enable_lora` has it."""
    if not shape.lora_rank:
        return None
    import peft

    return peft.LoraConfig(
        r=shape.lora_rank, target_modules=["q_proj", "v_proj"]
    )


def reward(completion_ids, **kwargs):
    return speed_shapes.score(completion_ids).tolist()


class Trainer(trl.RLOOTrainer):
    """RLOO with a clock at its parts."""

    channel = None

    def _generate(self, *arguments, **kwargs):
        with self.channel.phase("rollout policy"):
            return super()._generate(*arguments, **kwargs)

    def _calculate_rewards(self, *arguments, **kwargs):
        with self.channel.phase("reward"):
            return super()._calculate_rewards(*arguments, **kwargs)

    def _generate_and_score_completions(self, inputs):
        # What is left of it: old and reference log-probabilities.
        with self.channel.phase("score_with_anchor"):
            return super()._generate_and_score_completions(inputs)

    def training_step(self, *arguments, **kwargs):
        with self.channel.phase("learn"):
            return super().training_step(*arguments, **kwargs)


class Turns(transformers.TrainerCallback):
    """Waits for its turn before each step, and times the optimizer."""

    def __init__(self, channel):
        self.channel = channel

    def on_step_begin(self, args, state, control, **kwargs):
        self.channel.begin()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.update = self.channel.phase("learn")
        self.update.__enter__()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.update.__exit__(None, None, None)

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.channel.end()
