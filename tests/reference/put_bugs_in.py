#!/usr/bin/env python3
"""Puts the bugs of docs/training-bugs.md in, one at a time, builds what tests them, and says which tests notice.

    tests/reference/put_bugs_in.py [NUMBER …]      in the root of a worktree that nobody is editing; default: all

A bug that no test notices, or whose place in the code has changed, makes it exit 1.
"""
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = "build/release/bin/"
OPS, MODELS, LORA = "trainer_ops_test", "trainer_models_test", "trainer_lora_test"
TRAIN, EXPORT, DATASET = "trainer_train_test", "trainer_export_test", "dataset_test"
PROGRAM = "trainer_program_test"
FIXTURES = ("reference-check", ["tests/reference/reference_models.sh", BIN + "reference-check", "tests/fixtures/models"])


def tests(program, names, *more):
    return (program, [BIN + program, "--gtest_filter=" + names], *more)


def program_tests(names):
    return tests(PROGRAM, "TrainerProgramTest." + names, "luthier-trainer")


# number, what is wrong, file, text, what it becomes, (target to build, command, further targets)
BUGS = [
    (1, "a mean of the micro-batches' means", "worker/trainer/train/step.cc",
     "    loss.backward();\n",
     "    (loss * (static_cast<double>(result.trained_tokens) / static_cast<double>(batch.trained_tokens() * static_cast<int64_t>(step.size())))).backward();\n",
     tests(TRAIN, "StepTest.*")),
    (2, "a short step is divided by the tokens of a full one", "worker/trainer/train/step.cc",
     "std::max<int64_t>(result.trained_tokens, 1)", "std::max<int64_t>(result.trained_tokens, *run_.training().batch_tokens)",
     tests(TRAIN, "StepTest.*")),
    (4, "generation config keeps the base's end", "worker/trainer/export/export.cc",
     "for (int32_t id : model.end_ids) {", "for (int32_t id : std::vector<int32_t>()) {", tests(EXPORT, "ExportTest.*")),
    (4, "the end of a turn is not trained", "lib/dataset/encode.cc",
     "if (tokenizer.IsSpecial(encoding.ids[t])) return", "if (false) return", tests(DATASET, "EncodeTest.*")),
    (5, "BOS of the data beside that of the tokenizer", "lib/dataset/encode.cc",
     "ids[1] == *bos) ids.erase(ids.begin());", "ids[1] == *bos) ids.size();", tests(DATASET, "BosTest.*")),
    (6, "labels shifted twice", "worker/trainer/train/batch.cc",
     "labels.push_back(document->ids[static_cast<size_t>(t + 1)]);",
     "labels.push_back(document->ids[static_cast<size_t>(std::min(t + 2, length - 1))]);", FIXTURES),
    (7, "documents of a batch attend to each other", "worker/trainer/train/batch.cc",
     "std::make_shared<DocumentAttention>(batch.documents)",
     "std::make_shared<DocumentAttention>(ops::Documents{{0, batch.documents.back().second}})", FIXTURES),
    (8, "positions in bf16", "worker/trainer/models/common/rotary.cc",
     "positions_T.to(at::kFloat).unsqueeze(1)", "positions_T.to(at::kBFloat16).to(at::kFloat).unsqueeze(1)",
     tests(MODELS, "RotaryTest.*")),
    (9, "merging a tied head writes the embedding", "worker/trainer/lora/lora.cc",
     '    const std::string name = linear.module + ".weight";',
     '    const std::string name = linear.module == "lm_head" && model.tie_word_embeddings ? kEmbedding : linear.module + ".weight";',
     tests(LORA, "LoraTest.*")),
    (9, "a stored head of a tied model is dropped", "worker/trainer/models/weights.cc",
     "  LUTHIER_RETURN_IF_ERROR(CheckTiedHead(config, files->tensors()));\n", "  (void)CheckTiedHead;\n", tests(MODELS, "WeightsTest.*")),
    (10, "a layer that is computed again draws new masks", "worker/trainer/ops/recompute.cc",
     '    generator.set_state(context->saved_data["generator"].toTensor());\n', "", tests(TRAIN, "ComputeTest.*")),
    (11, "resume without the generator's state", "worker/trainer/train/trainer.cc",
     "    generator.set_state(state->generator_state);\n", "", program_tests("KilledAfterEveryStep*")),
    (11, "resume without the optimizer's state", "worker/trainer/train/trainer.cc",
     "    stepper_.optimizer().Restore(state->optimizer, state->step);\n", "", program_tests("KilledAfterEveryStep*")),
    (12, "the schedule counts micro-batches", "worker/trainer/train/trainer.cc",
     "run_.total_steps}, step_);", "2 * run_.total_steps}, step_);", program_tests("TheLearningRate*")),
    (13, "a recomputed layer over a frozen embedding has no gradient", "worker/trainer/ops/recompute.cc",
     "x.options().dtype(at::kFloat)).set_requires_grad(true);", "x.options().dtype(at::kFloat)).set_requires_grad(false);",
     tests(TRAIN, "ComputeTest.*")),
    (14, "rows without a trained token are kept", "lib/dataset/validate.cc",
     "if (example->TrainedTokens() == 0) {", "if (false) {", tests(DATASET, "ValidateTest.*")),
    (15, "without generation tags nothing is trained", "lib/dataset/encode.cc",
     "LUTHIER_ASSIGN_OR_RETURN(spans, SpansByTurnDifference(row, rendered));", "return std::vector<TextSpan>{};",
     tests(DATASET, "EncodeTest.*")),
    (16, "a cut row gets a mask of zeros", "lib/dataset/encode.cc",
     "      example->trained.resize(options_.max_length);\n", "      example->trained.assign(options_.max_length, 0);\n",
     tests(DATASET, "EncodeTest.*")),
    (17, "prompt and answer merge into one token", "lib/dataset/encode.cc",
     "  if (!prompt_survives) {", "  if (false) {", tests(DATASET, "EncodeTest.*")),
    (18, "turns that the template renders anew are not noticed", "lib/dataset/encode.cc",
     "if (!with.text.starts_with(before.text) || !rendered.text.starts_with(with.text)) {", "if (false) {",
     tests(DATASET, "EncodeTest.*")),
    (21, "a query does not see itself", "worker/trainer/ops/attention.cc",
     "int64_t seen_to(int64_t i) const { return begin + i + 1 - first_key; }",
     "int64_t seen_to(int64_t i) const { return begin + i - first_key; }", tests(OPS, "OpsTest.PackedAttention*")),
    (22, "what is trained is bf16 where the computation is", "worker/trainer/train/preparation.cc",
     "use == WeightUse::kFrozen ? run.compute().type.value_or(at::kFloat) : at::kFloat;", "run.compute().type.value_or(at::kFloat);",
     program_tests("Bf16*")),
    (23, "exports are not compared", "worker/trainer/export/export.cc",
     "if (difference <= tolerance) return absl::OkStatus();", "if (difference <= 1e9) return absl::OkStatus();",
     tests(EXPORT, "ExportTest.*")),
    (25, "unknown adapter tensors are ignored", "worker/trainer/lora/lora.cc",
     '    if (!expected.contains(name)) faults.push_back(absl::StrCat("unexpected: ", name));\n', "", tests(LORA, "LoraTest.*")),
    (26, "no base_model_name_or_path", "lib/checkpoint/adapter_config.cc",
     '{"base_model_name_or_path", config.base_model_name}', '{"base_model_name_or_path", nullptr}',
     tests("checkpoint_test", "AdapterConfigTest.*")),
    (27, "whole modules are not saved", "worker/trainer/lora/lora.cc",
     "  for (const auto& [name, tensor] : adapter.tensors) {\n    contiguous",
     '  for (const auto& [name, tensor] : adapter.tensors) {\n    if (!absl::StrContains(name, "lora_")) continue;\n    contiguous',
     tests(LORA, "LoraTest.*")),
    (29, "the date of the day", "lib/text/chat_template.h", '"2024-07-26T12:34:56"', '"2026-11-25T12:34:56"',
     tests("text_test", "ChatTemplateTest.*")),
    (30, "files are written in place", "lib/artifact/durable_file.cc",
     '  std::string temporary = path + ".tmp-XXXXXX";\n  const int fd = mkostemp(temporary.data(), O_CLOEXEC);',
     '  std::string temporary = path;\n  const int fd = open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);',
     tests("artifact_test", "DurableFileTest.*")),
    (30, "a checkpoint is filled under its final name", "worker/trainer/train/training_checkpoint.cc",
     "folder.parent_path() / (kUnfinished + folder.filename().string());", "folder;", program_tests("KilledAfterEveryStep*")),
]


def failed_tests(output):
    lines = [line for line in output.splitlines() if line.startswith("[  FAILED  ]") and "(" in line and "ms)" in line]
    return [line.split("]")[1].split(",")[0].split("(")[0].strip() for line in lines] or output.strip().splitlines()[-1:]


def put_in(bug):
    number, what, path, text, wrong, (target, command, *more) = bug
    source = ROOT / path
    original = source.read_text()
    if original.count(text) != 1:
        return f"STALE    {number:2} {what}: {path} has the text {original.count(text)} times"
    try:
        source.write_text(original.replace(text, wrong))
        built = subprocess.run(["cmake", "--build", "build/release", "--target", target, *more, *sys_jobs()], cwd=ROOT, capture_output=True, text=True)
        if built.returncode != 0:
            return f"UNBUILT  {number:2} {what}: {built.stdout[-600:]}"
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if ran.returncode == 0:
            return f"MISSED   {number:2} {what}: {' '.join(command)}"
        return f"NOTICED  {number:2} {what}: {', '.join(failed_tests(ran.stdout + ran.stderr))}"
    finally:
        source.write_text(original)


def sys_jobs():
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL")
    return ["-j", jobs] if jobs else []


def main():
    wanted = {int(number) for number in sys.argv[1:]}
    results = []
    for bug in BUGS:
        if wanted and bug[0] not in wanted:
            continue
        results.append(put_in(bug))
        print(results[-1], flush=True)
    return 0 if all(result.startswith("NOTICED") for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
