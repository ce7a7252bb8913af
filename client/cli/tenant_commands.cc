#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/list.h"
#include "client/cli/text.h"
#include "lib/base/did_you_mean.h"
#include "lib/base/status_macros.h"
#include "lib/wire/json_wire.h"

namespace luthier {
namespace {

constexpr char kNoLimit[] = "no limit";
std::string LimitText(int64_t limit) { return limit == 0 ? kNoLimit : FormatCount(limit); }

Table TenantTable(const std::vector<v1::Tenant>& tenants) {
  Table table({{"NAME"},
               {"WEIGHT", true},
               {"DEVICES", true},
               {"GUARANTEED", true},
               {"MAX DEVICES", true},
               {"QUEUED", true},
               {"MAX QUEUED", true},
               {"STORED", true},
               {"MAX STORED", true},
               {"CHARGED DEVICE HOURS", true, false, true}});
  for (const v1::Tenant& tenant : tenants) {
    table.AddRow({ShortName(tenant.name()), FormatFraction(tenant.weight()), FormatCount(tenant.running_devices()),
                  FormatCount(tenant.guaranteed_devices()), LimitText(tenant.max_devices()),
                  FormatCount(tenant.queued_jobs()), LimitText(tenant.max_queued_jobs()),
                  FormatBytes(tenant.storage_bytes()),
                  tenant.max_storage_bytes() == 0 ? kNoLimit : FormatBytes(tenant.max_storage_bytes()),
                  FormatFraction(tenant.usage_device_seconds() / 3600)});
  }
  return table;
}

absl::Status List(CommandContext& context, bool watch) {
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  return ShowList(context, watch, [&]() -> absl::StatusOr<Listing> {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::Tenant> tenants, client->ListTenants(kMostListed));
    return ListingOf("tenants", tenants, TenantTable(tenants),
                     "no tenants; one comes to be with its first job, or with: luthier tenant set NAME --weight 1");
  });
}

struct Limits {
  std::string tenant;
  std::optional<double> weight;
  std::optional<int> guaranteed_devices, max_devices;
  std::optional<int64_t> max_queued_jobs, max_storage_bytes;
};

// A mistyped name makes a tenant, whose limits then limit nobody: what was made is said, and what was meant perhaps.
std::string WhatBecameOf(const std::string& name, const std::vector<v1::Tenant>& before) {
  std::vector<std::string> names;
  for (const v1::Tenant& tenant : before) names.push_back(ShortName(tenant.name()));
  if (std::count(names.begin(), names.end(), ShortName(name)) > 0) return absl::StrCat("updated ", name);
  const std::string near = DidYouMean(ShortName(name), names);
  return absl::StrCat("created ", name, ", which was not there before",
                      near.empty() ? "" : absl::StrCat("; did you mean ", near, "?"));
}

absl::Status Set(CommandContext& context, const Limits& limits) {
  v1::UpdateTenantRequest request;
  v1::Tenant& tenant = *request.mutable_tenant();
  tenant.set_name(FullName("tenants", limits.tenant));
  tenant.set_weight(limits.weight.value_or(0));
  tenant.set_guaranteed_devices(limits.guaranteed_devices.value_or(0));
  tenant.set_max_devices(limits.max_devices.value_or(0));
  tenant.set_max_queued_jobs(limits.max_queued_jobs.value_or(0));
  tenant.set_max_storage_bytes(limits.max_storage_bytes.value_or(0));
  if (limits.weight) request.mutable_update_mask()->add_paths("weight");
  if (limits.guaranteed_devices) request.mutable_update_mask()->add_paths("guaranteed_devices");
  if (limits.max_devices) request.mutable_update_mask()->add_paths("max_devices");
  if (limits.max_queued_jobs) request.mutable_update_mask()->add_paths("max_queued_jobs");
  if (limits.max_storage_bytes) request.mutable_update_mask()->add_paths("max_storage_bytes");
  if (request.update_mask().paths().empty())
    return absl::InvalidArgumentError(
        "nothing to set: give --weight, --guaranteed-devices, --max-devices, --max-queued-jobs or --max-storage");
  LUTHIER_ASSIGN_OR_RETURN(Client* const client, context.client());
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<v1::Tenant> before, client->ListTenants(kMostListed));
  LUTHIER_ASSIGN_OR_RETURN(const v1::Tenant now, client->UpdateTenant(request));
  context.Say(WhatBecameOf(now.name(), before));
  context.SayWarnings(now.warnings());
  if (context.ForPrograms()) {
    context.PrintForPrograms(MessageToJson(now));
  } else if (context.format() == OutputFormat::kName) {
    context.out() << now.name() << "\n";
  } else {
    context.out() << TenantTable({now}).Render(context.out_terminal());
  }
  return absl::OkStatus();
}

}  // namespace

void AddTenantCommands(CLI::App& app, CommandContext& context) {
  CLI::App& tenant = context.AddNoun(app, "tenant", "Show and set who may use how much");
  auto watch = std::make_shared<bool>(false);
  CLI::App& list = context.AddCommand(tenant, "list", "List tenants: their share, limits, and what they use",
                                      "  luthier tenant list\n", [&context, watch] { return List(context, *watch); });
  AddWatchFlag(list, *watch);
  auto limits = std::make_shared<Limits>();
  CLI::App& set =
      context.AddCommand(tenant, "set", "Set share and limits of a tenant; one that does not exist comes to be",
                         "  luthier tenant set support --weight 2 --max-devices 4\n"
                         "  luthier tenant set support --guaranteed-devices 2 --max-storage 500GB\n"
                         "  luthier tenant set support --max-queued-jobs 0          # no limit any more\n",
                         [&context, limits] { return Set(context, *limits); });
  set.add_option("TENANT", limits->tenant, "Name of the tenant")->required();
  context.CompleteWith(set, TenantNames);
  set.add_option("--weight", limits->weight, "Its share beside the others': 2 gets twice as much as 1")->type_name("X");
  set.add_option("--guaranteed-devices", limits->guaranteed_devices,
                 "Devices that are its own when it wants them, and others' while it does not; 0: none")
      ->type_name("N");
  set.add_option("--max-devices", limits->max_devices, "Devices at once; 0: no limit")->type_name("N");
  set.add_option("--max-queued-jobs", limits->max_queued_jobs,
                 "Jobs that wait at once, those on hold and paused ones too; 0: no limit")
      ->type_name("N");
  set.add_option("--max-storage", limits->max_storage_bytes,
                 "Bytes of its datasets, versions of models and checkpoints, such as 500GB; 0: no limit")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->type_name("SIZE");
}

}  // namespace luthier
