"""Peak memory of PPO with LoRA against fine-tuning (girl sft) with LoRA: the same actor, batch and length.

The actor is a random Llama of about 75 million parameters, the reward model has half of its layers. Fine-tuning steps
through batches of B sequences of prompt and JD; PPO samples 2 B JDs after prompts of the same length (no token ends
them, so that all are as long), judges them 2 B at a time, and learns from B at a time. With LoRA, actor and reference
are one set of weights, and reward model and critic another. Both take place in processes of their own.

Peaks are of the resident memory, less what the process held before the models were loaded, libraries included; on a
GPU of torch.cuda.max_memory_allocated(). On a CPU freed tensors of more than 1 MiB go back to the system at once
(MALLOC_MMAP_THRESHOLD_); otherwise the peak would be that of malloc's fragments. Beside them, what memory.py estimates.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LORA = {"lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.05, "lora_targets": "all-linear"}


def _models(args):
    import transformers
    from transformers import LlamaConfig

    from girl_recbole import tiny_lm
    from girl_recbole.prompts import make_prompt

    tokenizer = tiny_lm.build(
        ["A nurse plans care.", "An engineer builds bridges."], make_prompt("en"), vocab_size=400, width=32, layers=1,
        heads=2, kv_heads=1, context=64, seed=0,
    ).tokenizer  # fmt: skip
    shape = {
        "vocab_size": args.vocabulary, "hidden_size": args.width, "intermediate_size": -(-args.width * 8 // 96) * 32,
        "num_attention_heads": 10, "num_key_value_heads": 5, "max_position_embeddings": 2048,
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    actor = LlamaConfig(**shape, num_hidden_layers=args.layers)
    judge = LlamaConfig(**shape, num_hidden_layers=args.layers // 2, num_labels=1)
    return tokenizer, actor, judge, transformers


def _child(args):
    import numpy as np
    import torch
    import trl  # noqa: F401 - its memory is none of the models'
    from common import MemoryPeak

    from girl_recbole import llm, memory, sft
    from girl_recbole.alignment import SeekerCV
    from girl_recbole.config import make_config
    from girl_recbole.critic import make_critic
    from girl_recbole.ppo import PPO, PPOConfig
    from girl_recbole.prompts import make_prompt
    from girl_recbole.reward import RewardModel
    from girl_recbole.rewards import Scored

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, actor, judge, transformers = _models(args)
    random = np.random.default_rng(0)
    prompts = random.integers(2, args.vocabulary, (4 * args.batch, args.prompt)).tolist()
    jds = random.integers(2, args.vocabulary, (4 * args.batch, args.jd)).tolist()
    shared = {**LORA, "gradient_checkpointing": args.checkpointing, "lm_dtype": args.dtype}
    numbers = {"dtype": args.dtype, "lora_rank": LORA["lora_rank"], "gradient_checkpointing": args.checkpointing,
               "on_gpu": device == "cuda"}  # fmt: skip

    class Endless(llm.LanguageModel):
        stop_ids = ()

    class Bench(PPO):
        def _check_rollouts(self, batch):
            assert {len(one.tokens) for one in batch} == {args.jd}

    class Rewards:  # ids as they are: the random tokens are no text
        def __call__(self, users, cvs, texts, ended):
            model = reward.model
            with torch.inference_mode():
                rows = torch.tensor([p + j for p, j in zip(prompts, jds, strict=True)][: len(users)], device=device)
                raw = model(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits[:, 0]
            score = raw.double().cpu().numpy()
            return Scored(score, {"model": score})

    with MemoryPeak() as before:
        pass
    with MemoryPeak() as peak:
        weights = llm.DTYPES[args.dtype]
        lm = transformers.AutoModelForCausalLM.from_config(actor, dtype=weights).to(device).eval()
        lm = Endless(lm, tokenizer, "actor", "")
        if args.child == "sft":
            examples = [
                {"input_ids": p + j, "labels": [llm.IGNORED] * len(p) + j} for p, j in zip(prompts, jds, strict=True)
            ]
            config = make_config(
                sft.SFTConfig,
                overrides={**shared, "sft_epochs": 1, "sft_batch_size": args.batch, "sft_accumulation": 1},
            )
            with tempfile.TemporaryDirectory() as folder:
                sft._fit(lm, examples, [], config, Path(folder))
            estimate = memory.sft_estimate(
                actor, batch_size=args.batch, tokens=args.prompt + args.jd, projected=args.jd + 1, **numbers
            )
        else:
            network = (
                transformers.AutoModelForSequenceClassification.from_config(judge, dtype=weights).to(device).eval()
            )
            reward = RewardModel(
                network.requires_grad_(False),
                tokenizer,
                make_prompt("en"),
                0.0,
                1.0,
                args.prompt,
                args.jd,
                "",
                "reward",
            )
            config = make_config(
                PPOConfig,
                overrides={
                    **shared, "generator": "ppo", "ppo_iterations": 2, "ppo_batch_size": 2 * args.batch,
                    "ppo_minibatch": 2 * args.batch, "ppo_micro_batch": args.batch, "gen_batch_size": 2 * args.batch,
                    "reward_batch": 2 * args.batch, "ppo_epochs": 1, "ppo_critic_warmup": 0, "max_jd_tokens": args.jd,
                    "ppo_max_kl": 1e9, "ppo_step_kl": None, "ppo_mode": args.mode,
                },
            )  # fmt: skip
            seekers = [SeekerCV(f"u{i}", "") for i in range(len(prompts))]
            critic = make_critic(reward, tuple(LORA.values()))
            ppo = Bench(lm, critic, Rewards(), seekers, prompts, config)
            for _ in range(2):
                ppo.iterate()
            estimate = memory.ppo_estimate(
                actor, judge, micro_batch=args.batch, gen_batch=2 * args.batch, reward_batch=2 * args.batch,
                prompt_tokens=args.prompt, jd_tokens=args.jd, critic_reads_jds=args.mode == "token", **numbers,
            )  # fmt: skip
    mib = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak.mib - before.mib
    parameters = [memory.count(config).parameters for config in (actor, judge)]
    print(json.dumps({"peak_mib": mib, "estimate_mib": estimate.total / 2**20, "parameters": parameters}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=192, help="tokens of each prompt")
    parser.add_argument("--jd", type=int, default=64, help="tokens of each JD")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--mode", default="girl", choices=("girl", "token"))
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json")
    parser.add_argument("--child", choices=("sft", "ppo"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child(args)
        return
    measured = {"sft": [], "ppo": []}
    for _ in range(args.repeats):
        for side, runs in measured.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--child", side]
            env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
            if done.returncode:
                sys.exit(done.stderr)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    actor, judge = measured["sft"][0]["parameters"]
    print(f"actor {actor / 1e6:.0f} M parameters, reward model {judge / 1e6:.0f} M, batch {args.batch}, "
          f"{args.prompt} + {args.jd} tokens, {args.dtype}, LoRA rank {LORA['lora_rank']}")  # fmt: skip
    rows = {side: {key: max(run[key] for run in runs) for key in ("peak_mib", "estimate_mib")}
            for side, runs in measured.items()}  # fmt: skip
    for side, row in rows.items():
        print(f"{side}  peak {row['peak_mib']:7.0f} MiB   estimated {row['estimate_mib']:7.0f} MiB")
    rows["ratio"] = rows["ppo"]["peak_mib"] / rows["sft"]["peak_mib"]
    print(f"PPO takes {rows['ratio']:.2f} x the memory of fine-tuning")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
