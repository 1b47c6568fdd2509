"""Peak memory of `girl embed`, and of reading vectors, over the number of texts.

For each count a dataset of that many seekers, a pair and a CV of 8 to 20 words each, all CVs different, is embedded in
a process of its own by a BERT of 1 layer and width 16 that is made on the spot; a second process reads the vectors of
1,000 seekers. The peak is the largest resident set of the process, libraries included. The bytes a text are the slope
between the first and the last count.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

_WORDS = ["team", "sales", "nurse", "data", "design", "store", "care", "system", "code", "report", "safety", "plan"]
_COLUMNS = [("embed_mib", 10, 0), ("embed_cpu_s", 8, 1), ("read_mib", 10, 0), ("read_cpu_s", 8, 1)]


def _make_encoder(folder):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_WORDS, *map(str, range(100))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    BertModel(BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32,
        max_position_embeddings=32,
    )).save_pretrained(folder)  # fmt: skip
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=32,
    ).save_pretrained(folder)  # fmt: skip


def _make_dataset(folder, count):
    from girl_recbole.atomic import DatasetFiles

    files, rng = DatasetFiles(folder, folder.name), np.random.default_rng(0)
    folder.mkdir()
    with open(files.udoc, "w") as cvs, open(files.inter, "w") as pairs:
        cvs.write("user_id:token\tuser_doc:text\n")
        pairs.write("user_id:token\titem_id:token\tlabel:float\n")
        for n in range(count):
            number = " ".join(f"{n:08d}"[at : at + 2].lstrip("0") or "0" for at in range(0, 8, 2))
            words = " ".join(_WORDS[i] for i in rng.integers(0, len(_WORDS), rng.integers(4, 17)))
            cvs.write(f"u{n}\t{number} {words}\n")
            pairs.write(f"u{n}\ti{n % 1000}\t1\n")


def _measure(task, folder, encoder, queue):
    import torch

    from girl_recbole.atomic import DatasetFiles
    from girl_recbole.config import make_config
    from girl_recbole.embed import EmbedConfig, embed, load_vectors

    torch.set_num_threads(1)
    files = DatasetFiles(folder, folder.name)
    config = make_config(EmbedConfig, overrides={"encoder": str(encoder)})
    started = time.process_time()
    if task == "embed":
        embed(files, config, kinds=["cv"])
    else:
        load_vectors(files, config, "cv", [f"u{n}" for n in range(0, 9000, 9)])
    queue.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, time.process_time() - started))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", help="where the data are put meanwhile; default: the system's temporary folder")
    parser.add_argument("--json")
    args = parser.parse_args()
    context, rows = multiprocessing.get_context("spawn"), []
    queue = context.Queue()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        encoder = Path(temporary) / "encoder"
        _make_encoder(encoder)
        print(f"{'texts':>10} {'embed MiB':>10} {'CPU s':>8} {'read MiB':>10} {'CPU s':>8}", flush=True)
        for count in args.counts:
            folder = Path(temporary) / f"n{count}"
            _make_dataset(folder, count)
            row = {"texts": count}
            for task in ("embed", "read"):
                process = context.Process(target=_measure, args=(task, folder, encoder, queue))
                process.start()
                row[f"{task}_mib"], row[f"{task}_cpu_s"] = queue.get()
                process.join()
            rows.append(row)
            print(f"{count:>10}", *(f"{row[key]:>{width}.{digits}f}" for key, width, digits in _COLUMNS), flush=True)
    if len(rows) > 1:
        for task in ("embed", "read"):
            slope = (rows[-1][f"{task}_mib"] - rows[0][f"{task}_mib"]) * 2**20 / (rows[-1]["texts"] - rows[0]["texts"])
            print(f"{task}: {slope:.0f} bytes a text")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
