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


def check_adapter(folder, name, ids):
  """Whether adapter and merged model compute what our engine wrote; and the adapter must matter, or equality would prove nothing."""
  of_adapter, of_base = f"{folder}/{name}/logits.safetensors", f"{folder}/full.safetensors"
  tuned = PeftModel.from_pretrained(load(f"{folder}/full/model"), f"{folder}/{name}/adapter").eval()
  with_adapter, effect = difference(tuned, ids, of_adapter), difference(tuned, ids, of_base)
  merged = f"{folder}/{name}/merged"
  in_one = difference(load(merged), ids, of_adapter)
  print(f"  {name}: adapter {with_adapter:.2e}, merged {in_one:.2e}; it moves logits by {effect:.2f}")
  # The template's end of turn must end generation.
  ends = json.load(open(f"{merged}/generation_config.json"))["eos_token_id"]
  assert ends == 2 or 2 in ends, ends
  return max(with_adapter, in_one) <= TOLERANCE and effect > 100 * TOLERANCE


def main():
  folder, tokens, *adapters = sys.argv[1:]
  ids = torch.tensor([[int(token) for token in tokens.split(",")]])
  torch.set_num_threads(1)
  plain = difference(load(f"{folder}/full/model"), ids, f"{folder}/full.safetensors")
  print(f"{folder.split('/')[-1]}: full model {plain:.2e}, tolerance {TOLERANCE:.0e}")
  agree = [check_adapter(folder, name, ids) for name in adapters]
  return 0 if plain <= TOLERANCE and all(agree) else 1


if __name__ == "__main__":
  sys.exit(main())
