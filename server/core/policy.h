// Which waiting job starts where, and why the others wait. Pure functions of a snapshot.
//
// Order: what is within the guarantee of its tenant before what borrows, with one exception: a more urgent job of the
// same tenant that gets something beyond the guarantee comes before what is less urgent and within it; then service
// classes strictly; within a class the tenant that has used least for its weight; within a tenant priority, where a
// point is worth an hour of waiting. What fits nowhere has other attempts stop for it where that costs least
// (preemption): those of less urgent classes, and, if it is within the guarantee of its tenant, those of tenants above
// theirs. The first job that cannot have even that gets a reservation, and what comes after it starts only where it
// does not delay it (EASY backfill).
//
// A job gets all of its nodes in one decision or none, so no two gangs hold what the other one waits for. They are all
// GPU nodes or all CPU nodes; each has the devices that the job asks for, and counts for its tenant with them.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "server/core/job.h"
#include "server/core/speeds.h"

namespace luthier {

// Attempts of which a process may be left on a node, and the devices that it uses.
using Processes = std::map<std::string, std::vector<int>>;

// A machine with an agent.
struct Node {
  std::string id;
  bool ready = false;     // its agent has a session; else its attempts wait for it until `deadline`
  bool leaving = false;   // its agent is about to end: it reports what became of its attempts and gets no others
  bool draining = false;  // an operator wants it empty
  bool outdated = false;  // its agent might refuse or misunderstand new orders: it goes on with what it has
  absl::Time deadline = absl::InfinitePast();
  absl::Time last_heartbeat = absl::InfinitePast();
  // GPUs, or 1 for the CPUs of a node without any; each counts `shares` times, and device d is a part of d / shares.
  int devices = 1;
  int shares = 1;  // attempts that a device is given to at a time
  bool gpus = false;
  std::vector<int64_t> memory;  // bytes of each device, below 0 for one that cannot be used; empty: unknown
  int64_t main_memory = 0;      // bytes; 0: unknown
  std::map<std::string, std::string> labels;
  std::string gang_address;  // host by which other nodes reach it; empty: it takes part in no gang over nodes
  int gang_port = 0;         // first of the ports at which a leading node waits for the others, one for each device
  std::string agent_version;
  std::string inventory;  // bytes of the layer above
  Processes processes;    // as the agent said last; also of attempts that are not current any more
  // What attempts hold here that ended by another node's word, since when, until the agent says that their part ended.
  struct Leftover {
    std::vector<int> devices;
    absl::Time since;
  };
  std::map<std::string, Leftover> leftovers;  // by attempt
  // Jobs of which attempts died here since one last got through, and when; of those that died together only one.
  std::map<std::string, absl::Time> losses;
  absl::Time quarantine_end = absl::InfinitePast();  // until then it gets nothing; InfinitePast: it has none
  // Nodes whose ranks and those here did not find one another lately, as often as they did not.
  struct Missed {
    int times = 0;
    absl::Time end;  // when it is forgotten
  };
  std::map<std::string, Missed> missed;  // by node, which has the same of this one

  // It has no session, and is not lost yet: what it runs waits for its agent.
  bool IsAway(absl::Time now) const { return !ready && !leaving && now < deadline; }
  bool IsQuarantined() const { return quarantine_end != absl::InfinitePast(); }
  bool TakesWork() const { return ready && !draining && !outdated && !IsQuarantined(); }
};

// What a tenant may do, and what it has done. Usage is in device-seconds that halve every day.
struct Tenant {
  std::string id;
  double weight = 1;              // of its share, above 0
  int max_devices = 0;            // at once; 0: no limit
  int64_t max_queued_jobs = 0;    // 0: no limit
  int guaranteed_devices = 0;     // that are its own when it wants them; others borrow them while it does not
  int64_t max_storage_bytes = 0;  // 0: no limit
  int64_t storage_bytes = 0;      // of its datasets, versions and stored checkpoints, each counted in full
  double usage = 0;               // at `usage_time`
  absl::Time usage_time = absl::InfinitePast();

  double UsageAt(absl::Time now) const;
  void Charge(double device_seconds, absl::Time now);
};

// A running attempt on one of its nodes: when it is expected to end, and how many devices it gives back there then.
struct Release {
  absl::Time end;
  int devices = 0;
  const Job* preemptible = nullptr;  // its job, if it may be stopped for another one
  std::string tenant;                // whose it is
};

// A node that can take attempts, and what of it is free.
struct NodeView {
  const Node* node;
  std::vector<int> free;  // devices, ascending
  std::vector<Release> releases;
  int stopping = 0;  // devices of attempts that were told to stop: free at any moment
};

struct TenantView {
  double usage = 0;  // now
  double weight = 1;
  int max_devices = 0;
  int running_devices = 0;
  int guaranteed_devices = 0;
  int kept_devices = 0;      // of those that run, without attempts that were told to stop
  int promised_devices = 0;  // for which room is made in this cycle

  // Whether so many more devices are its own.
  bool Guarantees(int devices) const {
    return guaranteed_devices > 0 && kept_devices + promised_devices + devices <= guaranteed_devices;
  }
  // Whether it can lose so many and has as many as are its own all the same.
  bool Borrows(int devices) const { return guaranteed_devices == 0 || kept_devices - devices >= guaranteed_devices; }
  // For so long as the job is expected to take. `devices`: `kept_devices` or `promised_devices`, whichever it adds to:
  // those that run, or are made room for.
  void Charge(const Job& job, absl::Duration duration, int& devices);
};

struct Snapshot {
  absl::Time now;
  const Speeds* speeds;
  std::vector<NodeView> nodes;
  std::map<std::string, TenantView> tenants;  // those with waiting jobs, and those with a guarantee
  // Waiting jobs by class (in the order of kServiceClasses) and tenant, in the tenant's order.
  std::array<std::map<std::string, std::vector<const Job*>>, kServiceClasses.size()> waiting;
  // For a forecast, where jobs wait here that their sweep is not to start yet: when those of each sweep with a limit
  // that hold devices are expected to end. By the number of the sweep and that of the job.
  std::map<int64_t, std::map<int64_t, absl::Time>> ends_of_sweeps;
};

// Why a job waits. Values are those of PendingReason in the API.
enum class Wait {
  kNone = 0,
  kNoNode = 1,        // no node is connected
  kTooLarge = 2,      // too few connected nodes have that many devices of that size
  kBusy = 3,          // the nodes that could take it are busy
  kReserved = 4,      // it would delay a job before it
  kTenantLimit = 5,   // its tenant runs as much as it may
  kBackoff = 6,       // the delay after a lost attempt
  kBehindOthers = 7,  // others come first
  kHeld = 8,          // created on hold
  kPaused = 9,        // paused by a user
  kQuarantined = 10,  // the nodes that could take it are quarantined
  kMakingRoom = 11,   // what has to stop for it has not stopped yet
  kNoMatch = 12,      // no connected node has the labels that it asks for
  kSweepLimit = 13,   // its sweep runs as many jobs as it may
  kDrained = 14,      // the nodes that could take it are drained
  kOutdated = 15,     // the agents of the nodes that could take it are outdated
};

// One for every job of a snapshot, in the order in which they were looked at.
struct Decision {
  const Job* job;
  Wait wait = Wait::kNone;                       // kNone: it starts
  std::string node;                              // where, or where there will be room; the leading one of several
  std::vector<int> devices;                      // with what
  std::vector<Place> others;                     // where else
  std::vector<const Job*> preempted;             // what has to stop for it
  absl::Time not_before = absl::InfinitePast();  // of the job with the reservation: when it is expected to start
};
std::vector<Decision> Decide(Snapshot snapshot);

// Before another job of the same class and tenant.
bool ComesBefore(const Job& a, const Job& b);

}  // namespace luthier
