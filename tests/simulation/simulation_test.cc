// Runs seeds. LUTHIER_SIMULATION_SEEDS: how many (1,000); LUTHIER_SIMULATION_FIRST: the first (1), to run one again.
#include "tests/simulation/simulation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace luthier {
namespace {

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

// The first seed that breaks a promise, or 0.
uint64_t FirstBroken(uint64_t first, uint64_t seeds, Simulation::Counts& total, std::string& what) {
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    Simulation simulation(seed);
    what = simulation.Run();
    const Simulation::Counts& counts = simulation.counts();
    total.commits += counts.commits;
    total.crashes += counts.crashes;
    total.breaks += counts.breaks;
    total.full_disks += counts.full_disks;
    total.restorations += counts.restorations;
    total.jobs += counts.jobs;
    total.attempts += counts.attempts;
    total.gangs += counts.gangs;
    total.lost_peers += counts.lost_peers;
    total.preemptions += counts.preemptions;
    total.reclaims += counts.reclaims;
    total.checkpoints += counts.checkpoints;
    total.resumptions += counts.resumptions;
    total.absences += counts.absences;
    total.departures += counts.departures;
    if (what.empty()) continue;
    const auto& log = simulation.log();
    for (size_t i = log.size() > 60 ? log.size() - 60 : 0; i < log.size(); ++i)
      std::fprintf(stderr, "%s\n", log[i].c_str());
    return seed;
  }
  return 0;
}

TEST(SimulationTest, KeepsItsPromises) {
  const uint64_t first = FromEnvironment("LUTHIER_SIMULATION_FIRST", 1),
                 seeds = FromEnvironment("LUTHIER_SIMULATION_SEEDS", 1000);
  Simulation::Counts total;
  std::string what;
  const uint64_t broken = FirstBroken(first, seeds, total, what);
#ifdef LUTHIER_MUTANT
  // A deliberate bug was put into the server's core or the agent's: it must be found.
  EXPECT_NE(broken, 0u) << "the bug " LUTHIER_MUTANT " was not found with " << seeds << " seeds";
  std::printf("the bug %s was found by seed %llu: %s\n", LUTHIER_MUTANT, static_cast<unsigned long long>(broken),
              what.c_str());
#else
  EXPECT_EQ(broken, 0u) << "seed " << broken << ": " << what
                        << "\nrun it again with LUTHIER_SIMULATION_FIRST=" << broken << " LUTHIER_SIMULATION_SEEDS=1";
  std::printf(
      "%llu seeds from %llu: %lld jobs, %lld attempts (%lld on two nodes, %lld parts ended with another one), %lld "
      "commits, %lld crashes of the server (%lld for half an hour and more), %lld agents that left, %lld broken "
      "sessions, "
      "%lld full disks, %lld restorations from a backup, %lld preemptions (%lld to reclaim what was borrowed), %lld "
      "stored checkpoints, %lld attempts that "
      "went on from one\n",
      static_cast<unsigned long long>(seeds), static_cast<unsigned long long>(first),
      static_cast<long long>(total.jobs), static_cast<long long>(total.attempts), static_cast<long long>(total.gangs),
      static_cast<long long>(total.lost_peers), static_cast<long long>(total.commits),
      static_cast<long long>(total.crashes), static_cast<long long>(total.absences),
      static_cast<long long>(total.departures), static_cast<long long>(total.breaks),
      static_cast<long long>(total.full_disks), static_cast<long long>(total.restorations),
      static_cast<long long>(total.preemptions), static_cast<long long>(total.reclaims),
      static_cast<long long>(total.checkpoints), static_cast<long long>(total.resumptions));
#endif
}

}  // namespace
}  // namespace luthier
