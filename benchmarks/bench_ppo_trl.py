"""The side of bench_ppo.py that TRL runs: PPO of a saved actor and reward model; needs trl 1.12 and nothing of ours.

    python bench_ppo_trl.py FOLDER

FOLDER has actor/, reward/, tokenizer/, prompts.json (lists of token ids) and settings.json. Prints one line of JSON:
the seconds of each iteration after the first, on the clock and of CPU time, and how many steps the optimiser took.
"""

import json
import sys
import time
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Watch(transformers.TrainerCallback):
    """When each iteration ends."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append((time.perf_counter(), time.process_time()))


def main():
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    torch.set_num_threads(settings["threads"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer", padding_side="left")
    actor = transformers.AutoModelForCausalLM.from_pretrained(folder / "actor", dtype=torch.float32)
    judge, critic = (
        transformers.AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)
        for _ in range(2)
    )
    iterations, batch = settings["iterations"], settings["batch"]
    micro = settings["trl_micro"] or batch  # a minibatch is cut to it; batch: each is one piece, and one optimiser step
    arguments = PPOConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        disable_tqdm=True, save_strategy="no", num_sample_generations=0, seed=settings["seed"],
        total_episodes=iterations * batch, per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        local_rollout_forward_batch_size=batch, num_mini_batches=batch // settings["minibatch"],
        num_ppo_epochs=settings["epochs"], response_length=settings["response"], stop_token=None, temperature=1.0,
        learning_rate=settings["learning_rate"], kl_coef=settings["kl_coef"],
    )  # fmt: skip
    prompts = json.loads((folder / "prompts.json").read_text())
    watch = Watch()
    trainer = PPOTrainer(
        args=arguments, processing_class=tokenizer, model=actor, ref_model=None, reward_model=judge, value_model=critic,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts]), callbacks=[watch],
    )  # fmt: skip
    steps = []
    step = trainer.optimizer.optimizer.step
    trainer.optimizer.optimizer.step = lambda *args, **kwargs: (steps.append(1), step(*args, **kwargs))[1]
    trainer.train()
    spans = list(zip(watch.ends, watch.ends[1:], strict=False))
    seconds, cpu_seconds = ([after[i] - before[i] for before, after in spans] for i in (0, 1))
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "optimiser_steps": len(steps)}))


if __name__ == "__main__":
    main()
