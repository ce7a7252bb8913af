// What the handlers work on.
#pragma once

#include <functional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "lib/artifact/artifact_store.h"
#include "server/loop/state_loop.h"
#include "server/store/store.h"

namespace luthier {

struct Backend {
  StateLoop& loop;
  Store& store;
  FileArtifactStore& artifacts;
  std::string data_dir;
  // Method, status code of gRPC, duration.
  std::function<void(absl::string_view, int, absl::Duration)> observe;

  // `base_models/<id>` with the files of a registered base model.
  std::string BaseModelFolder(const std::string& id) const { return data_dir + "/base_models/" + id; }
};

}  // namespace luthier
