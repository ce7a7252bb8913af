// What is on record beside jobs: versions of models and their aliases, datasets and base models, tokens.
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/reason.h"
#include "server/store/connection.h"
#include "server/store/rows.h"
#include "server/store/store.h"
#include "server/store/store_error.h"

namespace luthier {
namespace {

Resource ReadResource(Query& row) {
  Resource resource;
  resource.id = row.Text();
  resource.create_time = row.Time();
  resource.payload = row.Blob();
  return resource;
}

// SQLite has a number for programs to know their files by. Ours knows those in which everything is counted.
constexpr int kAllIsCounted = 1;

using BytesByTenant = std::map<std::string, int64_t>;

void CountDatasets(Connection& connection, const Store::OlderSizes& sizes, BytesByTenant& added) {
  std::vector<std::pair<std::string, Stored>> found;
  {
    Query rows = connection.Prepare("SELECT id, create_time, payload FROM datasets WHERE tenant = ''");
    while (rows.Step()) {
      const Resource dataset = ReadResource(rows);
      found.emplace_back(dataset.id, sizes.of_dataset(dataset));
    }
  }
  for (const auto& [id, stored] : found) {
    connection.Prepare("UPDATE datasets SET tenant = ?, bytes = ? WHERE id = ?")
        .Bind(stored.tenant, stored.bytes, id)
        .Run();
    added[stored.tenant] += stored.bytes;
  }
}

void CountVersions(Connection& connection, const Store::OlderSizes& sizes, BytesByTenant& added) {
  std::vector<ModelVersion> found;
  {
    Query rows = connection.Prepare(
        "SELECT model, version, tenant, payload FROM model_versions WHERE bytes = 0 AND deleted = 0");
    while (rows.Step()) {
      ModelVersion version{.model = rows.Text()};
      version.version = static_cast<int>(rows.Int());
      version.tenant = rows.Text();
      version.payload = rows.Blob();
      version.bytes = sizes.of_version(version);
      version.payload.clear();
      found.push_back(std::move(version));
    }
  }
  for (const ModelVersion& version : found) {
    connection.Prepare("UPDATE model_versions SET bytes = ? WHERE model = ? AND version = ?")
        .Bind(version.bytes, version.model, int64_t{version.version})
        .Run();
    added[version.tenant] += version.bytes;
  }
}

void AddStored(Connection& connection, const std::string& id, int64_t bytes) {
  const Tenant unknown{.id = id};
  connection
      .Prepare(
          "INSERT INTO tenants (id, weight, max_devices, max_queued_jobs, usage, usage_time, storage_bytes) "
          "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET storage_bytes = storage_bytes + "
          "excluded.storage_bytes")
      .Bind(unknown.id, unknown.weight, int64_t{unknown.max_devices}, unknown.max_queued_jobs, unknown.usage,
            unknown.usage_time, bytes)
      .Run();
}

}  // namespace

absl::Status Store::CountOlder(const OlderSizes& sizes) {
  try {
    SQLite::Database& database = writer_->database();
    if (database.execAndGet("PRAGMA application_id").getInt() == kAllIsCounted) return absl::OkStatus();
    SQLite::Transaction transaction(database, SQLite::TransactionBehavior::IMMEDIATE);
    BytesByTenant added;
    CountDatasets(*writer_, sizes, added);
    CountVersions(*writer_, sizes, added);
    for (const auto& [tenant, bytes] : added) AddStored(*writer_, tenant, bytes);
    database.exec(absl::StrCat("PRAGMA application_id = ", kAllIsCounted));
    transaction.commit();
    return absl::OkStatus();
  } catch (const SQLite::Exception& error) {
    return WriteError(error, path_);
  }
}

absl::StatusOr<std::vector<ModelVersion>> Store::Versions(const std::string& model) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<ModelVersion>> {
    Query query = reader_->Prepare(
        "SELECT model, version, job, attempt, base_model, create_time, payload, tenant, bytes FROM model_versions "
        "WHERE (?1 = '' OR model = ?1) AND deleted = 0 ORDER BY model, version DESC");
    query.Bind(model);
    std::vector<ModelVersion> versions;
    while (query.Step()) {
      ModelVersion version{.model = query.Text()};
      version.version = static_cast<int>(query.Int());
      version.job = query.Text();
      version.attempt = static_cast<int>(query.Int());
      version.base_model = query.Text();
      version.create_time = query.Time();
      version.payload = query.Blob();
      version.tenant = query.Text();
      version.bytes = query.Int();
      versions.push_back(std::move(version));
    }
    return versions;
  });
}

absl::StatusOr<int64_t> Store::VersionBytes(const std::string& model, int version) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<int64_t> {
    Query query = reader_->Prepare("SELECT bytes FROM model_versions WHERE model = ? AND version = ?");
    return query.Bind(model, int64_t{version}).Step() ? query.Int() : 0;
  });
}

absl::StatusOr<std::vector<Alias>> Store::Aliases(const std::string& model) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Alias>> {
    Query query = reader_->Prepare("SELECT name, version FROM model_aliases WHERE model = ? ORDER BY name");
    query.Bind(model);
    std::vector<Alias> aliases;
    while (query.Step()) {
      Alias alias{.model = model, .name = query.Text()};
      alias.version = static_cast<int>(query.Int());
      aliases.push_back(std::move(alias));
    }
    return aliases;
  });
}

absl::StatusOr<std::vector<Resource>> Store::ListResources(ResourceKind kind) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Resource>> {
    Query query = reader_->Prepare(
        absl::StrCat("SELECT id, create_time, payload FROM ", TableOf(kind), " ORDER BY create_time DESC, id"));
    std::vector<Resource> resources;
    while (query.Step()) resources.push_back(ReadResource(query));
    return resources;
  });
}

absl::StatusOr<Resource> Store::GetResource(ResourceKind kind, const std::string& id) {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<Resource> {
    Query query =
        reader_->Prepare(absl::StrCat("SELECT id, create_time, payload FROM ", TableOf(kind), " WHERE id = ?"));
    if (!query.Bind(id).Step()) return DoesNotExist(ResourceName(kind, id));
    return ReadResource(query);
  });
}

absl::StatusOr<std::vector<Token>> Store::Tokens() {
  const std::lock_guard lock(reader_mutex_);
  return Guard([&]() -> absl::StatusOr<std::vector<Token>> {
    Query query = reader_->Prepare(
        "SELECT id, sha256, role, tenant, create_time, expire_time, revoke_time, node FROM tokens ORDER BY id");
    std::vector<Token> tokens;
    while (query.Step()) {
      Token token{.id = query.Text()};
      token.sha256 = query.Text();
      token.role = static_cast<Role>(query.Int());
      token.tenant = query.Text();
      token.create_time = query.Time();
      token.expire_time = query.Time();
      token.revoke_time = query.Time();
      token.node = query.Text();
      tokens.push_back(std::move(token));
    }
    return tokens;
  });
}

}  // namespace luthier
