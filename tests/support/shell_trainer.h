// A trainer that is a shell script: $3 is the spec, $5 the run folder. For tests of the agent, which must stand
// anything.
#pragma once

#include <sys/stat.h>

#include <string>

#include "tests/support/text_fixture.h"

namespace luthier {

inline constexpr char kStarted[] = R"(echo '{"event":"started","resumed_step":0}'
)";
inline constexpr char kFinish[] = R"(mkdir -p "$5/adapter"; echo weights > "$5/adapter/adapter_model.safetensors"
echo '{"event":"finished","artifact":{"kind":"adapter","path":"elsewhere","bytes":8}}'
)";
inline constexpr char kTrainForEver[] = R"(mkdir -p "$5/checkpoints/step-1"; echo '{"event":"started","resumed_step":0}'
read command; echo '{"event":"stopped","step":1}'
)";

inline void WriteTrainer(const std::string& path, const std::string& script) {
  WriteText(path, "#!/bin/sh\n" + script);
  chmod(path.c_str(), 0755);
}

}  // namespace luthier
