#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "luthier/v1/admin.grpc.pb.h"
#include "server/rpc/backup.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/services.h"

namespace luthier {
namespace {

class AdminService final : public v1::AdminService::Service {
 public:
  explicit AdminService(Backend& backend) : backend_(backend) {}

  grpc::Status CreateBackup(grpc::ServerContext* context, const v1::CreateBackupRequest* request, v1::Backup* response) override {
    return Handle(backend_, "CreateBackup", [&] { return BackUp(*context, request->path(), *response); });
  }

 private:
  absl::Status BackUp(const grpc::ServerContext& context, const std::string& path, v1::Backup& response) {
    const std::filesystem::path folder(path);
    if (!folder.is_absolute() || folder != folder.lexically_normal() || !folder.has_filename()) {
      return absl::InvalidArgumentError(absl::StrCat("path: '", path, "' is no absolute path of a folder on the server's machine; give one "
                                                     "without '..' or a slash at its end"));
    }
    const auto paused = backend_.housekeeping.Pause();
    LUTHIER_ASSIGN_OR_RETURN(const DataFacts facts, MakeBackup(backend_.store, backend_.artifacts, path, absl::Now(),
                                                               [&] { return context.IsCancelled(); }));
    backend_.metrics.ObserveBackup(absl::Now());
    response.set_path(path);
    *response.mutable_create_time() = ToProto(facts.create_time);
    response.set_jobs(facts.jobs);
    response.set_files(static_cast<int64_t>(facts.files.size()));
    response.set_size_bytes(facts.bytes());
    return absl::OkStatus();
  }

  Backend& backend_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAdminService(Backend& backend) { return std::make_unique<AdminService>(backend); }

}  // namespace luthier
