"""Text to token ids: trains the tokenizer and encodes the stories.

Reads  DATA/stories.txt.gz and DATA/stories-valid.txt.gz. A story ends with a
       line <|endoftext|>.
Writes WORK/tokenizer.json and, for train and valid, WORK/{set}.npz with
       ids     uint16 [num_tokens]  every story as <|endoftext|> + its tokens
       starts  int64  [num_stories] where each story's <|endoftext|> stands
       bytes   int64  [num_stories] UTF-8 bytes of each story
"""

import argparse
import gzip
import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers import processors, trainers

END = "<|endoftext|>"
END_ID = 0  # the trainer numbers special tokens first


def read_stories(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as f:
        pieces = f.read().split(f"\n{END}\n")
    return [p for p in pieces if p.strip()]


def train_tokenizer(stories: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenizer; all 256 bytes are tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    # Every text begins with END, as every story does in training.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, END_ID)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False)
    tokenizer.train_from_iterator(stories, trainer)
    assert tokenizer.token_to_id(END) == END_ID
    return tokenizer


def encode(tokenizer: Tokenizer, stories: list[str]) -> dict:
    ids, starts, num_bytes, at = [], [], [], 0
    for story, coded in zip(stories, tokenizer.encode_batch(
            stories, add_special_tokens=False)):
        row = np.array([END_ID] + coded.ids, dtype=np.uint16)
        ids.append(row)
        starts.append(at)
        num_bytes.append(len(story.encode()))
        at += len(row)
    return {"ids": np.concatenate(ids),
            "starts": np.array(starts, dtype=np.int64),
            "bytes": np.array(num_bytes, dtype=np.int64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=4096)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    train = read_stories(args.data / "stories.txt.gz")
    valid = read_stories(args.data / "stories-valid.txt.gz")
    tokenizer = train_tokenizer(train, args.vocab_size)
    for name, stories in (("train", train), ("valid", valid)):
        coded = encode(tokenizer, stories)
        with open(args.work / f"{name}.tmp", "wb") as f:
            np.savez(f, **coded)
        os.replace(args.work / f"{name}.tmp", args.work / f"{name}.npz")
        print(f"{name}: {len(stories)} stories, {coded['bytes'].sum()} bytes, "
              f"{len(coded['ids'])} tokens")
    # Last, because its presence says that this step is complete.
    tokenizer.save(str(args.work / "tokenizer.json"))


if __name__ == "__main__":
    main()
