"""Compares logits of our files, as transformers and PEFT load them, with those that our engine wrote."""

import json
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def load(folder):
  return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def difference(model, ids, path):
  with torch.no_grad():
    return (model(ids).logits[0] - load_file(path)["logits"]).abs().max().item()


def main():
  family, base, adapter, merged, tokens, full_logits, lora_logits = sys.argv[1:]
  ids = torch.tensor([[int(token) for token in tokens.split(",")]])
  torch.set_num_threads(1)
  model = load(base)
  plain = difference(model, ids, full_logits)
  tuned = PeftModel.from_pretrained(model, adapter)
  with_adapter = difference(tuned, ids, lora_logits)
  # The adapter must matter, or equality would prove nothing.
  effect = difference(tuned, ids, full_logits)
  in_one = difference(load(merged), ids, lora_logits)
  print(f"{family}: full model {plain:.2e}, adapter {with_adapter:.2e}, merged {in_one:.2e}, tolerance {TOLERANCE:.0e}; "
        f"the adapter moves logits by {effect:.2f}")
  # The template's end of turn must end generation.
  ends = json.load(open(f"{merged}/generation_config.json"))["eos_token_id"]
  assert ends == 2 or 2 in ends, ends
  return 0 if max(plain, with_adapter, in_one) <= TOLERANCE and effect > 100 * TOLERANCE else 1


if __name__ == "__main__":
  sys.exit(main())
