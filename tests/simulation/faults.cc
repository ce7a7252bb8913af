// Faults: broken sessions, crashes, a clock that is set, a full disk, and a record that is lost.
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "tests/simulation/simulation.h"

namespace luthier {

void Simulation::FaultLater() {
  At(random_.Between(absl::Seconds(1), absl::Seconds(25)), [this] {
    if (calm_) return;
    Agent& agent = agents_[absl::StrCat("n", random_.Below(kNodes))];
    const int fault = random_.Below(10);
    if (fault < 3) {
      if (agent.link != 0) Break(agent);
    } else if (fault < 5) {
      if (random_.Chance(0.2)) {
        Leave(agent);
      } else {
        CrashAgent(agent);
      }
    } else if (fault < 6) {
      CrashServer("at any moment");
    } else if (fault < 7 && state_) {
      const absl::Duration jump = random_.Between(absl::Minutes(1), absl::Minutes(10)) * (random_.Chance(0.5) ? 1 : -1);
      Say(absl::StrCat("the server's clock is set by ", absl::FormatDuration(jump)));
      clock_ += jump;
      state_->ClockJumped(jump);
    } else if (fault < 8) {
      disk_full_ = true;
      ++counts_.full_disks;
      Say("disk full");
      At(random_.Between(absl::Seconds(1), absl::Seconds(20)), [this] { disk_full_ = false; });
    } else if (fault < 9 && random_.Chance(0.3)) {
      if (backup_ && random_.Chance(0.5)) {
        LoseTheRecord();
      } else {
        BackUp();
      }
    } else if (fault < 9) {
      // The agent lives and trains, and nobody hears of it, perhaps for longer than its lease.
      agent.partitioned_until = now_ + random_.Between(absl::Seconds(10), absl::Seconds(90));
      Say(absl::StrCat("agent ", agent.node, " is cut off"));
      Break(agent);
    }
    FaultLater();
  });
}

void Simulation::BackUp() {
  if (!state_) return;
  const std::string path = folder_.path() + "/backup";
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
  if (const absl::Status copied = store_->CopyTo(path); !copied.ok()) return Violate("no backup: " + copied.ToString());
  Say("backup");
  backup_ = Backup{durable_, checkpoints_, cancelled_, failed_by_user_, crashed_on_, {}};
  for (const auto& request : requests_) {
    if (request->acknowledged) backup_->acknowledged.insert(request->id);
  }
}

// What users heard since the backup has not happened: they find out, and ask again.
void Simulation::LoseTheRecord() {
  if (!state_) return;
  CrashServer("and its record is lost");
  ++counts_.restorations;
  const std::string record = folder_.path() + "/luthier.db";
  std::error_code ignored;
  for (const char* end : {"", "-wal", "-shm"}) std::filesystem::remove(record + end, ignored);
  std::filesystem::copy_file(folder_.path() + "/backup", record);
  restored_ = true;
  durable_ = backup_->durable;
  checkpoints_ = backup_->checkpoints;
  cancelled_ = backup_->cancelled;
  failed_by_user_ = backup_->failed_by_user;
  crashed_on_ = backup_->crashed_on;
  for (const auto& request : requests_) {
    if (!request->acknowledged || backup_->acknowledged.count(request->id) > 0) continue;
    request->acknowledged.reset();
    At(random_.Between(absl::Seconds(1), absl::Seconds(30)), [this, request] { Submit(request); });
  }
}

}  // namespace luthier
