// A secret that names its caller to the server. Only its hash is kept.
#pragma once

#include <string>

#include "absl/time/time.h"

namespace luthier {

// Values are those of the API and the database: never renumber.
enum class Role {
  kViewer = 1,  // reads what its tenant has
  kMember = 2,  // also submits, changes and deletes it
  kAdmin = 3,   // everything, of all tenants
  kAgent = 4,   // a node's agent, and nothing else
};

struct Token {
  std::string id;
  std::string sha256;  // of the secret: 32 random bytes need no salt
  Role role = Role::kViewer;
  std::string tenant;  // empty: all (admins and agents)
  std::string node;    // the only one that its agent may be; empty: any
  absl::Time create_time = absl::InfinitePast();
  absl::Time expire_time = absl::InfiniteFuture();
  absl::Time revoke_time = absl::InfiniteFuture();

  bool ValidAt(absl::Time now) const { return now < expire_time && now < revoke_time; }
};

}  // namespace luthier
