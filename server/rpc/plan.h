// What a spec comes to once it is planned, and how the parts of that are written.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "lib/checkpoint/model_facts.h"
#include "lib/plan/job_spec.h"
#include "lib/plan/memory.h"
#include "luthier/v1/jobs.pb.h"
#include "luthier/v1/models.pb.h"
#include "luthier/v1/worker.pb.h"
#include "server/core/job.h"

namespace luthier {

// A base model as far as planning needs it.
struct LoadedModel {
  std::string fingerprint;  // hashes of its files
  v1::BaseModel message;
  ModelFacts facts;
  std::string folder;  // with its small files and the headers of its weights
};

// What a spec comes to, whoever submits it.
struct Plan {
  std::string base_model;                              // id
  std::string datasets;                                // as Job::datasets
  std::string model;                                   // to publish under; empty: the job's id
  int nodes = 1, devices = 1;                          // as in Job
  int64_t cpu_memory_bytes = 0, gpu_memory_bytes = 0;  // as in Job, as is
  std::string node_selector;
  Tuning tuning = Tuning::kNone;               // as in Job
  int64_t work_tokens = 0;                     // as in Job
  absl::Duration duration;                     // of an export, whose speed nobody reports; 0: of training
  v1::EstimateFineTuningJobResponse estimate;  // what depends on the spec alone
  v1::FineTuningJob job;                       // `spec`, `resolved`, `warnings`
  v1::StartAttempt start;                      // inputs and trainer spec
  std::string job_bytes;                       // of `job`
  std::shared_ptr<const std::string> record;   // both, as the record takes them
};

// What the job asks of its nodes, and what it has to do there.
void SetNeeds(const Plan& plan, Job& job);

// Fills in the forms in which the record and answers take what a plan says. Last.
void Serialize(Plan& plan);

// A field that the server chose a value for, and why.
void AddResolved(const std::string& field, const std::string& value, const std::string& reason, v1::FineTuningJob& job);
void AddBaseModel(const v1::BaseModel& model, v1::StartAttempt& start);
v1::MemoryEstimate ToProto(const MemoryEstimate& estimate);
// Agents add the paths of their machine. `export_as`: as in TrainerSpec.
std::string TrainerSpecJson(const std::string& base_model, const Recipe& recipe, const std::string& export_as = "");

}  // namespace luthier
