// The spec file of `luthier-trainer run`: docs/trainer-protocol.md, "Spec".
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/plan/job_spec.h"
#include "nlohmann/json.hpp"

namespace luthier {

inline constexpr int kTrainerProtocol = 1;

// What is wrong with a field that says how to train, where an adapter is only written in another form.
inline constexpr char kNoEffectOnExport[] = "has no effect on an export, which trains nothing; leave it out";

// An export is one process. Appends a line for each field that asks for more.
void RefuseSeveralRanks(const ResourceSpec& resources, std::vector<std::string>& violations);

// A file of training rows. Its rows come up `weight` times an epoch on average.
struct TrainFile {
  std::string path;
  double weight = 1;
  std::string name;  // what messages and reports call it
};

struct TrainerSpec {
  int protocol = kTrainerProtocol;
  std::string attempt = "local";    // carried by every event
  std::string base_model;           // folder in Hugging Face format
  std::string base_model_name;      // base_model_name_or_path of the adapter; the folder if not given
  std::string init = "pretrained";  // pretrained, random
  std::string start_adapter;        // folder of an adapter to go on from, or to export; empty: a fresh one
  std::string export_as;            // merged, gguf: nothing is trained, `start_adapter` gets that form; empty: trains
  std::vector<TrainFile> train;     // one or more; of an export none
  std::string validation;           // file; empty: none
  std::string test;                 // file; empty: none
  Recipe recipe;                    // of an export `resources` only

  bool exports() const { return !export_as.empty(); }
};

// Errors: INVALID_ARGUMENT with one line for every violation, as ParseJobSpec.
absl::StatusOr<TrainerSpec> ParseTrainerSpec(const nlohmann::json& json);

// Reads and parses a spec file. Errors: NOT_FOUND; INVALID_ARGUMENT naming the file.
absl::StatusOr<TrainerSpec> ReadTrainerSpec(const std::string& path);

nlohmann::json ToJson(const TrainerSpec& spec);

}  // namespace luthier
