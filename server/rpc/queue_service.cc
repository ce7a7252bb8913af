#include <algorithm>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "luthier/v1/queues.grpc.pb.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/page.h"
#include "server/rpc/services.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

constexpr int kDefaultEntries = 50, kMaxEntries = 500;

// What clients may set of a tenant.
constexpr const char* kTenantFields[] = {"weight", "guaranteed_devices", "max_devices", "max_queued_jobs",
                                         "max_storage_bytes"};

// Nodes come and go, so more may be guaranteed than is there at the moment; the operator should know.
void AddWarnings(const State& state, v1::Tenant& message) {
  const auto [guaranteed, there] = state.GuaranteedAndThere();
  if (guaranteed <= there) return;
  message.add_warnings(absl::StrCat(guaranteed,
                                    " devices are guaranteed to tenants in all, and the connected nodes have ", there,
                                    ": not all can have what is guaranteed to them at once"));
}

v1::Tenant TenantToProto(const Tenant& tenant, const State& state, absl::Time now) {
  v1::Tenant message;
  message.set_name("tenants/" + tenant.id);
  message.set_weight(tenant.weight);
  message.set_max_devices(tenant.max_devices);
  message.set_max_queued_jobs(tenant.max_queued_jobs);
  message.set_usage_device_seconds(tenant.UsageAt(now));
  message.set_running_devices(state.jobs().LoadOf(tenant.id).running_devices);
  message.set_queued_jobs(state.jobs().LoadOf(tenant.id).waiting);
  message.set_guaranteed_devices(tenant.guaranteed_devices);
  message.set_max_storage_bytes(tenant.max_storage_bytes);
  message.set_storage_bytes(tenant.storage_bytes);
  if (tenant.guaranteed_devices > 0) AddWarnings(state, message);
  return message;
}

// Of the fields that are set.
std::vector<std::string> ViolationsOf(const v1::Tenant& wanted, const std::set<std::string>& fields) {
  std::vector<std::string> violations;
  for (const std::string& field : fields) {
    if (std::find(std::begin(kTenantFields), std::end(kTenantFields), field) != std::end(kTenantFields)) continue;
    violations.push_back(
        absl::StrCat("update_mask: ", Shown(field), " cannot be set; give ", absl::StrJoin(kTenantFields, ", ")));
  }
  if (fields.count("weight") > 0 && !(wanted.weight() > 0 && wanted.weight() <= 1e6)) {
    violations.push_back(
        absl::StrCat("tenant.weight: ", wanted.weight(), " is out of range; give a number above 0, at most a million"));
  }
  const auto check = [&](const char* field, int64_t value, absl::string_view nothing) {
    if (fields.count(field) == 0 || value >= 0) return;
    violations.push_back(absl::StrCat("tenant.", field, ": ", value, " is negative; give 0 for ", nothing));
  };
  check("guaranteed_devices", wanted.guaranteed_devices(), "no guarantee");
  check("max_devices", wanted.max_devices(), "no limit");
  check("max_queued_jobs", wanted.max_queued_jobs(), "no limit");
  check("max_storage_bytes", wanted.max_storage_bytes(), "no limit");
  return violations;
}

class QueueService final : public v1::QueueService::Service {
 public:
  explicit QueueService(Backend& backend) : backend_(backend) {}

  grpc::Status GetQueue(grpc::ServerContext* context, const v1::GetQueueRequest* request,
                        v1::Queue* response) override {
    return Handle(backend_, *context, "GetQueue", [&](Call& call) -> absl::Status {
      if (request->limit() < 0)
        return absl::InvalidArgumentError(absl::StrCat("limit: ", request->limit(), " is negative; give 0 to 500"));
      const auto limit =
          static_cast<size_t>(request->limit() == 0 ? kDefaultEntries : std::min(request->limit(), kMaxEntries));
      return backend_.loop.Run([&](State& state, absl::Time now) {
        Describe(call, state, limit, now, *response);
        return absl::OkStatus();
      });
    });
  }
  grpc::Status ListTenants(grpc::ServerContext* context, const v1::ListTenantsRequest* request,
                           v1::ListTenantsResponse* response) override {
    return Handle(backend_, *context, "ListTenants", [&](Call& call) -> absl::Status {
      std::vector<v1::Tenant> tenants;
      LUTHIER_RETURN_IF_ERROR(backend_.loop.Run([&](State& state, absl::Time now) {
        for (const Tenant& tenant : state.tenants()) {
          if (call.Sees(tenant.id)) tenants.push_back(TenantToProto(tenant, state, now));
        }
        return absl::OkStatus();
      }));
      const auto by_name = [](const v1::Tenant& tenant) { return Position(0, tenant.name()); };
      return AddPage("tenants", *request, *response, tenants, by_name,
                     [&](const v1::Tenant& tenant) -> auto& { return *response->add_tenants() = tenant; });
    });
  }
  grpc::Status UpdateTenant(grpc::ServerContext* context, const v1::UpdateTenantRequest* request,
                            v1::Tenant* response) override {
    return Handle(backend_, *context, "UpdateTenant", [&](Call& call) { return Update(call, *request, *response); });
  }

 private:
  static void AddEntry(const Job& job, State& state, absl::Time now, v1::Queue& queue) {
    const WaitReason reason = state.WhyItWaits(job, now);
    v1::QueueEntry& entry = *queue.add_entries();
    entry.set_job(absl::StrCat("jobs/", job.id));
    entry.set_tenant(job.tenant);
    entry.set_service_class(static_cast<v1::ServiceClass>(job.service_class));
    entry.set_priority(job.priority);
    entry.set_nodes(job.nodes);
    entry.set_devices(AllDevices(job));
    entry.set_pending_code(static_cast<v1::PendingReason>(reason.code));
    entry.set_pending_reason(reason.message);
    *entry.mutable_create_time() = ToProto(job.create_time);
  }

  static void Describe(const Call& call, State& state, size_t limit, absl::Time now, v1::Queue& queue) {
    const JobTable& jobs = state.jobs();
    std::set<int64_t> listed;
    const auto is_full = [&] { return queue.entries_size() == static_cast<int>(limit); };
    const auto add = [&](const Job& job) {
      if (!is_full() && call.Sees(job.tenant) && listed.insert(job.number).second) AddEntry(job, state, now, queue);
    };
    // The snapshot gives each tenant the same part of its candidates, however many of its jobs wait, and the caller may
    // see those of one tenant only: with no more than `limit` in it most of these would be missing.
    for (const Decision& decision : Decide(state.TakeSnapshot(now, kMaxEntries))) add(*decision.job);
    // What the policy does not look at comes last: jobs of a sweep that runs as many as it may, and after a loss those
    // whose delay has not run out.
    for (const auto& [key, waiting] : jobs.queues()) {
      if (!call.Sees(key.second)) continue;
      for (auto job = waiting.begin(); job != waiting.end() && !is_full(); ++job) add(**job);
    }
    for (const Job* job : jobs.Delayed()) add(*job);
    queue.set_depth(call.tenant.empty() ? jobs.waiting() : jobs.LoadOf(call.tenant).waiting);
    if (queue.depth() == 0) return;
    *queue.mutable_oldest_create_time() =
        ToProto(call.tenant.empty() ? jobs.OldestWaiting() : jobs.OldestWaitingOf(call.tenant));
  }

  absl::Status Update(Call& call, const v1::UpdateTenantRequest& request, v1::Tenant& response) {
    call.subject = request.tenant().name();
    const absl::StatusOr<std::string> name = ParseName("tenant.name", "tenants", request.tenant().name());
    std::set<std::string> fields(request.update_mask().paths().begin(), request.update_mask().paths().end());
    if (fields.empty()) fields = std::set<std::string>(std::begin(kTenantFields), std::end(kTenantFields));
    const v1::Tenant& wanted = request.tenant();
    // Without dots, as a job names its tenant.
    const absl::Status plain = name.ok() ? CheckId("tenant.name", *name) : absl::OkStatus();
    const std::string id = name.value_or("");
    return backend_.loop.Run([&](State& state, absl::Time now) -> absl::Status {
      Tenant tenant = state.TenantOf(id);
      if (fields.count("weight") > 0) tenant.weight = wanted.weight();
      if (fields.count("guaranteed_devices") > 0) tenant.guaranteed_devices = wanted.guaranteed_devices();
      if (fields.count("max_devices") > 0) tenant.max_devices = wanted.max_devices();
      if (fields.count("max_queued_jobs") > 0) tenant.max_queued_jobs = wanted.max_queued_jobs();
      if (fields.count("max_storage_bytes") > 0) tenant.max_storage_bytes = wanted.max_storage_bytes();
      // An empty state says what is wrong with the whole: beside other faults this one must not be changed.
      LUTHIER_RETURN_IF_ERROR(
          AllOf({name.status(), plain, Refusal(ViolationsOf(wanted, fields)), State().SetTenant(tenant, now)}));
      LUTHIER_RETURN_IF_ERROR(state.SetTenant(tenant, now));
      response = TenantToProto(state.TenantOf(id), state, now);
      return absl::OkStatus();
    });
  }

  Backend& backend_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeQueueService(Backend& backend) { return std::make_unique<QueueService>(backend); }

}  // namespace luthier
