"""Trains the byte-level BPE of luthier-tiny on pre-training rows and writes tokenizer.json.

Lower-case words keep the space before them; a capitalised word, a digit and a punctuation mark stand
alone. So a name has the same pieces after a space, a quote or a bracket, and can be copied piece by
piece wherever it stood.

  python3 examples/generate/tokenizer.py corpus.jsonl tokenizer.json   (needs: pip install tokenizers)
"""

import json
import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|pad|>", "<|im_end|>", "<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n"]
WORDS = r" ?\p{Ll}+|\p{Lu}\p{Ll}*|\p{N}| |\n|[^\s\p{L}\p{N}]{1,2}|\s+|\p{L}+"


def texts(path):
  with open(path, encoding="utf-8") as file:
    for line in file:
      row = json.loads(line)
      yield from [row["text"]] if "text" in row else (m["content"] for m in row["messages"])


def main():
  corpus, output = sys.argv[1:]
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ])
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.train_from_iterator(texts(corpus), trainers.BpeTrainer(
      vocab_size=1536, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
  tokenizer.save(output)


if __name__ == "__main__":
  main()
