#include "server/rpc/housekeeping.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "lib/base/status_macros.h"
#include "luthier/v1/datasets.pb.h"
#include "luthier/v1/models.pb.h"
#include "luthier/v1/worker.pb.h"

namespace luthier {

Housekeeping::Housekeeping(StateLoop& loop, Store& store, FileArtifactStore& artifacts, Options options)
    : loop_(loop), store_(store), artifacts_(artifacts), options_(options), thread_([this] { Work(); }) {}

Housekeeping::~Housekeeping() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  thread_.join();
}

void Housekeeping::Soon() {
  const std::lock_guard lock(mutex_);
  soon_ = true;
  work_.notify_all();
}

void Housekeeping::Work() {
  std::unique_lock lock(mutex_);
  bool again = false;
  while (!stopping_) {
    soon_ = false;
    lock.unlock();
    const absl::StatusOr<Garbage> garbage = Collect();
    if (!garbage.ok()) {
      std::fprintf(stderr, "luthierd: unused files could not be removed: %s\n", garbage.status().ToString().c_str());
    } else if (garbage->blobs > 0) {
      std::fprintf(stderr, "luthierd: removed %lld unused files, %lld bytes\n", static_cast<long long>(garbage->blobs),
                   static_cast<long long>(garbage->bytes));
    }
    lock.lock();
    const absl::Duration pause = again ? std::min(options_.interval, options_.keep_unused + absl::Seconds(1)) : options_.interval;
    work_.wait_for(lock, absl::ToChronoMilliseconds(pause), [this] { return soon_ || stopping_; });
    again = soon_;
  }
}

absl::StatusOr<Garbage> Housekeeping::Collect() {
  return artifacts_.CollectGarbage([this] { return References(); }, options_.keep_unused);
}

absl::StatusOr<FileArtifactStore::References> Housekeeping::References() {
  FileArtifactStore::References used;
  // Attempts first: one that publishes in between is found among the versions.
  LUTHIER_RETURN_IF_ERROR(loop_.Run([&](State& state, absl::Time) {
    state.jobs().ForEach([&](const Job& job) {
      if (HoldsDevices(job.state)) used.attempts.emplace(job.id, job.attempt);
    });
    return absl::OkStatus();
  }));
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<ModelVersion> versions, store_.Versions(""));
  for (const ModelVersion& version : versions) {
    used.attempts.emplace(version.job, version.attempt);
    v1::ArtifactStored stored;
    stored.ParseFromString(version.payload);
    for (const v1::ModelFile& file : stored.files()) used.blobs.insert(file.sha256());
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<Resource> datasets, store_.ListResources(ResourceKind::kDataset));
  for (const Resource& resource : datasets) {
    v1::Dataset dataset;
    dataset.ParseFromString(resource.payload);
    for (const v1::DatasetPart& part : dataset.parts()) used.blobs.insert(part.sha256());
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<Resource> models, store_.ListResources(ResourceKind::kBaseModel));
  for (const Resource& resource : models) {
    v1::BaseModel model;
    model.ParseFromString(resource.payload);
    for (const v1::ModelFile& file : model.files()) used.blobs.insert(file.sha256());
  }
  return used;
}

}  // namespace luthier
