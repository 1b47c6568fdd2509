"""PPO iterations a second: ours against TRL 1.12, the last release with a PPOTrainer, and where our time goes.

TRL 1.12 needs an environment of its own:

    python3 -m venv trl112
    trl112/bin/pip install "trl==1.12.*" "torch==2.13.0" "transformers==5.23.*" "accelerate==1.15.*"
    OMP_NUM_THREADS=2 python benchmarks/bench_ppo.py --trl-python trl112/bin/python

Both sides train the same random Llama of the embedded generator's size in float32, from the same prompts (CVs of
jobrec-sim), with the same batch, minibatch, epochs and learning rate; reward model, critic and reference have the
actor's size. Every response has the same number of tokens on both sides: no token ends it. TRL is given no stop token;
here the list of stop tokens is empty, and the check that some JD ended is left out. TRL's batches are padded to their
longest prompt, ours to the longest of those that are read together. TRL counts micro-batches, not minibatches, when it
accumulates: with --trl-micro it takes fewer optimiser steps, which the table shows, for the same passes. Two of our
modes: girl, the default, whose critic reads the CV alone, and token, which is the algorithm of TRL's trainer: a KL at
each token, a value at each token, GAE.

The sides run in turn, each in a process of its own, several times; a process's first iteration is not counted. The
table has medians over all iterations, with the least and the largest; CPU time beside them, which with --threads 1 says
more where other work runs on the machine. Then our own profile: the share of each phase.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PHASES = {
    "rollout": "time_rollout_s", "reference": "time_reference_s", "reward": "time_reward_s", "critic": "time_critic_s",
    "update of the actor": "time_update_s", "update of the critic": "time_critic_update_s",
}  # fmt: skip


def _child(folder, mode):
    import numpy as np
    import torch
    import transformers

    from girl_recbole import llm
    from girl_recbole.alignment import SeekerCV
    from girl_recbole.config import make_config
    from girl_recbole.critic import make_critic
    from girl_recbole.ppo import PPO, PPOConfig
    from girl_recbole.prompts import make_prompt
    from girl_recbole.reward import RewardModel
    from girl_recbole.rewards import Rewards

    class Endless(llm.LanguageModel):
        stop_ids = ()

    class Bench(PPO):
        def _check_rollouts(self, batch):
            assert {len(one.tokens) for one in batch} == {settings["response"]}

    settings = json.loads((folder / "settings.json").read_text())
    torch.set_num_threads(settings["threads"])
    loaded = llm.load(str(folder / "actor"), "fp32", "cpu")
    lm = Endless(loaded.model, loaded.tokenizer, "actor", "")
    config = make_config(
        PPOConfig,
        overrides={
            "generator": "ppo", "seed": settings["seed"], "ppo_mode": mode, "ppo_iterations": settings["iterations"],
            "ppo_batch_size": settings["batch"], "ppo_minibatch": settings["minibatch"],
            "ppo_micro_batch": settings["micro"], "gen_batch_size": settings["batch"],
            "reward_batch": settings["batch"], "ppo_epochs": settings["epochs"], "ppo_critic_warmup": 0,
            "ppo_warmup": 0, "ppo_learning_rate": settings["learning_rate"], "ppo_step_kl": None, "ppo_max_kl": 1e9,
            "ppo_critic_learning_rate": settings["learning_rate"], "ppo_kl_coef": settings["kl_coef"],
            "max_jd_tokens": settings["response"], "rl_temperature": 1.0, "lora_rank": 0,
            "gradient_checkpointing": False, "no_eos_penalty": 0.0,
        },
    )  # fmt: skip
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)
    judge = RewardModel(
        network.requires_grad_(False).eval(), lm.tokenizer, make_prompt("en"), 0.0, 1.0, config.max_cv_tokens,
        settings["response"], "", "reward",
    )  # fmt: skip
    rewards = Rewards({"model": 1.0}, "", judge, {}, config.reward_batch)
    cvs = json.loads((folder / "cvs.json").read_text())
    prompts = json.loads((folder / "prompts.json").read_text())
    seekers = [SeekerCV(f"u{number}", cv) for number, cv in enumerate(cvs)]
    ppo = Bench(lm, make_critic(judge, None), rewards, seekers, prompts, config)
    lines, cpu_seconds = [], []
    for _ in range(settings["iterations"]):
        started = time.process_time()
        lines.append(ppo.iterate())
        cpu_seconds.append(time.process_time() - started)
    assert np.isfinite([line["actor_loss"] for line in lines]).all()
    report = {
        "seconds": [line["time_iteration_s"] for line in lines[1:]],
        "cpu_seconds": cpu_seconds[1:],
        "optimiser_steps": sum(line["optimiser_steps"] for line in lines),
        "phases": [{name: line[key] for name, key in PHASES.items()} for line in lines[1:]],
    }
    print(json.dumps(report))


def _prepare(folder, args):
    """Random models of the embedded default's size, and the prompts."""
    import torch
    import transformers

    from girl_recbole import tiny_lm
    from girl_recbole.atomic import read_docs
    from girl_recbole.prompts import make_prompt
    from girl_recbole.shipped import locate

    files = locate("jobrec-sim", Path("dataset"))
    docs = list(dict.fromkeys(read_docs(files.udoc).values()))
    jds = list(dict.fromkeys(read_docs(files.idoc).values()))
    prompt = make_prompt("en")
    lm = tiny_lm.build(
        [*docs[:2000], *jds[:2000]], prompt, vocab_size=4096, width=128, layers=3, heads=4, kv_heads=2, context=512,
        seed=args.seed,
    )  # fmt: skip
    lm.model.save_pretrained(folder / "actor")
    lm.tokenizer.save_pretrained(folder / "actor")
    lm.tokenizer.save_pretrained(folder / "tokenizer")
    shape = {key: value for key, value in lm.model.config.to_dict().items() if key not in ("id2label", "label2id")}
    torch.manual_seed(args.seed)
    config = transformers.LlamaConfig(**shape, num_labels=1)
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder / "reward")
    cvs = docs[:: len(docs) // (args.batch * 4)][: args.batch * 4]
    prompts = [prompt.encode(lm.tokenizer, cv, 256)[0] for cv in cvs]
    (folder / "cvs.json").write_text(json.dumps(cvs))
    (folder / "prompts.json").write_text(json.dumps(prompts))
    lengths = sorted(map(len, prompts))
    return sum(p.numel() for p in lm.model.parameters()), (lengths[0], statistics.median(lengths), lengths[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="python of an environment with trl 1.12; without it only ours runs")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--minibatch", type=int, default=32)
    parser.add_argument("--micro", type=int, help="ppo_micro_batch; the shipped one by default")
    parser.add_argument("--trl-micro", type=int, help="TRL's; a whole minibatch by default")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--response", type=int, default=96, help="tokens of every response")
    parser.add_argument("--iterations", type=int, default=4, help="of each process, of which the first is not counted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child(Path(args.child[0]), args.child[1])
        return
    if args.micro is None:
        from girl_recbole.config import load_properties, properties_file

        args.micro = load_properties(properties_file("overall.yaml"))["ppo_micro_batch"]
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        parameters, lengths = _prepare(folder, args)
        names = ("batch", "minibatch", "micro", "trl_micro", "epochs", "response", "iterations", "threads", "seed")
        shared = {name: getattr(args, name) for name in names}
        (folder / "settings.json").write_text(json.dumps(shared | {"learning_rate": 1e-5, "kl_coef": 0.05}))
        commands = {
            "girl": [sys.executable, __file__, "--child", str(folder), "girl"],
            "token": [sys.executable, __file__, "--child", str(folder), "token"],
        }
        if args.trl_python:
            commands["trl 1.12"] = [args.trl_python, str(here / "bench_ppo_trl.py"), str(folder)]
        measured = {side: [] for side in commands}
        for _ in range(args.repeats):
            for side, command in commands.items():
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                measured[side].append(json.loads(done.stdout.splitlines()[-1]))
    report = {"parameters": parameters, "prompt_tokens": lengths, **shared, "sides": {}}
    print(
        f"{parameters} parameters, {args.batch} prompts of {lengths[0]} to {lengths[2]} tokens (median {lengths[1]}), "
        f"{args.response} tokens a response, minibatches of {args.minibatch} (learned from {args.micro} at a time, by "
        f"TRL {args.trl_micro or args.minibatch}), {args.epochs} epochs, {args.threads} threads"
    )
    columns = f"{'s/iteration':>12}{'least':>8}{'largest':>9}{'CPU s':>8}{'iterations/s':>14}{'optimiser steps':>17}"
    print(f"{'side':<10}{columns}")
    for side, runs in measured.items():
        seconds, cpu = ([one for run in runs for one in run[key]] for key in ("seconds", "cpu_seconds"))
        median, middle = statistics.median(seconds), statistics.median(cpu)
        report["sides"][side] = {
            "median_s": median, "least_s": min(seconds), "largest_s": max(seconds), "median_cpu_s": middle,
        }  # fmt: skip
        spread = f"{median:>12.2f}{min(seconds):>8.2f}{max(seconds):>9.2f}{middle:>8.2f}{1 / median:>14.3f}"
        print(f"{side:<10}{spread}{runs[0]['optimiser_steps']:>17}")
    for side in ("girl", "token") if args.trl_python else ():
        ours, theirs = report["sides"][side], report["sides"]["trl 1.12"]
        each = [
            statistics.median(t["seconds"]) / statistics.median(o["seconds"])
            for o, t in zip(measured[side], measured["trl 1.12"], strict=True)
        ]
        ours["ratio"], ours["rounds"] = theirs["median_s"] / ours["median_s"], each
        ours["cpu_ratio"] = theirs["median_cpu_s"] / ours["median_cpu_s"]
        print(
            f"{side}: {ours['ratio']:.2f} x as many iterations a second as trl 1.12 (rounds: {min(each):.2f} to "
            f"{max(each):.2f}; by CPU time {ours['cpu_ratio']:.2f})"
        )
    for side in ("girl", "token"):
        phases = [phase for run in measured[side] for phase in run["phases"]]
        whole = [one for run in measured[side] for one in run["seconds"]]
        shares = {name: sum(phase[name] for phase in phases) / sum(whole) for name in PHASES}
        shares["rest"] = 1 - sum(shares.values())
        report["sides"][side]["shares"] = shares
        print(f"{side}: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
