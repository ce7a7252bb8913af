#!/usr/bin/env python3
"""Puts the bugs of docs/training-bugs.md in, one after another, and says for each whether its test fails.

    tests/reference/put_bugs_in.py [--check] [NUMBER …]      default: all; --check only looks for all their places, here and in the table

Each file is restored whatever happens; a tree with changes is refused, so `git checkout .` helps even after a kill -9. Takes an
hour on two cores. Exits with 1 if a test does not fail with its bug or fails without it, or if a bug no longer applies.
"""
import argparse
import collections
import pathlib
import re
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# `text`, which stands in `path` once, becomes `wrong`; then `test` of `program` has to fail. With reference-check, which runs on
# tests/fixtures/models, it is the name of a check.
Bug = collections.namedtuple("Bug", "number what path text wrong program test")

TRAIN, EXPORT, OPS = "trainer_train_test", "trainer_export_test", "trainer_ops_test"
LORA, MODELS, RUN = "trainer_lora_test", "trainer_models_test", "trainer_program_test"

BUGS = [Bug(*row) for row in [
    (1, "micro-batches weigh alike, however many tokens they have", "worker/trainer/train/step.cc",
     "    loss.backward();\n",
     "    (loss * (static_cast<double>(result.trained_tokens) /\n"
     "             static_cast<double>(batch.trained_tokens() * static_cast<int64_t>(step.size()))))\n        .backward();\n",
     TRAIN, "StepTest.LossAndGradientAreTheSameHoweverAStepIsSplit"),
    (2, "every step is divided by the tokens of the first", "worker/trainer/train/step.cc",
     "std::max<int64_t>(result.trained_tokens, 1)",
     "[&] {\n    StepResult first;\n    CountTokens(run_, PlanEpoch(run_.lengths, run_.batches, 0)[0], first);\n"
     "    return first.trained_tokens;\n  }()",
     TRAIN, "StepTest.AShortStepIsTheMeanOverItsOwnTokens"),
    (3, "each rank divides by its own trained tokens and the number of ranks", "worker/trainer/train/step.cc",
     "std::max<int64_t>(result.trained_tokens, 1)",
     "[&] {\n    StepResult own;\n    for (size_t i = 0; i < step.size(); ++i) {\n"
     "      if (i % static_cast<size_t>(run_.ranks.size()) == static_cast<size_t>(run_.ranks.rank()))\n"
     "        CountTokens(run_, {step[i]}, own);\n    }\n    return own.trained_tokens * run_.ranks.size();\n  }()",
     TRAIN, "StepTest.RanksTakeTheStepThatOneTakes"),
    (4, "the end of a text is not trained where it pads too", "lib/dataset/encode.cc",
     "  if (!example->trained.empty()) example->trained[0] = 0;\n",
     "  for (size_t t = 0; t < example->ids.size(); ++t) {\n"
     "    if (t == 0 || example->ids[t] == tokenizer_.eos_id()) example->trained[t] = 0;\n  }\n",
     "dataset_test", "EncodeTest.TrainsTheEndOfTextAlthoughItIsThePaddingTokenToo"),
    (4, "the end of a turn is not trained", "lib/dataset/encode.cc",
     "if (tokenizer.IsSpecial(encoding.ids[t])) return {span.begin, offset.end};",
     "if (tokenizer.IsSpecial(encoding.ids[t])) return {span.begin, offset.begin};",
     "dataset_test", "EncodeTest.TrainsAssistantTurnsWithTheirEndAlikeWithAndWithoutGenerationTags"),
    (4, "generation_config.json keeps the base's end only", "worker/trainer/export/export.cc",
     "for (int32_t id : model.end_ids) {", "for (int32_t id : std::vector<int32_t>()) {",
     EXPORT, "ExportTest.GenerationStopsAtEveryTokenThatEndsAnAnswer"),
    (4, "nobody looks whether the end of any answer is trained", "worker/trainer/train/token_checks.cc",
     "  if (run.stop_ids.empty()) return std::nullopt;", "  if (!run.stop_ids.empty()) return std::nullopt;",
     TRAIN, "TokenChecksTest.SaysThatNoRowTrainsTheEndOfAnAnswer"),
    (5, "BOS of the data beside that of the tokenizer", "lib/dataset/encode.cc",
     "ids[1] == *bos) ids.erase(ids.begin());", "ids[1] == *bos) {\n  }",
     "dataset_test", "BosTest.PutsItInFrontOnce"),
    (5, "no BOS", "lib/dataset/encode.cc",
     "tokenizer.Encode(text, /*with_special_tokens=*/true)", "tokenizer.Encode(text, /*with_special_tokens=*/false)",
     "dataset_test", "BosTest.PutsItInFrontOnce"),
    (6, "labels are those of the token after the next", "worker/trainer/train/batch.cc",
     "labels.push_back(document->ids[static_cast<size_t>(t + 1)]);",
     "labels.push_back(document->ids[static_cast<size_t>(std::min(t + 2, length - 1))]);",
     "reference-check", "batch.loss"),
    (7, "documents of a batch attend to those before", "worker/trainer/train/batch.cc",
     "std::make_shared<DocumentAttention>(batch.documents)",
     "std::make_shared<DocumentAttention>(ops::Documents{{0, batch.documents.back().second}})",
     "reference-check", "packed.logits"),
    (8, "positions in bf16", "worker/trainer/models/common/rotary.cc",
     "positions_T.to(at::kFloat).unsqueeze(1)", "positions_T.to(at::kBFloat16).to(at::kFloat).unsqueeze(1)",
     MODELS, "RotaryTest.LatePositionsStayApart"),
    (9, "merging a tied head writes the embedding", "worker/trainer/lora/lora.cc",
     'if (Replace(model, linear.module + ".weight", stored, merged.weights)) merged.untied = true;',
     'const bool tied_head = linear.module == "lm_head" && model.tie_word_embeddings;\n'
     '    if (Replace(model, tied_head ? kEmbedding : linear.module + ".weight", stored, merged.weights)) merged.untied = true;',
     LORA, "LoraTest.AnAdapterOnATiedHeadLeavesTheEmbeddingAlone"),
    (9, "a merged tied head is dropped", "worker/trainer/lora/lora.cc",
     'if (Replace(model, linear.module + ".weight", stored, merged.weights)) merged.untied = true;',
     'if (linear.module == "lm_head" && model.tie_word_embeddings) continue;\n'
     '    if (Replace(model, linear.module + ".weight", stored, merged.weights)) merged.untied = true;',
     LORA, "LoraTest.AMergedModelComputesWhatTheAdaptedOneDoes"),
    (9, "a tied head follows the embedding that an adapter is merged into", "worker/trainer/lora/lora.cc",
     "model.tie_word_embeddings && (name == kHead || name == kEmbedding);", "model.tie_word_embeddings && name == kHead;",
     LORA, "LoraTest.AnAdapterOnATiedEmbeddingLeavesTheHeadAlone"),
    (9, "a stored head of a tied model is dropped", "worker/trainer/models/weights.cc",
     "  LUTHIER_RETURN_IF_ERROR(CheckTiedHead(config, files->tensors()));\n", "  (void)CheckTiedHead;\n",
     MODELS, "WeightsTest.ATiedHeadWithOtherNumbersIsRefused"),
    (10, "a layer that is computed again draws a new mask", "worker/trainer/ops/recompute.cc",
     '    generator.set_state(context->saved_data["generator"].toTensor());\n', "",
     TRAIN, "ComputeTest.LayersThatAreComputedAgainGiveTheSameGradientsInEveryFamily"),
    (11, "a resumed run draws from a new generator", "worker/trainer/train/trainer.cc",
     "    TakeGeneratorState(SharedGeneratorStates(state->generator_states));\n", "",
     RUN, "KillTest.KilledAtEveryStepItEndsWithBitIdenticalWeights"),
    (11, "a resumed run begins with a new optimizer state", "worker/trainer/train/trainer.cc",
     "    stepper_.optimizer().Restore(Shared(state->optimizer, stepper_.optimizer().State()), step);\n", "",
     RUN, "KillTest.KilledAtEveryStepItEndsWithBitIdenticalWeights"),
    (11, "a resumed run begins the schedule anew", "worker/trainer/train/trainer.cc",
     "*run_.training().schedule, run_.total_steps},\n        step_);",
     "*run_.training().schedule, run_.total_steps},\n        step_ - resumed_step_);",
     RUN, "KillTest.KilledAtEveryStepItEndsWithBitIdenticalWeights"),
    (12, "the schedule counts micro-batches", "worker/trainer/train/trainer.cc",
     "*run_.training().schedule, run_.total_steps},\n        step_);",
     "*run_.training().schedule, run_.total_steps},\n        step_ * static_cast<int64_t>(NextStep().size()));",
     RUN, "TrainerProgramTest.TheLearningRateFollowsOptimizerSteps"),
    (13, "a layer that is computed again needs an input with a gradient", "worker/trainer/ops/recompute.cc",
     "x.options().dtype(at::kFloat)).set_requires_grad(true);", "x.options().dtype(at::kFloat)).set_requires_grad(false);",
     TRAIN, "ComputeTest.AnAdapterLearnsThroughRecomputedLayersOverAFrozenBase"),
    (14, "rows without a trained token are kept", "lib/dataset/validate.cc",
     "} else if (examples[i]->TrainedTokens() == 0) {", "} else if (false) {",
     "dataset_test", "ValidateTest.RefusesACutThatLeavesNoRow"),
    (15, "without generation tags nothing is trained", "lib/dataset/assistant_turns.cc",
     "LUTHIER_ASSIGN_OR_RETURN(spans, SpansByTurnDifference(chat_template, row, rendered, last_only));",
     "LUTHIER_ASSIGN_OR_RETURN(spans, SpansByTurnDifference(chat_template, row, rendered, last_only));\n    return std::vector<TextSpan>{};",
     "dataset_test", "EncodeTest.TrainsAssistantTurnsWithTheirEndAlikeWithAndWithoutGenerationTags"),
    (16, "a row that is cut is not trained", "lib/dataset/encode.cc",
     "      example.trained.resize(options_.max_length);\n", "      example.trained.assign(options_.max_length, 0);\n",
     "dataset_test", "EncodeTest.TruncatesAndKeepsTheMaskOfWhatIsLeft"),
    (17, "prompt and completion are encoded as one text", "lib/dataset/encode.cc",
     "  if (!prompt_survives) {", "  if (false && !prompt_survives) {",
     "dataset_test", "EncodeTest.KeepsThePromptsTokensWhenTheAnswerWouldMergeWithThem"),
    (17, "a conversation is encoded as one text", "lib/dataset/encode.cc",
     "    if (straddled) cuts.push_back(span.begin);", "    if (straddled) continue;",
     "dataset_test", "EncodeTest.KeepsThePromptsTokensWhenTheAnswerWouldMergeWithThem"),
    (18, "turns that the template renders anew are not noticed", "lib/dataset/assistant_turns.cc",
     "if (!with.text.starts_with(before.text) || !rendered.text.starts_with(with.text)) return",
     "if (rendered.text.empty()) return",
     "dataset_test", "EncodeTest.RefusesATemplateThatRewritesEarlierTurnsUnlessOnlyTheLastIsTrained"),
    (19, "attention does not see the soft-cap", "worker/trainer/models/common/dot_product_attention.cc",
     "config.attention_softcap, config.attention_dropout}", "0, config.attention_dropout}",
     "reference-check", "batch.logits"),
    (20, "attention does not see the window", "worker/trainer/models/common/dot_product_attention.cc",
     "config.layers[static_cast<size_t>(layer)].window.value_or(0),", "0,",
     "reference-check", "batch.logits"),
    (21, "a token does not see itself, so that some see none", "worker/trainer/ops/attention.cc",
     "int64_t seen_to(int64_t i) const { return begin + i + 1 - first_key; }",
     "int64_t seen_to(int64_t i) const { return begin + i - first_key; }",
     OPS, "OpsTest.PackedAttentionSeesNoFartherThanItsWindow"),
    (22, "what is trained is bf16 where the computation is", "worker/trainer/train/preparation.cc",
     "use == WeightUse::kFrozen ? run.compute().type.value_or(at::kFloat) : at::kFloat;",
     "run.compute().type.value_or(at::kFloat);",
     TRAIN, "StepTest.ABf16RunKeepsStepsThatBf16WouldRoundAway"),
    (23, "an adapter is merged into the rounded base", "worker/trainer/lora/lora.cc",
     "Tensor adapted_OI = weight_OI.to(at::kFloat) +", "Tensor adapted_OI = weight_OI.to(at::kBFloat16).to(at::kFloat) +",
     LORA, "LoraTest.MergingAddsToTheVeryNumbersOfTheBase"),
    (23, "exports are not compared with what was trained", "worker/trainer/export/export.cc",
     "if (difference <= tolerance && ", "if (difference <= 1e9 && ",
     EXPORT, "ExportTest.AnExportThatComputesSomethingElseFails"),
    (24, "nobody looks at the embeddings of special tokens", "worker/trainer/train/token_checks.cc",
     "if (tokens.special.empty() || tokens.others.empty()) return std::nullopt;", "if (!tokens.special.empty()) return std::nullopt;",
     TRAIN, "TokenChecksTest.NamesSpecialTokensThatNeitherTheBaseNorTheRunKnows"),
    (25, "adapter tensors that match nothing are left out", "worker/trainer/lora/lora.cc",
     "!fault.empty()) faults.push_back(std::move(fault));",
     "!fault.empty() && expected.empty()) faults.push_back(std::move(fault));",
     LORA, "LoraTest.EveryTensorThatDoesNotFitIsReported"),
    (26, "no base_model_name_or_path", "lib/checkpoint/adapter_config.cc",
     '{"base_model_name_or_path", config.base_model_name}', '{"base_model_name_or_path", nullptr}',
     "checkpoint_test", "AdapterConfigTest.WritesWhatItReads"),
    (26, "the base's name is that of the adapter which a run went on from", "worker/trainer/train/tuning.cc",
     "  adapter.config = wanted;\n", "",
     LORA, "TuningTest.TheAdapterNamesItsBase"),
    (27, "modules that are trained whole are not saved", "worker/trainer/lora/lora.cc",
     "  for (const auto& [name, tensor] : adapter.tensors) {\n    contiguous",
     '  for (const auto& [name, tensor] : adapter.tensors) {\n    if (name.find("lora_") == std::string::npos) continue;\n    contiguous',
     LORA, "LoraTest.WhatIsWrittenReadsBack"),
    (27, "tensors of another size are taken", "worker/trainer/lora/lora.cc",
     "} else if (found->second.shape != shape) {", "} else if (found->second.shape.size() != shape.size()) {",
     LORA, "LoraTest.EveryTensorThatDoesNotFitIsReported"),
    (27, "nobody compares the tokenizer with the embedding", "worker/trainer/train/preparation.cc",
     "  LUTHIER_RETURN_IF_ERROR(CheckTokensHaveEmbeddings(*run));\n", "",
     TRAIN, "TokenChecksTest.ATokenWithoutAnEmbeddingIsRefusedByLineAndName"),
    (28, "texts are cut by GPT-2's expression, whatever the file says", "rust/src/classes.rs",
     "    tokenizer.with_padding(None);\n",
     "    tokenizer.with_padding(None);\n"
     "    tokenizer.with_pre_tokenizer(Some(tokenizers::pre_tokenizers::byte_level::ByteLevel::default()));\n",
     "text_test", "TokenizerTest.CutsTextsByTheRegularExpressionOfTheFile"),
    (29, "a template gets the date of the day", "lib/text/chat_template.h", '"2024-07-26T12:34:56"', '"2026-11-25T12:34:56"',
     "text_test", "ChatTemplateTest.PinsTheDate"),
    (30, "files are written in place", "lib/artifact/durable_file.cc",
     '  std::string temporary = path + ".tmp-XXXXXX";\n  const int fd = mkostemp(temporary.data(), O_CLOEXEC);',
     '  std::string temporary = path;\n  const int fd = open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);',
     "artifact_test", "DurableFileTest.AKillBeforeTheRenameKeepsTheOldFile"),
    (30, "a checkpoint is filled under its final name", "worker/trainer/train/training_checkpoint.cc",
     "folder.parent_path() / (kUnfinished + folder.filename().string());", "folder;",
     TRAIN, "TrainingCheckpointTest.OneThatCannotBeFinishedLeavesTheOneBefore"),
    (30, "the checkpoint before goes first", "worker/trainer/train/training_checkpoint.cc",
     "  optimizer[kGeneratorState] = state.generator_states;\n",
     "  optimizer[kGeneratorState] = state.generator_states;\n  RemoveBeyond(keep - 1, folder.parent_path());\n",
     TRAIN, "TrainingCheckpointTest.OneThatCannotBeFinishedLeavesTheOneBefore"),
    (31, "a family with a loss of its own divides by the tokens of a micro-batch", "worker/trainer/models/common/output_head.cc",
     "  return ops::SumCrossEntropy(x_TI, weight_VI, labels_T, form_, losses);\n",
     "  const Tensor sum = ops::SumCrossEntropy(x_TI, weight_VI, labels_T, form_, losses);\n"
     "  return form_.softcap > 0 ? sum / static_cast<double>(labels_T.size(0)) : sum;\n",
     "reference-check", "accum.full.loss"),
]]


def command(bug):
    folder = "build/release/bin/"
    if bug.program == "reference-check":
        return ["tests/reference/reference_models.sh", folder + bug.program, "tests/fixtures/models"]
    return [folder + bug.program, f"--gtest_filter={bug.test}:*/{bug.test}/*"]  # the second where it has parameters


def run(command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def build(programs):
    return run(["scripts/build", "release", *programs])


def fails(bug):
    """What the output says of the test: True, False, or None if it has not run."""
    ran = run(command(bug))
    if bug.program == "reference-check":
        return f'"check":"{bug.test}"' in ran.stderr
    if not re.search(rf"^\[ RUN      \] (\w+/)?{re.escape(bug.test)}(/\w+)?$", ran.stdout, re.MULTILINE):
        return None
    return ran.returncode != 0


def put_in(bug):
    source = ROOT / bug.path
    original = source.read_text()
    try:
        source.write_text(original.replace(bug.text, bug.wrong))
        built = run(["cmake", "--build", "build/release", "--target", bug.program])
        if built.returncode != 0:
            return "NOT BUILT", built.stdout[-2000:] + built.stderr[-2000:]
        return ("NOTICED", "") if fails(bug) else ("MISSED", "")
    finally:
        source.write_text(original)


def stale(bugs):
    counts = [(bug, (ROOT / bug.path).read_text().count(bug.text)) for bug in bugs]
    faults = [f"{bug.number:2} {bug.what}: {bug.path} has the text {count} times" for bug, count in counts if count != 1]
    table = (ROOT / "docs/training-bugs.md").read_text()
    return faults + [f"docs/training-bugs.md does not name '{text}'" for bug in bugs for text in (bug.what, bug.test) if text not in table]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("numbers", nargs="*", type=int)
    arguments = parser.parse_args()
    wanted = [bug for bug in BUGS if not arguments.numbers or bug.number in arguments.numbers]
    bugs = sorted(wanted, key=lambda bug: (bug.program, bug.path))  # the same files and programs are built again and again
    if faults := stale(bugs):
        sys.exit("find the new places of these bugs:\n" + "\n".join(faults))
    if arguments.check:
        return
    if run(["git", "diff", "--quiet", "HEAD"]).returncode != 0:
        sys.exit("the tree has changes, which would be mixed with the bugs: commit them, or `git checkout .` after a kill")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("interrupted; the file is restored"))
    programs = sorted({bug.program for bug in bugs})
    built = build(programs)
    if built.returncode != 0:
        sys.exit(built.stdout + built.stderr)
    tests = {(bug.program, bug.test): bug for bug in bugs}
    if wrong := [test for (_, test), bug in tests.items() if fails(bug) is not False]:
        sys.exit("these do not pass without a bug: " + ", ".join(wrong))
    try:
        results = []
        for bug in bugs:
            results.append(put_in(bug))
            print(f"{results[-1][0]:9} {bug.number:2} {bug.what}: {bug.test}\n{results[-1][1]}", end="", flush=True)
    finally:
        build(programs)  # so that no bug stays in build/
    sys.exit(any(result[0] != "NOTICED" for result in results))


if __name__ == "__main__":
    main()
