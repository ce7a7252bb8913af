// An adapter in another form: merged into its base, or as llama.cpp reads it.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "lib/plan/trainer_spec.h"
#include "worker/trainer/train/events.h"

namespace luthier {

struct Conversion {
  std::string base;     // folder
  std::string adapter;  // folder in PEFT format
  std::string form;     // merged, gguf
  std::string place;    // a folder (merged) or a file (gguf)
  // Called before each part of the work, which takes minutes where the model is large; false ends it.
  std::function<bool()> goes_on = [] { return true; };
};

// Writes it, with all that ExportModel and ExportGgufAdapter promise. Errors: theirs; CANCELLED if `goes_on` ended it;
// as ReadAdapter and MergeAdapter.
absl::Status Convert(const Conversion& conversion);

// Where a run of a spec that exports leaves its result, below its folder.
std::string PlaceOfExport(const TrainerSpec& spec);

// Such a run: as RunAttempt, but that what is thrown goes through.
absl::Status RunExport(const TrainerSpec& spec, const std::string& out_folder, EventWriter& events,
                       RunControl& control);

}  // namespace luthier
