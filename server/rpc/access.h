// Who calls, and what they may do: the one place that knows tokens, roles and what each method needs.
//
// As long as there are no tokens, whoever calls from this machine may do everything, and nobody else anything (unless
// the network is said to be trusted). Once there are, every call needs one.
#pragma once

#include <array>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "server/core/token.h"
#include "server/rpc/audit_log.h"

namespace luthier {

enum class Need {
  kRead,   // viewer, member, admin
  kShare,  // viewer, member, admin, for what works without a token: noted in the audit log, as what follows
  kWrite,  // member, admin
  kAdmin,  // admin
  kAgent,  // agent, admin: not noted, since agents call all the time
};
struct MethodNeed {
  absl::string_view method;
  Need need;
};
// Every method of the API. What is not here cannot be called; access_test compares it with the protos.
inline constexpr std::array kMethodNeeds = {
    MethodNeed{"CreateFineTuningJob", Need::kWrite},
    MethodNeed{"GetFineTuningJob", Need::kRead},
    MethodNeed{"ListFineTuningJobs", Need::kRead},
    MethodNeed{"CancelFineTuningJob", Need::kWrite},
    MethodNeed{"WatchFineTuningJob", Need::kRead},
    MethodNeed{"UpdateFineTuningJob", Need::kWrite},
    MethodNeed{"PauseFineTuningJob", Need::kWrite},
    MethodNeed{"ResumeFineTuningJob", Need::kWrite},
    MethodNeed{"StartFineTuningJob", Need::kWrite},
    MethodNeed{"RetryFineTuningJob", Need::kWrite},
    MethodNeed{"CloneFineTuningJob", Need::kWrite},
    MethodNeed{"ExportModelVersion", Need::kWrite},
    MethodNeed{"EstimateFineTuningJob", Need::kRead},
    MethodNeed{"ExplainFineTuningJob", Need::kRead},
    MethodNeed{"CreateJobCheckpoint", Need::kWrite},
    MethodNeed{"StreamJobMetrics", Need::kRead},
    MethodNeed{"TailJobLogs", Need::kRead},
    MethodNeed{"ListJobEvents", Need::kRead},
    MethodNeed{"ListJobCheckpoints", Need::kRead},
    MethodNeed{"CreateSweep", Need::kWrite},
    MethodNeed{"GetSweep", Need::kRead},
    MethodNeed{"ListSweeps", Need::kRead},
    MethodNeed{"StartSweep", Need::kWrite},
    MethodNeed{"CancelSweep", Need::kWrite},
    MethodNeed{"UploadDataset", Need::kWrite},
    MethodNeed{"GetDataset", Need::kRead},
    MethodNeed{"ListDatasets", Need::kRead},
    MethodNeed{"DeleteDataset", Need::kWrite},
    MethodNeed{"RegisterBaseModel", Need::kAdmin},  // reads a folder of the server's machine, and all tenants use it
    MethodNeed{"GetBaseModel", Need::kRead},
    MethodNeed{"ListBaseModels", Need::kRead},
    MethodNeed{"ListModels", Need::kRead},
    MethodNeed{"ListModelVersions", Need::kRead},
    MethodNeed{"GetModelVersion", Need::kRead},
    MethodNeed{"PromoteModelVersion", Need::kWrite},
    MethodNeed{"DeleteModelAlias", Need::kWrite},
    MethodNeed{"DeleteModelVersion", Need::kWrite},
    MethodNeed{"DeleteBaseModel", Need::kAdmin},
    MethodNeed{"DownloadModelVersion", Need::kRead},
    MethodNeed{"DownloadBaseModel", Need::kRead},
    MethodNeed{"SignModelVersionUrls", Need::kShare},
    MethodNeed{"ListNodes", Need::kRead},
    MethodNeed{"DrainNode", Need::kAdmin},
    MethodNeed{"UndrainNode", Need::kAdmin},
    MethodNeed{"GetQueue", Need::kRead},
    MethodNeed{"ListTenants", Need::kRead},
    MethodNeed{"UpdateTenant", Need::kAdmin},
    MethodNeed{"CreateBackup", Need::kAdmin},
    MethodNeed{"CheckData", Need::kAdmin},
    MethodNeed{"CreateToken", Need::kAdmin},
    MethodNeed{"ListTokens", Need::kAdmin},
    MethodNeed{"RevokeToken", Need::kAdmin},
    MethodNeed{"Session", Need::kAgent},
    MethodNeed{"FetchBlob", Need::kAgent},
    MethodNeed{"UploadArtifact", Need::kAgent},
};

// A call that was admitted.
struct Call {
  Need need = Need::kAdmin;  // of its method
  std::string token;         // id; empty: none was needed
  std::string tenant;        // whose resources it sees; empty: all
  std::string node;          // the only one that an agent may be; empty: any
  std::string sha256;        // of its token's secret; empty: none was needed
  std::string peer;
  const grpc::ServerContextBase* context = nullptr;  // while it goes on
  std::string subject;                               // what it acts on, for the audit log: handlers fill it in

  // Whether nobody waits for its answer any more.
  bool IsAbandoned() const { return context != nullptr && context->IsCancelled(); }
  bool Sees(absl::string_view of) const { return tenant.empty() || tenant == of; }
};

// Any thread.
class Access {
 public:
  struct Options {
    bool trust_network = false;  // without tokens, callers from elsewhere may do everything too
    AuditLog::Options audit;
    std::string attempt_key;  // of the credentials of attempts; empty: one that ends with this process
  };
  Access(std::vector<Token> tokens, Options options);

  // Errors: UNAUTHENTICATED without a valid token; PERMISSION_DENIED for a role that may not.
  absl::StatusOr<Call> Admit(const grpc::ServerContextBase& context, absl::string_view method);
  // Whether a call that goes on would be admitted now. Errors: UNAUTHENTICATED once its token was revoked or has
  // expired, or the first token was made.
  absl::Status StillAdmits(const Call& call);
  // One line of the audit log, for what the bearer of a token changes or shares, what admins do, and what was refused.
  void Note(absl::string_view method, const Call& call, const absl::Status& status);

  // A token that is on record by now, new or revoked.
  void Put(const Token& token);
  std::vector<Token> tokens();
  // Whether calls need tokens.
  bool required();
  // The secret of a token for agents that is never on record: the server's own agent gets it.
  std::string MakeAgentSecret();

  // What an attempt's files are fetched and uploaded with, beside a token (attempt_key.h).
  std::string CredentialOf(absl::string_view attempt) const;
  bool IsCredentialOf(absl::string_view attempt, absl::string_view credential) const;

 private:
  absl::StatusOr<Token> TokenOf(const grpc::ServerContextBase& context);

  const Options options_;
  const std::string attempt_key_;
  std::mutex mutex_;  // of what follows
  std::map<std::string, Token> by_hash_;
  bool any_ = false;  // one is on record

  AuditLog audit_;
};

// 32 random bytes, as text.
std::string RandomSecret();

}  // namespace luthier
