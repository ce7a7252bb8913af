#include "worker/agent/shared_store.h"

#include <fstream>
#include <memory>
#include <vector>

#include "lib/artifact/file_artifact_store.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

absl::Status CopyIntoStore(ArtifactStore& store, const std::string& path, const ManifestFile& file) {
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<BlobWriter> blob, store.PutBlob(file.sha256, file.bytes));
  std::ifstream stream(path, std::ios::binary);
  std::vector<char> buffer(1 << 20);
  while (stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size())), stream.gcount() > 0) {
    LUTHIER_RETURN_IF_ERROR(blob->Append({buffer.data(), static_cast<size_t>(stream.gcount())}));
  }
  return blob->Commit();
}

}  // namespace

std::set<std::string> CopyIntoSharedStore(const std::string& root, const std::string& folder,
                                          const Manifest& manifest) {
  std::set<std::string> stored;
  if (root.empty()) return stored;
  const absl::StatusOr<std::unique_ptr<FileArtifactStore>> store = FileArtifactStore::OpenShared(root);
  if (!store.ok()) return stored;
  for (const ManifestFile& file : manifest.files) {
    if ((*store)->HasBlob(file.sha256) || CopyIntoStore(**store, folder + "/" + file.path, file).ok())
      stored.insert(file.sha256);
  }
  return stored;
}

}  // namespace luthier
