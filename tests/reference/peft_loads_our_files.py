"""Compares logits of our files, as transformers and PEFT load them, with those that our engine wrote."""

import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def difference(model, ids, path):
  with torch.no_grad():
    return (model(ids).logits[0] - load_file(path)["logits"]).abs().max().item()


def main():
  base, adapter, tokens, full_logits, lora_logits = sys.argv[1:]
  ids = torch.tensor([[int(token) for token in tokens.split(",")]])
  torch.set_num_threads(1)
  model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
  plain = difference(model, ids, full_logits)
  tuned = PeftModel.from_pretrained(model, adapter)
  with_adapter = difference(tuned, ids, lora_logits)
  # The adapter must matter, or equality would prove nothing.
  effect = difference(tuned, ids, full_logits)
  print(f"full model {plain:.2e}, adapter {with_adapter:.2e}, tolerance {TOLERANCE:.0e}; the adapter moves logits by {effect:.2f}")
  return 0 if plain <= TOLERANCE and with_adapter <= TOLERANCE and effect > 100 * TOLERANCE else 1


if __name__ == "__main__":
  sys.exit(main())
