"""Whether llama.cpp takes what we export, and computes with it what was trained.

    llama_cpp_loads_our_files.py LLAMA-CPP TRAINER families FOLDER    random models of every family, with adapters of PEFT
    llama_cpp_loads_our_files.py LLAMA-CPP TRAINER tuned FOLDER       FOLDER/base with an adapter that luthier-trainer made, FOLDER/adapter,
                                                                      on the rows FOLDER/rows.jsonl
    llama_cpp_loads_our_files.py LLAMA-CPP TRAINER vocabulary FOLDER  writes an empty base with the vocabulary of GPT-2, FOLDER/empty

LLAMA-CPP is the folder that scripts/llama-cpp prints. Bases and merged models become GGUF files by llama.cpp's own converter, which knows
tokenizers by a hash of what they make of a text and takes no others. Of a model with another tokenizer it therefore converts everything
but that; of one with GPT-2's, everything, and nothing of llama.cpp is changed. All numbers are fp32.
"""

import contextlib
import ctypes
import io
import json
import logging
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

LLAMA_CPP, TRAINER = Path(sys.argv[1]), sys.argv[2]
CONVERT = LLAMA_CPP / "convert"
sys.path[:0] = [str(CONVERT), str(CONVERT / "gguf-py")]
os.environ["TQDM_DISABLE"] = "1"
warnings.filterwarnings("ignore")

import conversion
import gguf
import llama_cpp.llama_cpp as llama
import numpy
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# Of the spread of the logits: ten times what was measured. ggml takes the GELU of the Gemmas from a table in fp16.
TOLERANCE, TOLERANCE_OF_GELU = 3e-5, 5e-3
# What an adapter must do, so that equality says something.
EFFECT = 0.05
TOKENS = 40


# --- llama.cpp

messages = []


@llama.llama_log_callback
def keep_message(_, text, __):
  messages.append(text.decode(errors="replace"))


llama.llama_log_set(keep_message, ctypes.c_void_p(0))


class Refused(Exception):
  """llama.cpp, its converter or we do not take it; the text is why."""


def loaded(pointer):
  if not pointer:
    raise Refused(next((text.strip() for text in messages if "error" in text or "failed" in text), messages[-1]))
  return pointer


class Llama:
  """A GGUF file in llama.cpp; the adapter acts in every call that names it."""

  def __init__(self, path):
    messages.clear()
    self.model = loaded(llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params()))
    self.vocab = llama.llama_model_get_vocab(self.model)

  def logits(self, ids, adapter=None, only_last=False):
    """[T, V], each token's or the last one's; with the cache of keys and values in fp32, which is fp16 unless one says so."""
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.type_k = params.type_v = llama.GGML_TYPE_F32
    params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_threads = params.n_threads_batch = 1
    context = loaded(llama.llama_init_from_model(self.model, params))
    if adapter is not None:
      messages.clear()
      lora = loaded(llama.llama_adapter_lora_init(self.model, str(adapter).encode()))
      assert llama.llama_set_adapter_lora(context, lora, 1.0) == 0
    batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for place, token in enumerate(ids):
      batch.token[place], batch.pos[place], batch.logits[place] = token, place, not only_last or place == len(ids) - 1
      batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    assert llama.llama_decode(context, batch) == 0
    shape = 1 if only_last else len(ids), llama.llama_vocab_n_tokens(self.vocab)
    result = torch.from_numpy(numpy.ctypeslib.as_array(llama.llama_get_logits(context), (shape[0] * shape[1],)).reshape(shape).copy())
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    return result

  def answer(self, ids, ends, adapter=None, most=48):
    """The likeliest tokens, one after the other, up to one of `ends`."""
    answer = []
    while len(answer) < most:
      token = self.logits(ids + answer, adapter, only_last=True)[0].argmax().item()
      if token in ends:
        break
      answer.append(token)
    return answer

  def tokens(self, text):
    encoded, ids = text.encode(), (llama.llama_token * (len(text.encode()) + 8))()
    return ids[:llama.llama_tokenize(self.vocab, encoded, len(encoded), ids, len(ids), False, True)]

  def ends(self):
    """Tokens after which llama.cpp stops by itself."""
    return {token for token in range(llama.llama_vocab_n_tokens(self.vocab)) if llama.llama_vocab_is_eog(self.vocab, token)}

  def template(self):
    return llama.llama_model_chat_template(self.model, None).decode()


def without_vocabulary(self):
  self._set_vocab_none()
  if not any(key.endswith(".vocab_size") for key in self.gguf_writer.kv_data[0]):
    self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])


@contextlib.contextmanager
def no_vocabulary():
  """Has llama.cpp's converter leave the tokenizer out."""
  conversion.load_all_models()
  classes = {conversion.TextModel} | {model for models in conversion.ModelBase._model_classes.values() for model in models.values()}
  own = {model: model.set_vocab for model in classes if "set_vocab" in vars(model)}
  for model in own:
    model.set_vocab = without_vocabulary
  try:
    yield
  finally:
    for model, method in own.items():
      model.set_vocab = method


def convert(script, folder, path, *arguments):
  """Runs a script of llama.cpp, as it is."""
  before, sys.argv = sys.argv, [script, str(folder), "--outtype", "f32", "--outfile", str(path), *map(str, arguments)]
  said = io.StringIO()
  handler = logging.StreamHandler(said)
  logging.getLogger().addHandler(handler)
  try:
    with contextlib.redirect_stderr(said):
      runpy.run_path(str(CONVERT / script), run_name="__main__")
  except (SystemExit, ValueError, NotImplementedError) as error:
    raise Refused(str(error) if not isinstance(error, SystemExit) else said.getvalue().strip().split("\n")[-1]) from error
  finally:
    sys.argv = before
    logging.getLogger().removeHandler(handler)
  return path


# --- What is compared with

def load(folder):
  return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model, ids):
  with torch.no_grad():
    return model(torch.tensor([ids])).logits[0]


def difference(got, expected):
  return ((got - expected).abs().max() / (expected.max() - expected.min())).item()


def export(folder, form):
  """What luthier-trainer makes of FOLDER/base and FOLDER/adapter."""
  out = folder / ("adapter.gguf" if form == "gguf" else form)
  done = subprocess.run([TRAINER, "export", "--base", folder / "base", "--adapter", folder / "adapter", "--format", form, "--out", out],
                        capture_output=True, text=True, check=False)
  if done.returncode != 0:
    raise Refused(done.stderr.strip())
  return out


def tensors(path):
  return {tensor.name: torch.from_numpy(numpy.array(tensor.data)) for tensor in gguf.GGUFReader(path).tensors}


def same_as_theirs(ours, theirs, scaled):
  """Whether both GGUF adapters have the same tensors; with `scaled` up to one factor for each B, which llama.cpp's script leaves out."""
  ours, theirs = tensors(ours), tensors(theirs)
  if ours.keys() != theirs.keys():
    return False
  factors = {name: 1 if not scaled or name.endswith("lora_a") else (ours[name].norm() / theirs[name].norm()).item() for name in ours}
  return all(torch.allclose(ours[name], theirs[name] * factor, rtol=1e-5 if scaled else 0, atol=1e-7 if scaled else 0)
             for name, factor in factors.items())


# --- Random models

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = ATTENTION + ["gate_proj", "up_proj", "down_proj"]
PLAIN = dict(rope_type="default", rope_theta=10000.0)


def case(family, lora=None, theirs="equal", **config):
  """`theirs`: what llama.cpp's convert_lora_to_gguf.py makes of the adapter: our tensors, those without a factor, or what it says to it."""
  sizes = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
               max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_parameters=PLAIN, bos_token_id=1,
               eos_token_id=2, pad_token_id=0)
  return family, sizes | config, dict(r=3, lora_alpha=5, target_modules=LINEAR) | (lora or {}), theirs


# Within what llama.cpp computes at all: it leaves out Mistral's windows, takes the scale of Gemma's attention from the size of a head and
# SmolLM3's layers without positions to be every fourth, and knows no Qwen3-MoE whose layers are not all sparse and no tied OLMo 2.
CASES = [
    case("llama", attention_bias=True, mlp_bias=True, theirs="scaled",
         lora=dict(target_modules=LINEAR + ["embed_tokens", "lm_head"], use_rslora=True, rank_pattern={"q_proj": 2, "embed_tokens": 4},
                   alpha_pattern={"v_proj": 7}),
         rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                              original_max_position_embeddings=16)),
    case("llama", tie_word_embeddings=True, lora=dict(layers_to_transform=[1])),
    case("mistral", sliding_window=None, head_dim=12, lora=dict(target_modules=ATTENTION)),
    case("qwen2", tie_word_embeddings=True, use_sliding_window=False),
    case("qwen3", head_dim=12),
    case("qwen3_moe", head_dim=12, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True,
         lora=dict(target_modules=ATTENTION)),
    case("qwen3_moe", head_dim=12, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True,
         theirs="Unprocessed experts",
         lora=dict(target_modules=["q_proj"], rank_pattern={"gate_up_proj": 2}, alpha_pattern={"experts.down_proj": 7},
                   target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"])),
    case("gemma2", tie_word_embeddings=True, head_dim=8, query_pre_attn_scalar=8, sliding_window=6, attn_logit_softcapping=4.0,
         final_logit_softcapping=6.0),
    case("gemma3_text", tie_word_embeddings=True, head_dim=8, query_pre_attn_scalar=8, sliding_window=6, num_hidden_layers=6,
         layer_types=["sliding_attention"] * 5 + ["full_attention"],
         rope_parameters=dict(full_attention=dict(rope_type="linear", factor=2.0, rope_theta=1e6), sliding_attention=PLAIN)),
    case("phi3", lora=dict(target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]), head_dim=8, sliding_window=None,
         max_position_embeddings=64, original_max_position_embeddings=16,
         rope_parameters=dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.5, short_factor=[1.0, 1.3],
                              long_factor=[2.0, 5.0])),
    case("smollm3", tie_word_embeddings=True, num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0], theirs="scaled",
         lora=dict(use_rslora=True)),
    case("granite", tie_word_embeddings=True, embedding_multiplier=3.0, attention_multiplier=0.15, residual_multiplier=0.45,
         logits_scaling=1.7),
    case("olmo2"),
]

# What llama.cpp's adapters have no place for, and whether our merged model has: llama.cpp's Gemma 2 has no head of its own, and its
# converter leaves that of a merged one out without a word.
MERGE = "export the merged model instead"
REFUSED = [
    ("llama", dict(use_dora=True), "use_dora: a GGUF adapter cannot hold magnitudes; " + MERGE, True),
    ("llama", dict(modules_to_save=["lm_head"]), "modules_to_save: a GGUF adapter cannot hold whole modules; " + MERGE, True),
    ("qwen2", dict(target_modules=["lm_head"]), "cannot hold an adapter on a head that is tied to the embedding; " + MERGE, True),
    ("gemma3_text", dict(target_modules=["embed_tokens"]), "an adapter on an embedding that is tied to the head; " + MERGE, True),
    ("gemma2", dict(target_modules=["lm_head"]), "leave lm_head and embed_tokens as they are", False),
]


def write_tokenizer(folder, size):
  """So that there is one; nobody asks it for anything."""
  words = {f"t{number}": number for number in range(size)}
  (folder / "tokenizer.json").write_text(json.dumps(dict(
      version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None, pre_tokenizer=dict(type="Whitespace"),
      post_processor=None, decoder=None, model=dict(type="WordLevel", vocab=words, unk_token="t0"))))
  (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="t2")))


def write_case(folder, family, config, lora):
  """A base whose weights are such that every part of it matters, and an adapter."""
  torch.manual_seed(7)
  model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config, dtype="float32"))
  for name, weight in model.named_parameters():
    torch.nn.init.normal_(weight, mean=0.0 if "norm" not in name else 0.2 if "gemma" in family else 1.0, std=0.2)
  model.save_pretrained(folder / "base")
  write_tokenizer(folder / "base", config["vocab_size"])
  adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
  for name, weight in adapted.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(weight, std=0.2)
  adapted.save_pretrained(folder / "adapter")


def check_numbers(folder, ids, tolerance=TOLERANCE):
  """Logits of the base, of the base with our GGUF adapter, and of our merged model, in llama.cpp and in transformers + PEFT."""
  plain = logits(load(folder / "base"), ids)
  tuned = logits(PeftModel.from_pretrained(load(folder / "base"), folder / "adapter").eval(), ids)
  base = Llama(convert("convert_hf_to_gguf.py", folder / "base", folder / "base.gguf"))
  found = dict(base=difference(base.logits(ids), plain), adapter=difference(base.logits(ids, export(folder, "gguf")), tuned),
               merged=merged_difference(folder, ids))
  effect = difference(base.logits(ids), tuned)
  return max(found.values()) <= tolerance and effect >= EFFECT, \
      ", ".join(f"{name} {value:.1e}" for name, value in found.items()) + f"; without the adapter {effect:.2f}"


def merged_difference(folder, ids):
  merged = export(folder, "merged")
  got = Llama(convert("convert_hf_to_gguf.py", merged, folder / "merged.gguf")).logits(ids)
  return difference(got, logits(load(merged), ids))


def check_theirs(folder, theirs):
  try:
    path = convert("convert_lora_to_gguf.py", folder / "adapter", folder / "theirs.gguf", "--base", folder / "base")
  except Refused as refused:
    return theirs in str(refused), f"convert_lora_to_gguf.py refuses it: {refused}"
  scaled = theirs == "scaled"
  return same_as_theirs(folder / "adapter.gguf", path, scaled), \
      "convert_lora_to_gguf.py: the same tensors" + (" but for rsLoRA and patterns, which it ignores" if scaled else "")


def check_refusal(folder, family, lora, said, merges, ids):
  config = next(config for named, config, _, _ in CASES if named == family) | dict(tie_word_embeddings=True)
  write_case(folder, family, config, dict(r=3, lora_alpha=5, target_modules=ATTENTION) | lora)
  try:
    export(folder, "gguf")
    return False, f"was not refused; expected: {said}"
  except Refused as refused:
    merged = merged_difference(folder, ids)
    return said in str(refused) and (merged <= tolerance_of(family)) == merges, f"{refused}; merged {merged:.1e}"


def tolerance_of(family):
  return TOLERANCE_OF_GELU if family.startswith("gemma") else TOLERANCE


def families(work, report):
  ids = torch.randint(3, 96, (TOKENS,), generator=torch.Generator().manual_seed(3)).tolist()
  with no_vocabulary():
    for number, (family, config, lora, theirs) in enumerate(CASES):
      folder = work / f"{number}-{family}"
      write_case(folder, family, config, lora)
      report(family, check_numbers(folder, ids, tolerance_of(family)))
      report(family, check_theirs(folder, theirs))
    for number, (family, lora, said, merges) in enumerate(REFUSED):
      report(f"{family}, refused", check_refusal(work / f"refused-{number}-{family}", family, lora, said, merges, ids))


# --- Models that luthier-trainer tuned

TEMPLATE = ("{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
            "{%- if message.role == 'assistant' %}{%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}"
            "{%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}{{- '\\n' }}{%- endfor %}"
            "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")


def vocabulary(work, _):
  """The vocabulary as llama.cpp's sources hold it, and two tokens for turns; the text's end is another token than a turn's. Beside it a
  template for a job of its own."""
  fields = gguf.GGUFReader(CONVERT / "ggml-vocab-gpt-2.gguf").fields
  words, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
  added = [dict(id=len(words) + place, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
           for place, content in enumerate(["<|im_start|>", "<|im_end|>"])]
  level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
  end = len(words) - 1
  config = case("llama", vocab_size=len(words) + 2, hidden_size=64, tie_word_embeddings=True, bos_token_id=end, eos_token_id=end)[1]
  AutoConfig.for_model("llama", **config, architectures=["LlamaForCausalLM"], dtype="float32").save_pretrained(work / "empty")
  (work / "empty/tokenizer.json").write_text(json.dumps(dict(
      version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None, pre_tokenizer=level, post_processor=None,
      decoder=level, model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                                fuse_unk=False, byte_fallback=False, vocab={word: place for place, word in enumerate(words)},
                                merges=merges))))
  (work / "empty/tokenizer_config.json").write_text(json.dumps(dict(
      tokenizer_class="PreTrainedTokenizerFast", eos_token=words[end], chat_template=TEMPLATE)))
  (work / "own.jinja").write_text(TEMPLATE.replace("message.role + ", "'the ' + message.role + "))


def check_answers(folder, rows, tokenizer):
  """Greedy answers of llama.cpp with our GGUF adapter are those of `luthier-trainer generate`, and not those of the base."""
  questions = [row["messages"][-2]["content"] for row in rows]
  asked = [dict(prompt=question) | ({"system": row["messages"][0]["content"]} if row["messages"][0]["role"] == "system" else {})
           for row, question in zip(rows, questions)]
  said = subprocess.run([TRAINER, "generate", "--base", folder / "base", "--adapter", folder / "adapter", "--input", "json", "-o", "json",
                         "--max-new-tokens", "48"], input="".join(json.dumps(each) + "\n" for each in asked), capture_output=True,
                        text=True, check=True)
  expected = [json.loads(line)["answer"] for line in said.stdout.splitlines()]
  ends = json.loads((folder / "merged/generation_config.json").read_text())["eos_token_id"]
  ends = set(ends if isinstance(ends, list) else [ends])
  base = Llama(folder / "base.gguf")

  prompts = [tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_dict=False) for row in rows]

  def answers(adapter):
    return [tokenizer.decode(base.answer(prompt, ends, adapter)) for prompt in prompts]

  tuned = answers(folder / "adapter.gguf")
  equal = sum(got == wanted for got, wanted in zip(tuned, expected))
  return equal == len(rows) and tuned != answers(None), f"{equal} of {len(rows)} answers are the same, such as {tuned[0]!r}"


def check_text(folder, rows, tokenizer):
  """The merged model's GGUF file encodes as the tokenizer does, has the job's template, and stops where a turn ends."""
  merged = Llama(folder / "merged.gguf")
  texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows] + ["Ünï  code 12345\n\n\tx 你好 🙂"]
  equal = sum(merged.tokens(text) == tokenizer.encode(text, add_special_tokens=False) for text in texts)
  ends = json.loads((folder / "merged/generation_config.json").read_text())["eos_token_id"]
  template = (folder / "own.jinja").read_text()
  return equal == len(texts) and merged.template() == template == tokenizer.chat_template and set(ends) <= merged.ends(), \
      f"{equal} of {len(texts)} texts have the same tokens; it has the job's template, and stops at {sorted(merged.ends())}"


def tuned(work, report):
  rows = [json.loads(line) for line in (work / "rows.jsonl").read_text().splitlines()]
  known = (work / "base/known-vocabulary").exists()
  tokenizer = AutoTokenizer.from_pretrained(export(work, "merged"))
  ids = tokenizer.apply_chat_template(rows[0]["messages"], return_dict=False)
  with contextlib.nullcontext() if known else no_vocabulary():
    report("logits", check_numbers(work, ids))
    report("adapter", check_theirs(work, "equal"))
  report("answers", check_answers(work, rows, tokenizer))
  if known:
    report("text", check_text(work, rows, tokenizer))


def main():
  torch.set_num_threads(1)
  results = [True]

  def report(name, result):
    results.append(result[0])
    print(f"{'ok  ' if result[0] else 'FAIL'} {name}: {result[1]}", flush=True)

  dict(families=families, tuned=tuned, vocabulary=vocabulary)[sys.argv[3]](Path(sys.argv[4]), report)
  return 0 if all(results) else 1


if __name__ == "__main__":
  sys.exit(main())
