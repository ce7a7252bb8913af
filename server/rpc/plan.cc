#include "server/rpc/plan.h"

#include "lib/plan/trainer_spec.h"
#include "nlohmann/json.hpp"
#include "server/rpc/convert.h"

namespace luthier {

void SetNeeds(const Plan& plan, Job& job) {
  job.base_model = plan.base_model;
  job.nodes = plan.nodes;
  job.devices = plan.devices;
  job.cpu_memory_bytes = plan.cpu_memory_bytes;
  job.gpu_memory_bytes = plan.gpu_memory_bytes;
  job.node_selector = plan.node_selector;
  job.tuning = plan.tuning;
  job.work_tokens = plan.work_tokens;
  job.estimate = plan.duration;
}

void AddResolved(const std::string& field, const std::string& value, const std::string& reason,
                 v1::FineTuningJob& job) {
  v1::ResolvedValue& settled = *job.add_resolved();
  settled.set_field(field);
  settled.set_value(value);
  settled.set_reason(reason);
}

void AddBaseModel(const v1::BaseModel& model, v1::StartAttempt& start) {
  v1::AttemptInput& base = *start.add_inputs();
  base.set_role("base_model");
  *base.mutable_files() = model.files();
}

void Serialize(Plan& plan) {
  plan.job_bytes = plan.job.SerializeAsString();
  plan.record = std::make_shared<const std::string>(JoinStoredSpec(plan.job_bytes, plan.start.SerializeAsString()));
}

std::string TrainerSpecJson(const std::string& base_model, const Recipe& recipe, const std::string& export_as) {
  TrainerSpec spec;
  spec.base_model_name = base_model;
  spec.export_as = export_as;
  spec.recipe = recipe;
  spec.recipe.lora.start_from.clear();  // an input of the attempt
  nlohmann::json json = ToJson(spec);
  for (const char* path : {"base_model", "dataset", "attempt"}) json.erase(path);
  return json.dump();
}

v1::MemoryEstimate ToProto(const MemoryEstimate& estimate) {
  v1::MemoryEstimate memory;
  memory.set_weights_bytes(estimate.weights);
  memory.set_training_state_bytes(estimate.training_state);
  memory.set_activations_bytes(estimate.activations);
  memory.set_head_bytes(estimate.head);
  memory.set_workspace_bytes(estimate.workspace);
  memory.set_total_bytes(estimate.total);
  return memory;
}

}  // namespace luthier
