// What nearly every file of this folder includes, parsed once: gRPC and the generated messages cost 6 s a file.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/support/server_callback.h"
#include "luthier/v1/datasets.pb.h"
#include "luthier/v1/jobs.pb.h"
#include "luthier/v1/models.pb.h"
#include "luthier/v1/nodes.pb.h"
#include "luthier/v1/worker.pb.h"
