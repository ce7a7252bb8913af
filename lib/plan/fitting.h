// What would make a job fit that needs more memory than the device has.
#pragma once

#include <cstdint>
#include <string>

#include "lib/checkpoint/model_facts.h"
#include "lib/plan/facts.h"
#include "lib/plan/job_spec.h"
#include "lib/plan/memory.h"

namespace luthier {

// "training.precision: bf16, or a device with 12.00 GB": every change that suffices by itself, else what suffices
// together, else only the device. Requires: length and batch of `settled` are settled, and the estimate of `inputs`
// is above `usable` bytes.
std::string WhatWouldFit(const Recipe& settled, const ModelFacts& model, const DatasetFacts& dataset,
                         const MemoryInputs& inputs, int64_t usable);

}  // namespace luthier
