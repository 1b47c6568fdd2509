"""`accelerate launch`: two processes give what one gives; accelerate reads the shipped property files."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from test_sft import TINY, dataset

from girl_recbole import llm, sft
from girl_recbole.config import documented_keys, known_keys, make_config, properties_file
from girl_recbole.generate import generator_folder
from girl_recbole.manifest import read_manifest

# 40 pairs, none held out: ten batches an epoch, five steps of two
SHORT = {
    **TINY, "sft_epochs": 6, "sft_batch_size": 4, "sft_eval_share": 0.0, "sft_sample_jds": 0, "sft_save_steps": 10,
    "sft_learning_rate": 1e-3,
}  # fmt: skip


def launched(tmp_path, *how, program=("-m", "girl_recbole.cli"), **settings):
    """Run `girl sft toy` in processes that accelerate starts; its folder, and what all of them printed."""
    arguments = [f"--{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "accelerate.commands.launch", *how, "--main_process_port=0", *program]
    command += ["sft", "toy", f"--data_path={tmp_path}", f"--saved_folder={tmp_path / 'saved'}"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, *arguments], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return generator_folder(str(tmp_path / "saved"), "toy", settings["generator"]), done.stdout, done.stderr


def alone(tmp_path, files, **settings):
    """The same in this process, alone."""
    shared = {"saved_folder": str(tmp_path / "saved")}
    sft.train(files, make_config(sft.SFTConfig, overrides={**settings, **shared}))
    return generator_folder(str(tmp_path / "saved"), "toy", settings["generator"])


def log(folder, key):
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


def farthest(one, two):
    """The largest difference between weights of two saved models, as they are read back."""
    one, two = (llm.load(str(folder)).model.state_dict() for folder in (one, two))
    assert one.keys() == two.keys()
    return max((one[name] - two[name]).abs().max().item() for name in one)


def test_two_processes_train_what_one_trains(tmp_path):
    """The same losses and weights as one process that accumulates two batches: the global batch is the same."""
    files = dataset(tmp_path, seekers=40)
    one = alone(tmp_path, files, **SHORT, generator="one", sft_accumulation=2)
    how = "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"
    two, stdout, stderr = launched(tmp_path, *how, **SHORT, generator="two")
    losses = log(one, "loss")
    assert len(losses) == 3  # 30 steps, one line in ten
    assert losses[-1] < losses[0] - 0.5  # something was learned
    assert log(two, "loss") == pytest.approx(losses, abs=1e-4)
    assert log(two, "grad_norm") == pytest.approx(log(one, "grad_norm"), rel=1e-3)
    assert log(two, "step") == log(one, "step")
    assert farthest(one, two) < 1e-5
    # written once, by one process, with nothing left behind
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    saved = {path.name for path in two.parent.iterdir()}
    assert saved == {"one", "one.manifest.json", "two", "two.manifest.json"}
    assert read_manifest(two)["pairs"] == 40
    assert stdout.count("train_loss") == 1  # the report is printed once
    assert stderr.count("30/30") <= 3  # one progress bar, whose last line is drawn anew


# ---------------------------------------------------------------------------------------------------- property files

FILES = {"ddp": DistributedType.MULTI_GPU, "fsdp": DistributedType.FSDP, "deepspeed": DistributedType.DEEPSPEED}


@pytest.mark.parametrize("name", FILES)
def test_accelerate_reads_the_file(name):
    path = properties_file(f"accelerate/{name}.yaml")
    read = load_config_from_file(str(path))  # refuses unknown keys
    assert read.distributed_type is FILES[name]
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r" *\w+:( \S+)? +# \(.+\) .+", line) for line in lines), "a key without type and meaning"
    assert not known_keys() & {line.split(":")[0].strip() for line in lines}  # accelerate's keys are none of ours
    assert set(yaml.safe_load(text)) == {key for key, _, _ in documented_keys(f"accelerate/{name}.yaml")}


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_the_nested_keys_are_those_that_the_launcher_knows(name):
    from accelerate.commands.launch import launch_command_parser

    known = {action.dest for action in launch_command_parser()._actions}
    nested = load_config_from_file(str(properties_file(f"accelerate/{name}.yaml")))
    assert set(getattr(nested, f"{name}_config")) <= known


# accelerate shards on accelerators alone, and on CPUs runs DDP whatever the file says; here it takes CPUs for such
SHARDED = """
import accelerate.state as state
from accelerate.utils import DistributedType

begin = state.AcceleratorState.__init__

def sharded(self, *args, **kwargs):
    state.PartialState(cpu=True)
    if not (self._shared_state and self.initialized):
        state.PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    begin(self, *args, **kwargs)

state.AcceleratorState.__init__ = sharded

import torch.distributed.fsdp as fsdp
shard = fsdp.fully_shard

def said(module, *args, **kwargs):
    print("sharded", type(module).__name__, flush=True)
    return shard(module, *args, **kwargs)

fsdp.fully_shard = said

from girl_recbole.cli import main
main()
"""


@pytest.mark.slow
def test_fsdp_trains_what_one_process_trains(tmp_path):
    """FSDP2 by the shipped file, on two CPU processes: wrapped, trained, gathered and saved."""
    files = dataset(tmp_path, seekers=40)
    one = alone(tmp_path, files, **SHORT, generator="one", sft_accumulation=2)
    program = tmp_path / "sharded.py"
    program.write_text(SHARDED)
    how = f"--config_file={properties_file('accelerate/fsdp.yaml')}"
    two, stdout, _ = launched(tmp_path, how, program=[str(program)], **SHORT, generator="two")
    assert stdout.count("sharded LlamaDecoderLayer") == 2 * 2  # layers, processes
    assert log(two, "loss") == pytest.approx(log(one, "loss"), abs=1e-4)
    assert farthest(one, two) < 1e-4
