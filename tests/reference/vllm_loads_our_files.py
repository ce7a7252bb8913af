"""Whether a real vLLM, on the CPU, loads what luthier-trainer writes and computes what our engine does.

    vllm_loads_our_files.py make|load|serve|experts PROGRAMS WORK CASE     as vllm_loads_our_files.sh calls it

A case is a small model of one family with adapters that the trainer makes. vLLM gets all of them at once, with requests to the base
among them. Compared are the log-probabilities of the whole vocabulary after each beginning of a text, and each adapter has to move
them, or equality would prove nothing. What vLLM is known to refuse (docs/vllm.md) has to be refused.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

TOKENS = [1, 120, 114, 117, 104, 13, 40, 50, 60, 2, 13, 1, 100, 200, 250, 7, 90, 91, 92, 180]
TOLERANCE = 1e-4
ROOT = Path(__file__).resolve().parents[2]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ADAPTERS = {
    "attention": dict(rank=8, target_modules=ATTENTION),
    "all_linear": dict(rank=16),
    "rslora": dict(rank=64, alpha=16, rslora=True),
    "patterns": dict(rank=8, rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 16}, alpha_pattern={"down_proj": 3}),
    "one_layer": dict(rank=4, layers=[1]),
}
FUSED = ADAPTERS | {
    "attention": dict(rank=8, target_modules=["qkv_proj", "o_proj"]),
    "patterns": dict(rank=8, rank_pattern={"qkv_proj": 2}, alpha_pattern={"down_proj": 3}),
}
FUSED |= {name: dict(rank=4, target_modules=["qkv_proj", module]) for name, module in (("head", "lm_head"), ("embedding", "embed_tokens"))}
EMBEDDING = {"embedding": dict(rank=4, target_modules=["q_proj", "embed_tokens"])}
HEAD = {"head": dict(rank=4, target_modules=["q_proj", "lm_head"])}
# With a part of what vLLM says.
DORA = {"dora": (dict(rank=4, dora=True), "DoRA")}
SAVED = {"saved": (dict(rank=4, modules_to_save=["lm_head"]), "modules_to_save")}


def refused(adapters):
  return {name: (lora, "expected target modules") for name, lora in adapters.items()}


# Case: what sets its config.json apart, adapters that load, adapters that do not.
CASES = {
    "llama": (dict(tie_word_embeddings=False), ADAPTERS | HEAD | EMBEDDING, DORA | SAVED),
    "llama_tied": (dict(model_type="llama"), ADAPTERS | HEAD | EMBEDDING, {}),
    "qwen2": (dict(tie_word_embeddings=False), ADAPTERS, refused(HEAD | EMBEDDING)),
    "qwen3": (dict(head_dim=32), ADAPTERS | HEAD | EMBEDDING, {}),
    "mistral": (dict(head_dim=32, sliding_window=6, tie_word_embeddings=False), ADAPTERS, refused(HEAD | EMBEDDING)),
    "gemma2": (dict(head_dim=32, sliding_window=6, query_pre_attn_scalar=8, attn_logit_softcapping=5.0, final_logit_softcapping=8.0),
               ADAPTERS, refused(HEAD | EMBEDDING)),
    "gemma3_text": (dict(head_dim=32, sliding_window=6, query_pre_attn_scalar=8,
                         layer_types=["sliding_attention", "full_attention"]), ADAPTERS, refused(HEAD | EMBEDDING)),
    "phi3": (dict(tie_word_embeddings=False, sliding_window=None), FUSED, {}),
    # vLLM runs this family and OLMo 2 by transformers' code, where adapters on the embedding are wrong in a batch with others
    # (docs/vllm.md).
    "smollm3": (dict(no_rope_layers=[1, 0]), ADAPTERS, refused(HEAD)),
    "granite": (dict(embedding_multiplier=3.0, attention_multiplier=0.15, residual_multiplier=0.45, logits_scaling=1.7),
                ADAPTERS | HEAD | EMBEDDING, {}),
    "olmo2": (dict(), ADAPTERS, refused(HEAD)),
    "qwen3_moe": (dict(head_dim=32, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True,
                       decoder_sparse_step=1, mlp_only_layers=[1]),
                  {"all_linear": dict(rank=8),
                   "experts": dict(rank=4, rank_pattern={"gate_up_proj": 6}, target_modules=["q_proj"],
                                   target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"])}, {}),
}


def random_base(folder, family, changes, texts):
  """Weights that hide nothing: no norm of 1, no bias of 0, wide logits. Heads are as long as vLLM's kernels need them."""
  import torch
  from transformers import AutoConfig, AutoModelForCausalLM
  sizes = dict(vocab_size=259, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
               num_key_value_heads=1, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None,
               eos_token_id=2, pad_token_id=0)
  config = AutoConfig.for_model(**(sizes | dict(model_type=family) | changes))
  torch.manual_seed(7)
  model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      noise = torch.randn(weight.shape)
      if name.endswith("bias") or "embed_tokens" in name or "lm_head" in name:
        weight.copy_(0.2 * noise)
      elif weight.ndim == 1:
        weight.copy_((0.0 if family.startswith("gemma") else 1.0) + 0.25 * noise)
      else:
        weight.copy_(noise / math.sqrt(weight.shape[-1]))
  model.save_pretrained(folder)
  for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(texts / name, folder)


def run(*command, text=None):
  done = subprocess.run([str(part) for part in command], input=text or "", capture_output=True, text=True)
  if done.returncode != 0:
    raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
  return done.stdout


def report(name, difference, good):
  print(f"  {name}: {difference}{'' if good else '   WRONG'}", flush=True)
  return good


class Case:
  def __init__(self, programs, work, name):
    self.programs, self.folder, self.name = Path(programs), Path(work) / name, name
    self.base = self.folder / "base"

  def adapter(self, name):
    return self.folder / name / "adapter"

  def train(self, name, lora, rows, **training):
    spec = dict(protocol=1, base_model=str(self.base), dataset=dict(train=str(rows)), lora=lora, training=training,
                resources=dict(threads=1))
    path = self.folder / f"{name}.json"
    path.write_text(json.dumps(spec))
    run(self.programs / "luthier-trainer", "run", "--spec", path, "--out", self.folder / name)

  def merge(self, name):
    run(self.programs / "luthier-trainer", "export", "--base", self.base, "--adapter", self.adapter(name), "--format", "merged",
        "--out", self.folder / "merged")


class FamilyCase(Case):
  """One family of models."""

  def __init__(self, programs, work, name):
    super().__init__(programs, work, name)
    self.changes, self.adapters, self.refused = CASES[name]

  def make(self):
    run(self.programs / "make-tiny-base", self.folder)
    random_base(self.base, self.changes.get("model_type", self.name), self.changes, self.folder / "empty")
    self.logits("base")
    for name, lora in (self.adapters | {name: lora for name, (lora, _) in self.refused.items()}).items():
      self.train(name, lora, self.folder / "train.jsonl", epochs=8, learning_rate=0.01)
      self.logits(name)
    self.merge(list(self.adapters)[1])

  def logits(self, name):
    with_adapter = [] if name == "base" else ["--adapter", self.adapter(name)]
    run(self.programs / "reference-check", "logits", "--base", self.base, *with_adapter, "--tokens", ",".join(map(str, TOKENS)),
        "--out", self.folder / f"{name}.safetensors")

  def expected(self, name):
    import torch
    from safetensors.torch import load_file
    return torch.log_softmax(load_file(self.folder / f"{name}.safetensors")["logits"], -1)

  def load(self):
    """All adapters on one base at once."""
    from vllm.lora.request import LoRARequest
    llm = load(self.base, enable_lora=True, max_loras=len(self.adapters), max_lora_rank=64)
    requests = [LoRARequest(name, i + 1, str(self.adapter(name))) for i, name in enumerate(self.adapters)]
    base, agree = self.expected("base"), []
    for name, ours in zip(["base", *self.adapters], distributions(llm, [None, *requests])):
      expected = self.expected(name)
      difference, effect = (ours - expected).abs().max().item(), (expected - base).abs().max().item()
      agree.append(report(f"{self.name}/{name}", f"{difference:.1e}; it moves log-probabilities by {effect:.1f}",
                          difference <= TOLERANCE and (name == "base" or effect > 1000 * TOLERANCE)))
    for i, (name, (_, why)) in enumerate(self.refused.items()):
      try:  # not by a request: one that fails ends the engine
        llm.llm_engine.add_lora(LoRARequest(name, 100 + i, str(self.adapter(name))))
        agree.append(report(f"{self.name}/{name}", "is not refused", False))
      except Exception as refusal:
        agree.append(report(f"{self.name}/{name}", f"refused: {str(refusal).splitlines()[-1][:160]}", why in str(refusal)))
    return all(agree)

  def serve(self):
    """The second adapter merged, as a model of its own."""
    merged = distributions(load(self.folder / "merged"), [None])[0]
    difference = (merged - self.expected(list(self.adapters)[1])).abs().max().item()
    return report(f"{self.name}/merged", f"{difference:.1e}", difference <= TOLERANCE)

  def experts(self):
    """vLLM's kernels for CPUs take no adapters on experts. So what its own code makes of the file for its kernels of GPUs, for which
    each expert has matrices of its own, is merged into the base here and compared with what our merge gives."""
    from types import SimpleNamespace
    from safetensors.torch import load_file
    from vllm.config.lora import LoRAConfig
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.lora.peft_helper import PEFTHelper
    count, layer = self.changes["num_experts"], "model.layers.0.mlp."
    helper = PEFTHelper.from_local_dir(str(self.adapter("experts")), 256)
    helper.validate_legal(LoRAConfig(max_lora_rank=64))
    lora = LoRAModel.from_local_checkpoint(str(self.adapter("experts")), {*ATTENTION, "experts", "gate"}, helper, lora_model_id=1,
                                           device="cpu")
    for weights in lora.loras.values():
      weights.optimize()
    # As with enable_mixed_moe_lora_format=True and is_3d_lora_weight=True.
    manager = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(architectures=["Qwen3MoeForCausalLM"])),
                              _get_lora_layer_weights=lambda model, name: model.get_lora(name))
    module = SimpleNamespace(local_num_experts=count, global_num_experts=count, ep_rank=0)
    LoRAModelManager._convert_3d_to_2d_moe_lora(manager, lora, module, f"{layer}experts")
    base, merged = (load_file(folder / "model.safetensors") for folder in (self.base, self.folder / "merged"))
    packed, router = lora.loras[f"{layer}experts"], lora.loras[f"{layer}gate"]
    deltas = {f"{layer}gate.weight": router.lora_b @ router.lora_a}
    for part, name in enumerate(["gate_proj", "down_proj", "up_proj"]):
      for expert in range(count):
        deltas[f"{layer}experts.{expert}.{name}.weight"] = packed.lora_b[part][expert] @ packed.lora_a[part][expert]
    difference = max((base[name] + delta - merged[name]).abs().max().item() for name, delta in deltas.items())
    effect = min(delta.abs().max().item() for delta in deltas.values())
    return report(f"{self.name}/experts, merged", f"{difference:.1e}; the least of them moves a weight by {effect:.2f}",
                  difference <= TOLERANCE / 10 and effect > 100 * TOLERANCE)


class ShippedCase(Case):
  """The shipped base, tuned on an example task: tokenizer, chat template and ends of answers."""

  def __init__(self, programs, work, name):
    super().__init__(programs, work, name)
    self.base = ROOT / "examples/base/luthier-tiny"
    self.task = ROOT / "examples/tasks/classification"

  def make(self):
    self.folder.mkdir(parents=True)
    for name, rank in (("first", 16), ("second", 8)):
      self.train(name, dict(rank=rank), self.task / "train.jsonl", max_steps=120 if name == "first" else 40, batch_tokens=2048)
    self.merge("first")
    questions = [dict(system=row[0]["content"], prompt=row[1]["content"]) for row in self.conversations()]
    answers = run(self.programs / "luthier-trainer", "generate", "--base", self.base, "--adapter", f"first={self.adapter('first')}",
                  "--adapter", f"second={self.adapter('second')}", "--max-new-tokens", "24", "--input", "json", "-o", "json",
                  text="".join(json.dumps(question | dict(adapter=adapter)) + "\n" for adapter in ("base", "first", "second")
                               for question in questions))
    (self.folder / "answers.jsonl").write_text(answers)

  def conversations(self):
    rows = (self.task / "test.jsonl").read_text().splitlines()[:16]
    return [json.loads(row)["messages"][:2] for row in rows]

  def answers(self, adapter):
    lines = [json.loads(line) for line in (self.folder / "answers.jsonl").read_text().splitlines()]
    return [line["answer"] for line in lines if line["model"] == adapter]

  def load(self):
    from vllm.lora.request import LoRARequest
    # A place more than adapters: on a CPU, vLLM 0.32 gives what the base generates beside adapters the last place's adapter.
    llm = load(self.base, enable_lora=True, max_loras=3, max_lora_rank=16)
    requests = [None] + [LoRARequest(name, i + 1, str(self.adapter(name))) for i, name in enumerate(("first", "second"))]
    return self.chat(llm, ["base", "first", "second"], requests)

  def serve(self):
    return self.chat(load(self.folder / "merged"), ["first"], [None])

  def chat(self, llm, names, requests):
    from vllm import SamplingParams
    conversations = self.conversations()
    outputs = llm.chat(conversations * len(names), SamplingParams(temperature=0, max_tokens=24), use_tqdm=False,
                       lora_request=[request for request in requests for _ in conversations])
    texts, agree = [output.outputs[0].text for output in outputs], []
    for i, name in enumerate(names):
      ours, theirs = self.answers(name), texts[i * len(conversations):][:len(conversations)]
      others = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
      agree.append(report(f"{self.name}/{name}{'' if len(names) > 1 else ', merged'}",
                          f"{len(ours) - len(others)} of {len(ours)} answers are the same, such as {theirs[0]!r}{others or ''}",
                          not others))
    agree.append(report(self.name, "adapters answer otherwise than the base", self.answers("base") != self.answers("first")))
    return all(agree)


def load(folder, **more):
  from vllm import LLM
  return LLM(model=str(folder), dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=16, max_logprobs=-1,
             enable_prefix_caching=False, seed=0, **more)


def distributions(llm, adapters):
  """Of each adapter (None: the base) the log-probabilities [T, V] of what follows each beginning of the text. Not by
  prompt_logprobs: where the head takes adapters, vLLM fails to compute these on a CPU."""
  import torch
  from vllm import SamplingParams
  beginnings = [dict(prompt_token_ids=TOKENS[:length]) for length in range(1, len(TOKENS) + 1)]
  outputs = llm.generate(beginnings * len(adapters), SamplingParams(temperature=0, max_tokens=1, logprobs=-1), use_tqdm=False,
                         lora_request=[adapter for adapter in adapters for _ in beginnings])
  rows = [output.outputs[0].logprobs[0] for output in outputs]
  all_rows = torch.tensor([[row[token].logprob for token in range(len(row))] for row in rows])
  return all_rows.view(len(adapters), len(beginnings), -1)


def main():
  step, programs, work, name = sys.argv[1:]
  os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
  case = (ShippedCase if name == "shipped" else FamilyCase)(programs, work, name)
  failed = getattr(case, step)() is False
  sys.stdout.flush()
  # Not through the interpreter's end, where vLLM's engine of a family that it runs by transformers' code faults on a CPU.
  os._exit(1 if failed else 0)


if __name__ == "__main__":
  main()
